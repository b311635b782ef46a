"""The papers' figures, drawn from the summaries of sweeps alone: for each task those it has."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import tyro

from experiments.learned import figures as of_learned
from experiments.options import require
from experiments.record import check_folder, print_table
from experiments.show import fojo, graves, language, learned
from experiments.show.papers import PAPERS, RESULTS, members, summaries
from experiments.show.pool import defaults, pooled
from experiments.task import Task, asked_for

# name -> (how it is drawn: `(summary, path) -> bool`, False where there is nothing to show; title)
FIGURES = {
    "errors": (graves.errors, "error by time penalty"),
    "curves": (graves.curves, "learning curves, and error against ponder"),
    "difficulty": (graves.difficulty, "ponder and error against difficulty"),
    "sequences": (graves.sequences, "ponder during single sequences"),
    "stretches": (graves.stretches, "ponder, loss and entropy along text"),
    "kinds": (graves.kinds, "ponder after each kind of byte"),
    "bits": (language.bits, "bits per character by model"),
    "layers": (language.layers, "layers and validation during training"),
    "layers_by_step": (language.layers_by_step, "layers at each character"),
    "act": (fojo.act, "accuracy and ponder with ACT"),
    "repeat": (fojo.repeat, "accuracy with repeated inputs"),
    "by_step": (fojo.by_step, "ponder at each step of the sequence"),
}
# of all summaries of a task together: `(task, summaries, path) -> bool`
ACROSS = {"wikipedia": {"settings": (language.settings, "bits by settings and by text")}}
BUDGET = fojo.budget, "ponder held to a budget by moving tau"


class Figure(NamedTuple):
    """A figure of one task.

    Attributes:
      name: of its file.
      number: the paper's, or "" for a task that is in none.
      title: what it shows.
      says: the paper of its own.
      draw: `(summary, path) -> bool`.
    """

    name: str
    number: str
    title: str
    says: str
    draw: Callable[[dict[str, Any], pathlib.Path], bool]


def figures_of(task: Task) -> list[Figure]:
    """The figures that the papers have of a task; all there are where they have none."""
    numbers = PAPERS["tasks"].get(task.name, {}).get("figures")
    found = []
    for name, (draw, title) in FIGURES.items():
        paper = {"number": "", "says": ""} if numbers is None else numbers.get(name)
        if paper is not None:
            if draw is graves.difficulty:
                draw = functools.partial(draw, unit=task.unit)
            found.append(Figure(name, paper["number"], title, paper["says"], draw))
    return found


@dataclasses.dataclass(frozen=True)
class Options:
    """Draw the papers' figures from the summaries of sweeps, a file SWEEP_FIGURE.png for each.

    Sweeps at the same settings share their figures.
    """

    results: pathlib.Path = RESULTS
    """Folder with a folder a task, which holds the summaries (.json) and gets the figures."""


def main(tasks: dict[str, Task], argv: list[str]):
    """Draws the figures of one task, or of the learned optimizers, and prints what they show."""
    if argv[:1] == ["learned"]:
        redraw_learned(argv[1:])
        return
    task, words = asked_for("figures", tasks, argv)
    prog = "python -m experiments figures TASK"
    options = tyro.cli(Options, prog=prog, description=Options.__doc__, args=words)
    check_folder("results", options.results)
    drawn = draw(task, options.results)
    command = task.name if task.figures else f"sweep {task.name}"
    file = options.results / task.name / "NAME.json"
    allowed = f"a folder with what python -m experiments {command} --results {file} writes"
    require(drawn, "results", allowed, str(options.results))
    rows = [{"figure": number, "shows": title, "file": str(path)} for number, title, path in drawn]
    print_table(f"Figures: {task.name}", rows)


def redraw_learned(argv: list[str]):
    """Draws what the results of learned optimizers hold, a file RESULT_FIGURE.png for each."""
    prog = "python -m experiments figures learned"
    folder = (
        tyro.cli(Options, prog=prog, description=Options.__doc__, args=argv).results / "learned"
    )
    check_folder("results", folder)
    drawn = [
        picture
        for path, result in learned.results(folder)
        for picture in of_learned.draw(result, folder, f"{path.stem}_")
    ]
    allowed = "a folder with a folder learned of their result.json files, named anew"
    require(drawn, "results", allowed, str(folder.parent))
    print_table("Figures: learned optimizers", [{"file": str(path)} for path in drawn])


def draw(task: Task, results: pathlib.Path) -> list[tuple[str, str, pathlib.Path]]:
    """Draws every figure that the task's summaries give: (number, title, path) of each."""
    if task.figures:
        return task.figures(members(task.name, results), results / task.name)
    drawn, budget = [], Figure("budget", "budget", BUDGET[1], "", BUDGET[0])
    found = [(path.stem, summary) for path, summary in summaries(task.name, results)]
    for pool, summary in pooled(found, defaults(task)):
        for figure in (*figures_of(task), budget):
            target = results / task.name / f"{pool}_{figure.name}.png"
            if figure.draw(summary, target):
                drawn.append((figure.number or figure.name, figure.title, target))
    for name, (function, title) in ACROSS.get(task.name, {}).items():
        target = results / task.name / f"{name}.png"
        if function(task, [summary for _, summary in found], target):
            drawn.append((name, title, target))
    return drawn
