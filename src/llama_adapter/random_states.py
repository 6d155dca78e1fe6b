"""The states of a process's random generators, a few kB: with them a run with dropout goes on as if never stopped."""

import random

import numpy
import torch


def random_state(device: torch.device) -> dict[str, object]:
    """Of Python, NumPy and torch, and of a GPU where `device` is one."""
    state = {"python": random.getstate(), "numpy": numpy.random.get_state(), "torch": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: dict, device: torch.device) -> None:
    """Puts all of them back; a GPU's is left alone where the state is of a process without one."""
    random.setstate(state["python"])
    numpy.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
