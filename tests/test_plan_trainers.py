"""`plan=true` on the command line: the run on every trainer, and what differs from the task's recipe."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from llama_adapter.launch import build
from llama_adapter.launch.schema import register_schemas
from llama_adapter.launch.trainers import plan_report
from llama_adapter.memory import Sharding
from tests.conftest import ROOT

TRAINERS = sorted(path.stem for path in (ROOT / "conf/trainer").glob("*.yaml"))


@pytest.fixture
def report(no_weights, monkeypatch):
    """The printed plan of a command line."""
    monkeypatch.setenv("PROJECT_ROOT", str(ROOT))
    register_schemas()
    GlobalHydra.instance().clear()

    def make(*overrides: str) -> str:
        config = compose("train", ["output_dir=/nowhere", *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        return plan_report(config, build.plan_run(config))

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield make
    HydraConfig.instance().cfg = None


def rows_of(text: str) -> dict[str, str]:
    return {line.split()[0]: line for line in text.split("\n\n")[1].splitlines()[1:]}


def test_the_paper_run_on_every_trainer(report):
    text = report("task=alpaca", "trainer=8xa100", "plan=true")
    rows = rows_of(text)
    assert sorted(rows) == TRAINERS
    assert rows["8xa100"].endswith("this run")
    assert [name for name, row in rows.items() if "fastest that fits" in row] == ["2nodes_8xa100"]
    assert "warning" not in text
    assert "note                  the model fits whole on every device" in text
    assert " 2 x 8 " in rows["2nodes_8xa100"]


def test_what_describes_one_trainer_is_not_asked_of_the_others(report):
    rows = rows_of(report("task=alpaca", "trainer=8xa100", "hardware.memory_gib=3", "data.micro_batch_size=1"))
    assert "of 3 GiB" in rows["8xa100"] and "does not fit" in rows["8xa100"]
    assert "of 80 GiB" in rows["8xa100_ddp"] and "does not fit" not in rows["8xa100_ddp"]


def test_a_trainer_that_cannot_share_the_batch_says_so(report):
    rows = rows_of(report("task=alpaca", "trainer=1gpu", "data.global_batch_size=24"))
    assert rows["2nodes_8xa100"].endswith(
        "data.global_batch_size is 24, which 16 devices cannot share evenly. Choose a multiple of 16."
    )
    assert rows["1gpu"].endswith("this run")


def test_a_rate_far_from_the_tasks_recipe(report):
    text = report("task=squad_v1", "data.global_batch_size=256")
    assert "warning               the learning rate of 0.04 is 8 times the recipe's 0.005: " in text
    assert "warning" not in report("task=squad_v1", "data.global_batch_size=64")
    assert "warning" not in report("task=miniature/squad_v1", "adapter=head_only"), "a recipe of its own"


@pytest.mark.parametrize("task", ["squad_v1", "vtab1k/cifar", "scienceqa", "coco_captions"])
def test_encoders_and_pictures(report, task):
    text = report(f"task={task}", "trainer=1xh200")
    assert "expected time         about" in text
    assert ("images " in text) is (task in ("scienceqa", "coco_captions"))


def test_how_the_strategy_shards(report):
    def sharding(*overrides: str) -> Sharding | None:
        return build.sharding_of(compose("train", ["output_dir=/nowhere", *overrides]))

    assert sharding("trainer=8xa100") == Sharding(8)
    assert sharding("trainer=2nodes_8xa100") == Sharding(8)
    assert sharding("trainer=2nodes_8xa100", "trainer.strategy.across_nodes=true") == Sharding(16, across_nodes=True)
    assert sharding("trainer=8xa100", "trainer.strategy.prefetch_layers=3") == Sharding(8, prefetch_layers=3)
    assert sharding("trainer=8xa100_ddp") is sharding("trainer=cpu") is None
