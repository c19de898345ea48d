"""A plan as text, for a terminal."""

from collections.abc import Sequence

from apps.plan.cost import Cost

HEAD = ("stage", "work", "disk", "memory", "time")


def table(costs: Sequence[Cost]) -> str:
    """One line a stage, of layers together: disk and time their sum, memory the largest, as in the last line.
    `–`: nothing, or not known."""
    lines = [_cells(*group) for group in _stages(costs)]
    total = ("all", "", *_cells("", costs)[2:])
    widths = [max(map(len, column)) for column in zip(HEAD, *lines, total, strict=True)]
    rule = tuple("─" * width for width in widths)
    return "".join(_line(line, widths) for line in (HEAD, rule, *lines, rule, total))


def _stages(costs: Sequence[Cost]) -> list[tuple[str, list[Cost]]]:
    groups: dict[str, list[Cost]] = {}
    for cost in costs:
        groups.setdefault(cost.stage.partition("@")[0], []).append(cost)
    return list(groups.items())


def _cells(stage: str, costs: Sequence[Cost]) -> tuple[str, ...]:
    """``costs`` are of one stage's layers; the work is each one's, where it is the same."""
    memory = max((cost.memory for cost in costs if cost.memory), default=None)
    seconds = [cost.seconds for cost in costs if cost.seconds is not None]
    works = list(dict.fromkeys(cost.what for cost in costs))
    layers = f"{len(costs)} × " * (len(costs) > 1)
    work = layers + (works[0] if len(works) == 1 else f"({works[0]} … {works[-1]})")
    return stage, work, size(disk(costs)), size(memory), duration(sum(seconds) if seconds else None)


def disk(costs: Sequence[Cost]) -> float:
    return sum(cost.disk or 0 for cost in costs)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    left = [cell.ljust(width) for cell, width in zip(cells[:2], widths, strict=False)]
    right = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return "  ".join([*left, *right]).rstrip() + "\n"


def size(bytes_: float | None) -> str:
    """Of bytes: 1234567 -> 1.2 MB."""
    if not bytes_:
        return "–"
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if bytes_ >= factor:
            return f"{bytes_ / factor:.3g} {unit}" if bytes_ < 1000 * factor else f"{bytes_ / factor:,.0f} {unit}"
    return f"{bytes_ / 1e3:.1f} kB"


def duration(seconds: float | None) -> str:
    """Of seconds: 75 -> 1 min 15 s, 7500 -> 2 h 5 min, 200000 -> 2 d 7 h."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    for unit, length, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            return f"{whole // length} {unit} {whole % length // part} {smaller}"
    return f"{whole} s"
