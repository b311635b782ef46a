"""Metrics as JSON Lines: one row a chunk of updates, named as they are everywhere else."""

import json
import math
import os
import pathlib
from typing import Any

import numpy as np


class MetricsFile:
    """Appends rows to a JSON Lines file; a kill loses or tears at most the last row.

    Args:
      path: the file. What it holds up to `step` is kept, later rows and a torn last line are
        removed, so that a resumed run repeats no row.
      step: the step of the checkpoint the run continues from; 0 for a new run.

    Attributes:
      seconds: the training time up to `step`, of all processes that worked on the run.
    """

    def __init__(self, path: str | os.PathLike, *, step: int = 0):
        self.path = pathlib.Path(path)
        rows = [row for row in read_metrics(self.path) if row["step"] <= step]
        self.seconds = rows[-1]["seconds"] if rows else 0.0
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = self.path.open("a")

    def append(self, row: dict[str, Any]):
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self):
        self._file.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a metrics file; none where there is no file, without a torn last line.

    Raises:
      ValueError: where a line that is not the last is not JSON.
    """
    path = pathlib.Path(path)
    lines = path.read_text().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(
                    f"metrics file {str(path)!r} is damaged at line {number}"
                ) from error
    return rows


def plain(value: Any) -> Any:
    """A metric as JSON can hold it: arrays as (lists of) numbers, what is not finite as None."""
    value = np.asarray(value)
    if value.ndim:
        return [plain(element) for element in value]
    number = value.item()
    return number if math.isfinite(number) else None


def write_atomically(path: str | os.PathLike, text: str):
    """Writes a text file so that a kill leaves the old one or the new one, never a part."""
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: str | os.PathLike, value: Any):
    """Writes `value` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")
