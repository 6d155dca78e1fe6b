"""The tables and the picture of a sweep."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from llama_adapter.launch.sweep_jobs import SweepJob
from llama_adapter.launch.sweep_tables import MetricsTable, PromptChart, PromptGrid


def test_a_table_of_metrics():
    """Metrics that no job has are left out, and the task where all have one."""
    table = MetricsTable(["train/parameters", "test/accuracy", "test/f1"])
    jobs = [
        SweepJob(Path("a"), {"task": "one"}, "adapter=full", {"train/parameters": 472416.0, "test/accuracy": 93.75}),
        SweepJob(Path("b"), {"task": "one"}, "adapter=head_only", {"train/parameters": 776.0}),
    ]
    assert table(jobs).splitlines() == [
        "| settings          | train/parameters | test/accuracy |",
        "| ----------------- | ---------------: | ------------: |",
        "| adapter=full      |          472,416 |         93.75 |",
        "| adapter=head_only |              776 |             - |",
    ]
    other = SweepJob(Path("c"), {"task": "two"}, "", {})
    assert table([*jobs, other]).splitlines()[-1].split("|")[1].strip() == "two"


# LLaMA-Adapter (arXiv 2303.16199), ablation of the number of layers on ScienceQA's validation part, K = 10.
PUBLISHED = {10: 55.95, 20: 73.36, 30: 83.85, 32: 81.03}


def grid_job(length: int, layers: int, accuracy: float, *, task: str = "scienceqa", seed: int = 0) -> SweepJob:
    overrides = {"task": task, "adapter.prompt_length": str(length), "adapter.prompt_layers": str(layers)}
    metrics = {"val/accuracy": accuracy, "val/loss": 0.5, "train/parameters": float(layers * (length * 4096 + 32))}
    return SweepJob(Path("x"), overrides, f"K={length}, L={layers}, seed={seed}", metrics)


JOBS = [grid_job(10, layers, accuracy) for layers, accuracy in PUBLISHED.items()] + [grid_job(20, 30, 84.0)]
METRICS = ["test/accuracy", "val/accuracy", "val/loss"]


def test_a_grid_of_k_and_l():
    failed = SweepJob(Path("x"), {"task": "scienceqa", "adapter.prompt_length": "5"}, "K=5", {}, "broken")
    text = PromptGrid(METRICS)([*JOBS, failed])
    assert text.splitlines()[:8] == [
        "val/accuracy, scienceqa, by number of adapted layers (L) and prompt length (K)",
        "",
        "| L  |  K=10 | K=20 | parameters, K=10 | parameters, K=20 |",
        "| -- | ----: | ---: | ---------------: | ---------------: |",
        "| 10 | 55.95 |    - |          409,920 |                - |",
        "| 20 | 73.36 |    - |          819,840 |                - |",
        "| 30 | 83.85 |   84 |        1,229,760 |        2,458,560 |",
        "| 32 | 81.03 |    - |        1,311,744 |                - |",
    ]
    assert text.splitlines()[9:] == MetricsTable(["train/parameters", *METRICS])([*JOBS, failed]).splitlines()


def test_a_cell_of_several_seeds_is_their_mean():
    jobs = [grid_job(10, 30, accuracy, seed=seed) for seed, accuracy in enumerate((80.0, 83.0))]
    assert "| 30 | 81.5 |        1,229,760 |" in PromptGrid(METRICS)(jobs)


def test_every_task_has_a_grid():
    text = PromptGrid(METRICS)([*JOBS, grid_job(10, 30, 50.0, task="other")])
    assert [line for line in text.splitlines() if line.startswith("val/")] == [
        "val/accuracy, scienceqa, by number of adapted layers (L) and prompt length (K)",
        "val/accuracy, other, by number of adapted layers (L) and prompt length (K)",
    ]


def test_the_picture_has_a_line_for_every_k(tmp_path, monkeypatch):
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: (drawn.append(self), Path(path).touch()))
    assert PromptChart(METRICS)(JOBS, tmp_path / "grid.png")
    axes, beside = drawn[0].axes
    assert [line.get_label() for line in axes.lines] == ["K = 10", "K = 20"]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[list(p) for p in PUBLISHED.items()], [[30, 84.0]]]
    assert beside.lines[0].get_ydata()[2] == 1_229_760
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("adapted layers, L", "val/accuracy")
    assert beside.get_ylabel() == "trainable parameters (dashed)"
    assert [beside.yaxis.get_major_formatter()(value, 0) for value in (0, 500_000, 1_200_000, 2e9)] == [
        "0", "500K", "1.2M", "2B",
    ]  # fmt: skip


def test_nothing_to_draw(tmp_path):
    from llama_adapter.charts import prompt_grid

    assert not PromptChart(["test/accuracy"])(JOBS, tmp_path / "grid.png")
    with pytest.raises(ValueError) as error:
        prompt_grid({}, {}, tmp_path / "grid.png", title="", label="")
    assert str(error.value) == "There is no grid of K and L to draw: no job of the sweep has finished."
