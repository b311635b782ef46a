"""Pieces of the tables that `tables.py` writes."""

from collections.abc import Iterable, Sequence


def line(cells: Iterable[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cells) + " |"


def head(titles: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [line(titles), "|" + "---|" * len(titles)]


def short(value: float) -> str:
    """Three figures of a number, without an exponent."""
    return f"{float(f'{value:.3g}'):,g}"
