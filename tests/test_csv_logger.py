"""metrics.csv: what it holds, when it is on the disk, and that a continued one is the uninterrupted one."""

import csv

import pytest

from llama_adapter.csv_logger import RunCsvLogger

ROWS = {
    1: {"train/loss": 2.5, "train/learning_rate": 0.0},
    2: {"train/loss": 1 / 3, "train/learning_rate": 1e-7},
    3: {"train/loss": 2.0, "train/learning_rate": 0.5},
    4: {"train/loss": 1e22, "train/learning_rate": 0.25},
}
EPOCH = {"val/loss": 0.1 + 0.2, "epoch": 0}


def read(logger: RunCsvLogger) -> list[dict[str, str]]:
    with logger.path.open(newline="") as file:
        return list(csv.DictReader(file))


def log(logger: RunCsvLogger, *steps: int) -> None:
    for step in steps:
        logger.log_metrics(ROWS[step], step=step)
        if step == 2:
            logger.log_metrics(EPOCH, step=step)


def test_columns_and_rows(tmp_path):
    logger = RunCsvLogger(tmp_path / "run")
    log(logger, 1, 2)
    logger.save()
    assert (tmp_path / "run/metrics.csv").read_bytes() == (
        b"step,epoch,train/learning_rate,train/loss,val/loss\r\n"
        b"1,,0.0,2.5,\r\n"
        b"2,0,1e-07,0.3333333333333333,0.30000000000000004\r\n"
    )


def test_every_number_comes_back_exactly(tmp_path):
    logger = RunCsvLogger(tmp_path)
    log(logger, 1, 2, 3, 4)
    logger.save()
    for row in read(logger):
        assert float(row["train/loss"]) == ROWS[int(row["step"])]["train/loss"]


def test_rows_are_in_the_order_of_steps_and_one_per_step(tmp_path):
    logger = RunCsvLogger(tmp_path)
    log(logger, 3, 1, 2)
    logger.log_metrics({"val/loss": 9.0}, step=2)
    logger.log_metrics({"before": 1}, step=None)
    logger.save()
    assert [(row["step"], row["val/loss"]) for row in read(logger)] == [("0", ""), ("1", ""), ("2", "9.0"), ("3", "")]


@pytest.mark.parametrize("resumed", [0, 1, 2, 3])
def test_a_continued_file_is_byte_identical(tmp_path, resumed):
    """Whatever the first process wrote after the checkpoint is written again, by a second one."""
    whole = RunCsvLogger(tmp_path / "whole")
    log(whole, 1, 2, 3, 4)
    whole.finalize("success")
    interrupted = RunCsvLogger(tmp_path / "resumed")
    log(interrupted, 1, 2, 3)
    interrupted.log_metrics({"only/before": 1.0}, step=4)  # a column of a row that is dropped
    interrupted.save()
    continued = RunCsvLogger(tmp_path / "resumed")
    continued.keep_until(resumed)
    log(continued, *range(resumed + 1, 5))
    continued.finalize("success")
    assert continued.path.read_bytes() == whole.path.read_bytes()


def test_keep_until_reads_without_writing_and_needs_no_file(tmp_path):
    logger = RunCsvLogger(tmp_path)
    logger.keep_until(3)
    assert logger.rows == {} and not logger.path.exists()
    log(logger, 1, 2, 3)
    logger.save()
    content = logger.path.read_bytes()
    other = RunCsvLogger(tmp_path)
    other.keep_until(2)
    assert sorted(other.rows) == [1, 2]
    assert "val/loss" not in other.rows[1], "a blank cell is no value"
    assert logger.path.read_bytes() == content


def test_is_written_every_so_many_rows_and_at_the_end(tmp_path):
    logger = RunCsvLogger(tmp_path, flush_every_n_rows=2)
    logger.log_metrics({"a": 1.0}, step=1)
    assert not logger.path.exists()
    logger.log_metrics({"a": 2.0}, step=2)
    assert len(read(logger)) == 2
    logger.log_metrics({"a": 3.0}, step=3)
    assert len(read(logger)) == 2
    logger.finalize("failed")
    assert len(read(logger)) == 3


def test_is_whole_at_any_moment(tmp_path, monkeypatch):
    logger = RunCsvLogger(tmp_path)
    log(logger, 1, 2)
    logger.save()
    before = logger.path.read_bytes()
    monkeypatch.setattr(csv.DictWriter, "writerows", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    log(logger, 3)
    with pytest.raises(OSError, match="disk full"):
        logger.save()
    assert logger.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_is_a_lightning_logger(tmp_path):
    logger = RunCsvLogger(tmp_path)
    assert (logger.name, logger.version) == ("csv", "")
    logger.log_hyperparams({"anything": 1})
    assert logger.experiment is logger
    assert not logger.path.exists()


def test_rows_of_now_written_later(tmp_path):
    """By the thread of a checkpoint, while the training adds rows."""
    logger = RunCsvLogger(tmp_path)
    logger.log_metrics({"train/loss": 3.0}, step=1)
    write = logger.save_later()
    logger.log_metrics({"train/loss": 2.0}, step=2)
    logger.log_metrics({"val/loss": 1.0}, step=1)
    assert not (tmp_path / "metrics.csv").exists()
    write()
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,train/loss", "1,3.0"]
    logger.save()
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 3
