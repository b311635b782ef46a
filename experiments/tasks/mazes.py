"""Mazes by networks that refine their answer and stop when they are done (HRM, TRM; 2025)."""

import dataclasses
from typing import Literal

from actjax.tasks import mazes
from actjax.tasks.puzzles import Puzzles
from experiments import puzzles
from experiments.data.held_out import split_alike
from experiments.options import require
from experiments.reasoners import Board, Mixer, NearMixer
from experiments.show.mazes import LOOK

MIXERS = {"near": NearMixer, "all": Mixer}


@dataclasses.dataclass(frozen=True)
class Mazes(puzzles.Options):
    """Mark the shortest way through a maze by steps that refine an answer, and stop when it is
    right.

    Mazes are made as the run starts, and those that are tested are alike to none that are trained
    on, by no symmetry. Presets: demo (9 x 9, minutes on two cores), cpu (13 x 13, two hours) and
    paper (30 x 30 with 110 moves or more as in Maze-Hard, 1,000 mazes, the sizes of TRM, for an
    accelerator).
    """

    size: int = 9
    """Lines of a maze."""
    shortest: int = 2
    """Fewest moves from start to goal."""
    rings: float = 0.1
    """Chance to open a cell that closes a ring: 0 leaves one way, the more the more ways."""
    puzzles: int = 20_000
    """Train on so many, or as many as are found that differ, each under all symmetries."""
    mazes_seed: int = 0
    """The mazes are a function of it, of these numbers and of test-size; the run has its own."""
    mix: Literal[tuple(MIXERS)] = "near"
    """Which cells the mixers of recursive mix: those around each (near), or all as TRM's do."""


DEMO = Mazes(
    batch_size=64,
    learning_rate=4e-3,
    steps=8000,
    cooldown=2000,
    checkpoint_every=2000,
    latent_steps=4,
    max_steps=8,
)
LONG = {"size": 13, "puzzles": 50_000, "max_steps": 16, "learning_rate": 2e-3, "average": 0.999}
PAPER = LONG | {"size": 30, "puzzles": 1000, "test_size": 1000, "shortest": 110, "rings": 0.02}
PAPER |= {"hidden": 512, "layers": 2, "expand": 3, "cycles": 3, "weight_decay": 1.0}
PAPER |= {"cooldown": 0, "warmup": 2000, "learning_rate": 1e-4}
PRESETS = {
    "demo": DEMO,
    "cpu": dataclasses.replace(DEMO, **LONG, steps=40_000, cooldown=10_000),
    # 50,000 epochs of 1,000 mazes
    "paper": dataclasses.replace(DEMO, **PAPER, batch_size=768, steps=65_000),
}


def check(options: Mazes):
    """Refuses options of its own that are out of range."""
    require(options.size > 2, "size", "at least 3", options.size)
    for name in ("shortest", "puzzles"):
        require(getattr(options, name) > 0, name, "at least 1", getattr(options, name))
    require(0 <= options.rings <= 1, "rings", "a chance from 0 to 1", options.rings)
    require(options.mazes_seed >= 0, "mazes_seed", "at least 0", options.mazes_seed)


def load(options: Mazes) -> dict[str, Puzzles]:
    """Mazes to train on, to choose the level by ("validation") and to test on."""
    held_out = 2 * options.test_size
    count = options.puzzles + held_out
    spare = 100 + count // 20  # so that each part has enough
    many = {"shortest": options.shortest, "rings": options.rings}
    made = mazes.make(options.size, count + spare, options.mazes_seed, **many)
    kinds = mazes.fingerprints(made.boards)
    train, held = split_alike(made, kinds, held_out / count)
    return puzzles.parts(
        Puzzles(*(leaf[: options.puzzles] for leaf in train)), held, options.test_size
    )


PUZZLE = puzzles.Puzzle(
    name="mazes",
    what="find the shortest way through mazes by steps that refine an answer, and stop",
    presets=PRESETS,
    board=lambda size: Board(size, symbols=4, classes=2, places=mazes.lines),
    sample=mazes.sample,
    load=load,
    difficulty=mazes.moves,
    look=LOOK,
    mixer=lambda options: MIXERS[options.mix],
    suffix=lambda options: "-all" if (options.model, options.mix) == ("recursive", "all") else "",
    check=check,
)
TASK = puzzles.as_task(PUZZLE)
