"""Builds the W&B workspace of docs/dashboards.md: `python docs/dashboard.py --entity <user or team>`.

Needs the package wandb-workspaces (`pip install -e '.[dashboard]'`), an API key and a network; `--print` needs the
package alone and prints what would be sent.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass

STEP = "trainer/global_step"


@dataclass(frozen=True)
class Panel:
    """One panel.

    Args:
        kind: `lines` over optimizer steps, `bars` of final values, `pictures`, `table`, `settings` (runs side by side)
            or `coordinates` (settings beside a final value).
        title: above it.
        names: of metrics, pictures or tables; keys of the configuration where `config` says so.
        config: keys of the configuration, for `coordinates`.
        regex: for `lines`: all metrics that it matches, instead of `names`.
    """

    kind: str
    title: str
    names: tuple[str, ...] = ()
    config: tuple[str, ...] = ()
    regex: str = ""


SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Learning": (
        Panel("lines", "Loss", ("train/loss", "val/loss")),
        Panel("lines", "Perplexity", ("val/perplexity",)),
        Panel("lines", "Learning rate", ("train/learning_rate",)),
        Panel("lines", "Gradient norm", ("train/gradient_norm",)),
        Panel("pictures", "Loss as the run drew it", ("loss",)),
    ),
    "Gates": (
        Panel("pictures", "Gates of every layer and head, by epoch", ("gates",)),
        Panel("lines", "Mean magnitude of all gates", ("gate/mean_magnitude",)),
        Panel("lines", "Mean magnitude by layer", regex="^gate/layer_.*"),
    ),
    "Scores": (
        Panel("bars", "Test loss", ("test/loss",)),
        # Each task has one of these; a run without it is left out of the panel.
        Panel("bars", "Test score", ("test/exact_match", "test/accuracy", "test/CIDEr", "test/f1")),
        Panel("settings", "What differs between runs"),
    ),
    "Answers": (
        Panel("table", "Samples by epoch", ("samples",)),
        Panel("table", "Predictions of the test part", ("predictions",)),
    ),
    "Speed": (
        Panel("lines", "Useful tokens per second, all devices", ("throughput/useful_tokens_per_second",)),
        Panel("lines", "10^12 operations per second and device", ("throughput/tflops_per_device",)),
        Panel("lines", "Useful tokens per computed token", ("throughput/useful_share",)),
        Panel("lines", "Peak memory, GiB", ("throughput/peak_memory_gib",)),
    ),
    "Sweep over K and L": (
        Panel(
            "coordinates",
            "K, L, learning rate and validation loss",
            ("val/loss",),
            ("adapter.prompt_length", "adapter.prompt_layers", "optimizer.base_learning_rate"),
        ),
    ),
}


def panels() -> Iterator[Panel]:
    """All panels, in order."""
    for section in SECTIONS.values():
        yield from section


def workspace(entity: str, project: str):
    """The workspace as an object, unsaved.

    Args:
        entity: user or team.
        project: on W&B.

    Raises:
        SystemExit: the package is not installed.
    """
    try:
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise SystemExit(
            "error: docs/dashboard.py needs the package wandb-workspaces: pip install -e '.[dashboard]'. Without it, "
            "make the panels by hand as docs/dashboards.md describes them."
        ) from None
    return ws.Workspace(
        entity=entity,
        project=project,
        name="LLaMA-Adapter",
        sections=[
            ws.Section(name=name, panels=[_made(panel) for panel in section], is_open=True)
            for name, section in SECTIONS.items()
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP),
        # Jobs of a sweep stand together, and evaluations apart from trainings.
        runset_settings=ws.RunsetSettings(groupby=[ws.Metric("Group"), ws.Metric("JobType")]),
    )


def _made(panel: Panel):
    import wandb_workspaces.reports.v2 as wr

    title, names = panel.title, list(panel.names)
    match panel.kind:
        case "lines":
            chosen = {"metric_regex": panel.regex} if panel.regex else {"y": names}
            return wr.LinePlot(title=title, x=STEP, **chosen)
        case "bars":
            return wr.BarPlot(title=title, metrics=names)
        case "pictures":
            return wr.MediaBrowser(title=title, media_keys=names, gallery_axis="step")
        case "table":
            return wr.WeavePanelSummaryTable(table_name=names[0])
        case "settings":
            return wr.RunComparer(diff_only=True)
        case "coordinates":
            columns = [wr.Config(key) for key in panel.config] + [wr.SummaryMetric(name) for name in names]
            return wr.ParallelCoordinatesPlot(
                title=title, columns=[wr.ParallelCoordinatesPlotColumn(metric=column) for column in columns]
            )
    raise ValueError(f"{panel.kind!r} is no kind of panel.")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python docs/dashboard.py", description=__doc__.splitlines()[0])
    parser.add_argument("--entity", required=True, help="the user or team that owns the project")
    parser.add_argument("--project", default="llama-adapter", help="logger.wandb.project of the runs")
    parser.add_argument("--print", action="store_true", help="print the specification and send nothing")
    options = parser.parse_args()
    made = workspace(options.entity, options.project)
    if options.print:
        specification = made._to_model().spec.model_dump(by_alias=True, exclude_none=True, mode="json")
        sys.stdout.write(json.dumps(specification, indent=2) + "\n")
        return
    try:
        sys.stdout.write(f"{made.save().url}\n")
    except Exception as error:
        raise SystemExit(
            f"error: W&B did not take the workspace ({str(error).rstrip('.')}). It needs `wandb login` or "
            f"WANDB_API_KEY, a network, and the project {options.entity}/{options.project}."
        ) from error


if __name__ == "__main__":
    main()
