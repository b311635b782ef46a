"""A Sudoku as the figures show it: given digits black, right ones green and wrong ones red."""

import math

import numpy as np

from actjax.tasks.sudoku import BOXES
from experiments.show.puzzles import Look


def asked(board: np.ndarray, solution: np.ndarray) -> tuple[np.ndarray, str]:
    """The cells that have to be found, and the title of a board."""
    del solution
    return board == 0, f"puzzle, {(board == 0).sum()} holes"


def paint(axes, board: np.ndarray, solution: np.ndarray, answer: np.ndarray | None):
    """The grid, and the digits of the answer or, without one, of the board."""
    size = math.isqrt(len(board))
    height, width = BOXES[size]
    axes.set_frame_on(False)
    for place in range(size + 1):
        for line, band in ((axes.axhline, height), (axes.axvline, width)):
            line(place, color="0.3", linewidth=1.6 if place % band == 0 else 0.4, clip_on=False)
    cells = board if answer is None else answer
    for cell in np.flatnonzero(cells):
        given, is_right = board[cell] > 0, cells[cell] == solution[cell]
        row, column = divmod(cell, size)
        color = "black" if given and is_right else "tab:green" if is_right else "tab:red"
        axes.text(
            column + 0.5,
            row + 0.53,
            str(cells[cell]),
            ha="center",
            va="center",
            color=color,
            weight="bold" if given or not is_right else "normal",
            fontsize=64 / size,
        )


LOOK = Look("sudoku", "holes of the board", asked, paint)
