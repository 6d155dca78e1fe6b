"""Timing by turns: a machine that slows down for a while slows every system down, and the ratios stay true."""

import json
import statistics
import sys
import time
from collections.abc import Callable


def interleave(systems: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Runs every system once per round, after one round that is not counted.

    Args:
        systems: what to time, by name. On an accelerator the call must wait for its own work to be done.
        rounds: counted rounds; every other one runs in reverse order, so that no system always goes first.

    Returns:
        Seconds per round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(rounds + 1):
        order = list(systems) if number % 2 else list(reversed(systems))
        for name in order:
            start = time.perf_counter()
            systems[name]()
            if number > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report(seconds: dict[str, list[float]], *, tokens: int, baseline: str, **settings: object) -> dict[str, float]:
    """Writes one JSON line per system and the same as a table.

    Args:
        seconds: of `interleave`.
        tokens: worked on in one round.
        baseline: the system the others are compared with.
        settings: repeated in every JSON line.

    Returns:
        By name, the median over the rounds of the system's speed divided by the baseline's in the same round.
    """
    ratios = {}
    rows = [f"{'system':<24}{'tokens/s':>12}{'ratio':>9}{'from':>9}{'to':>9}"]
    for name, own in seconds.items():
        ratio = [base / mine for base, mine in zip(seconds[baseline], own, strict=True)]
        ratios[name] = statistics.median(ratio)
        speed = tokens / statistics.median(own)
        result = {
            "step_seconds": statistics.median(own),
            "useful_tokens_per_second": round(speed, 1),
            "ratio": round(ratios[name], 4),
            "seconds": own,
        }
        sys.stdout.write(json.dumps({"system": name, **settings, **result}) + "\n")
        rows.append(f"{name:<24}{speed:>12.0f}{ratios[name]:>9.3f}{min(ratio):>9.3f}{max(ratio):>9.3f}")
    sys.stderr.write("\n".join(rows) + "\n")
    return ratios
