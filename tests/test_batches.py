"""Sizes of batches for a number of devices."""

import pytest

from llama_adapter.batches import BatchConfig


def test_defaults_are_those_of_the_paper():
    assert BatchConfig().global_batch_size == 64  # LLaMA-Adapter (arXiv 2303.16199), Section 4.1


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("micro", range(1, 10))
@pytest.mark.parametrize("share", [1, 5, 6, 8])
def test_split_multiplies_to_the_global_batch(share, micro, devices):
    config = BatchConfig(global_batch_size=share * devices, micro_batch_size=micro, batching="padded")
    size, accumulation = config.split(devices)
    assert size * accumulation * devices == config.global_batch_size
    assert size <= micro
    # As large as is allowed: no size in between divides the share.
    assert all(share % larger for larger in range(size + 1, min(micro, share) + 1))


@pytest.mark.parametrize(
    ("global_batch", "micro", "devices", "expected"),
    [
        (64, 4, 8, (4, 2)),
        (64, 8, 8, (8, 1)),
        (64, 4, 1, (4, 16)),
        (64, 100, 8, (8, 1)),
        (7, 4, 1, (1, 7)),
        (6, 4, 1, (3, 2)),
    ],
)
def test_split_examples(global_batch, micro, devices, expected):
    assert BatchConfig(global_batch, micro, batching="padded").split(devices) == expected


@pytest.mark.parametrize(
    ("global_batch", "micro", "devices", "expected"),
    [(64, 8, 8, (8, 1)), (10, 4, 1, (4, 3)), (14, 4, 2, (4, 2)), (6, 64, 2, (3, 1)), (5, 1, 1, (1, 5))],
)
def test_flat_micro_batches_need_no_equal_sizes(global_batch, micro, devices, expected):
    assert BatchConfig(global_batch, micro).split(devices) == expected


def test_a_limit_of_tokens_is_for_flat_rows():
    with pytest.raises(ValueError, match=r"data\.max_tokens is 9, which limits flat rows.*Set data\.batching=flat, or"):
        BatchConfig(max_tokens=9, batching="padded")


@pytest.mark.parametrize(("global_batch", "devices"), [(64, 3), (4, 8), (9, 2)])
def test_devices_that_cannot_share(global_batch, devices):
    with pytest.raises(ValueError) as caught:
        BatchConfig(global_batch).split(devices)
    assert str(caught.value) == (
        f"data.global_batch_size is {global_batch}, which {devices} devices cannot share evenly. "
        f"Choose a multiple of {devices}."
    )


@pytest.mark.parametrize(
    ("key", "value", "least"),
    [
        ("global_batch_size", 0, 1),
        ("micro_batch_size", -3, 1),
        ("num_workers", -1, 0),
        ("max_tokens", 0, 1),
        ("row_multiple", 0, 1),
    ],
)
def test_bad_values(key, value, least):
    with pytest.raises(ValueError) as caught:
        BatchConfig(**{key: value})
    assert str(caught.value) == f"data.{key} must be at least {least}, got {value}."


def test_an_unknown_batching():
    with pytest.raises(ValueError) as caught:
        BatchConfig(batching="packed")
    assert str(caught.value) == "data.batching is 'packed'. Choose flat or padded."
