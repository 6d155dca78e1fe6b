"""The pictures of a run and of a sweep: how far the gates have opened, how the loss fell, what K and L gave.

matplotlib takes longer to import than a small model to load, so it is imported when something is drawn. Figures are
made without pyplot: nothing global changes, and a notebook's own figures stay what they are.
"""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llama_adapter.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150
TRAIN, VALIDATION, INK = "#4477aa", "#cc5a3b", "#333333"
LINES = ("#4477aa", "#cc5a3b", "#2a8f6a", "#a05195", "#d19a1c", "#555555")
TICKS = 9  # labels on an axis of a heat map, at most
STYLE = {
    "font.size": 9,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.axisbelow": True,
    "text.color": INK,
    "axes.titlecolor": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.markersize": 4.5,
}


def gate_heat_map(
    gates: Mapping[int, Tensor] | Tensor, path: str | Path, title: str, *, label: str = "tanh(gate)"
) -> None:
    """Draws one cell per layer and head: red where the prompts are added, blue where they are subtracted.

    Args:
        gates: [H] by layer index, or [L, H] for layers 0 to L - 1, after the activation. The colours reach to the
            largest magnitude; zero is always white.
        path: of the PNG.
        title: above the picture.
        label: of the colour bar.

    Raises:
        ValueError: there are no gates.
    """
    if len(gates) == 0:
        raise ValueError("There are no gates to draw: the model has no adapter.")
    by_layer = dict(sorted(gates.items())) if isinstance(gates, Mapping) else dict(enumerate(gates))
    values = torch.stack(list(by_layer.values())).detach().float().cpu()  # [L, H]
    layers, heads = values.shape
    limit = values.abs().max().item() or 1.0

    width, height = min(3.3 + 0.17 * heads, 9.0), min(2.2 + 0.17 * layers, 9.0)
    with _drawing(path, width=width, height=height) as (figure, axes):
        mesh = axes.pcolormesh(
            values.numpy(),
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            edgecolors="white",
            linewidth=0.6 if max(layers, heads) <= 48 else 0.0,  # thinner cells would be all edge
        )
        for axis, names in ((axes.xaxis, list(range(heads))), (axes.yaxis, list(by_layer))):
            step = 2 ** math.ceil(math.log2(max(len(names) / TICKS, 1)))
            positions = range(0, len(names), step)
            axis.set_ticks([position + 0.5 for position in positions], [str(names[position]) for position in positions])
        axes.set(xlabel="head", ylabel="layer, from the bottom")
        axes.set_title(title, loc="left")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(mesh, ax=axes, fraction=0.06, pad=0.03, aspect=18, label=label)
        bar.locator.set_params(nbins=5)
        bar.ax.tick_params(length=0)
        bar.outline.set_visible(False)


def loss_curve(metrics: str | Path, path: str | Path, *, title: str = "Loss") -> None:
    """Draws the training loss of every logged step, its moving mean, and the validation loss.

    Args:
        metrics: a CSV file with the columns `step`, `train/loss` and, where a run validates, `val/loss`; cells may be
            blank.
        path: of the PNG.
        title: above the picture.

    Raises:
        FileNotFoundError: there is no such CSV file.
        ValueError: it has no value of either loss.
    """
    if not Path(metrics).is_file():
        raise FileNotFoundError(f"No metrics at {metrics}. The run's CSV logger writes them: use logger=csv.")
    with Path(metrics).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    train, validation = _points(rows, "train/loss"), _points(rows, "val/loss")
    if not train and not validation:
        raise ValueError(f"{metrics} has no value of train/loss or val/loss. Lower trainer.log_every_n_steps.")

    with _drawing(path, width=6.4, height=3.7) as (_, axes):
        if train:
            steps, losses = zip(*train, strict=True)
            window = 2 * (len(losses) // 60) + 1  # wide enough to show a trend, odd so that it has a middle
            if window == 1:
                axes.plot(steps, losses, color=TRAIN, linewidth=1.6, label="train")
            else:
                axes.plot(steps, losses, color=TRAIN, linewidth=0.6, alpha=0.35)
                means = moving_mean(losses, window)
                axes.plot(steps, means, color=TRAIN, linewidth=1.8, label=f"train, mean of {window} points")
        if validation:
            steps, losses = zip(*validation, strict=True)
            label = f"validation, {losses[-1]:.3f} at the end"
            axes.plot(steps, losses, "o-", color=VALIDATION, linewidth=1.2, markeredgecolor="white", label=label)
        axes.set(xlabel="optimizer step", ylabel="loss per response token (nats)")
        axes.set_title(title, loc="left")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(x=0.02)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.legend(frameon=False, loc="upper right")


def prompt_grid(
    values: Mapping[tuple[int, int], float],
    parameters: Mapping[tuple[int, int], float],
    path: str | Path,
    *,
    title: str,
    label: str,
) -> None:
    """Draws a metric over L, the number of adapted layers, with a line per K, the prompt length.

    Args:
        values: the metric by K and L.
        parameters: trainable parameters by K and L, drawn thin and dashed on the second axis.
        path: of the PNG.
        title: above the picture.
        label: of the metric's axis.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("There is no grid of K and L to draw: no job of the sweep has finished.")
    lengths, layers = (sorted({cell[axis] for cell in values}) for axis in (0, 1))
    with _drawing(path, width=6.4, height=4.0) as (figure, axes):
        beside = axes.twinx()
        axes.set_zorder(beside.get_zorder() + 1)  # the metric's lines are in front
        axes.patch.set_visible(False)
        for number, length in enumerate(lengths):
            colour = LINES[number % len(LINES)]
            counts = [count for count in layers if (length, count) in values]
            line = [values[length, count] for count in counts]
            axes.plot(counts, line, "o-", color=colour, linewidth=1.8, markeredgecolor="white", label=f"K = {length}")
            sizes = [parameters[length, count] for count in counts]
            beside.plot(counts, sizes, "--", color=colour, linewidth=0.9, alpha=0.6)
        axes.set(xlabel="adapted layers, L", ylabel=label)
        axes.set_title(title, loc="left")
        axes.set_xticks(layers)
        axes.margins(x=0.04, y=0.12)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        beside.set_ylabel("trainable parameters (dashed)")
        beside.set_ylim(bottom=0)
        beside.yaxis.get_major_locator().set_params(nbins=6)
        beside.yaxis.set_major_formatter(lambda value, _: _short(value))
        for each in (axes, beside):
            each.spines[["top", "right", "left"]].set_visible(False)
            each.tick_params(axis="y", length=0)
        figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=6)


def _short(count: float) -> str:
    """1.2M for 1,229,760."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.3g}"


def moving_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean over `window` values around each one (odd); towards the ends, over the widest symmetric part of it."""
    means = []
    for position in range(len(values)):
        reach = min(window // 2, position, len(values) - 1 - position)
        part = values[position - reach : position + reach + 1]
        means.append(sum(part) / len(part))
    return means


def _points(rows: list[dict[str, str]], column: str) -> list[tuple[int, float]]:
    return [(int(float(row["step"])), float(row[column])) for row in rows if row.get(column)]


@contextmanager
def _drawing(path: str | Path, *, width: float, height: float) -> Iterator[tuple["Figure", "Axes"]]:
    """A blank picture of so many inches in our style, written to `path` on leaving."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
        yield figure, figure.add_subplot()
        with whole_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
