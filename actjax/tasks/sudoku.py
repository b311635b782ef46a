"""Sudoku: fill the holes of a grid so that no row, column or box holds a digit twice.

Boards of 4 x 4, 6 x 6 (boxes of 2 x 3) or 9 x 9 cells with one solution each, the test of recursive
reasoners since HRM (Wang et al. 2025) and TRM (Jolicoeur-Martineau 2025). A board is one row of
cells, read line by line: 0 is a hole and 1 to `size` are digits. Each draw is one of the puzzles
given as another that is alike by symmetry: digits renamed; lines permuted within their bands, bands
among themselves, columns likewise; and, where boxes are square, mirrored at the diagonal.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from actjax._checks import check_key, check_positive
from actjax.tasks.batch import Batch
from actjax.tasks.puzzles import Puzzles, check_boards, draw

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # size of a board: lines and columns of a box


def sample(key: Array, batch_size: int, *, puzzles: Puzzles, augment: bool = True) -> Batch:
    """Draws boards uniformly from `puzzles`, each under a random symmetry.

    Args:
      key: a JAX random key.
      batch_size: B, the number of boards.
      puzzles: what to draw from; on the device already, it stays there.
      augment: whether boards are drawn under a symmetry, or as they are.

    Returns:
      Batch: inputs int32 [B, cells], 0 for holes; targets int32 [B, cells], the solution's digits
      counted from 0; mask [B, cells] all ones; lengths [B], the number of cells; difficulty
      [B, cells], the number of holes of the board.

    Raises:
      ValueError: for an empty batch, or puzzles that are no boards of 4, 6 or 9 lines.

    Example:
      >>> solved = jnp.array([[1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1]])
      >>> puzzles = Puzzles(solved.at[0, :5].set(0), solved)
      >>> batch = sample(jax.random.key(0), 8, puzzles=puzzles)
      >>> batch.inputs.shape, batch.difficulty[:, 0].tolist()
      ((8, 16), [5, 5, 5, 5, 5, 5, 5, 5])
    """
    check_key("key", key)
    check_positive("batch_size", batch_size)
    check_puzzles(puzzles)
    pick_key, symmetry_key, digit_key = jax.random.split(key, 3)
    boards, solutions = draw(pick_key, batch_size, puzzles)
    if augment:
        cells = draw_symmetries(symmetry_key, batch_size, puzzles.size)
        names = (
            jax.random.uniform(digit_key, (batch_size, puzzles.size), jnp.float32).argsort(1) + 1
        )
        names = jnp.pad(names, ((0, 0), (1, 0)))  # a hole stays one
        rename = lambda digits: jnp.take_along_axis(
            names, jnp.take_along_axis(digits, cells, axis=1), axis=1
        )
        boards, solutions = rename(boards), rename(solutions)
    return as_batch(Puzzles(boards, solutions))


def as_batch(puzzles: Puzzles) -> Batch:
    """All `puzzles` as they are, for evaluation: a batch as `sample` draws it."""
    return puzzles.as_batch(holes(puzzles))


def holes(puzzles: Puzzles) -> Array:
    """Holes of each, the difficulty: int32 [P]."""
    return (jnp.asarray(puzzles.boards) == 0).sum(1, dtype=jnp.int32)


def draw_symmetries(key: Array, count: int, size: int) -> Array:
    """Random permutations of cells that take every Sudoku to a Sudoku: int32 [count, cells].

    Example:
      >>> cells = draw_symmetries(jax.random.key(0), 5, 6)
      >>> cells.shape, bool((jnp.sort(cells, 1) == jnp.arange(36)).all())
      ((5, 36), True)
    """
    height, width = BOXES[size]
    line_key, column_key, mirror_key = jax.random.split(key, 3)
    lines = _draw_lines(line_key, count, size, height)[:, :, None]
    columns = _draw_lines(column_key, count, size, width)[:, None, :]
    cells = lines * size + columns
    if height == width:
        mirrored = jax.random.bernoulli(mirror_key, jnp.float32(0.5), (count, 1, 1))
        cells = jnp.where(mirrored, cells.swapaxes(1, 2), cells)
    return cells.reshape(count, size * size)


def _draw_lines(key: Array, count: int, size: int, band: int) -> Array:
    """Random orders of lines that keep bands of `band` together: int32 [count, size]."""
    band_key, line_key = jax.random.split(key)
    bands = jax.random.uniform(band_key, (count, size // band), jnp.float32).argsort(1)
    inner = jax.random.uniform(line_key, (count, size // band, band), jnp.float32).argsort(2)
    return (bands[:, :, None] * band + inner).reshape(count, size).astype(jnp.int32)


def units(size: int) -> Array:
    """The row, column and box of each cell, each counted from 0: int32 [3, cells].

    Example:
      >>> units(4)[2].reshape(4, 4).tolist()
      [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    """
    height, width = BOXES[size]
    row, column = jnp.divmod(jnp.arange(size * size, dtype=jnp.int32), size)
    return jnp.stack([row, column, row // height * (size // width) + column // width])


def is_solved(answers: Array, boards: Array) -> Array:
    """Which answers fill their boards rightly: bool [...].

    Args:
      answers: integers [..., cells], digits counted from 0, as `Batch.targets` are.
      boards: integers [..., cells], 0 for holes, as `Batch.inputs` are.

    Example:
      >>> solved = jnp.array([1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1])
      >>> bool(is_solved(solved - 1, solved)), bool(is_solved(solved % 4, solved))
      (True, False)
    """
    size = math.isqrt(boards.shape[-1])
    kept = ((boards == 0) | (boards == answers + 1)).all(-1)
    is_digit, is_unit = (  # [..., cells, digits] and [3, cells, units]
        jax.nn.one_hot(places, size, dtype=jnp.int32) for places in (answers, units(size))
    )
    found = jnp.einsum("...cd,kcu->...kud", is_digit, is_unit)
    return kept & (found == 1).all((-3, -2, -1))


def check_puzzles(puzzles: Puzzles):
    """Raises ValueError unless `puzzles` are boards of 4, 6 or 9 lines with their solutions."""
    check_boards(puzzles, cells={size * size for size in BOXES})
