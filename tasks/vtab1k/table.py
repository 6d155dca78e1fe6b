"""The table of VTAB-1k: data sets in their groups, means, and what the paper printed, as Markdown.

The last line is the mean of the groups' means, as in VTAB and the papers after it, not the mean of all data sets: the
structured group has eight and the specialized one four. It is given where all groups are whole.
"""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Protocol

from llama_adapter.tables import markdown
from tasks.vtab1k.data_sets import DATA_SETS, GROUPS, PUBLISHED_MEANS

METRICS = ("test/accuracy", "val/accuracy")  # the first that a job has


class Job(Protocol):
    """What is read of a sweep's job."""

    task: str
    settings: str
    metrics: Mapping[str, float]


class SweepTable:
    """Makes the table of a sweep's jobs; its columns are the settings that differ.

    Args:
        groups: data sets by group, for other ones than the 19; the paper's columns are left out then.
    """

    def __init__(self, groups: Mapping[str, Sequence[str]] | None = None) -> None:
        self.published = groups is None
        self.groups = groups or {
            group: [name for name, data_set in DATA_SETS.items() if data_set.group == group] for group in GROUPS
        }

    def __call__(self, jobs: Sequence[Job]) -> str:
        """The text; a job whose data set is in no group is left out, a data set without a finished job is "-"."""
        columns: dict[str, dict[str, float]] = {}
        metrics = set()
        for job in jobs:
            column = columns.setdefault(job.settings or "this sweep", {})
            for metric in METRICS:
                if metric in job.metrics:
                    column[job.task.rpartition("/")[2]] = job.metrics[metric]
                    metrics.add(metric)
                    break
        heading = f"{' or '.join(sorted(metrics))}, %"
        return markdown(self._rows(heading, columns)) + (f"\n\n{NOTE}" if self.published else "")

    def _rows(self, heading: str, columns: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
        published = PUBLISHED_MEANS if self.published else {}
        rows = [[heading, *columns, *published]]
        means: dict[str, list[float]] = {title: [] for title in columns}  # of the groups that are whole
        for number, (group, names) in enumerate(self.groups.items()):
            for name in names:
                beside = [f"{DATA_SETS[name].published:.1f}", *[""] * (len(published) - 1)] if published else []
                values = (column.get(name) for column in columns.values())
                rows.append([_title(name), *("-" if value is None else f"{value:.2f}" for value in values), *beside])
            cells = []
            for title, column in columns.items():
                found = [column[name] for name in names if name in column]
                cells.append(_mean(found) if found else "-")
                if len(found) == len(names):
                    means[title].append(mean(found))
                elif found:
                    cells[-1] += f" ({len(found)} of {len(names)})"
            rows.append([f"**{group}**", *cells, *(_mean([values[number]]) for values in published.values())])
        whole = [_mean(values) if len(values) == len(self.groups) else "-" for values in means.values()]
        return [*rows, ["**mean of the groups**", *whole, *map(_mean, published.values())]]


NOTE = (
    "Beside it test accuracies of LLaMA-Adapter (arXiv 2303.16199), ViT-B/16 of ImageNet-21k; * confirmed in one "
    "source only. Their mean of the groups is computed here."
)


def _title(name: str) -> str:
    return DATA_SETS[name].title if name in DATA_SETS else name


def _mean(values: Sequence[float]) -> str:
    return f"**{mean(values):.2f}**"
