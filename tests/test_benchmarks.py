"""The benchmarks run, compare what they say they compare, and write what they should. No speed is tested here."""

import json

import pytest
import torch

from benchmarks import generation_overhead, overhead
from benchmarks.interleaved import interleave, report

TINY = ["--hidden-size", "32", "--layers", "2", "--prompt-layers", "1", "--prompt-length", "2", "--batch-size", "2"]


def test_every_round_runs_every_system_and_turns_the_order():
    calls: list[str] = []
    seconds = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert "".join(calls) == "baabbaab"  # the first round warms up and is not counted
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert all(value >= 0 for values in seconds.values() for value in values)


def test_report_compares_within_rounds(capsys):
    # The second round was slow for both: only a ratio of the same round tells.
    ratios = report({"base": [1.0, 4.0, 1.0], "new": [2.0, 8.0, 1.0]}, tokens=100, baseline="base", device="cpu")
    assert ratios == {"base": 1.0, "new": 0.5}
    captured = capsys.readouterr()
    base, new = map(json.loads, captured.out.splitlines())
    assert base == {
        "system": "base", "device": "cpu", "step_seconds": 1.0, "useful_tokens_per_second": 100.0, "ratio": 1.0, "seconds": [1.0, 4.0, 1.0],
    }  # fmt: skip
    assert (new["system"], new["useful_tokens_per_second"], new["ratio"]) == ("new", 50.0, 0.5)
    assert captured.err.splitlines()[-1].split() == ["new", "50", "0.500", "0.500", "1.000"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_generation_overhead(capsys, dtype):
    options = [*TINY, "--rounds", "2", "--prompt-tokens", "4", "--new-tokens", "5", "--dtype", dtype]
    ratios = generation_overhead.main(options)
    assert set(ratios) == {"frozen", "adapter"} and ratios["frozen"] == 1.0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["system"] for line in lines] == ["frozen", "adapter"]
    assert all(len(line["seconds"]) == 2 and line["new_tokens"] == 5 for line in lines)


def test_random_llama_is_the_same_every_time():
    first, second = (
        generation_overhead.random_llama(hidden_size=32, layers=1, dtype=torch.float32, device="cpu") for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_training_overhead_takes_the_same_steps_in_both_systems(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = []
    compare = overhead.largest_difference
    monkeypatch.setattr(overhead, "largest_difference", lambda *pair: models.extend(pair) or compare(*pair))
    ratios = overhead.main([*TINY, "--steps", "4", "--tokens-per-example", "9"])
    assert set(ratios) == {"bare", "lightning"} and ratios["bare"] == 1.0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(len(line["seconds"]) == 4 for line in lines)  # the warm-up is not counted
    # Adam divides by the gradient's size: one float32 rounding of it is about 1e-6 after seven steps.
    assert lines[0]["largest_difference"] < 1e-5
    for parameter in models[0].parameters():
        parameter.data += 0.5
    assert compare(*models) == pytest.approx(0.5, abs=1e-4)
    assert list(tmp_path.iterdir()) == []
