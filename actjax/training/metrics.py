"""Metrics as JSON Lines: one row a chunk of updates, named as they are everywhere else."""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

OF_ROWS = ("step", "seconds", "updates_per_second", "members")  # what a row has beside its metrics


def check_names(metrics: dict[str, Any], taken: tuple[str, ...]) -> None:
    """Refuses metrics of a name that is written beside them, where one would hide the other."""
    for name in taken:
        if name in metrics:
            raise ValueError(
                f"metrics must have other names than {', '.join(taken)}, which are written beside "
                f"them, got {name!r}."
            )


class MetricsFile:
    """Appends rows to a JSON Lines file; a kill loses or tears at most the last row.

    Args:
      path: the file. What it holds up to `step` is kept, later rows and a torn last line are
        removed, so that a resumed run repeats no row.
      step: the step of the checkpoint the run continues from; 0 for a new run.

    Attributes:
      seconds: the training time up to `step`, of all processes that worked on the run.

    Raises:
      ValueError: where the file is damaged, or has no row for `step`.
    """

    def __init__(self, path: str | os.PathLike, *, step: int = 0):
        self.path = pathlib.Path(path)
        rows, last = [], 0
        for number, row in enumerate(read_metrics(self.path), 1):
            known = [isinstance(row.get(name), (int, float)) for name in ("step", "seconds")]
            if not all(known) or row["step"] <= last:
                raise ValueError(_damaged(self.path, number))
            last = row["step"]
            if last <= step:
                rows.append(row)
        reached = rows[-1]["step"] if rows else 0
        if reached != step:
            raise ValueError(
                f"{str(self.path)!r} must have a row for update {step}, that of the checkpoint to "
                f"continue from, got rows up to {reached}: put the missing ones back, or remove "
                "the checkpoints behind them."
            )
        self.seconds = rows[-1]["seconds"] if rows else 0.0
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = self.path.open("a")

    def append(self, row: dict[str, Any]):
        with writing(self.path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def sync(self):
        """Has the rows on the disk, before a checkpoint that needs them."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def close(self):
        with contextlib.suppress(OSError):  # of a full disk, which `append` has told
            self._file.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a metrics file; none where there is no file, without a torn last line.

    Raises:
      ValueError: where a line that is not the last is no JSON object.
    """
    path = pathlib.Path(path)
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:  # of JSON, or of UTF-8
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines):
            raise ValueError(_damaged(path, number))
    return rows


def _damaged(path: pathlib.Path, number: int) -> str:
    return f"{str(path)!r} must hold a row of metrics a line, got a damaged line {number}."


def plain(value: Any) -> Any:
    """A metric as JSON can hold it: arrays as (lists of) numbers, what is not finite as None."""
    value = np.asarray(value)
    if value.ndim:
        return [plain(element) for element in value]
    number = value.item()
    return number if math.isfinite(number) else None


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Says what could not be written, of which the system's own words on a full disk say nothing.

    Raises:
      OSError: where the system raises one.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{str(path)!r} could not be written: {reason}.") from error


def write_atomically(path: str | os.PathLike, text: str):
    """Writes a text file so that a kill leaves the old one or the new one, never a part."""
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        with partial.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def write_json(path: str | os.PathLike, value: Any):
    """Writes `value` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")
