"""The workspace of docs/dashboards.md: its specification is made without a network, and its errors say what to do."""

import builtins
import importlib.util
import json
import sys
from types import ModuleType

import pytest
from omegaconf import OmegaConf

from tests.conftest import ROOT


def load() -> ModuleType:
    """docs/dashboard.py as a module."""
    spec = importlib.util.spec_from_file_location("dashboard", ROOT / "docs/dashboard.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["dashboard"] = module  # where its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def dashboard(monkeypatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "dashboard", None)
    return load()


def run(dashboard: ModuleType, monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["docs/dashboard.py", *arguments])
    dashboard.main()


def test_the_specification(dashboard, monkeypatch, capsys):
    pytest.importorskip("wandb_workspaces", reason="needs the extra dashboard")
    run(dashboard, monkeypatch, "--entity", "us", "--print")
    made = json.loads(capsys.readouterr().out)["section"]
    sections = {section["name"]: section["panels"] for section in made["panelBankConfig"]["sections"]}
    given = {name: panels for name, panels in sections.items() if name in dashboard.SECTIONS}
    assert {name: len(panels) for name, panels in given.items()} == {
        name: len(panels) for name, panels in dashboard.SECTIONS.items()
    }
    text = json.dumps(sections)
    for panel in dashboard.panels():
        assert all(json.dumps(name) in text or f"summary:{name}" in text for name in panel.names), panel
    lines = [panel["config"] for panel in sections["Learning"] if panel["viewType"] == "Run History Line Plot"]
    assert {panel["xAxis"] for panel in lines} == {"trainer/global_step"}
    assert [key["name"] for key in made["runSets"][0]["grouping"]] == ["group", "jobType"]


def test_a_kind_that_does_not_exist(dashboard):
    pytest.importorskip("wandb_workspaces", reason="needs the extra dashboard")
    with pytest.raises(ValueError, match="'pie' is no kind of panel"):
        dashboard._made(dashboard.Panel("pie", "Loss"))


def test_without_a_key(dashboard, monkeypatch, tmp_path):
    pytest.importorskip("wandb_workspaces", reason="needs the extra dashboard")
    from tests.wandb_files import wandb_alone

    with wandb_alone(tmp_path), pytest.raises(SystemExit) as ended:
        run(dashboard, monkeypatch, "--entity", "us")
    assert str(ended.value) == (
        "error: W&B did not take the workspace (No API key configured. Use `wandb login` to log in). It needs "
        "`wandb login` or WANDB_API_KEY, a network, and the project us/llama-adapter."
    )


def test_without_the_package(dashboard, monkeypatch):
    found = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object):
        if name.startswith("wandb_workspaces"):
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(SystemExit) as ended:
        run(dashboard, monkeypatch, "--entity", "us")
    assert str(ended.value) == (
        "error: docs/dashboard.py needs the package wandb-workspaces: pip install -e '.[dashboard]'. Without it, make the "
        "panels by hand as docs/dashboards.md describes them."
    )


def test_scores_are_those_of_a_sweeps_table(dashboard):
    """A task's score has one name; tests/test_wandb_run.py has the rest of the names from a run."""
    table = OmegaConf.load(ROOT / "conf/sweep/grid_k_l.yaml").hydra.callbacks.report.table.metrics
    (scores,) = [panel for panel in dashboard.panels() if panel.title == "Test score"]
    assert set(scores.names) <= set(table)


def test_the_document_shows_every_panel(dashboard):
    text = (ROOT / "docs/dashboards.md").read_text(encoding="utf-8")
    for section, panels in dashboard.SECTIONS.items():
        assert f"## {section}\n" in text
        for panel in panels:
            assert panel.title in text
            assert all(f"`{name}`" in text for name in (*panel.names, *panel.config))
