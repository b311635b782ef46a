"""Recurrent cells as ponder steps: what the modules make of any cell of `flax.nnx`'s shape.

The input of a step does not change while it is pondered, so `Recurrent.prepare` takes the products
of all inputs of a sequence at once and hands the loops a `CellStep` over the rest of the cell.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from actjax._checks import check_lengths, check_like, check_positive
from actjax._loop.devices import beside
from actjax._loop.rows import fill_padding
from actjax.halting import halting_dtype

# The layers through which the input enters each of Flax's cells.
_INPUT_LAYERS = {
    nnx.SimpleCell: ("dense_i",),
    nnx.GRUCell: ("dense_i",),
    nnx.OptimizedLSTMCell: ("dense_i",),
    nnx.LSTMCell: ("ii", "if_", "ig", "io"),
}


class _Projected(nnx.Module):
    """Stands in a cell for an input layer whose product has been taken already."""

    def __init__(self, start: int, stop: int):
        self.start, self.stop = start, stop

    def __call__(self, projections: jax.Array) -> jax.Array:
        return projections[..., self.start : self.stop]


@dataclasses.dataclass(frozen=True)
class CellStep:
    """A ponder step of a recurrent cell, as `unroll` wants it; equal settings are equal steps.

    Its parameters are the cell with the products of its inputs taken, the flag's weights in them
    and the halting unit, the latter two None where there is none.

    Attributes:
      flag: whether the input is augmented by a flag of the first step (Graves 2016, eq 3).
      output: which leaf of the carry is the cell's output; None if the output is kept beside it.
    """

    flag: bool
    output: int | None

    def __call__(self, params, state, x, first):
        cell, flag_weights, halt = params
        if self.flag and flag_weights is None:
            x = jnp.concatenate([x, first[:, None].astype(x.dtype)], axis=-1)
        elif self.flag:
            x = x + first[:, None].astype(x.dtype) * flag_weights[None]
        carry, y = cell(state if self.output is not None else state[0], x)
        if halt is None:
            h = jnp.zeros(first.shape, halting_dtype(y.dtype))
        else:
            h = jax.nn.sigmoid(halt(y)[:, 0].astype(halting_dtype(y.dtype)))
        return self.state(carry, y), h

    def state(self, carry, y):
        """The cell's carry and its output as the state that the loop carries."""
        return carry if self.output is not None else (carry, y)

    def read(self, state) -> tuple[Any, jax.Array]:
        """Returns the cell's carry and its output."""
        return (state, jax.tree.leaves(state)[self.output]) if self.output is not None else state


class Recurrent(nnx.Module):
    """What the networks share: a cell, its input projections and its initial state."""

    def __init__(self, in_features, hidden_features, *, cell, flag, dtype, rngs):
        check_positive("in_features", in_features)
        check_positive("hidden_features", hidden_features)
        self.in_features, self.hidden_features, self.flag = in_features, hidden_features, flag
        self.dtype = dtype
        options = {} if dtype is None else {"dtype": dtype}
        self.cell = cell(in_features + flag, hidden_features, rngs=rngs, **options)

    def initial_carry(self, batch_size: int):
        """The cell's carry before the first input, ``[batch_size, hidden_features]`` each."""
        shape = (batch_size, self.in_features + self.flag)
        return self.cell.initialize_carry(shape, rngs=nnx.Rngs(0))

    def initial_state(self, batch_size: int):
        """What the network starts from unless it is told: the cell's initial carry."""
        return self.initial_carry(batch_size)

    def prepare(self, xs, carry, halt, lengths=None):
        """Returns ``(step, params, state, inputs)`` for the loop."""
        xs = jnp.asarray(xs)
        if xs.ndim != 3 or xs.shape[-1] != self.in_features or 0 in xs.shape:
            raise ValueError(
                f"xs must have shape [batch, time, {self.in_features}] with no empty axis, "
                f"got {xs.shape}."
            )
        self, halt = beside(xs, (self, halt))
        if lengths is not None:
            xs = fill_padding(xs, check_lengths(lengths, *xs.shape[:2]))
        if carry is not None:
            like = jax.eval_shape(lambda: self.initial_carry(xs.shape[0]))
            check_like("initial_state", carry, like)
        else:
            carry = self.initial_carry(xs.shape[0])
            carry = jax.tree.map(lambda c: c + jnp.zeros_like(xs[:, 0, :1], c.dtype), carry)
        if self.dtype is not None:
            carry = jax.tree.map(lambda c: c.astype(self.dtype), carry)
        cell, flag_weights, inputs = self._project(xs)

        found = []

        def trace(params, carry, x, first):
            step = CellStep(self.flag, None)
            (carry, y), _ = step(params, (carry, None), x, first)
            found.extend(i for i, leaf in enumerate(jax.tree.leaves(carry)) if leaf is y)
            return carry, y

        params = (cell, flag_weights, halt)
        first = jax.ShapeDtypeStruct(xs.shape[:1], bool)
        new, y = jax.eval_shape(trace, params, carry, inputs[:, 0], first)
        carry = jax.tree.map(lambda old, new: old.astype(new.dtype), carry, new)
        step = CellStep(self.flag, found[0] if found else None)
        return step, params, step.state(carry, jnp.zeros_like(y)), inputs

    def _project(self, xs):
        """Takes the products of all inputs: the rest of the cell, the flag's weights, these."""
        layers = _INPUT_LAYERS.get(type(self.cell))
        if layers is None:
            return self.cell, None, xs
        cell = nnx.merge(*nnx.split(self.cell))
        products, flag_weights, start = [], [], 0
        for name in layers:
            layer = getattr(cell, name)
            if self.flag:
                kernel = layer.kernel[...]
                layer.kernel = nnx.Param(kernel[:-1])
                flag_weights.append(kernel[-1])
            products.append(layer(xs))
            stop = start + products[-1].shape[-1]
            setattr(cell, name, _Projected(start, stop))
            start = stop
        inputs = jnp.concatenate(products, axis=-1)
        flag_weights = jnp.concatenate(flag_weights).astype(inputs.dtype) if self.flag else None
        return cell, flag_weights, inputs
