"""What the papers say, from `papers.json`, and where the summaries of sweeps are."""

import json
import pathlib
from typing import Any

PAPERS = json.loads(pathlib.Path(__file__).with_name("papers.json").read_text())
RESULTS = pathlib.Path(__file__).parents[1] / "results"


def summaries(task: str, results: pathlib.Path) -> list[tuple[pathlib.Path, dict[str, Any]]]:
    """The summaries in a task's folder, by name.

    Raises:
      ValueError: for a file that is not the summary of a sweep.
    """
    found = []
    for path in sorted((results / task).glob("*.json")):
        try:
            summary = json.loads(path.read_text())
            known = isinstance(summary["members"], list) and summary["experiment"] == task
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise ValueError(f"results must hold summaries of sweeps of {task}, got {str(path)!r}.")
        found.append((path, summary))
    return found


def members(task: str, results: pathlib.Path) -> list[dict[str, Any]]:
    """The members of all summaries in a task's folder."""
    return [member for _, summary in summaries(task, results) for member in summary["members"]]
