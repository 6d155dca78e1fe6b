"""Errors of other processes in words: the texts are torch's own, as it raises them."""

import pytest
import torch
from torch._utils import ExceptionWrapper

from llama_adapter.failures import failure, is_lost_connection


def test_an_error_of_a_data_worker():
    try:
        raise FileNotFoundError("No image at\n  /data/3.jpg.")
    except FileNotFoundError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")  # what a worker sends
    with pytest.raises(FileNotFoundError) as caught:
        wrapped.reraise()
    assert failure(caught.value) == (
        "Data worker 0 has failed. FileNotFoundError: No image at /data/3.jpg. With data.num_workers=0 and "
        "HYDRA_FULL_ERROR=1 the error shows where it comes from."
    )


@pytest.mark.parametrize(
    ("text", "who"),
    [
        ("DataLoader worker (pid 71) is killed by signal: Killed. ", "process 71) has died of signal KILLED"),
        ("DataLoader worker (pid(s) 71, 72) exited unexpectedly", "process 71, 72) has died"),
    ],
)
def test_a_data_worker_that_has_died(text, who):
    assert failure(RuntimeError(text)) == (
        f"A data worker ({who}, most often for want of memory. Set data.num_workers lower, or to 0, and go on with "
        "resume=<run folder>."
    )


@pytest.mark.parametrize(
    "text",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:43210",
        "[enforce fail at ProcessGroupNCCL.cpp:1234] unhandled system error",
        "Broken pipe",
    ],
)
def test_another_process_that_has_ended(text):
    assert is_lost_connection(RuntimeError(text))
    assert failure(RuntimeError(text)) == (f"Another process of this run has ended; its own message says why. ({text})")


@pytest.mark.parametrize("error", [ValueError("gloo"), RuntimeError("mat1 and mat2"), KeyError("x")])
def test_an_error_of_this_process_is_left_alone(error):
    assert failure(error) == ""


def test_the_network_errors_of_torch_are_runtime_errors():
    """Which `is_lost_connection` builds on."""
    assert issubclass(torch.distributed.DistNetworkError, RuntimeError)
    assert issubclass(torch.distributed.DistBackendError, RuntimeError)
