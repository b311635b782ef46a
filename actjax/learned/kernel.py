"""The optimizer's step on a GPU: all that a coordinate does in one launch, its memory in place.

Written in Pallas for Triton. A program has some columns of the memory. It holds a layer's operands
and gates as tiles ``[units, columns]`` and goes through the layers, so that the memory is read and
written once and nothing else is. Tiles are of powers of two: rows past the last unit are zeros,
which the layers keep zero. JAX says that it will remove Pallas for Triton, so this file is imported
where it is asked for; without it a step is that of `columns`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.pallas import triton
from jax.sharding import NamedSharding, PartitionSpec

from actjax.learned.features import MOMENT_ROWS, PREPROCESS, adam_rows, log_sign_rows
from actjax.learned.network import CoordinatewiseLSTM

WIDTH = 128  # columns a program
WARPS = 4
LEAST = 16  # rows of what is multiplied


class _Sizes(NamedTuple):
    """Of a network of U units and its tiles."""

    units: int  # U
    layers: int
    moments: int  # rows of the memory before the first cell
    chunks: tuple[tuple[int, int], ...]  # the units in tiles: their first, and how many
    own: int  # rows of a layer's own operand: hidden, the first layer's inputs, a one

    @property
    def rows(self) -> int:
        """Of a layer's weights: 4 gates of all chunks."""
        return 4 * sum(count for _, count in self.chunks)


def sizes_of(network: CoordinatewiseLSTM) -> _Sizes:
    units = network.hidden_features
    inputs = PREPROCESS[network.preprocess] + network.see_params + network.see_scale
    own = max(LEAST, pl.next_power_of_2(units + inputs + 1))
    chunks, first = [], 0
    while first < units:
        left = units - first
        count = 1 << left.bit_length() - 1 if left >= LEAST else max(4, pl.next_power_of_2(left))
        chunks.append((first, count))
        first += count
    return _Sizes(units, len(network.kernels), network.moment_rows, tuple(chunks), own)


def advance(network, ok, memory, gradient, seen, *, interpret: bool = False):
    """One step of all coordinates; arguments and results as in `columns.advance`.

    Args:
      interpret: off a GPU.
    """
    runs, update = network.runs(gradient.shape[0]), None
    if len(runs) == 1:
        arrays = _arrays(network, memory, None, gradient, seen, ok)
        return _divisible(network, list(arrays), interpret)(*arrays.values())
    for part, first, end in runs:
        arrays = _arrays(part, memory, update, gradient, seen, ok)
        memory, update = _launch(part, arrays, first, end, interpret)
    return memory, update


def _divisible(network, names: list[str], interpret: bool):
    """`_launch` of all columns; on several devices, which XLA then asks for, each does its own."""

    def launch(*arrays):
        arrays = dict(zip(names, arrays, strict=True))
        return _launch(network, arrays, 0, len(arrays["gradient"]), interpret)

    def partition(mesh, given, wanted):
        del wanted
        spec = given[names.index("memory")].sharding.spec
        columns = spec[1] if len(spec) > 1 else None
        of_all = {name: (columns,) for name in ("gradient", "params", "scale", "update")}
        of_all["memory"] = None, columns
        place = lambda name: NamedSharding(mesh, PartitionSpec(*of_all.get(name, ())))
        return mesh, launch, (place("memory"), place("update")), tuple(map(place, names))

    axes = {"weights": "gates operands", "read_out": "outputs", "bias": "biases", "ok": "oks"}
    axes["memory"] = "rows columns"
    rule = ", ".join(axes.get(name, "columns") for name in names)
    shared = "gates", "operands", "outputs", "biases", "oks", "rows"
    shared = tuple(axis for axis in shared if axis in rule.replace(",", "").split())
    step = custom_partitioning(launch)
    step.def_partition(
        partition,
        sharding_rule=f"{rule} -> rows columns, columns",
        need_replication_factors=shared,
    )
    return step


def _arrays(network, memory, update, gradient, seen, ok) -> dict[str, jax.Array]:
    """What `_launch` reads; `update`, where there is one, is written into."""
    arrays = {
        "weights": _weights(network, sizes_of(network)),
        "read_out": network.output_kernel[...].reshape(-1),
        "bias": None if network.output_bias is None else network.output_bias[...][None],
        "ok": ok.astype(jnp.int32)[None],
        "gradient": gradient,
        "params": seen[0] if network.see_params else None,
        "scale": seen[1] if network.see_scale else None,
        "memory": memory,
        "update": update,
    }
    return {name: array for name, array in arrays.items() if array is not None}


def _launch(network, arrays: dict[str, jax.Array], first: int, end: int, interpret: bool):
    """Steps the columns from `first` to `end`: the memory and the updates, float [N]."""
    size, written = sizes_of(network), ("memory", "update")
    names = [f"{name}_in" if name in written else name for name in arrays] + [*written]

    def body(*refs):
        refs = dict(zip(names, refs, strict=True))
        _columns(network, size, refs, first, end, interpret=interpret)

    whole = pl.BlockSpec(memory_space=pl.ANY)  # a program reads and writes where its columns are
    memory, gradient = arrays["memory"], arrays["gradient"]
    place = list(arrays).index
    memory, update = pl.pallas_call(
        body,
        grid=(pl.cdiv(end - first, WIDTH),),
        in_specs=[whole] * len(arrays),
        out_specs=[whole] * 2,
        out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (memory, gradient)],
        input_output_aliases={place(name): n for n, name in enumerate(written) if name in arrays},
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        name="actjax_optimizer",
    )(*arrays.values())
    return memory, update


def _weights(network: CoordinatewiseLSTM, size: _Sizes) -> jax.Array:
    """Of one layer after the other the gates [rows, columns]: chunk by chunk, of each all four.

    Columns are those of its own operand, then those of the chunks of the layer below.
    """
    layers = []
    for layer, kernel in enumerate(network.kernels):
        gates = kernel[...].reshape(4, size.units, -1)
        inputs = gates.shape[2] - size.units - 1
        given, hidden, one = jnp.split(gates, (inputs, inputs + size.units), axis=2)
        own = [hidden, one] if layer else [hidden, given, one]
        columns = [_padded(jnp.concatenate(own, axis=2), 2, size.own)]
        for first, count in size.chunks:
            below = given[:, :, first : first + count] if layer else jnp.zeros((4, size.units, 0))
            columns.append(_padded(below, 2, max(LEAST, count)))
        gates = jnp.concatenate(columns, axis=2)
        for first, count in size.chunks:
            chunk = _padded(gates[:, first : first + count], 1, count)
            layers.append(chunk.reshape(4 * count, -1))
    return jnp.concatenate(layers)


def _padded(array: jax.Array, axis: int, size: int) -> jax.Array:
    widths = [(0, 0)] * array.ndim
    widths[axis] = 0, size - array.shape[axis]
    return jnp.pad(array, widths)


def _columns(network, size: _Sizes, refs: dict, first: int, end: int, *, interpret: bool):
    """What one program does."""
    sigmoid = jax.nn.sigmoid if interpret else _sigmoid
    tanh = lambda z: 2 * sigmoid(2 * z) - 1
    column = first + pl.program_id(0) * WIDTH + jnp.arange(WIDTH, dtype=jnp.int32)
    inside = column < end
    ok = triton.load(refs["ok"].at[jnp.int32(0)]) != 0
    one = lambda name: _vector(refs[name], column, inside)
    gradient = jnp.where(ok, one("gradient"), 0)
    if network.preprocess == "adam":
        moments = [_row(refs["memory_in"], n, column, inside) for n in range(MOMENT_ROWS)]
        moments, x = adam_rows(moments, gradient)
        for n, moment in enumerate(moments):
            _put_row(refs["memory"], n, column, moment, inside & ok)
    else:
        seen = log_sign_rows(gradient, network.p)
        x = seen if network.preprocess == "log_sign" else (gradient,)
    direction = x[1] if network.preprocess == "adam" else None
    x = [*x, *(one(name) for name in ("params", "scale") if name in refs)]

    h = []
    for layer in range(size.layers):
        cells, hiddens = (size.moments + (n + layer) * size.units for n in (0, size.layers))
        row = span(size.own)
        known = (row < size.units)[:, None] & inside[None]
        operand = _tile(refs["memory_in"], hiddens + row, column, known)
        for n, values in enumerate([*([] if layer else x), jnp.ones(WIDTH, jnp.float32)]):
            operand = jnp.where((row == size.units + n)[:, None], values[None], operand)
        operands = [operand, *(_filled(tile) for tile in h)]
        h, at = [], layer * size.rows
        for first, count in size.chunks:
            i, f, o, g = _gates(refs["weights"], at, count, operands)
            at += 4 * count
            unit = first + span(count)
            mask = jnp.broadcast_to(inside[None], (count, WIDTH))
            if first + count > size.units:
                mask = mask & (unit < size.units)[:, None]
            cell = _tile(refs["memory_in"], cells + unit, column, mask)
            cell = sigmoid(f) * cell + sigmoid(i) * tanh(g)
            h.append(sigmoid(o) * tanh(cell))
            _put_tile(refs["memory"], cells + unit, column, cell, mask & ok)
            _put_tile(refs["memory"], hiddens + unit, column, h[-1], mask & ok)

    def read_out(n):
        total = 0.0
        for (first, count), tile in zip(size.chunks, h, strict=True):
            unit = first + span(count)
            weights = _vector(refs["read_out"], n * size.units + unit, unit < size.units)
            total = total + jnp.sum(weights[:, None] * tile, axis=0)
        return total

    update = read_out(0)
    if direction is not None:
        update = -jnp.exp(update) * (direction + read_out(1))
    if "bias" in refs:
        update = update + triton.load(refs["bias"].at[jnp.int32(0)])
    update = jnp.where(ok, network.output_scale * update, 0)
    triton.store(refs["update"].at[column], update, mask=inside)


def _gates(weights, at, count, operands):
    """The four gates [count, WIDTH] of a chunk whose weights begin at row `at`."""

    def rows(begin, size):
        total, column = 0.0, 0
        for operand in operands:
            tile = _tile(weights, begin + span(size), column + span(operand.shape[0]))
            total = total + _dot(tile, operand)
            column += operand.shape[0]
        return total

    if count < LEAST:
        return jnp.split(rows(at, 4 * count), 4)
    return [rows(at + gate * count, count) for gate in range(4)]


def _sigmoid(z):
    """From two instructions of the special function units; the usual ones add range checks."""
    power = _asm("ex2.approx.ftz.f32", z * -math.log2(math.e))
    return _asm("rcp.approx.ftz.f32", 1 + power)


def _asm(instruction, x):
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    options = {"constraints": "=f,f", "pack": 1, "result_shape_dtypes": [like]}
    return triton.elementwise_inline_asm(f"{instruction} $0, $1;", args=[x], **options)[0]


def _filled(tile):
    """A tile of at least LEAST rows: repeated, for weights that are zero from there on."""
    count, width = tile.shape
    if count >= LEAST:
        return tile
    return jnp.broadcast_to(tile[None], (LEAST // count, count, width)).reshape(LEAST, width)


def span(count: int) -> jax.Array:
    return jnp.arange(count, dtype=jnp.int32)


def _dot(a, b):
    return lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _at(ref, rows, columns):
    shape = rows.shape[0], columns.shape[0]
    return ref.at[jnp.broadcast_to(rows[:, None], shape), jnp.broadcast_to(columns[None], shape)]


def _tile(ref, rows, columns, mask=None):
    other = None if mask is None else jnp.zeros((), ref.dtype)
    return triton.load(_at(ref, rows, columns), mask=mask, other=other).astype(jnp.float32)


def _put_tile(ref, rows, columns, value, mask):
    triton.store(_at(ref, rows, columns), value.astype(ref.dtype), mask=mask)


def _vector(ref, columns, mask):
    return triton.load(ref.at[columns], mask=mask, other=jnp.zeros((), ref.dtype))


def _row(ref, row, columns, mask):
    rows = jnp.full(columns.shape, row, jnp.int32)
    other = jnp.zeros((), ref.dtype)
    return triton.load(ref.at[rows, columns], mask=mask, other=other).astype(jnp.float32)


def _put_row(ref, row, columns, value, mask):
    rows = jnp.full(columns.shape, row, jnp.int32)
    triton.store(ref.at[rows, columns], value.astype(ref.dtype), mask=mask)
