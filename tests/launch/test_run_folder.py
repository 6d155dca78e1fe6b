"""Which folders a run may write to, and what may differ when it goes on."""

import pytest
from omegaconf import OmegaConf

from llama_adapter.launch.run_folder import open_folder


def make_config(folder, **values):
    return OmegaConf.create(
        {"seed": 0, "resume": None, "output_dir": str(folder), "adapter": {"prompt_length": 10, "betas": [1, 2]}}
        | values
    )


def test_a_new_folder_gets_the_resolved_configuration(tmp_path):
    open_folder(make_config(tmp_path, logger={"folder": "${output_dir}/x"}), tmp_path, [])
    stored = OmegaConf.load(tmp_path / "config.yaml")
    assert stored.logger.folder == f"{tmp_path}/x"
    assert list(tmp_path.iterdir()) == [tmp_path / "config.yaml"]


def test_a_finished_run_is_left_alone(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    for resume in (None, str(tmp_path)):
        with pytest.raises(ValueError) as error:
            open_folder(make_config(tmp_path, resume=resume), tmp_path, [])
        assert str(error.value) == (
            f"{tmp_path} holds a finished run (metrics.json). Choose another folder with hydra.run.dir=<folder>, "
            "or remove this one."
        )


def start(folder):
    open_folder(make_config(folder), folder, [])
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/step_000001.ckpt").touch()


def test_an_unfinished_run_is_left_alone(tmp_path):
    start(tmp_path)
    with pytest.raises(ValueError) as error:
        open_folder(make_config(tmp_path), tmp_path, [])
    assert str(error.value) == (
        f"{tmp_path} holds an unfinished run. Continue it with resume={tmp_path}, or choose another hydra.run.dir."
    )


def test_a_run_that_failed_before_its_first_checkpoint_can_be_started_again(tmp_path):
    open_folder(make_config(tmp_path), tmp_path, [])
    open_folder(make_config(tmp_path, seed=1), tmp_path, [])
    assert OmegaConf.load(tmp_path / "config.yaml").seed == 1


def test_resuming_needs_the_configuration(tmp_path):
    with pytest.raises(ValueError) as error:
        open_folder(make_config(tmp_path, resume=str(tmp_path)), tmp_path, [])
    assert str(error.value) == (
        f"resume={tmp_path} has no config.yaml: the run was stopped before it began. Start it again."
    )


def test_resuming_with_the_same_settings(tmp_path):
    start(tmp_path)
    open_folder(make_config(tmp_path, resume=str(tmp_path)), tmp_path, [f"resume={tmp_path}"])


def test_resuming_with_settings_that_changed_unasked(tmp_path):
    start(tmp_path)
    changed = make_config(tmp_path, resume=str(tmp_path), adapter={"prompt_length": 5, "betas": [1, 2]})
    with pytest.raises(ValueError) as error:
        open_folder(changed, tmp_path, [f"resume={tmp_path}"])
    assert str(error.value) == (
        f"adapter.prompt_length was 10 when {tmp_path} was started and is 5 now. "
        "To go on with a changed value, give it: adapter.prompt_length=<value>."
    )


@pytest.mark.parametrize("typed", ["adapter.prompt_length=5", "+adapter.prompt_length=5", "adapter={}"])
def test_resuming_with_settings_that_were_typed(tmp_path, typed):
    start(tmp_path)
    changed = make_config(tmp_path, resume=str(tmp_path), adapter={"prompt_length": 5, "betas": [1, 2]})
    open_folder(changed, tmp_path, [typed])
    assert OmegaConf.load(tmp_path / "config.yaml").adapter.prompt_length == 5


def test_resuming_with_a_key_more_or_less(tmp_path):
    start(tmp_path)
    for values in ({"more": 1}, {"seed": None}):
        with pytest.raises(ValueError, match="To go on with a changed value, give it"):
            open_folder(make_config(tmp_path, resume=str(tmp_path), **values), tmp_path, [])


def test_another_trainer_brings_sizes_of_its_own(tmp_path):
    """`resume=<folder> trainer=1gpu`: what the trainer's file sets need not be typed as well."""
    config = make_config(tmp_path, hardware={"name": "CPU"}, data={"micro_batch_size": 4, "global_batch_size": 64})
    open_folder(config, tmp_path, [])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step_000001.ckpt").touch()
    changed = OmegaConf.merge(config, {"resume": str(tmp_path), "hardware": {"name": "GPU"}})
    changed.data.micro_batch_size = 8
    with pytest.raises(ValueError, match=r"^data\.micro_batch_size was 4 when .* and is 8 now\."):
        open_folder(changed, tmp_path, [f"resume={tmp_path}", "hardware.name=GPU"])
    open_folder(changed, tmp_path, [f"resume={tmp_path}", "trainer=1gpu"])
    changed.data.global_batch_size = 32
    with pytest.raises(ValueError, match=r"^data\.global_batch_size was 64 when "):
        open_folder(changed, tmp_path, [f"resume={tmp_path}", "trainer=1gpu"])
