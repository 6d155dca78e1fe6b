"""The final metrics as a table that a person reads: the frozen model beside the adapted one."""

from collections.abc import Mapping, Sequence

FROZEN = "frozen_"


def metrics_table(metrics: Mapping[str, float], shares: Sequence[str] = ()) -> str:
    """One line per metric of the test (or validation), with the frozen model's value where there is one.

    Args:
        metrics: as in `metrics.json`: `test/<name>` and `test/frozen_<name>`.
        shares: parts of the names of metrics that are shares of records, printed as per cent.
    """
    rows: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        split, _, name = key.partition("/")
        column = "frozen" if name.startswith(FROZEN) else "adapted"
        rows.setdefault(f"{split}/{name.removeprefix(FROZEN)}", {})[column] = value
    width = max((len(name) for name in rows), default=0)
    lines = [f"{'':<{width}}  {'frozen':>10}  {'adapted':>10}"]
    for name in sorted(rows):
        cells = (_number(name, rows[name].get(column), shares) for column in ("frozen", "adapted"))
        lines.append(f"{name:<{width}}  " + "  ".join(f"{cell:>10}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def _number(name: str, value: float | None, shares: Sequence[str]) -> str:
    if value is None:
        return ""
    if any(share in name for share in shares):
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
