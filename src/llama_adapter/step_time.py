"""How long a training step takes, from shapes and data sheets: computing, gathering shards, averaging gradients.

A forecast at a stated utilisation (`hardware.utilization`), for choosing between trainers. Reading data, validation,
checkpoints and the evaluation at the end are not in it.
"""

from dataclasses import dataclass

from llama_adapter.architecture import Hardware
from llama_adapter.flops import TrainingFlops
from llama_adapter.memory import Sharding


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step.

    Attributes:
        computing: at the stated utilisation, or as long as reading the weights takes, which is more for few tokens.
        communication: what is not hidden behind it.
        busy: share of the computing time that the operations need; below 1 the memory's bandwidth is the limit.
    """

    computing: float
    communication: float
    busy: float

    @property
    def seconds(self) -> float:
        return self.computing + self.communication


def step_time(
    flops: TrainingFlops,
    *,
    hardware: Hardware,
    dtype: str,
    devices: int,
    nodes: int,
    micro_batches: int,
    layers: int,
    layers_backward: int,
    layer_bytes: float,
    other_bytes: float,
    gradient_bytes: float,
    sharding: Sharding | None,
    recomputes: bool,
) -> StepTime | None:
    """The time of a step; None where the speed of the hardware is not known.

    Per layer and pass the operations and the reading of the weights overlap, and so does the gathering of the next
    layer's shards: the slowest of the three counts. A ring gathers n bytes on D devices in n (D - 1) / D / bandwidth
    seconds and averages them in twice that (Patarasuk and Yuan, 2009); over several machines the network is one link
    of the ring. Latencies are left out.

    Args:
        flops: of one micro-batch on one device.
        hardware: its peak, utilisation and bandwidths; an unknown bandwidth costs no time.
        dtype: of the matrix products.
        devices, nodes: all devices, and the machines that they are in.
        micro_batches: of a step, on each device.
        layers, layers_backward: N, and how many of them go backward.
        layer_bytes, other_bytes: weights of a layer, and of what is in none (embeddings, head).
        gradient_bytes: what all devices average once per step.
        sharding: of the weights, or None.
        recomputes: whether the layers that go backward are computed again.
    """
    peak = hardware.tflops_in(dtype)
    if peak is None:
        return None
    speed = peak * 1e12 * hardware.utilization
    of_prompts = flops.prompts / 3  # a third of it forward
    # (how often, seconds of the operations)
    passes = [(layers, (flops.forward + of_prompts) / layers / speed)]
    if layers_backward:
        backward = flops.backward + flops.prompts - of_prompts + flops.recomputed
        passes.append((layers_backward, backward / layers_backward / speed))
    read = layer_bytes / (hardware.memory_bandwidth * 1e9) if hardware.memory_bandwidth else 0.0
    reads = [read, read * (2 if recomputes else 1)]
    gather = gather_other = 0.0
    if sharding is not None and sharding.devices > 1:
        across = nodes if sharding.across_nodes else 1
        gather = _ring_seconds(layer_bytes, sharding.devices, across, hardware)
        gather_other = _ring_seconds(other_bytes, sharding.devices, across, hardware)
    gathers = [gather, gather if sharding is not None and sharding.reshard_after_forward else 0.0]
    computing = sum(times * max(own, least) for (times, own), least in zip(passes, reads, strict=False))
    with_gathers = sum(
        times * max(own, least, wait) for (times, own), least, wait in zip(passes, reads, gathers, strict=False)
    )
    operations = sum(times * own for times, own in passes)
    of_head = (flops.head + flops.images) / speed
    averaging = 2 * _ring_seconds(gradient_bytes, devices, nodes, hardware)
    return StepTime(
        computing=micro_batches * (computing + of_head),
        communication=micro_batches * (with_gathers - computing + gather_other) + averaging,
        busy=(operations + of_head) / (computing + of_head),
    )


def _ring_seconds(size: float, devices: int, nodes: int, hardware: Hardware) -> float:
    """Of one round of a ring."""
    known = [hardware.link_bandwidth] if devices > nodes else []  # devices of one machine talk to each other
    known += [hardware.network_bandwidth] if nodes > 1 else []
    bandwidths = [bandwidth for bandwidth in known if bandwidth]
    if devices < 2 or not bandwidths:
        return 0.0
    return size * (devices - 1) / devices / (min(bandwidths) * 1e9)
