"""The table of the final metrics."""

from llama_adapter.launch.report import metrics_table


def test_frozen_beside_adapted():
    metrics = {
        "test/exact_match": 0.975,
        "test/frozen_exact_match": 0.0,
        "test/exact_match/recall": 1.0,
        "test/frozen_contains_in_30_tokens": 0.5,
        "test/loss": 0.123456,
        "test/frozen_loss": 12345.678,
        "val/loss": 2.0,
    }
    assert metrics_table(metrics, ("exact_match", "contains")).splitlines() == [
        "                                frozen     adapted",
        "test/contains_in_30_tokens      50.0 %",
        "test/exact_match                 0.0 %      97.5 %",
        "test/exact_match/recall                    100.0 %",
        "test/loss                       12,346      0.1235",
        "val/loss                                         2",
    ]


def test_no_metrics():
    assert metrics_table({}).split() == ["frozen", "adapted"]


def test_a_metric_in_per_cent_already():
    """SQuAD's exact_match is one; Alpaca's of the same name is a share."""
    assert metrics_table({"test/exact_match": 88.5}).splitlines()[1].split() == ["test/exact_match", "88.5"]
