"""ScienceQA's accuracy against the scores that the official script gave to the same predictions."""

import json

import pytest
import torch

from tasks.scienceqa.answers import UNREADABLE
from tasks.scienceqa.metric import CATEGORIES, ScienceQAAccuracy, accuracy, categories_of, table
from tasks.scienceqa.problems import read_problems
from tests.tiny_scienceqa import REAL, record, write_scienceqa

CASES = ["gpt3_QCM-ALE (real published predictions)", "always_0", "mixed_seed1_p0.7", "random_seed2"]


@pytest.fixture
def three(tmp_path):
    changes = {"1": {"hint": "h"}, "2": {"image": "image.png", "grade": "grade7"}, "3": {}}
    root = write_scienceqa(tmp_path, {pid: record(**change) for pid, change in changes.items()})
    return read_problems(root, "test")


@pytest.mark.parametrize("name", CASES)
def test_official_scores(shared, name):
    """Every printed digit of every category and topic."""
    root = shared / "data/scienceqa"
    golden = json.loads((root / "golden/official_scores.json").read_text())["cases"]
    assert sorted(golden) == sorted(CASES)
    problems = read_problems(root, "test", problems_file=REAL)
    values = accuracy(problems, [golden[name]["predictions"][problem.pid] for problem in problems])
    printed = {key: f"{value:.2f}" for key, value in values.items() if key not in ("scored", "unreadable")}
    printed["acc_average"] = printed.pop("accuracy")
    # -1 is the script's word for a category without a problem
    assert printed == {key: value for key, value in golden[name]["official_on_subset"].items() if value != -1}
    assert values["scored"] == 361


def test_the_names_are_the_official_ones(shared):
    golden = json.loads((shared / "data/scienceqa/golden/official_scores.json").read_text())["cases"][CASES[0]]
    official = {"accuracy": "acc_average"}
    assert {official.get(name, name) for name in CATEGORIES} <= golden["official_on_subset"].keys()


def test_categories(three):
    one, two, neither = map(categories_of, three)
    common = {"accuracy", "acc_natural", "acc_biology"}
    assert one == common | {"acc_grade_1_6", "acc_has_text"}
    assert two == common | {"acc_grade_7_12", "acc_has_image"}
    assert neither == common | {"acc_grade_1_6", "acc_no_context"}


def test_only_what_was_scored_counts(three):
    metric = ScienceQAAccuracy(three)
    metric.update(torch.tensor([1]), torch.tensor([0]))
    assert metric.compute() == {
        "accuracy": 100.0,
        "acc_natural": 100.0,
        "acc_has_image": 100.0,
        "acc_grade_7_12": 100.0,
        "acc_biology": 100.0,
        "scored": 1.0,
        "unreadable": 0.0,
    }
    metric.reset()
    metric.update(torch.tensor([0, 2]), torch.tensor([1, 0]))
    assert (metric.compute()["accuracy"], metric.compute()["scored"]) == (50.0, 2.0)


def test_what_is_none_of_the_options_is_wrong_and_counted(three):
    values = accuracy(three, [UNREADABLE, 4, 0])
    assert values["accuracy"] == pytest.approx(100 / 3)
    assert (values["scored"], values["unreadable"]) == (3, 2)


def test_devices_are_joined_without_counting_twice(three):
    """Two devices with a problem in common, as samplers pad; torchmetrics' own joining, with the other's state given."""
    here, there = ScienceQAAccuracy(three), ScienceQAAccuracy(three)
    here.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    there.update(torch.tensor([2, 0]), torch.tensor([UNREADABLE, 0]))
    here.distributed_available_fn = lambda: True
    here.dist_sync_fn = lambda state, group: [state, there.predictions]
    values = here.compute()
    assert values["accuracy"] == pytest.approx(100 / 3)
    assert (values["scored"], values["unreadable"]) == (3, 1)


def test_the_table():
    lines = table({"ours": {"accuracy": 12.34, "acc_natural": 100.0}}).splitlines()
    assert lines[0].split() == ["avg", "NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12"]
    assert lines[1].split() == ["ours", "12.34", "100.00", *"-------"]
    # LLaMA-Adapter (arXiv 2303.16199), Table 2
    published = ["85.19", "84.37", "88.30", "84.36", "83.72", "80.32", "86.90", "85.83", "84.05"]
    assert lines[-1].split() == ["LLaMA-Adapter", *published]
    assert len({len(line) for line in (lines[0], lines[1], *lines[3:])}) == 1


def test_predictions_that_every_device_has_are_not_gathered_again(three, monkeypatch):
    """Their state is on the CPU, which NCCL does not gather."""

    def gather(*args, **kwargs):
        raise AssertionError("gathered")

    monkeypatch.setattr("torchmetrics.metric.jit_distributed_available", lambda: True)
    monkeypatch.setattr("torchmetrics.metric.Metric._sync_dist", gather)
    assert accuracy(three, [0, 0, 0])["scored"] == 3
