"""What the kernels of ``loop="kernel"`` know before they run: their static shape and its tuning."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from actjax._loop.kernel_cells import Cell

_SEGMENT_STEPS = 6  # ponder steps an input whose residuals are kept where memory is short
_SEGMENT_BYTES = 1 << 28  # what they may take where the device does not tell its memory
_SEGMENT_SHARE = 64  # and the share of its memory where it does
# Bytes of weights that stay on the multiprocessor: of GRU 128 in float32, measured on one H200.
_RESIDENT = 192 << 10
_GROUPS = 264  # programs that keep every multiprocessor of a large device busy twice


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How the kernels are cut; what is None follows from the network's shape.

    Attributes:
      lanes: lanes of a program; the matrix units take no fewer than 16.
      units: units of a tile of the state, a power of two of at least 16. Gates, products and
        weights come in such tiles.
      warps, back_warps, weight_warps: warps of a program of each kernel.
      resident, back_resident: whether the weights are read once, before the loop, and stay on the
        multiprocessor (in shared memory or registers, as the compiler sees fit).
      gates: "kept" in the dtype of the network, as "float32" or "bfloat16", or "again": not kept,
        but computed once more in the backward pass.
      rows: rows of a product of the weights' cotangents.
    """

    lanes: int = 16
    units: int | None = None
    warps: int = 8
    back_warps: int = 8
    weight_warps: int | None = None
    resident: bool | None = None
    back_resident: bool | None = None
    gates: str = "kept"
    rows: int = 64


@dataclasses.dataclass(frozen=True)
class KernelPlan:
    """The static shape of one loop.

    Attributes:
      dtype: of the weights in products, the inputs and the outputs; the rest is float32.
      programs: how many there are, each with `lanes` lanes and `queue` sequences for them.
      units, tiles: the state is `tiles` tiles of `units` units, zeros from `hidden` on.
      segment: iterations whose residuals are kept at a time.
      segments: how many segments the longest run has.
    """

    cell: Cell
    tuning: Tuning
    dtype: jnp.dtype
    gate_dtype: jnp.dtype
    batch: int
    time: int
    hidden: int
    max_steps: int
    epsilon: float
    lanes: int
    programs: int
    queue: int
    units: int
    tiles: int
    segment: int
    segments: int
    resident: bool
    back_resident: bool
    splits: int

    @property
    def width(self) -> int:
        """Units with those that fill up the last tile."""
        return self.units * self.tiles

    @property
    def weight_warps(self) -> int:
        return self.tuning.weight_warps or (8 if self.units > 64 else 4)

    @property
    def again(self) -> bool:
        return self.tuning.gates == "again"

    @property
    def all_lanes(self) -> int:
        return self.programs * self.lanes

    @property
    def rows(self) -> int:
        """Rows of what is kept of one segment."""
        return self.all_lanes * self.segment


def make_plan(
    cell: Cell, dtype, *, batch, time, hidden, max_steps, epsilon, lanes, segment, tuning
) -> KernelPlan:
    tuning = Tuning() if tuning is None else tuning
    units = tuning.units or _units(cell, hidden)
    tiles = math.ceil(hidden / units)
    of_program = tuning.lanes
    programs = math.ceil(min(lanes or batch, batch) / of_program)
    queue = max(of_program, math.ceil(batch / programs))
    bound = time * max_steps
    if queue > of_program:  # lanes that are all busy until the last sequences of the queue
        bound += (queue - 1) * bound // of_program
    gate_dtype = dtype if tuning.gates in ("kept", "again") else jnp.dtype(tuning.gates)
    itemsize = jnp.dtype(dtype).itemsize
    if segment is None:
        kept = 0 if tuning.gates == "again" else cell.kept * gate_dtype.itemsize
        row = tiles * units * (kept + (cell.leaves + cell.gates) * itemsize)
        fits = _segment_bytes() // (row * programs * of_program)
        wanted = _SEGMENT_STEPS * math.ceil(time * queue / of_program)
        segment = bound if bound <= fits else max(math.isqrt(bound), min(wanted, fits), 16)
    segment = min(segment, bound)
    size = cell.gates * (tiles * units) ** 2 * itemsize
    stay = lambda given: size <= _RESIDENT if given is None else given
    return KernelPlan(
        cell,
        tuning,
        jnp.dtype(dtype),
        gate_dtype,
        batch,
        time,
        hidden,
        max_steps,
        epsilon,
        of_program,
        programs,
        queue,
        units,
        tiles,
        segment,
        math.ceil(bound / segment),
        stay(tuning.resident),
        stay(tuning.back_resident),
        _splits(cell.gates * tiles * tiles, programs, batch * time, tuning.rows),
    )


def _units(cell: Cell, hidden: int) -> int:
    """The tile: the whole state where it fits in 128 units.

    The compiler spills some registers then, and yet it is the fastest of those measured on an H200
    (GRU 128: 1.37 ms a gradient, 1.66 in tiles of 64). Larger networks take the tile that fills up
    less, which is the smaller one, or as few as they can, since all of them are written out.
    """
    if hidden <= 128:
        return max(16, 1 << (hidden - 1).bit_length())
    return min((128, 64), key=lambda units: (math.ceil(hidden / units) * units, -units))


def _splits(products: int, programs: int, inputs: int, rows: int) -> int:
    """Programs among which the rows of one tile of the weights' cotangents are shared out."""
    return max(1, min(_GROUPS // products, max(min(programs, 16), inputs // (4 * rows))))


def _segment_bytes() -> int:
    stats = jax.local_devices()[0].memory_stats() if jax.default_backend() == "gpu" else None
    limit = (stats or {}).get("bytes_limit")
    return _SEGMENT_BYTES if limit is None else limit // _SEGMENT_SHARE
