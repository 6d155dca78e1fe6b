"""Every option of every group: it composes, its nodes bind to what they name, and its comments tell the truth."""

import inspect
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from llama_adapter.launch import build, models
from llama_adapter.launch.entry import register_resolvers
from llama_adapter.launch.nodes import node
from llama_adapter.launch.schema import NODES, check_keys, register_schemas
from tests.conftest import ROOT

CONF = ROOT / "conf"
FILES = sorted(CONF.rglob("*.yaml"))


def options() -> list[str]:
    """`group=option` for every file, as typed."""
    paths = [path.relative_to(CONF).with_suffix("") for path in FILES]
    return [f"{path.parts[0]}={'/'.join(path.parts[1:])}" for path in paths if len(path.parts) > 1]


def in_group(name: str) -> list[str]:
    return [option for option in options() if option.startswith(f"{name}=")]


@pytest.fixture(autouse=True)
def _hydra():
    register_schemas()
    register_resolvers()
    GlobalHydra.instance().clear()
    yield
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


def composed(*overrides: str, name: str = "train") -> DictConfig:
    """The configuration with a folder for its outputs, and a value for what the user must give."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(name, list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        GlobalHydra.instance().clear()
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    config.output_dir = "/nowhere"
    for key in missing(OmegaConf.to_container(config)):
        OmegaConf.update(config, key, "/nowhere")
    OmegaConf.resolve(config)
    return config


def missing(node: dict, prefix: str = "") -> list[str]:
    """The keys that hold ???, dotted."""
    inner = [
        key for name, value in node.items() if isinstance(value, dict) for key in missing(value, f"{prefix}{name}.")
    ]
    return [f"{prefix}{name}" for name, value in node.items() if value == "???"] + inner


def nodes(value: object, key: str = "") -> list[tuple[str, dict]]:
    """Every node with a `_target_`, with its dotted name."""
    if isinstance(value, list):
        return [found for number, item in enumerate(value) for found in nodes(item, f"{key}[{number}]")]
    if not isinstance(value, dict):
        return []
    inner = [found for name, item in value.items() for found in nodes(item, f"{key}.{name}" if key else name)]
    return [(key, value), *inner] if "_target_" in value else inner


def check(config: DictConfig) -> None:
    """Our own nodes become objects, and every node's keys are arguments of what it names."""
    check_keys(config)
    for name in NODES:
        assert models.model_config(config) if name == "model" else node(config, name)
    found = nodes(OmegaConf.to_container(build.without_own_keys(config)))
    assert {"model", "adapter", "task.data", "task.evaluation", "trainer", "callbacks.checkpoint"} <= {
        n for n, _ in found
    }
    for name, values in found:
        arguments = {key: value for key, value in values.items() if not key.startswith("_")}
        target = get_object(values["_target_"])
        try:
            if getattr(target, "__module__", "") == "datetime":  # builtins tell no signature, but are quickly made
                target(**arguments)
            else:
                inspect.signature(target).bind_partial(**arguments)
        except TypeError as error:
            pytest.fail(f"{name} ({values['_target_']}): {error}")
    assert config.trainer.default_root_dir == "/nowhere"
    assert config.task.name == HydraConfig.get().runtime.choices.task


@pytest.mark.parametrize("option", options())
def test_every_option_composes_and_binds(option):
    check(composed() if option.startswith("hydra=") else composed(option))


# The 19 data sets of VTAB-1k differ in three keys: one stands for all.
PLANNED_TASKS = [task for task in in_group("task") if not task.startswith("task=vtab1k/") or task.endswith("/cifar")]


@pytest.mark.parametrize("task", PLANNED_TASKS)
@pytest.mark.parametrize("trainer", in_group("trainer"))
def test_every_task_can_be_planned_on_every_trainer(task, trainer, monkeypatch):
    config = composed(task, trainer)
    check(config)
    HydraConfig.instance().cfg = None
    plan = build.plan_run(config)
    assert plan.steps > 0
    assert not plan.warnings


@pytest.mark.parametrize("experiment", in_group("experiment"))
def test_experiments_fit_every_trainer(experiment):
    for trainer in in_group("trainer"):
        check(composed(experiment, trainer))


@pytest.mark.parametrize("task", in_group("task"))
def test_a_run_writes_under_the_name_of_its_task(task):
    composed(task)
    name = task.removeprefix("task=")
    assert re.fullmatch(rf"outputs/{name}/\d{{4}}-\d\d-\d\d_\d\d-\d\d-\d\d", HydraConfig.get().run.dir)
    assert HydraConfig.get().sweep.dir.startswith(f"outputs/sweeps/{name}/")


def test_evaluate_composes():
    check(composed(name="evaluate"))


def test_the_command_line_wins_over_a_task():
    config = composed("task=alpaca", "model=mistral_7b", "adapter.prompt_length=4")
    assert (config.model.name, config.adapter.prompt_length, config.adapter.prompt_layers) == ("mistral_7b", 4, 30)


def test_a_task_brings_its_model_and_recipe():
    config = composed("task=alpaca")
    assert config.model.name == "llama_7b"
    # arXiv 2303.16199, Section 4.1: K=10, L=30, five epochs, two of warm-up, batch 64, rate 0.009, decay 0.02
    assert (config.adapter.prompt_length, config.adapter.prompt_layers) == (10, 30)
    assert (config.trainer.max_epochs, config.optimizer.warmup_epochs) == (5, 2.0)
    assert (config.data.global_batch_size, config.optimizer.base_learning_rate) == (64, 0.009)
    assert config.optimizer.weight_decay == 0.02


def test_the_experiment_repeats_what_the_task_sets():
    """A changed default must not change a published number."""
    config, experiment = composed("experiment=alpaca_paper"), OmegaConf.load(CONF / "experiment/alpaca_paper.yaml")
    for name in ("adapter", "optimizer"):
        assert set(experiment[name]) == set(config[name]) - {"_target_"}
        assert all(config[name][key] == value for key, value in experiment[name].items())
    assert config.task.data.encoding == "paper"


def heading(path: Path) -> list[str]:
    """The comment lines at a file's top."""
    lines = [line for line in path.read_text().splitlines() if line != "# @package _global_"]
    return [line.removeprefix("# ") for line in lines[: next(n for n, line in enumerate(lines) if line[:1] != "#")]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_every_file_starts_with_a_command_that_works(path):
    commands = [re.split(r" {2,}", line)[0] for line in heading(path)]
    assert commands, f"{path} needs a comment with the command that uses it"
    for command in commands:
        program, *arguments = shlex.split(re.sub(r"<[^>]*>", "x", command))
        if program == "cp":
            continue
        assert program == "python"
        assert arguments[0] in ("train.py", "evaluate.py")
        check(composed(*arguments[1:], name=arguments[0].removesuffix(".py")))


def test_every_key_is_explained():
    """Each key has a comment at its line, at its block's line, or in the file that first sets it."""
    explained: set[str] = {"_target_", "defaults", "name"}
    keys: list[tuple[Path, str]] = []
    for path in FILES:
        if path.parent.name in ("hydra", "local"):  # Hydra's own keys; an example of ours
            continue
        blocks: list[tuple[int, bool]] = []  # indentation and whether it has a comment
        for line in path.read_text().splitlines():
            match = re.match(r"( *)([\w]+):(.*)$", line)
            if match is None:
                continue
            indentation, key, rest = len(match[1]), match[2], match[3]
            blocks = [block for block in blocks if block[0] < indentation]
            commented = " #" in rest or any(block[1] for block in blocks)
            is_block = not rest.split(" #")[0].strip()
            if is_block:
                blocks.append((indentation, commented))
                continue
            keys.append((path, key))
            if commented:
                explained.add(key)
    assert [f"{path.relative_to(CONF)}: {key}" for path, key in keys if key not in explained] == []


def test_this_machines_paths_are_not_in_git():
    assert "/conf/local/default.yaml" in (ROOT / ".gitignore").read_text().splitlines()
    if (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "conf/local"], cwd=ROOT, capture_output=True, text=True).stdout
        assert "default.yaml" not in listed
