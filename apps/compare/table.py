"""Write a comparison as CSV, and as a short table for the terminal."""

import csv
import io
from dataclasses import asdict
from textwrap import wrap

from apps.compare import words
from apps.compare.comparison import Comparison
from strata.pages.readable import number

COLUMNS = ("metric", "A", "B", "A − B, with its interval", "verdict", "what would decide")
COLOURS = {"better": "\033[32m", "worse": "\033[33m", "undecided": "\033[2m"}


def as_csv(comparison: Comparison) -> str:
    """Write a line for each metric, with all that is known of it. An unknown value is empty."""
    lines = [asdict(row) for row in comparison.rows]
    for line in lines:
        line["by_seed"] = " ".join(f"{value:.9g}" for value in line["by_seed"])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def as_text(comparison: Comparison, width: int, colour: bool) -> str:
    """Write the verdict, then a line for each metric, for a terminal of ``width``."""
    bold, plain = ("\033[1m", "\033[0m") if colour else ("", "")
    lines = [f"{bold}{line}{plain}" for line in wrap(comparison.verdict, width)]
    lines += [f"A  {', '.join(comparison.members_a)}", f"B  {', '.join(comparison.members_b)}", ""]

    cells = [
        (
            row.metric,
            number(row.a),
            number(row.b),
            words.interval(row),
            words.VERDICTS[row.verdict],
            words.more(row),
        )
        for row in comparison.rows
    ]
    widths = [max(len(line[column]) for line in (COLUMNS, *cells)) for column in range(len(COLUMNS))]
    table = [_line(line, widths) for line in (COLUMNS, *cells)]
    tints = [bold, *(COLOURS[row.verdict] if colour else "" for row in comparison.rows)]
    lines += [f"{tint}{line}{plain if tint else ''}" for tint, line in zip(tints, table, strict=True)]
    for note in comparison.notes:
        lines += ["", *wrap(note, width)]
    return "\n".join(lines) + "\n"


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    """Align the cells of a line: the numbers of A and B to the right, all others to the left."""
    aligned = [
        cell.rjust(width) if column in (1, 2) else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(aligned).rstrip()
