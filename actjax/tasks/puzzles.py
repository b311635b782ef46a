"""What puzzles on square boards share: the record of them, and how it becomes a batch."""

import math
from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from actjax.tasks.batch import Batch


class Puzzles(NamedTuple):
    """Puzzles and what solves them; ``P`` puzzles of ``size * size`` cells.

    Attributes:
      boards: integers ``[P, cells]``, what a cell shows; 0: a hole (Sudoku) or a wall (mazes).
      solutions: integers ``[P, cells]``, the answer for each cell, counted from 1.
    """

    boards: Array | np.ndarray
    solutions: Array | np.ndarray

    @property
    def size(self) -> int:
        """Lines of a board."""
        return math.isqrt(self.boards.shape[1])

    def as_batch(self, difficulty: Array) -> Batch:
        """All puzzles as they are, in the order they have, of a difficulty ``[P]`` each."""
        boards = jnp.asarray(self.boards, jnp.int32)
        return Batch(
            inputs=boards,
            targets=jnp.asarray(self.solutions, jnp.int32) - 1,
            mask=jnp.ones(boards.shape, bool),
            lengths=jnp.full(len(boards), boards.shape[1], jnp.int32),
            difficulty=jnp.broadcast_to(difficulty[:, None], boards.shape),
        )


def draw(key: Array, count: int, puzzles: Puzzles) -> Puzzles:
    """So many of `puzzles`, each drawn uniformly; int32."""
    index = jax.random.randint(key, (count,), 0, len(puzzles.boards), jnp.int32)
    return Puzzles(*(jnp.asarray(leaf)[index].astype(jnp.int32) for leaf in puzzles))


def check_boards(puzzles: Puzzles, cells: Collection[int] | None = None):
    """Raises ValueError unless `puzzles` are boards with their solutions.

    Args:
      cells: how many a board may have; any square number unless given.
    """
    shape = jnp.shape(puzzles.boards)
    known = "a square number of" if cells is None else ", ".join(map(str, sorted(cells)))
    if cells is None:
        cells = {math.isqrt(n) ** 2 for n in shape[1:]}
    if len(shape) != 2 or shape[1] not in cells or not shape[0] or not shape[1]:
        raise ValueError(
            f"puzzles must hold boards [P, cells] of {known} cells, got shape {shape}."
        )
    if jnp.shape(puzzles.solutions) != shape:
        raise ValueError(
            f"puzzles must hold a solution a board, of shape {shape}, "
            f"got {jnp.shape(puzzles.solutions)}."
        )
