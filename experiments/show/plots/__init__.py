"""The papers' figures, drawn from the summaries of sweeps alone."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import tyro

from experiments import run
from experiments.show.plots import fojo, graves, language, lfact
from experiments.show.plots.pool import pooled

RESULTS = pathlib.Path(__file__).parents[2] / "results"
TASKS = ("parity", "logic", "addition", "sort", "wikipedia")
TOGETHER = {"finance": lfact.draw}  # tasks whose figures compare the members of all summaries


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of a paper: how it is drawn, and its number there for each task.

    Attributes:
      draw: `(summary, path) -> bool`; False where the sweep has nothing to show in it.
      numbers: task -> the paper's number for it.
      title: what it shows.
    """

    draw: Callable[[dict[str, Any], pathlib.Path], bool]
    numbers: dict[str, str]
    title: str


FIGURES = {
    "errors": Figure(
        graves.errors,
        {
            "parity": "Graves 4",
            "logic": "Graves 8",
            "addition": "Graves 12",
            "sort": "Graves 17",
            "wikipedia": "Graves 21",
        },
        "error by time penalty",
    ),
    "curves": Figure(
        graves.curves,
        {
            "parity": "Graves 5",
            "logic": "Graves 9",
            "addition": "Graves 13",
            "sort": "Graves 18",
            "wikipedia": "Graves 22",
        },
        "learning curves, and error against ponder",
    ),
    "difficulty": Figure(
        graves.difficulty,
        {"parity": "Graves 6", "logic": "Graves 10", "addition": "Graves 14", "sort": "Graves 19"},
        "ponder and error against difficulty",
    ),
    "sequences": Figure(
        graves.sequences,
        {"addition": "Graves 15", "sort": "Graves 20"},
        "ponder during single sequences",
    ),
    "stretches": Figure(
        graves.stretches,
        {"wikipedia": "Graves 23 and 24"},
        "ponder, loss and entropy along text",
    ),
    "bits": Figure(language.bits, {"wikipedia": "LFACT 4a"}, "bits per character by model"),
    "layers": Figure(
        language.layers, {"wikipedia": "LFACT 4c"}, "layers and validation during training"
    ),
    "layers_by_step": Figure(
        language.layers_by_step, {"wikipedia": "LFACT 8"}, "layers at each character"
    ),
    "act": Figure(
        fojo.act, {"parity": "Fojo 6.4", "addition": "Fojo 6.6"}, "accuracy and ponder with ACT"
    ),
    "repeat": Figure(
        fojo.repeat, {"parity": "Fojo 6.5", "addition": "Fojo 6.7"}, "accuracy with repeated inputs"
    ),
    "by_step": Figure(
        fojo.by_step, {"addition": "Fojo 6.8"}, "ponder at each step of the sequence"
    ),
    "budget": Figure(fojo.budget, {}, "ponder held to a budget by moving tau"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Draw the papers' figures from the summaries of sweeps, a file SWEEP_FIGURE.png for each.

    Sweeps at the same settings share their figures.
    """

    results: pathlib.Path = RESULTS
    """Folder with a folder a task, which holds the summaries (.json) and gets the figures."""


def main(argv: list[str]):
    known = (*TASKS, *TOGETHER)
    if not argv or argv[0] not in (*known, "-h", "--help"):
        raise ValueError(f"figures needs a task, one of {', '.join(known)}, as in: figures parity")
    task, *rest = argv
    asked = rest if task in known else ["--help"]
    options = tyro.cli(
        Options, prog="python -m experiments figures TASK", description=Options.__doc__, args=asked
    )
    drawn = draw(task, options.results)
    if not drawn:
        writes = task if task in TOGETHER else f"sweep {task}"
        raise ValueError(
            f"results is {str(options.results)!r}, which has no summary for {task}; "
            f"write one with: python -m experiments {writes} --results FILE"
        )
    rows = [{"figure": number, "shows": title, "file": str(path)} for number, title, path in drawn]
    run.show(f"Figures: {task}", rows)


def draw(task: str, results: pathlib.Path) -> list[tuple[str, str, pathlib.Path]]:
    """Draws every figure that the task's summaries give: (number, title, path) of each."""
    if task in TOGETHER:
        return TOGETHER[task](members(task, results), results / task)
    drawn = []
    for pool, summary in pools(task, results):
        for name, figure in FIGURES.items():
            target = results / task / f"{pool}_{name}.png"
            if (task in figure.numbers or not figure.numbers) and figure.draw(summary, target):
                number = figure.numbers.get(task, "budget")
                drawn.append((number, figure.title, target))
    return drawn


def pools(task: str, results: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
    """The summaries in a task's folder, those that differ only in what figures compare as one."""
    return pooled([(path.stem, summary) for path, summary in summaries(task, results)])


def members(task: str, results: pathlib.Path) -> list[dict[str, Any]]:
    """The members of all summaries in a task's folder."""
    return [member for _, summary in summaries(task, results) for member in summary["members"]]


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
        except (json.JSONDecodeError, KeyError, TypeError):
            known = False
        if not known:
            raise ValueError(f"file {str(path)!r} is not the summary of a sweep of {task}")
        found.append((path, summary))
    return found
