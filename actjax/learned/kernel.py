"""The optimizer's step on a GPU: all that a coordinate does in one launch, its memory in place.

Written in Pallas for Triton. A program has some columns of the memory. It holds a layer's operands
and gates as tiles ``[units, columns]`` and goes through the layers, so that the memory is read and
written once and nothing else is. Tiles are of powers of two: rows past the last unit are zeros,
which the layers keep zero. JAX says that it will remove Pallas for Triton, so this file is imported
where it is asked for; without it a step is that of `columns`.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from actjax.learned.features import MOMENT_ROWS, PREPROCESS, adam_rows, log_sign_rows
from actjax.learned.network import CoordinatewiseLSTM

WIDTH = 128  # columns a program
WARPS = 4


class _Sizes(NamedTuple):
    """Of a network: U units, X inputs of the first layer."""

    units: int
    layers: int
    moments: int  # rows of the memory before the first cell
    features: int  # X
    tile: int  # rows of a tile of units
    own: int  # rows of an operand: U hidden, X inputs in the first layer, a one


def sizes_of(network: CoordinatewiseLSTM) -> _Sizes:
    units = network.hidden_features
    features = PREPROCESS[network.preprocess] + network.see_params + network.see_scale
    own = max(16, pl.next_power_of_2(units + features + 1))
    tile = max(16, pl.next_power_of_2(units))
    return _Sizes(units, len(network.kernels), network.moment_rows, features, tile, own)


def step(network, memory, update, gradient, seen, ok, first: int, end: int, *, interpret: bool):
    """Steps the columns from `first` to `end`: the memory and, where those were written, `update`.

    Args:
      network: a CoordinatewiseLSTM in float32.
      memory: float [rows, N].
      update: float [N] that the updates are written into; None for a new one.
      gradient: float32 [N].
      seen: params and scales, float32 [N] or None.
      ok: bool []. Without it memory stays and updates are zero.
      interpret: off a GPU.
    """
    size = sizes_of(network)
    read = {
        "weights": _weights(network, size),
        "read_out": network.output_kernel[...].reshape(-1),
        "gradient": gradient,
        "ok": ok.astype(jnp.int32)[None],
    }
    if network.output_bias is not None:
        read["bias"] = network.output_bias[...][None]
    read |= {n: v for n, v in zip(("params", "scale"), seen, strict=True) if v is not None}
    alias = {"memory": memory} if update is None else {"memory": memory, "update": update}
    names = [*read, *(f"{name}_in" for name in alias), "memory", "update"]

    def body(*refs):
        _columns(network, size, dict(zip(names, refs, strict=True)), first, end)

    whole = pl.BlockSpec(memory_space=pl.ANY)  # a program reads and writes where its columns are
    name = "actjax_optimizer"
    return pl.pallas_call(
        body,
        grid=(pl.cdiv(end - first, WIDTH),),
        in_specs=[whole] * (len(names) - 2),
        out_specs=[whole] * 2,
        out_shape=[
            jax.ShapeDtypeStruct(memory.shape, memory.dtype),
            jax.ShapeDtypeStruct(gradient.shape, gradient.dtype),
        ],
        input_output_aliases={len(read) + i: i for i in range(len(alias))},
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        name=name,
    )(*read.values(), *alias.values())


def _weights(network: CoordinatewiseLSTM, size: _Sizes) -> jax.Array:
    """Blocks [tile, own], one above the other: of a layer's gates those that meet its own operand,
    (hidden, inputs or nothing, one), and then, from the second layer on, those of the layer below.
    """
    blocks = []
    for layer, kernel in enumerate(network.kernels):
        gates = kernel[...].reshape(4, size.units, -1)
        inputs = gates.shape[-1] - size.units - 1
        given, hidden, one = jnp.split(gates, (inputs, inputs + size.units), axis=2)
        parts = [[hidden, one], [given]] if layer else [[hidden, given, one]]
        for part in parts:
            block = jnp.concatenate(part, axis=2)
            rest = size.tile - size.units, size.own - block.shape[2]
            blocks.append(jnp.pad(block, ((0, 0), (0, rest[0]), (0, rest[1]))))
    return jnp.concatenate(blocks).reshape(-1, size.own)


def _columns(network: CoordinatewiseLSTM, size: _Sizes, refs: dict, first: int, end: int):
    """What one program does."""
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

    row = jnp.arange(size.own, dtype=jnp.int32)
    unit = jnp.arange(size.tile, dtype=jnp.int32)
    mask = (unit < size.units)[:, None] & inside[None]
    block = 0
    below = None
    for layer in range(size.layers):
        cell_row = size.moments + layer * size.units
        hidden_row = size.moments + (size.layers + layer) * size.units
        extra = [*(x if layer == 0 else []), jnp.ones(WIDTH, jnp.float32)]
        operand = _tile(
            refs["memory_in"], hidden_row + row, column, (row < size.units)[:, None] & inside[None]
        )
        for n, values in enumerate(extra):
            operand = jnp.where((row == size.units + n)[:, None], values[None], operand)
        z = []
        for gate in range(4):
            rows = (block + gate) * size.tile + unit
            total = _dot(_tile(refs["weights"], rows, row), operand)
            if below is not None:
                rows = (block + 4 + gate) * size.tile + unit
                total = total + _dot(_tile(refs["weights"], rows, unit), below)
            z.append(total)
        block += 4 if below is None else 8
        cell = _tile(refs["memory_in"], cell_row + unit, column, mask)
        i, f, o, g = z
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * _tanh(g)
        below = jax.nn.sigmoid(o) * _tanh(cell)
        _put_tile(refs["memory"], cell_row + unit, column, cell, mask & ok)
        _put_tile(refs["memory"], hidden_row + unit, column, below, mask & ok)

    def read_out(n):
        weights = triton.load(
            refs["read_out"].at[n * size.units + unit], mask=unit < size.units, other=0.0
        )
        return jnp.sum(weights[:, None] * below, axis=0)

    update = read_out(0)
    if direction is not None:
        update = -jnp.exp(update) * (direction + read_out(1))
    if "bias" in refs:
        update = update + triton.load(refs["bias"].at[jnp.int32(0)])
    update = jnp.where(ok, network.output_scale * update, 0)
    triton.store(refs["update"].at[column], update, mask=inside)


def _tanh(x):
    return 2 * jax.nn.sigmoid(2 * x) - 1


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
