"""Tables and pictures of sweeps: a line per job, or K and L as a grid in the shape of the paper's ablation."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

from llama_adapter.launch.sweep_jobs import SweepJob
from llama_adapter.tables import markdown

LENGTH, LAYERS, PARAMETERS = "adapter.prompt_length", "adapter.prompt_layers", "train/parameters"


class MetricsTable:
    """A line per job as Markdown: its task and settings, where they differ, and a few metrics.

    Args:
        metrics: names; those that no job measured are left out.
    """

    def __init__(self, metrics: Sequence[str]) -> None:
        self.metrics = list(metrics)

    def __call__(self, jobs: Sequence[SweepJob]) -> str:
        measured = [name for name in self.metrics if any(name in job.metrics for job in jobs)]
        rows = [["task", "settings", *measured]]
        for job in jobs:
            cells = (_cell(job.metrics.get(name)) for name in measured)
            rows.append([job.task, job.settings, *cells])
        if len({job.task for job in jobs}) == 1:
            rows = [row[1:] for row in rows]
        return markdown(rows)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1000 else f"{value:.4g}"


# --- K and L ----------------------------------------------------------------------------------------------------------

Grid = dict[tuple[int, int], list[SweepJob]]  # by K and L; several where something else differs too, a seed say


class PromptGrid:
    """A line per L and a column per K as Markdown, parameters beside: LLaMA-Adapter's (arXiv 2303.16199) ablation of L.

    Under it every job with all metrics. Jobs of different tasks have a grid each; where jobs differ in something else
    too, a seed say, a cell is their mean.

    Args:
        metrics: names; a grid shows the first that the task's jobs measured, train/parameters aside.
    """

    def __init__(self, metrics: Sequence[str]) -> None:
        self.metrics = list(metrics)

    def __call__(self, jobs: Sequence[SweepJob]) -> str:
        parts = [
            f"{title}, by number of adapted layers (L) and prompt length (K)\n\n{markdown(_rows(grid, metric))}"
            for title, metric, grid in _grids(jobs, self.metrics)
        ]
        return "\n\n".join([*parts, MetricsTable([PARAMETERS, *self.metrics])(jobs)])


class PromptChart:
    """Draws what `PromptGrid` tells: the metric over L with a line per K, parameters on the second axis.

    Args:
        metrics: see `PromptGrid`; of several tasks the first is drawn.
    """

    def __init__(self, metrics: Sequence[str]) -> None:
        self.metrics = list(metrics)

    def __call__(self, jobs: Sequence[SweepJob], path: Path) -> bool:
        """Whether there was something to draw."""
        from llama_adapter.charts import prompt_grid  # matplotlib takes its time to import

        for title, metric, grid in _grids(jobs, self.metrics):
            values = {cell: _mean(grid[cell], metric) for cell in grid}
            parameters = {cell: _mean(grid[cell], PARAMETERS) for cell in grid}
            prompt_grid(values, parameters, path, title=title, label=metric)
            return True
        return False


def _grids(jobs: Sequence[SweepJob], metrics: Sequence[str]) -> Iterator[tuple[str, str, Grid]]:
    """Title, metric and finished jobs of every task that has some with K and L."""
    for task in dict.fromkeys(job.task for job in jobs):
        finished = [
            job
            for job in jobs
            if job.task == task and job.metrics and all(job.overrides.get(k, "").isdigit() for k in (LENGTH, LAYERS))
        ]
        for metric in metrics:
            if measured := [job for job in finished if metric in job.metrics]:
                grid: Grid = {}
                for job in measured:
                    grid.setdefault((int(job.overrides[LENGTH]), int(job.overrides[LAYERS])), []).append(job)
                yield f"{metric}, {task}" if task else metric, metric, grid
                break


def _rows(grid: Grid, metric: str) -> list[list[str]]:
    lengths, layers = (sorted({cell[axis] for cell in grid}) for axis in (0, 1))
    rows = [["L", *(f"K={length}" for length in lengths), *(f"parameters, K={length}" for length in lengths)]]
    for count in layers:
        cells = [grid.get((length, count), []) for length in lengths]
        values = [_cell(_mean(jobs, metric)) for jobs in cells]
        rows.append([str(count), *values, *(_cell(_mean(jobs, PARAMETERS)) for jobs in cells)])
    return rows


def _mean(jobs: Sequence[SweepJob], metric: str) -> float | None:
    values = [job.metrics[metric] for job in jobs if metric in job.metrics]
    return float(mean(values)) if values else None
