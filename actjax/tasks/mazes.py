"""Mazes: mark the shortest way from the start of a grid to its goal, of which there is only one.

The second test of recursive reasoners since HRM (Wang et al. 2025) and TRM (Jolicoeur-Martineau
2025), whose Maze-Hard has 30 x 30 cells. A maze is one row of cells, read line by line; a way goes
from cell to cell, up, down, left or right. What marks it has a class a cell: on the way or not.
Each draw is one of the mazes given as another that is alike: turned or mirrored, and with start and
goal swapped.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from actjax._checks import check_key, check_positive
from actjax.tasks.batch import Batch
from actjax.tasks.puzzles import Puzzles, check_boards, draw

WALL, FREE, START, GOAL = range(4)  # what a cell of a board shows
BESIDE, ON = 1, 2  # what a cell of a solution is
AT_ONCE = 2**17  # cells that are made side by side: what they take stays in a cache


def sample(key: Array, batch_size: int, *, puzzles: Puzzles, augment: bool = True) -> Batch:
    """Draws mazes uniformly from `puzzles`, each under a random symmetry.

    Args:
      key: a JAX random key.
      batch_size: B, the number of mazes.
      puzzles: what to draw from, as `make` makes them; on the device already, it stays there.
      augment: whether mazes are drawn under a symmetry (one of eight of the square, and start and
        goal swapped or not), or as they are.

    Returns:
      Batch: inputs int32 [B, cells], 0 for walls, 1 for free cells, 2 for the start, 3 for the
      goal; targets int32 [B, cells], 1 on the shortest way, its ends among it, and 0 beside it;
      mask [B, cells] all ones; lengths [B], the number of cells; difficulty [B, cells], the moves
      of the shortest way.

    Raises:
      ValueError: for an empty batch, or puzzles that are no square grids.

    Example:
      >>> batch = sample(jax.random.key(0), 8, puzzles=make(7, 50, seed=0))
      >>> batch.inputs.shape, bool((batch.difficulty[:, 0] == batch.targets.sum(1) - 1).all())
      ((8, 49), True)
    """
    check_key("key", key)
    check_positive("batch_size", batch_size)
    check_boards(puzzles)
    pick_key, symmetry_key, swap_key = jax.random.split(key, 3)
    boards, solutions = draw(pick_key, batch_size, puzzles)
    if augment:
        cells = draw_symmetries(symmetry_key, batch_size, puzzles.size)
        boards, solutions = (jnp.take_along_axis(x, cells, axis=1) for x in (boards, solutions))
        swapped = jax.random.bernoulli(swap_key, jnp.float32(0.5), (batch_size, 1))
        boards = jnp.where(swapped & (boards >= START), START + GOAL - boards, boards)
    return as_batch(Puzzles(boards, solutions))


def as_batch(puzzles: Puzzles) -> Batch:
    """All `puzzles` as they are, for evaluation: a batch as `sample` draws it."""
    return puzzles.as_batch(moves(puzzles))


def moves(puzzles: Puzzles) -> Array:
    """Moves of the shortest way of each, the difficulty: int32 [P]."""
    return (jnp.asarray(puzzles.solutions) == ON).sum(1, dtype=jnp.int32) - 1


def symmetries(size: int) -> np.ndarray:
    """The eight symmetries of a square as permutations of its cells: int32 [8, cells].

    Example:
      >>> symmetries(2).tolist()[:3]
      [[0, 1, 2, 3], [1, 3, 0, 2], [3, 2, 1, 0]]
    """
    cells = np.arange(size * size, dtype=np.int32).reshape(size, size)
    turned = [np.rot90(cells, turns) for turns in range(4)]
    return np.stack([*turned, *(grid.T for grid in turned)]).reshape(8, size * size)


def draw_symmetries(key: Array, count: int, size: int) -> Array:
    """Random symmetries of a square, as permutations of its cells: int32 [count, cells]."""
    return jnp.asarray(symmetries(size))[jax.random.randint(key, (count,), 0, 8, jnp.int32)]


def lines(size: int) -> Array:
    """The row and column of each cell, each counted from 0: int32 [2, cells]."""
    return jnp.stack(jnp.divmod(jnp.arange(size * size, dtype=jnp.int32), size))


# --- Made in NumPy, all side by side: grids [P, size + 2, size + 2] in a frame of walls -----------


def make(size: int, count: int, seed: int, *, shortest: int = 2, rings: float = 0.1) -> Puzzles:
    """Makes mazes with one shortest way each.

    The cells are visited in random order, and one is opened unless that would close a ring, which
    leaves mazes in which there is one way at most between any two cells (Kruskal's algorithm); or,
    with the chance `rings`, although it would, so that there are longer ways and blind alleys that
    lead on. The start is any free cell. Goals are cells to which there is one shortest way, as a
    count of all shortest ways from the start says: the moves to the goal are drawn uniformly from
    `shortest` to the most there are.

    Args:
      size: lines of the grid, at least 3.
      count: how many mazes.
      seed: they are a function of it and of the other arguments.
      shortest: fewest moves from start to goal.
      rings: chance to open a cell that closes a ring, from 0 to 1.

    Raises:
      ValueError: for values out of range, or where no maze has so long a way.

    Example:
      >>> mazes = make(9, 100, seed=0, shortest=12)
      >>> mazes.boards.shape, bool((moves(mazes) >= 12).all())
      ((100, 81), True)
    """
    check_positive("size", size)
    if size < 3:
        raise ValueError(f"size must be at least 3, got {size!r}.")
    check_positive("count", count)
    check_positive("shortest", shortest)
    if not 0 <= rings <= 1:
        raise ValueError(f"rings must be a chance from 0 to 1, got {rings!r}.")
    rng, parts, found, tried = np.random.default_rng(seed), [], 0, 0
    many = max(1, AT_ONCE // (size + 2) ** 2)
    while found < count:
        part = _some(rng, min(many, 64 + 2 * (count - found)), size, shortest, rings)
        parts.append(part)
        found, tried = found + len(part.boards), tried + 1
        if tried > 9 and not found:
            raise ValueError(
                f"shortest must be a number of moves that mazes of {size} lines have, "
                f"got {shortest!r}."
            )
    return Puzzles(*(np.concatenate(leaf)[:count] for leaf in zip(*parts, strict=True)))


def _some(rng: np.random.Generator, count: int, size: int, shortest: int, rings: float) -> Puzzles:
    """Those of `count` mazes that have a way of `shortest` moves."""
    free = carve(rng, count, size, rings)
    start = _one_of(rng, free)
    moves, ways = count_ways(free, start)
    goals = (ways == 1) & (moves >= shortest)
    kept = goals.any((1, 2))
    free, start, moves, goals = (x[kept] for x in (free, start, moves, goals))
    most = np.where(goals, moves, 0).max((1, 2), keepdims=True)
    wanted = shortest + rng.random(most.shape) * (most - shortest + 1)
    off = np.where(goals, np.abs(moves + 0.5 - wanted), np.inf)
    goal = _one_of(rng, off == off.min((1, 2), keepdims=True))
    boards = np.where(goal, GOAL, np.where(start, START, np.where(free, FREE, WALL)))
    solutions = np.where(trace_back(moves, goal), ON, BESIDE)
    inside = lambda grids: grids[:, 1:-1, 1:-1].reshape(len(grids), size * size).astype(np.int8)
    return Puzzles(inside(boards), inside(solutions))


def carve(rng: np.random.Generator, count: int, size: int, rings: float = 0.0) -> np.ndarray:
    """Grids of which cells are free, bool; see `make`."""
    wide = size + 2
    inner = np.arange(wide * wide).reshape(wide, wide)[1:-1, 1:-1].ravel()
    order = inner[rng.random((count, inner.size)).argsort(1)]
    exempt = rng.random((count, inner.size)) < rings
    parts = np.zeros((count, wide * wide), np.int32)  # 0 in a wall; cells that hang together agree
    every = np.arange(count)
    for n, at in enumerate(order.T):
        around = np.sort(parts[every[:, None], at[:, None] + [-wide, -1, 1, wide]])
        closes = ((around[:, 1:] == around[:, :-1]) & (around[:, 1:] > 0)).any(1)
        opened = ~closes | exempt[:, n]
        for beside in around.T:
            joined = np.flatnonzero(opened & (beside > 0))
            some = parts[joined]
            parts[joined] = np.where(some == beside[joined, None], n + 1, some)
        parts[every[opened], at[opened]] = n + 1
    return (parts > 0).reshape(count, wide, wide)


def count_ways(free: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Breadth first from the start: moves to each cell, -1 where none lead, and shortest ways.

    Args:
      free: bool ``[P, size + 2, size + 2]``, in a frame of walls.
      start: bool likewise, one cell a grid.

    Returns:
      Moves, int16, and the number of shortest ways to each cell, int8; 2 is two or more.
    """
    moves = np.where(start, 0, -1).astype(np.int16)
    ways, front = start.astype(np.int8), start.astype(np.int8)
    for n in range(1, free[0].size):
        front = np.where(free & (moves < 0), np.minimum(_sum_around(front), 2), 0).astype(np.int8)
        if not front.any():
            break
        moves[front > 0] = n
        ways += front
    return moves, ways


def trace_back(moves: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The cells of the only shortest way to the goal, both ends among them: bool."""
    way = goal.copy()
    for n in range(int(moves[goal].max(initial=0)), 0, -1):
        way |= (moves == n - 1) & (_sum_around((way & (moves == n)).astype(np.int8)) > 0)
    return way


def _sum_around(grids: np.ndarray) -> np.ndarray:
    """The sum of the four cells around each but those of the frame, where it is 0."""
    total = np.zeros_like(grids)
    inside = total[:, 1:-1, 1:-1]
    for part in (grids[:, :-2, 1:-1], grids[:, 2:, 1:-1], grids[:, 1:-1, :-2], grids[:, 1:-1, 2:]):
        inside += part
    return total


def _one_of(rng: np.random.Generator, allowed: np.ndarray) -> np.ndarray:
    """One of the cells allowed in each grid, drawn at random: bool."""
    lots = np.where(allowed, rng.random(allowed.shape), -1).reshape(
        len(allowed), math.prod(allowed.shape[1:])
    )
    chosen = np.arange(lots.shape[1]) == lots.argmax(1)[:, None]
    return chosen.reshape(allowed.shape)


def fingerprints(boards: np.ndarray) -> np.ndarray:
    """A number for each maze that no symmetry changes, uint64 [P], evenly spread.

    Example:
      >>> boards = make(5, 9, seed=0).boards
      >>> bool((fingerprints(boards) == fingerprints(boards[:, symmetries(5)[3]])).all())
      True
    """
    salt = np.random.default_rng(0).integers(0, 2**64, (4, boards.shape[1]), np.uint64)
    every, least = np.arange(boards.shape[1]), np.full(len(boards), 2**64 - 1, np.uint64)
    swapped = np.where(boards >= START, START + GOAL - boards, boards)
    for cells in symmetries(math.isqrt(boards.shape[1])):
        for alike in (boards[:, cells], swapped[:, cells]):
            least = np.minimum(least, salt[alike, every].sum(1))
    return least * np.uint64(0x9E3779B97F4A7C15)  # the least of many are small: spread them evenly
