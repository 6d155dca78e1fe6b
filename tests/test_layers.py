"""The import rules of the layers, read from the source: what a file may import tells where it belongs."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

CORE = ROOT / "src/llama_adapter"
PLUGINS = ROOT / "src/hydra_plugins"
FILES = sorted(
    [
        *CORE.rglob("*.py"),
        *PLUGINS.rglob("*.py"),
        *(ROOT / "tasks").rglob("*.py"),
        ROOT / "train.py",
        ROOT / "evaluate.py",
    ]
)
TASKS = sorted(path.name for path in (ROOT / "tasks").iterdir() if (path / "__init__.py").is_file())

MODELS = {
    "torch",
    "transformers",
    "huggingface_hub",
    "safetensors",
    "sentencepiece",
    "torchao",
    "bitsandbytes",
    "PIL",
    "numpy",
}
TRAINING = MODELS | {"lightning", "torchmetrics", "matplotlib"}
TASK = TRAINING | {"pycocoevalcap", "tokenizers"}  # and the metric libraries of the tasks
ENTRY = TRAINING | {"hydra", "omegaconf", "rich"}

# What a file and everything that it imports may use; files that are not named belong to the training layer.
ALLOWED = {
    "llama_adapter.zero_init": {"torch"},
    "llama_adapter.batches": set(),
    "llama_adapter.optim": set(),
    "llama_adapter.files": set(),
} | dict.fromkeys(
    (
        "llama_adapter.backbones",
        "llama_adapter.attach",
        "llama_adapter.adapter_file",
        "llama_adapter.checkpoint",
        "llama_adapter.authors_checkpoint",
        "llama_adapter.fingerprint",
        "llama_adapter.loading",
        "llama_adapter.meta_checkpoint",
        "llama_adapter.quantization",
        "llama_adapter.tokenizer",
        "llama_adapter.generation",
    ),
    MODELS,
)


def name_of(path: Path) -> str:
    """The module's dotted name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[1:] if parts[0] == "src" else parts).removesuffix(".__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports_of(path: Path) -> frozenset[str]:
    """Every module that a file imports, inside its functions too."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


MODULES = {name_of(path): path for path in FILES}


def packages_reached(name: str, seen: frozenset[str] = frozenset()) -> set[str]:
    """The third-party packages that a module imports, itself or through others of ours."""
    packages: set[str] = set()
    for imported in imports_of(MODULES[name]):
        top = imported.split(".")[0]
        if imported in MODULES:
            if imported not in seen and imported != "llama_adapter":
                packages |= packages_reached(imported, seen | {name})
        elif top not in sys.stdlib_module_names and top not in ("llama_adapter", "tasks"):
            packages.add(top)
    return packages


@pytest.mark.parametrize("name", MODULES)
def test_a_file_reaches_only_the_packages_of_its_layer(name):
    launch = name.startswith(("llama_adapter.launch", "hydra_plugins")) or name in ("train", "evaluate")
    layer = ENTRY if launch else TASK if name.startswith("tasks.") else TRAINING
    assert packages_reached(name) <= ALLOWED.get(name, layer)


def test_every_named_file_exists():
    assert set(ALLOWED) <= set(MODULES)


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("llama_adapter")])
def test_the_core_imports_no_task_and_only_launch_imports_launch(name):
    imported = imports_of(MODULES[name])
    assert not {module for module in imported if module.split(".")[0] == "tasks"}
    if not name.startswith("llama_adapter.launch"):
        assert not {module for module in imported if module.startswith("llama_adapter.launch")}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("tasks.")])
def test_a_task_imports_no_other_task_and_no_launch(name):
    own = name.split(".")[1]
    for module in imports_of(MODULES[name]):
        assert not module.startswith(("llama_adapter.launch", "hydra", "omegaconf"))
        assert module.split(".")[:2] in (["tasks", own], ["tasks"]) or not module.startswith("tasks")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_imports_wandb_or_prints(path):
    assert not {module for module in imports_of(path) if module.split(".")[0] == "wandb"}
    calls = [node.func for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    assert "print" not in [call.id for call in calls if isinstance(call, ast.Name)]


def strings_of(path: Path) -> set[str]:
    """The strings of a file that are not docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree_of(path))
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    return {
        node.value
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings
    }


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=name_of)
def test_the_core_names_no_task(path):
    assert not strings_of(path) & {*TASKS, *(f"tasks.{task}" for task in TASKS)}


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=name_of)
def test_nothing_branches_on_a_backbones_name(path):
    from llama_adapter.backbones import FAMILIES

    compared = {
        constant.value
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Compare)
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant)
    }
    assert not compared & set(FAMILIES)


def test_every_file_says_what_it_is_for():
    for path in FILES:
        assert ast.get_docstring(tree_of(path)), path
