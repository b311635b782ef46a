"""Sudoku by networks that refine their answer and stop when they are done (HRM, TRM; 2025)."""

import dataclasses
import functools
import pathlib
from typing import Literal

import numpy as np

from actjax.tasks import sudoku
from actjax.tasks.puzzles import Puzzles
from experiments import data, puzzles
from experiments.data import sudoku as files
from experiments.options import require
from experiments.reasoners import Board
from experiments.show.sudoku import LOOK

SHIPPED = {size: pathlib.Path(data.__file__).with_name(f"sudoku{size}.csv.gz") for size in (6, 9)}


@dataclasses.dataclass(frozen=True)
class Sudoku(puzzles.Options):
    """Solve Sudoku by steps that refine an answer, and stop when it is right.

    Boards that are tested are alike to none that are trained on, by no symmetry. Presets: demo (6 x
    6, five minutes on two cores), cpu (9 x 9, two hours) and paper (9 x 9, the sizes of TRM and
    1,000 puzzles, for an accelerator).
    """

    size: Literal[6, 9] = 6
    """Lines of a board, of the puzzles in this repository."""
    data: pathlib.Path | None = None
    """A CSV file of quizzes and solutions, .gz or not, in the place of those."""
    puzzles: int = 0
    """Train on only so many, each under all symmetries. 0: all."""
    held_out: float = 0.2
    """About which part of the puzzles is held out: half to choose the level, half to test."""


DEMO = Sudoku(batch_size=64, learning_rate=2e-3, steps=8000, cooldown=2000, checkpoint_every=2000)
LONG = {"size": 9, "puzzles": 1000, "cooldown": 0, "average": 0.999}
PAPER = LONG | {"hidden": 512, "layers": 2, "latent_steps": 6, "cycles": 3}
PAPER |= {"expand": 3, "weight_decay": 1.0, "warmup": 2000, "learning_rate": 1e-4}
PRESETS = {
    "demo": DEMO,
    "cpu": dataclasses.replace(DEMO, **LONG, hidden=96, learning_rate=1e-3, steps=60_000),
    # 60,000 epochs of 1,000 puzzles
    "paper": dataclasses.replace(DEMO, **PAPER, batch_size=768, steps=78_000),
}


def check(options: Sudoku):
    """Refuses options of its own that are out of range."""
    require(options.puzzles >= 0, "puzzles", "at least 0", options.puzzles)
    require(0 < options.held_out < 1, "held_out", "above 0 and below 1", options.held_out)


def load(options: Sudoku) -> dict[str, Puzzles]:
    """The puzzles to train on, to choose the level by ("validation") and to test on."""
    source = SHIPPED[options.size] if options.data is None else options.data
    train, held = files.split(files.read(source), options.held_out)
    enough = len(held.boards) > 1
    require(enough, "held_out", "a part of at least two puzzles", options.held_out)
    order = np.random.default_rng(0).permutation(len(train.boards))  # the same for every seed
    train = Puzzles(*(leaf[order[: options.puzzles or None]] for leaf in train))
    return puzzles.parts(train, held, options.test_size)


PUZZLE = puzzles.Puzzle(
    name="sudoku",
    what="solve Sudoku by steps that refine an answer, and stop",
    presets=PRESETS,
    board=lambda size: Board(size, symbols=size + 1, classes=size, places=sudoku.units),
    sample=sudoku.sample,
    load=load,
    difficulty=sudoku.holes,
    look=LOOK,
    check=check,
)
TASK = puzzles.as_task(PUZZLE)
train, restore, make_member, make_model = (
    functools.partial(function, PUZZLE)
    for function in (puzzles.train, puzzles.restore, puzzles.make_member, puzzles.make_model)
)
