"""The optimizer's step on a GPU: one launch that reads and writes a coordinate's memory once.

Written in Pallas for Triton. A program has some columns of the memory and goes through the layers
with operands and gates as tiles ``[units, columns]``. Tiles have a power of two of rows, products
at least 16 of them: 20 units are 16 and 4, and the four gates of the 4 are one product. Rows past
the last unit are zeros, which the layers keep zero.

JAX says that it will remove Pallas for Triton, so this is imported where it is asked for, and
without it a step is the plain one of `columns`.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.pallas import triton
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import NamedSharding, PartitionSpec

from actjax.learned.features import MOMENT_ROWS, PREPROCESS, adam_rows, log_sign_rows
from actjax.learned.network import CoordinatewiseLSTM, GroupedLSTM

LEAST = 16  # rows of a product
EXACT = "highest", "float32"  # precisions without tensor cores, whose products take more registers
WRITTEN = "memory", "update"


class Plan(NamedTuple):
    """What of a network of U units is known before it runs, and how its step is cut."""

    units: int  # U
    layers: int
    moments: int  # rows of the memory before the first cell
    preprocess: str
    p: float
    output_scale: float
    chunks: tuple[tuple[int, int], ...]  # the units in tiles: the first of each, and how many
    own: int  # rows of a layer's own operand: hidden, the first layer's inputs, a one
    width: int  # columns of a program
    warps: int
    precision: str | None  # of products: JAX's default where the step was asked for
    interpret: bool

    @property
    def rows(self) -> int:
        """Of a layer's weights: 4 gates of all chunks."""
        return 4 * sum(count for _, count in self.chunks)


def make_plan(network: CoordinatewiseLSTM, interpret: bool = False, **cut: int) -> Plan:
    """The plan for a network; `cut` are other `width` and `warps` than the default ones."""
    units, chunks, first = network.hidden_features, [], 0
    inputs = PREPROCESS[network.preprocess] + network.see_params + network.see_scale
    while first < units:
        left = units - first
        count = 1 << left.bit_length() - 1 if left >= LEAST else max(4, pl.next_power_of_2(left))
        chunks.append((first, count))
        first += count
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    cut = {"width": 128 if units <= 24 else 64, "warps": 8 if precision in EXACT else 4} | cut
    return Plan(
        units,
        len(network.kernels),
        network.moment_rows,
        network.preprocess,
        network.p,
        network.output_scale,
        tuple(chunks),
        max(LEAST, pl.next_power_of_2(units + inputs + 1)),
        precision=precision,
        interpret=interpret,
        **cut,
    )


def advance(
    network: CoordinatewiseLSTM | GroupedLSTM, ok, memory, gradient, seen, **options
) -> tuple[jax.Array, Any]:
    """One step of all coordinates; arguments and results are those of `columns.advance`.

    Args:
      **options: of `make_plan`.
    """
    runs, update = network.runs(gradient.shape[0]), None
    if len(runs) == 1:
        [(part, _, _)] = runs
        plan = make_plan(part, **options)
        arrays = _arrays(plan, part, ok, memory, gradient, seen)
        return _divisible(plan, tuple(arrays))(*arrays.values())
    for part, first, end in runs:
        plan = make_plan(part, **options)
        arrays = _arrays(plan, part, ok, memory, gradient, seen, update)
        memory, update = _launch(plan, arrays, first, end)
    return memory, update


@functools.cache
def _divisible(plan: Plan, names: tuple[str, ...]):
    """`_launch` of all columns, with what XLA must know to have each of several devices do its own.

    Where it is not told it copies the whole memory to each of them.
    """

    def launch(*arrays):
        arrays = dict(zip(names, arrays, strict=True))
        return _launch(plan, arrays, 0, len(arrays["gradient"]))

    def partition(mesh, given, wanted):
        del wanted
        spec = given[names.index("memory")].sharding.spec
        columns = spec[1] if len(spec) > 1 else None
        specs = dict.fromkeys(("gradient", "params", "scale", "update"), (columns,))
        specs["memory"] = None, columns
        place = lambda name: NamedSharding(mesh, PartitionSpec(*specs.get(name, ())))
        return mesh, launch, tuple(map(place, WRITTEN)), tuple(map(place, names))

    shared = {"weights": "gates operands", "read_out": "outputs", "bias": "biases", "ok": "oks"}
    axes = shared | {"memory": "rows columns"}
    rule = ", ".join(axes.get(name, "columns") for name in names)
    whole = [axis for name in names if name in axes for axis in axes[name].split()]
    step = custom_partitioning(launch)
    step.def_partition(
        partition,
        sharding_rule=f"{rule} -> rows columns, columns",
        need_replication_factors=tuple(axis for axis in whole if axis != "columns"),
    )
    return step


def _arrays(plan: Plan, network, ok, memory, gradient, seen, update=None) -> dict[str, jax.Array]:
    """What `_launch` reads; `update`, where there is one, is written into."""
    arrays = {
        "weights": _weights(plan, network),
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


def _launch(plan: Plan, arrays: dict[str, jax.Array], first: int, end: int):
    """Steps the columns from `first` to `end`: the memory and the updates, float [N]."""
    names = [f"{name}_in" if name in WRITTEN else name for name in arrays] + [*WRITTEN]

    def actjax_optimizer(*refs):
        with jax.default_matmul_precision(plan.precision):
            _columns(plan, dict(zip(names, refs, strict=True)), first, end)

    whole = pl.BlockSpec(memory_space=pl.ANY)  # a program reads and writes where its columns are
    written = arrays["memory"], arrays["gradient"]  # in shape and dtype
    place = list(arrays).index
    call = pl.pallas_call(
        actjax_optimizer,
        grid=(pl.cdiv(end - first, plan.width),),
        in_specs=[whole] * len(arrays),
        out_specs=[whole] * len(written),
        out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in written],
        input_output_aliases={place(name): n for n, name in enumerate(WRITTEN) if name in arrays},
        interpret=plan.interpret,
        compiler_params=triton.CompilerParams(num_warps=plan.warps, num_stages=1),
        name="actjax_optimizer",
    )
    if plan.interpret:
        return tuple(call(*arrays.values()))
    shapes = tuple((array.shape, array.dtype) for array in written)
    return tuple(_on_gpu.bind(*arrays.values(), call=call, shapes=shapes))


# A program that is exported for several platforms has the branches of each lowered for all, and the
# kernel cannot be for a CPU. What stands there for it never runs.
_on_gpu = Primitive("optimizer_kernel")
_on_gpu.multiple_results = True
_on_gpu.def_abstract_eval(lambda *_, call, shapes: [jax.core.ShapedArray(*like) for like in shapes])
_nothing = lambda *_, call, shapes: [jnp.zeros(*like) for like in shapes]
_kernel = lambda *arrays, call, shapes: call(*arrays)
mlir.register_lowering(_on_gpu, mlir.lower_fun(_nothing, multiple_results=True))
mlir.register_lowering(_on_gpu, mlir.lower_fun(_kernel, multiple_results=True), platform="cuda")


def _weights(plan: Plan, network: CoordinatewiseLSTM) -> jax.Array:
    """Of one layer after the other the gates [rows, columns]: chunk by chunk, of each all four.

    Columns are those of its own operand, then those of the chunks of the layer below.
    """
    layers = []
    for layer, kernel in enumerate(network.kernels):
        gates = kernel[...].reshape(4, plan.units, -1)
        inputs = gates.shape[2] - plan.units - 1
        given, hidden, one = jnp.split(gates, (inputs, inputs + plan.units), axis=2)
        own = [hidden, one] if layer else [hidden, given, one]
        columns = [_padded(jnp.concatenate(own, axis=2), 2, plan.own)]
        for first, count in plan.chunks:
            below = given[:, :, first : first + count] if layer else jnp.zeros((4, plan.units, 0))
            columns.append(_padded(below, 2, max(LEAST, count)))
        gates = jnp.concatenate(columns, axis=2)
        for first, count in plan.chunks:
            chunk = _padded(gates[:, first : first + count], 1, count)
            layers.append(chunk.reshape(4 * count, -1))
    return jnp.concatenate(layers)


def _padded(array: jax.Array, axis: int, size: int) -> jax.Array:
    widths = [(0, 0)] * array.ndim
    widths[axis] = 0, size - array.shape[axis]
    return jnp.pad(array, widths)


def _columns(plan: Plan, refs: dict, first: int, end: int):
    """What one program does. Where it is not `ok` nothing is written but updates of zero."""
    sigmoid = jax.nn.sigmoid if plan.interpret else _sigmoid
    tanh = lambda z: 2 * sigmoid(2 * z) - 1
    column = first + pl.program_id(0) * plan.width + _span(plan.width)
    inside = column < end
    ok = triton.load(refs["ok"].at[jnp.int32(0)]) != 0
    known = lambda name: [_vector(refs[name], column, inside)] if name in refs else []
    gradient = jnp.where(ok, known("gradient")[0], 0)
    moments: list[jax.Array] = []
    if plan.preprocess == "adam":
        moments = [_vector(refs["memory_in"], column, inside, row) for row in range(MOMENT_ROWS)]
        moments, x = adam_rows(moments, gradient)
    elif plan.preprocess == "log_sign":
        x = [*log_sign_rows(gradient, plan.p)]
    else:
        x = [gradient]
    inputs = [*x, *known("params"), *known("scale")]

    h: list[jax.Array] = []
    for layer in range(plan.layers):
        cells, hiddens = (plan.moments + (n + layer) * plan.units for n in (0, plan.layers))
        own, at = _span(plan.own), layer * plan.rows
        mask = (own < plan.units)[:, None] & inside[None]
        operand = _tile(refs["memory_in"], hiddens + own, column, mask)
        for n, values in enumerate([*inputs, jnp.ones(plan.width, jnp.float32)]):
            operand = jnp.where((own == plan.units + n)[:, None], values[None], operand)
        operands, h, inputs = [operand, *map(_filled, h)], [], []
        for first, count in plan.chunks:
            i, f, o, g = _gates(refs["weights"], at, count, operands)
            unit, at = first + _span(count), at + 4 * count
            mask = inside[None] & (unit < plan.units)[:, None]
            cell = _tile(refs["memory_in"], cells + unit, column, mask)
            cell = sigmoid(f) * cell + sigmoid(i) * tanh(g)
            h.append(sigmoid(o) * tanh(cell))
            for begin, tile in ((cells, cell), (hiddens, h[-1])):
                rows, columns = _both(begin + unit, column)
                _put(refs["memory"], rows, columns, tile, mask & ok)

    # Only here: of more threads than columns some have the same one, and each reads the old rows.
    for row, values in enumerate(moments):
        _put(refs["memory"], _full(row, column), column, values, inside & ok)

    def read_out(n):
        total = jnp.zeros(plan.width, jnp.float32)
        for (first, count), tile in zip(plan.chunks, h, strict=True):
            unit = first + _span(count)
            weights = _vector(refs["read_out"], n * plan.units + unit, unit < plan.units)
            total = total + jnp.sum(weights[:, None] * tile, axis=0)
        return total

    update = read_out(0)
    if plan.preprocess == "adam":
        update = -jnp.exp(update) * (x[1] + read_out(1))
    if "bias" in refs:
        update = update + triton.load(refs["bias"].at[jnp.int32(0)])
    update = jnp.where(ok, plan.output_scale * update, 0)
    triton.store(refs["update"].at[column], update, mask=inside)


def _gates(weights, at: int, count: int, operands):
    """The four gates [count, width] of a chunk whose weights begin at row `at`."""

    def product(row, rows):
        column, terms = 0, []
        for operand in operands:
            size = operand.shape[0]
            tile = _tile(weights, row + _span(rows), column + _span(size))
            terms.append(lax.dot(tile, operand, preferred_element_type=jnp.float32))
            column += size
        return functools.reduce(jnp.add, terms)

    if count < LEAST:
        return jnp.split(product(at, 4 * count), 4)
    return [product(at + gate * count, count) for gate in range(4)]


def _filled(tile):
    """A tile of at least LEAST rows: repeated, for weights that are zero from there on."""
    count, width = tile.shape
    if count >= LEAST:
        return tile
    return jnp.broadcast_to(tile[None], (LEAST // count, count, width)).reshape(LEAST, width)


def _sigmoid(z):
    """In two instructions of the special units; around what JAX takes there are range checks."""
    power = _special("ex2.approx.ftz.f32", z * -math.log2(math.e))
    return _special("rcp.approx.ftz.f32", 1 + power)


def _special(instruction: str, x):
    [value] = triton.elementwise_inline_asm(
        f"{instruction} $0, $1;",
        args=[x],
        constraints="=f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
    )
    return value


# --- Places --------------------------------------------------------------------------------------


def _span(count: int) -> jax.Array:
    return jnp.arange(count, dtype=jnp.int32)


def _full(row: int, columns):
    return jnp.full(columns.shape, row, jnp.int32)


def _both(rows, columns):
    """Rows and columns of every place of a tile."""
    shape = rows.shape[0], columns.shape[0]
    return jnp.broadcast_to(rows[:, None], shape), jnp.broadcast_to(columns[None], shape)


def _tile(ref, rows, columns, mask=None):
    """What stands there in float32, as all is computed; zeros where `mask` does not hold."""
    other = None if mask is None else jnp.zeros((), ref.dtype)
    found = triton.load(ref.at[_both(rows, columns)], mask=mask, other=other)
    return found.astype(jnp.float32)


def _vector(ref, columns, mask, row: int | None = None):
    """The same of a ref of one axis, or of one row."""
    place = columns if row is None else (_full(row, columns), columns)
    other = jnp.zeros((), ref.dtype)
    return triton.load(ref.at[place], mask=mask, other=other).astype(jnp.float32)


def _put(ref, rows, columns, values, mask):
    triton.store(ref.at[rows, columns], values.astype(ref.dtype), mask=mask)
