"""A maze as the figures show it: what is marked is green on the shortest way and red beside it."""

import math

import matplotlib.colors
import numpy as np

from actjax.tasks.mazes import GOAL, ON, START, WALL
from experiments.show.puzzles import Look

COLORS = matplotlib.colors.ListedColormap(["white", "0.25", "mediumseagreen", "tab:red"])
LIGHT, DARK, FOUND, WRONG = range(COLORS.N)


def asked(board: np.ndarray, solution: np.ndarray) -> tuple[np.ndarray, str]:
    """The cells that have to be found, and the title of a maze."""
    return solution == ON, f"maze, {(solution == ON).sum() - 1} moves"


def paint(axes, board: np.ndarray, solution: np.ndarray, answer: np.ndarray | None):
    """The grid with its start and goal, and the way that is answered unless that is None."""
    size = math.isqrt(len(board))
    on, marked = solution == ON, np.zeros(len(board), bool) if answer is None else answer == ON
    kinds = np.select([marked & on, marked, board == WALL], [FOUND, WRONG, DARK], LIGHT)
    shown = {"cmap": COLORS, "vmin": 0, "vmax": COLORS.N - 1, "extent": (0, size, size, 0)}
    axes.imshow(kinds.reshape(size, size), **shown)
    for symbol, letter in ((START, "S"), (GOAL, "G")):
        row, column = divmod(int(np.flatnonzero(board == symbol)[0]), size)
        place = {"ha": "center", "va": "center", "fontsize": 64 / size, "weight": "bold"}
        axes.text(column + 0.5, row + 0.53, letter, **place)


LOOK = Look("mazes", "moves from start to goal", asked, paint)
