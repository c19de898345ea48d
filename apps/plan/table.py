"""Write a plan as a table for the terminal."""

from collections.abc import Sequence

from apps.plan.cost import Cost

HEAD = ("stage", "work", "disk", "memory", "time")


def table(costs: Sequence[Cost]) -> str:
    """Write the table: a line for each stage, which covers all its layers, and a last line for all stages.

    Disk and time are sums; memory is the largest. `–` means nothing, or not known.
    """
    lines = [_cells(*group) for group in _stages(costs)]
    total = ("all", "", *_cells("", costs)[2:])
    widths = [max(map(len, column)) for column in zip(HEAD, *lines, total, strict=True)]
    rule = tuple("─" * width for width in widths)
    return "".join(_line(line, widths) for line in (HEAD, rule, *lines, rule, total))


def _stages(costs: Sequence[Cost]) -> list[tuple[str, list[Cost]]]:
    """Group the costs by stage: `train@3` and `train@6` are of train."""
    groups: dict[str, list[Cost]] = {}
    for cost in costs:
        groups.setdefault(cost.stage.partition("@")[0], []).append(cost)
    return list(groups.items())


def _cells(stage: str, costs: Sequence[Cost]) -> tuple[str, ...]:
    """Write the cells of one stage. ``costs``: one for each of its layers.

    Where the layers' work is the same it is named once, else that of the first and the last kind of work.
    """
    memory = max((cost.memory for cost in costs if cost.memory), default=None)
    seconds = [cost.seconds for cost in costs if cost.seconds is not None]
    works = list(dict.fromkeys(cost.what for cost in costs))
    layers = f"{len(costs)} × " * (len(costs) > 1)
    work = layers + (works[0] if len(works) == 1 else f"({works[0]} … {works[-1]})")
    return stage, work, size(disk(costs)), size(memory), duration(sum(seconds) if seconds else None)


def disk(costs: Sequence[Cost]) -> float:
    """Sum up the bytes of disk; a cost that is not known counts as nothing."""
    return sum(cost.disk or 0 for cost in costs)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Pad the cells to ``widths``: texts (the first two) to the left, numbers to the right."""
    left = [cell.ljust(width) for cell, width in zip(cells[:2], widths, strict=False)]
    right = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return "  ".join([*left, *right]).rstrip() + "\n"


def size(bytes_: float | None) -> str:
    """Write a number of bytes: 1234567 -> 1.23 MB."""
    if not bytes_:
        return "–"
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if bytes_ >= factor:
            return f"{bytes_ / factor:.3g} {unit}" if bytes_ < 1000 * factor else f"{bytes_ / factor:,.0f} {unit}"
    return f"{bytes_ / 1e3:.1f} kB"


def duration(seconds: float | None) -> str:
    """Write a number of seconds: 75 -> 1 min 15 s, 7500 -> 2 h 5 min, 200000 -> 2 d 7 h."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    for unit, length, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            return f"{whole // length} {unit} {whole % length // part} {smaller}"
    return f"{whole} s"
