"""What the kernels of `kernel_programs` are written in: tiles of arrays, and products of them.

A value of all lanes is a list of tiles ``[lanes, units]``; several such values are a list of those.
"""

import functools
import operator

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton

from actjax._loop.kernel_plan import KernelPlan


def span(count: int) -> jax.Array:
    """0, 1, ... in int32, as everything is counted here."""
    return jnp.arange(count, dtype=jnp.int32)


def _both(rows, columns):
    """``[rows, columns]`` from a condition on each, either of which may be None."""
    if rows is None or columns is None:
        only = rows if columns is None else columns
        return only if only is None else (rows[:, None] if columns is None else columns[None])
    return rows[:, None] & columns[None]


class Matrix:
    """A ref ``[rows, blocks * width]`` in tiles: of block b the tiles j = 0, 1, ...

    Attributes:
      width: units of a block: `hidden` for the arrays of the network, which end within the last
        tile, or `plan.width`.
    """

    def __init__(self, plan: KernelPlan, ref, width: int):
        self.units, self.ref, self.width = plan.units, ref, width

    def _place(self, rows, block, j, mask):
        columns = j * self.units + span(self.units)
        # j may be known only to the program
        ends_within = not (isinstance(j, int) and (j + 1) * self.units <= self.width)
        inside = columns < self.width if ends_within and self.width % self.units else None
        shape = rows.shape[0], self.units
        mask = _both(mask, inside)
        mask = None if mask is None else jnp.broadcast_to(mask, shape)
        at = jnp.broadcast_to(rows[:, None], shape), jnp.broadcast_to(columns[None], shape)
        return self.ref.at[at[0], block * self.width + at[1]], mask

    def load(self, rows, block, j, mask=None):
        """A tile as it is stored; zeros where `mask`, one a row, does not hold."""
        place, mask = self._place(rows, block, j, mask)
        other = None if mask is None else jnp.zeros((), self.ref.dtype)
        return triton.load(place, mask=mask, other=other)

    def wide(self, rows, block, j, mask=None):
        """A tile in float32, as everything is computed."""
        return self.load(rows, block, j, mask).astype(jnp.float32)

    def store(self, value, rows, block, j, mask=None):
        """Writes a tile in the rows where `mask` holds, in the dtype of the ref."""
        place, mask = self._place(_apart(self.ref, rows, mask), block, j, mask)
        triton.store(place, value.astype(self.ref.dtype), mask=mask)


def load(ref, at, mask=None):
    """Of a ref of one axis the values at `at`, zeros where `mask` does not hold."""
    other = None if mask is None else jnp.zeros((), ref.dtype)
    return triton.load(ref.at[at], mask=mask, other=other)


def store(ref, at, value, mask=None):
    """Writes to a ref of one axis, where `mask` holds."""
    triton.store(ref.at[_apart(ref, at, mask)], value.astype(ref.dtype), mask=mask)


def _apart(ref, rows, mask):
    """Rows that are not written stand past the end: interpreted, a store puts back what it found
    there, which must not meet what another lane writes."""
    return rows if mask is None else jnp.where(mask, rows, ref.shape[0])


def add_up(terms):
    return functools.reduce(operator.add, terms)


def dot(a, b, contract=(1, 0)):
    """The product over these axes, summed in float32; its precision is JAX's default."""
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def where(rows, new, old):
    """Tiles of `new` in the rows where the condition holds, else of `old`; `old` may be 0."""
    pick = lambda a, b: jnp.where(rows[:, None], a, b)
    if isinstance(old, int):
        return jax.tree.map(lambda a: pick(a, jnp.zeros_like(a)), new)
    return jax.tree.map(pick, new, old)


def row_sum(tiles):
    return add_up(tile.sum(axis=1) for tile in tiles)


class Weights:
    """The recurrent weights, ``[gates * hidden, hidden]``, in tiles; read once if `resident`."""

    def __init__(self, plan: KernelPlan, ref, resident: bool):
        self.plan, self.matrix, self.tiles = plan, Matrix(plan, ref, plan.hidden), None
        if resident:
            tiles, gates = range(plan.tiles), range(plan.cell.gates)
            self.tiles = {
                (g, k, j): self._read(g, k, j) for g in gates for k in tiles for j in tiles
            }

    def _read(self, g, k, j):
        rows = k * self.plan.units + span(self.plan.units)
        short = (k + 1) * self.plan.units > self.plan.hidden
        rows_in = rows < self.plan.hidden if short else None
        rows = jnp.minimum(rows, self.plan.hidden - 1) if short else rows
        return self.matrix.load(g * self.plan.hidden + rows, 0, j, rows_in)

    def __call__(self, g, k, j):
        return self.tiles[g, k, j] if self.tiles else self._read(g, k, j)


def products_of(plan: KernelPlan, weights: Weights, h):
    """``h W_g`` for every gate g: a list over gates of tiles."""
    operands = [tile.astype(plan.dtype) for tile in h]
    return [
        [
            add_up(dot(a, weights(g, k, j)) for k, a in enumerate(operands))
            for j in range(plan.tiles)
        ]
        for g in range(plan.cell.gates)
    ]


def by_tile(function, plan: KernelPlan, *lists):
    """`function` of the lists' entries, tile by tile: lists over entries of tiles, turned about."""
    found = [function(*([e[j] for e in entries] for entries in lists)) for j in range(plan.tiles)]
    turn = lambda parts: [list(tiles) for tiles in zip(*parts, strict=True)]
    if isinstance(found[0], tuple):
        return tuple(turn(parts) for parts in zip(*found, strict=True))
    return turn(found)


def vector(plan: KernelPlan, ref, block: int):
    """A row of `hidden` values as tiles ``[1, units]``."""
    matrix, row = Matrix(plan, ref, plan.hidden), jnp.zeros(1, jnp.int32)
    return [matrix.wide(row, block, j) for j in range(plan.tiles)]


def inputs_of(plan: KernelPlan, refs, at, live, first, flags):
    """What the gates have from the inputs, the flag of the first step included (eq 3)."""
    xs = Matrix(plan, refs["xs"], plan.hidden)
    add = lambda g, j: (
        xs.wide(at, g, j, live)
        + where(first, jnp.broadcast_to(flags[g][j], (plan.lanes, plan.units)), 0)
    )
    return [[add(g, j) for j in range(plan.tiles)] for g in range(plan.cell.gates)]


def keep(plan: KernelPlan, ref, rows, blocks):
    """Writes whole blocks of tiles, those that fill up the last included."""
    matrix = Matrix(plan, ref, plan.width)
    for b, tiles in enumerate(blocks):
        for j, tile in enumerate(tiles):
            matrix.store(tile, rows, b, j)


def kept_tiles(plan: KernelPlan, ref, rows, blocks: int):
    """Reads what `keep` has written."""
    matrix = Matrix(plan, ref, plan.width)
    return [[matrix.wide(rows, b, j) for j in range(plan.tiles)] for b in range(blocks)]
