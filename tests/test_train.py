"""Training from the command line to the run folder: what it holds, being killed, stopped, resumed and refused."""

import csv
import json
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file

from llama_adapter.checkpoint_files import step_checkpoints
from tests.tiny_run import TinyWorld, call, command, make_records, make_world

EQUAL_FILES = ("adapter.safetensors", "metrics.csv")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> TinyWorld:
    """60 records, of which 56 are trained on in 14 steps per epoch."""
    return make_world(tmp_path_factory.mktemp("world"), records=60)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("finished") / "a run"
    result = call("train.py", *world.overrides(folder))
    assert result.status == 0, result.output
    return folder


def test_a_run_folder_is_complete(world, finished):
    for name in (*EQUAL_FILES, "train.log", "loss.png", "gates.png", "config.yaml", ".hydra/overrides.yaml"):
        assert (finished / name).stat().st_size > 0, name
    assert [path.name for path in step_checkpoints(finished / "checkpoints")] == [
        "step_000025.ckpt",
        "step_000028.ckpt",
    ]
    assert (finished / "checkpoints/best.ckpt").is_file()
    assert not list(finished.rglob("*.part"))
    assert OmegaConf.load(finished / "config.yaml").output_dir == str(finished)
    samples = json.loads((finished / "samples/epoch_02.json").read_text())
    assert [row["instruction"] for row in samples] == ["Name it."]


def test_metrics_are_plain_numbers(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert {"test/loss", "test/exact_match", "test/frozen_exact_match", "val/loss", "train/loss"} <= set(metrics)
    assert all(isinstance(value, float) for value in metrics.values())
    timed = {"useful_tokens_per_second", "response_tokens_per_second", "useful_share", "peak_memory_gib"}
    assert {f"throughput/{name}" for name in timed} <= set(metrics)


def test_generations_hold_answer_and_reference(world, finished):
    rows = [json.loads(line) for line in (finished / "generations.jsonl").read_text().splitlines()]
    records = json.loads(world.test.read_text())
    assert [row["reference"] for row in rows] == [record["output"] for record in records]
    assert all(isinstance(row["answer"], str) and row["instruction"] for row in rows)


def test_a_row_per_step(finished):
    with (finished / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 29))
    assert all(row["train/loss"] for row in rows)
    assert float(rows[0]["train/learning_rate"]) == 0.0  # the schedule starts from 0
    assert [row["step"] for row in rows if row["val/loss"]] == ["14", "28"]


def test_the_adapters_file_says_what_it_belongs_to(finished):
    with safe_open(finished / "adapter.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["llama_adapter"])
    assert header["task"] == "miniature/alpaca"
    assert header["template"]["without_input"] == "Instruction: {instruction}\nResponse:"
    assert header["backbone"]["name"] == "miniature_llama"
    assert (header["prompt_length"], header["prompt_layers"]) == (3, 2)


def start(world: TinyWorld, folder: Path, until: str) -> subprocess.Popen:
    """A process of its own, brought to the point at which it has a checkpoint."""
    arguments, environment = command("train.py", *world.overrides(folder))
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while not (folder / "checkpoints" / until).exists():
        assert process.poll() is None, "the run ended before it was stopped"
        assert time.monotonic() < limit, "the run has no checkpoint after two minutes"
        time.sleep(0.002)
    return process


def untimed_metrics(folder: Path) -> dict[str, float]:
    """`metrics.json` without what a clock says."""
    metrics = json.loads((folder / "metrics.json").read_text())
    return {name: value for name, value in metrics.items() if not name.startswith("throughput/")}


def assert_same_run(folder: Path, finished: Path) -> None:
    for name in EQUAL_FILES:
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name
    assert untimed_metrics(folder) == untimed_metrics(finished)
    for name in ("generations.jsonl", "generations_frozen.jsonl", "samples/epoch_02.json"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name


def newest_step(folder: Path) -> int:
    return int(step_checkpoints(folder / "checkpoints")[-1].stem.removeprefix("step_"))


def test_a_killed_run_resumes_to_the_same_bytes(world, finished, tmp_path):
    folder = tmp_path / "a killed run"
    process = start(world, folder, "step_000005.ckpt")
    process.kill()
    process.wait()
    assert not (folder / "metrics.json").exists()
    assert newest_step(folder) % 14  # within an epoch

    refused = call("train.py", *world.overrides(folder))
    assert refused.status == 1
    assert refused.error == (
        f"{folder} holds an unfinished run. Continue it with resume={folder}, or choose another hydra.run.dir."
    )
    result = call("train.py", f"resume={folder}")
    assert result.status == 0, result.output
    assert_same_run(folder, finished)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(world, finished, tmp_path):
    """Killed with one, resumed with two, and stopped and resumed with one again."""
    folder = tmp_path / "run"
    process = start(world, folder, "step_000005.ckpt")
    process.kill()
    process.wait()
    arguments, environment = command("train.py", f"resume={folder}", "trainer=cpu_2")
    process = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=240)
    assert process.returncode == 0, process.stderr
    assert_close_run(folder, finished)
    (folder / "metrics.json").unlink()
    for checkpoint in step_checkpoints(folder / "checkpoints")[1:]:
        checkpoint.unlink()
    result = call("train.py", f"resume={folder}", "trainer=cpu")
    assert result.status == 0, result.output
    assert_close_run(folder, finished)


def assert_close_run(folder: Path, finished: Path) -> None:
    """Sums of the same numbers in another order, in float32."""
    losses, expected = (
        [float(row["train/loss"]) for row in csv.DictReader((path / "metrics.csv").open()) if row["train/loss"]]
        for path in (folder, finished)
    )
    assert losses == pytest.approx(expected, rel=1e-5)
    one, other = (load_file(path / "adapter.safetensors") for path in (folder, finished))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-4)


def test_a_run_that_is_told_to_stop_saves_first_and_resumes(world, finished, tmp_path):
    folder = tmp_path / "run"
    process = start(world, folder, "step_000001.ckpt")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    step = newest_step(folder)
    assert "Stopped by" not in (folder / "train.log").read_text()
    assert "SIGTERM: saving a checkpoint after this step." in (folder / "train.log").read_text()

    result = call("train.py", f"resume={folder}")
    assert result.status == 0, result.output
    assert f"Resuming after step {step} from {folder}/checkpoints/step_{step:06d}.ckpt." in result.output
    assert_same_run(folder, finished)


def unfinished_copy(finished: Path, folder: Path) -> Path:
    """A folder as a kill between the last checkpoint and the last file leaves it."""
    shutil.copytree(finished, folder)
    (folder / "metrics.json").unlink()
    return folder


def test_a_destroyed_checkpoint_is_passed_over(finished, tmp_path):
    folder = unfinished_copy(finished, tmp_path / "run")
    (folder / "checkpoints/step_000028.ckpt").write_bytes(b"PK cut off")
    result = call("train.py", f"resume={folder}")
    assert result.status == 0, result.output
    assert "step_000028.ckpt is destroyed; trying the one before it." in result.output
    assert_same_run(folder, finished)


def test_resuming_after_the_last_step_writes_what_was_missing(finished, tmp_path):
    folder = unfinished_copy(finished, tmp_path / "run")
    (folder / "adapter.safetensors").unlink()
    assert call("train.py", f"resume={folder}").status == 0
    assert_same_run(folder, finished)


def test_resuming_with_all_checkpoints_destroyed(finished, tmp_path):
    folder = unfinished_copy(finished, tmp_path / "run")
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(b"")
    assert call("train.py", f"resume={folder}").error == (
        f"All checkpoints in {folder}/checkpoints are destroyed (step_000028.ckpt is the newest). Start the run again."
    )


def test_resuming_a_finished_run(finished):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file() and path.suffix != ".log"}
    result = call("train.py", f"resume={finished}")
    assert result.status == 1
    assert result.error.startswith(f"{finished} holds a finished run (metrics.json).")
    assert {path for path in before if path.read_bytes() != before[path] and ".hydra" not in path.parts} == set()


def test_a_second_run_into_a_finished_folder(world, finished):
    result = call("train.py", *world.overrides(finished))
    assert result.status == 1
    assert result.error == (
        f"{finished} holds a finished run (metrics.json). Choose another folder with hydra.run.dir=<folder>, "
        "or remove this one."
    )


def test_resuming_a_folder_that_is_none(tmp_path):
    result = call("train.py", f"resume={tmp_path}")
    assert result.error == f"resume={tmp_path} is no run folder: it has no .hydra/overrides.yaml."


def test_resuming_with_a_changed_setting_must_be_typed(finished, tmp_path):
    folder = unfinished_copy(finished, tmp_path / "run")
    overrides = folder / ".hydra/overrides.yaml"
    overrides.write_text(overrides.read_text().replace("trainer.max_epochs=2", "trainer.max_epochs=3"))
    result = call("train.py", f"resume={folder}")
    assert result.error == (
        f"trainer.max_epochs was 2 when {folder} was started and is 3 now. "
        "To go on with a changed value, give it: trainer.max_epochs=<value>."
    )


def test_two_settings_run_into_two_folders(world, tmp_path):
    arguments = world.overrides(None, trainer__max_steps=2)
    result = call("train.py", "-m", *arguments, "seed=0,1", f"hydra.sweep.dir='{tmp_path / 'a sweep'}'")
    assert result.status == 0, result.output
    folders = sorted((tmp_path / "a sweep").glob("*/adapter.safetensors"))
    assert [path.parent.name[:2] for path in folders] == ["0_", "1_"]
    assert [OmegaConf.load(path.parent / "config.yaml").seed for path in folders] == [0, 1]
    one, other = (path.read_bytes() for path in folders)
    assert one != other


def test_a_plain_sweep_over_k_and_l_goes_on_where_it_stopped(world, tmp_path):
    sweep = tmp_path / "sweep"
    arguments = world.overrides(None, trainer__max_steps=1)
    arguments = [a for a in arguments if not a.startswith(("adapter.prompt_length", "adapter.prompt_layers"))]
    arguments += ["adapter.prompt_length=2,3", "adapter.prompt_layers=1", f"hydra.sweep.dir={sweep}"]
    assert call("train.py", "-m", *arguments).status == 0
    with (sweep / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["adapter.prompt_length"], row["adapter.prompt_layers"]) for row in rows] == [("2", "1"), ("3", "1")]
    assert all(row["status"] == "finished" and float(row["test/loss"]) > 0 for row in rows)
    (sweep / rows[1]["job"] / "metrics.json").unlink()
    again = call("train.py", "-m", *arguments)
    assert again.status == 0
    assert again.output.count("has finished before.") == 1
    assert (sweep / rows[1]["job"] / "metrics.json").is_file()


def test_a_sweep_in_one_process_uses_one_device(world, tmp_path):
    arguments = world.overrides(None, trainer__devices=2)
    result = call("train.py", "-m", *arguments, "seed=0,1", f"hydra.sweep.dir='{tmp_path}'")
    assert result.error == (
        "A sweep in one process cannot use 2 devices: every one of them would run its own sweep. Use "
        "hydra/launcher=subprocess, which starts each job as a run of its own, or trainer.devices=1."
    )


def test_the_objective_must_have_been_measured(world, tmp_path):
    result = call(
        "train.py", *world.overrides(tmp_path / "run", trainer__max_steps=1, objective__metric="val/accuracy")
    )
    assert result.status == 0, "one run is compared with none"
    folder = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    overrides = world.overrides(None, trainer__max_steps=1, objective__metric="val/accuracy")
    result = call("train.py", "-m", folder, *overrides)
    assert result.error.startswith("objective.metric is 'val/accuracy', which this run did not measure. Choose one of ")


def test_what_fails_before_the_first_checkpoint_can_be_tried_again(world, tmp_path):
    missing = call("train.py", *world.overrides(tmp_path / "run", task__data__path=tmp_path / "none.json"))
    assert missing.error.startswith(f"No file {tmp_path}/none.json. Set task.data.path to the Alpaca JSON")
    assert call("train.py", *world.overrides(tmp_path / "run", trainer__max_steps=1)).status == 0


@pytest.mark.parametrize(
    ("trainer", "steps", "batching"),
    [
        ("cpu_2", 3, "flat"),  # FSDP2
        pytest.param("cpu_2", 28, "flat", marks=pytest.mark.slow),
        pytest.param("cpu_2", 28, "padded", marks=pytest.mark.slow),
        pytest.param("cpu_2_ddp", 28, "flat", marks=pytest.mark.slow),
        pytest.param("cpu_2_ddp", 28, "padded", marks=pytest.mark.slow),
    ],
)
def test_two_devices_train_the_run_of_one(world, tmp_path, trainer, steps, batching):
    """Accumulated micro-batches, and parts of odd numbers, of which every example counts once: two epochs of 14 steps,
    the last ones of 3 examples."""
    folder, alone, test = tmp_path / "run", tmp_path / "alone", tmp_path / "test.json"
    test.write_text(json.dumps(make_records(5, start=1000)))
    changed = {"trainer__max_steps": steps, "data__batching": batching, "task__data__validation_size": 5}
    changed["task__data__test_path"] = test
    arguments, environment = command("train.py", *world.overrides(folder, **changed), f"trainer={trainer}")
    process = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=240)
    assert process.returncode == 0, process.stderr
    assert call("train.py", *world.overrides(alone, **changed)).status == 0
    one, other = (untimed_metrics(path) for path in (alone, folder))
    # sums in another order, in float32
    assert other == pytest.approx(one, rel=1e-5)
    assert_close_run(folder, alone)
    assert (folder / "generations.jsonl").read_text() == (alone / "generations.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["null", "attention"])
def test_a_compiled_run_is_the_run(world, finished, tmp_path, kept):
    """With validation, samples and the evaluation of a whole run: none of them may compile anew until it fails."""
    overrides = world.overrides(tmp_path, trainer__compile=True, trainer__activation_checkpointing=kept)
    result = call("train.py", *overrides)
    assert result.status == 0, result.output
    # compiled kernels round in another order, and 28 steps of AdamW amplify that
    assert untimed_metrics(tmp_path) == pytest.approx(untimed_metrics(finished), rel=1e-2, abs=1e-3)


def test_what_a_layer_keeps_changes_nothing_else(world, finished, tmp_path):
    """To the last bit: what is computed again is computed in the same way."""
    result = call("train.py", *world.overrides(tmp_path, trainer__activation_checkpointing="layer"))
    assert result.status == 0, result.output
    assert untimed_metrics(tmp_path) == untimed_metrics(finished)


def test_a_limit_of_tokens_changes_only_the_order_of_sums(world, finished, tmp_path):
    result = call("train.py", *world.overrides(tmp_path, data__max_tokens=60, data__micro_batch_size=8))
    assert result.status == 0, result.output
    assert untimed_metrics(tmp_path) == pytest.approx(untimed_metrics(finished), rel=1e-4)


def test_a_plan_needs_no_weights_and_few_seconds(tmp_path):
    arguments, environment = command(
        "train.py", "task=alpaca", "trainer=8xa100", "plan=true", f"hydra.run.dir={tmp_path / 'plan'}"
    )
    watch = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
        "assert 'transformers' not in sys.modules and 'lightning' not in sys.modules"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run(
        [arguments[0], "-c", watch, *arguments[1:]], env=environment, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    assert "1,229,760" in process.stdout
    assert "0.00225" in process.stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # of the processor, whatever else it is doing; most of them go into importing torch
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
    assert not list((tmp_path / "plan").glob("*.safetensors"))
