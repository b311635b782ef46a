"""Live progress on a terminal; silence anywhere else."""

import math
from typing import Any

import jax

# metric -> (label, format), in the order shown; those a run does not have are left out
SHOWN = {
    "loss": ("loss", ".4f"),
    "accuracy": ("accuracy", ".3f"),
    "bits_per_character": ("bits/char", ".3f"),
    "ponder": ("ponder", ".2f"),
    "ponder_max": ("max", ".1f"),
}


class Progress:
    """A line with rate, loss, accuracy or bits per character, ponder and time left.

    A context manager. Draws with rich where standard output is a terminal and does nothing
    elsewhere, so that logs and pipes stay clean; of many processes, the first draws.

    Args:
      description: the name of the run, shown first.
      total: the number of updates the run will have done at its end.
      done: the number done before.
    """

    def __init__(self, description: str, *, total: int, done: int = 0):
        self._bar = _make_bar()
        if self._bar is not None:
            self._task = self._bar.add_task(
                description, total=total, completed=done, figures="compiling"
            )

    def __enter__(self):
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, row: dict[str, Any]):
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=describe(row))


def describe(row: dict[str, Any]) -> str:
    """The figures of a row of metrics in one line, ensembles by their mean.

    Example:
      >>> describe({"loss": 0.25, "accuracy": 0.9, "ponder": 3.5, "updates_per_second": 120.0})
      'loss 0.2500  accuracy 0.900  ponder 3.50  120 updates/s'
    """
    parts = [
        f"{label} {_mean(row[name]):{form}}"
        for name, (label, form) in SHOWN.items()
        if row.get(name) is not None
    ]
    if "updates_per_second" in row:
        parts.append(f"{row['updates_per_second']:.0f} updates/s")
    return "  ".join(parts)


def _mean(value: Any) -> float:
    values = value if isinstance(value, list) else [value]
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else math.nan


def _make_bar():
    try:
        import rich.console
        import rich.progress
    except ImportError:  # progress is a comfort: a run without the extra goes on without it
        return None
    console = rich.console.Console()
    if jax.process_index() or not console.is_terminal:
        return None
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=20),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[figures]}"),
        rich.progress.TimeRemainingColumn(),
        console=console,
    )
