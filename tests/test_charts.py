"""What the pictures show, read from the figures, and that they are pictures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib import rcParams
from matplotlib.figure import Figure

from llama_adapter.charts import gate_heat_map, loss_curve, moving_mean

METRICS = """step,epoch,train/loss,val/loss,other
1,,4.5,,1
2,,3.5,,
3,1,3.0,3.25,
4,,2.5,,7
5,2,,2.75,
"""


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """Every figure that is written."""
    written: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **options: (written.append(self), savefig(self, *args, **options))
    )
    return written


def size_of_png(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24])  # of the IHDR chunk


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


@pytest.mark.parametrize("layers, heads", [(1, 1), (2, 4), (30, 32), (80, 64)])
def test_heat_map_has_a_cell_for_every_layer_and_head(tmp_path, figures, layers, heads):
    before = dict(rcParams)
    gates = torch.randn(layers, heads).tanh()
    path = tmp_path / "gates.png"
    gate_heat_map(dict(enumerate(gates, start=5)), path, title="Gates after 12 steps")
    axes, bar = figures[0].axes
    [mesh] = axes.collections
    assert torch.equal(torch.as_tensor(mesh.get_array()).reshape(layers, heads), gates)
    assert mesh.norm.vmin == -mesh.norm.vmax == -gates.abs().max()  # zero is in the middle
    assert axes.get_title(loc="left") == "Gates after 12 steps"
    assert bar.get_ylabel() == "tanh(gate)"
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels[0] == "5"  # the lowest adapted layer, at the bottom
    assert axes.get_ylim()[0] < axes.get_ylim()[1]
    assert 1 <= len(labels) <= 9
    width, height = size_of_png(path)
    assert 400 <= width <= 1350 and 300 <= height <= 1350
    assert [file.name for file in tmp_path.iterdir()] == ["gates.png"]
    assert dict(rcParams) == before


def test_heat_map_takes_a_tensor_and_sorts_layers(tmp_path, figures):
    gates = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    gate_heat_map(gates, tmp_path / "a.png", title="")
    gate_heat_map({1: gates[1], 0: gates[0]}, tmp_path / "b.png", title="", label="gate")
    first, second = (torch.as_tensor(figure.axes[0].collections[0].get_array()) for figure in figures)
    assert torch.equal(first, second)
    assert figures[1].axes[1].get_ylabel() == "gate"


def test_heat_map_of_closed_gates_is_white(tmp_path, figures):
    gate_heat_map(torch.zeros(2, 4), tmp_path / "gates.png", title="")
    colour = figures[0].axes[0].collections[0].to_rgba(torch.zeros(1))[0]
    assert min(colour) > 0.95


def test_heat_map_without_gates_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no gates to draw: the model has no adapter"):
        gate_heat_map({}, tmp_path / "gates.png", title="")


def test_loss_curve_reads_the_columns_and_skips_blanks(tmp_path, figures):
    (tmp_path / "metrics.csv").write_text(METRICS)
    loss_curve(tmp_path / "metrics.csv", tmp_path / "loss.png")
    train, validation = figures[0].axes[0].lines
    assert (list(train.get_xdata()), list(train.get_ydata())) == ([1, 2, 3, 4], [4.5, 3.5, 3.0, 2.5])
    assert (list(validation.get_xdata()), list(validation.get_ydata())) == ([3, 5], [3.25, 2.75])
    assert legend(figures[0]) == ["train", "validation, 2.750 at the end"]
    assert figures[0].axes[0].get_ylabel() == "loss per response token (nats)"
    assert figures[0].axes[0].get_xlabel() == "optimizer step"
    assert size_of_png(tmp_path / "loss.png") == (960, 555)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["loss.png", "metrics.csv"]


def test_loss_curve_of_a_long_run_has_a_moving_mean(tmp_path, figures):
    rows = [f"{step},{step % 2}" for step in range(1, 301)]
    (tmp_path / "metrics.csv").write_text("step,train/loss\n" + "\n".join(rows))
    loss_curve(tmp_path / "metrics.csv", tmp_path / "loss.png")
    raw, mean = figures[0].axes[0].lines
    assert list(raw.get_ydata()) == [step % 2 for step in range(1, 301)]
    assert mean.get_ydata()[150] == pytest.approx(0.5, abs=0.05)
    assert legend(figures[0]) == ["train, mean of 11 points"]


def test_moving_mean_stays_symmetric_at_the_ends():
    assert moving_mean([1.0, 2.0, 6.0, 4.0, 7.0], 5) == [1.0, 3.0, 4.0, pytest.approx(17 / 3), 7.0]
    straight = [float(value) for value in range(10)]
    assert moving_mean(straight, 5) == straight  # a lopsided window would bend the ends of a line


def test_a_missing_or_empty_file_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No metrics at .*metrics\.csv\. .* use logger=csv"):
        loss_curve(tmp_path / "metrics.csv", tmp_path / "loss.png")
    (tmp_path / "metrics.csv").write_text("step,train/loss,val/loss\n1,,\n")
    with pytest.raises(ValueError, match="has no value of train/loss or val/loss"):
        loss_curve(tmp_path / "metrics.csv", tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


def test_a_failed_write_keeps_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "gates.png"
    gate_heat_map(torch.ones(1, 1), path, title="old")
    old = path.read_bytes()

    def full_disk(self, file, **options):
        Path(file).write_bytes(b"half a pic")
        raise OSError("No space left on device")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(OSError, match="No space left"):
        gate_heat_map(torch.ones(2, 2), path, title="new")
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["gates.png"]


def test_matplotlib_waits_for_the_first_picture_and_pyplot_is_never_used(tmp_path):
    code = """
import sys, torch
from llama_adapter.charts import gate_heat_map
assert "matplotlib" not in sys.modules
gate_heat_map(torch.ones(2, 2), sys.argv[1], title="")
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "gates.png")], check=True, env=environment)
