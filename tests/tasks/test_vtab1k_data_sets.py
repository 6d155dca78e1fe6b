"""The table of the 19 data sets against the shared description, and the configuration files against the table."""

import re

import pytest
from omegaconf import OmegaConf

from tasks.vtab1k.data_sets import DATA_SETS, GROUPS, PUBLISHED_MEANS, TRAINING_COUNTS
from tests.conftest import ROOT

CONF = ROOT / "conf/task/vtab1k"


def test_groups():
    assert [data_set.group for data_set in DATA_SETS.values()] == ["natural"] * 7 + ["specialized"] * 4 + [
        "structured"
    ] * 8
    assert set(GROUPS) == {data_set.group for data_set in DATA_SETS.values()}


def test_the_shared_table_says_the_same(shared):
    lines = (shared / "data/vtab/README.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    rows = [row for row in rows if row[0] in GROUPS]
    assert len(rows) == 19
    for group, name, classes, counts in rows:
        data_set = DATA_SETS[name.split()[0]]
        assert (data_set.group, data_set.classes) == (group, int(classes))
        assert data_set.test_counts == tuple(int(number) for number in re.findall(r"\d{3,}", counts))


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_data_set_has_a_file_that_says_the_same(name):
    data = OmegaConf.load(CONF / f"{name}.yaml").task.data
    counts = data.counts.test if OmegaConf.is_list(data.counts.test) else [data.counts.test]
    assert (data.data_set, data.classes, tuple(counts)) == (name, DATA_SETS[name].classes, DATA_SETS[name].test_counts)


def test_the_shared_file_has_the_counts_of_training():
    counts = OmegaConf.to_container(OmegaConf.load(CONF / "custom.yaml").task.data.counts)
    assert counts == TRAINING_COUNTS | {"test": None}


def test_there_is_no_other_file():
    assert {path.stem for path in CONF.glob("*.yaml")} == {*DATA_SETS, "custom"}


def test_the_sweep_runs_every_data_set():
    tasks = OmegaConf.load(ROOT / "conf/sweep/vtab1k.yaml").hydra.sweeper.params.task.split(",")
    assert [task.removeprefix("vtab1k/") for task in tasks] == list(DATA_SETS)


@pytest.mark.parametrize("number", range(3))
def test_the_published_means_are_those_of_the_published_accuracies(number):
    accuracies = [data_set.published for data_set in DATA_SETS.values() if data_set.group == GROUPS[number]]
    # The paper's accuracies are rounded to 0.1, so a mean of them is within 0.05 of the mean that it printed.
    assert sum(accuracies) / len(accuracies) == pytest.approx(PUBLISHED_MEANS["zero-init*"][number], abs=0.05)
