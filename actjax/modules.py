"""Flax modules: ACT, Repeat and the plain RNN, over any recurrent cell of `flax.nnx`'s shape.

A module is a pytree: ``jax.grad(loss)(model)``, ``jax.vmap(make)(keys)`` and Optax work on it
directly. The way of the data: `_Recurrent.prepare` takes the products of the inputs, which no
ponder step changes, once for the whole sequence; `unroll` or `repeat` runs `_CellStep` on them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from actjax.checks import check_choice, check_limits, check_positive
from actjax.halting import Ponder, halting_dtype
from actjax.unroll import repeat, unroll

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
class _CellStep:
    """A ponder step of a recurrent cell, as `unroll` wants it; equal settings are equal steps.

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
        return (carry if self.output is not None else (carry, y)), h

    def start(self, carry, y):
        return carry if self.output is not None else (carry, jnp.zeros_like(y))

    def read(self, state) -> tuple[Any, jax.Array]:
        """Returns the cell's carry and its output."""
        return (state, jax.tree.leaves(state)[self.output]) if self.output is not None else state


class _Recurrent(nnx.Module):
    """What `ACT` and `Repeat` share: a cell, its input projections and its initial state."""

    def __init__(self, in_features, hidden_features, *, cell, flag, dtype, rngs):
        check_positive("in_features", in_features)
        check_positive("hidden_features", hidden_features)
        self.in_features, self.hidden_features, self.flag = in_features, hidden_features, flag
        self.dtype = dtype
        options = {} if dtype is None else {"dtype": dtype}
        self.cell = cell(in_features + flag, hidden_features, rngs=rngs, **options)

    def initial_state(self, batch_size: int):
        """The cell's carry before the first input, ``[batch_size, hidden_features]`` each."""
        shape = (batch_size, self.in_features + self.flag)
        return self.cell.initialize_carry(shape, rngs=nnx.Rngs(0))

    def _prepare(self, xs, carry, halt):
        """Returns ``(step, params, state, inputs)`` for the loop."""
        if xs.ndim != 3 or xs.shape[-1] != self.in_features or 0 in xs.shape:
            raise ValueError(
                f"xs must have shape [batch, time, {self.in_features}] with no empty axis, "
                f"got {xs.shape}."
            )
        if carry is None:
            carry = self.initial_state(xs.shape[0])
            carry = jax.tree.map(lambda c: c + jnp.zeros_like(xs[:, 0, :1], c.dtype), carry)
        if self.dtype is not None:
            carry = jax.tree.map(lambda c: c.astype(self.dtype), carry)
        cell, flag_weights, inputs = self._project(xs)

        found = []

        def trace(params, carry, x, first):
            step = _CellStep(self.flag, None)
            (carry, y), _ = step(params, (carry, None), x, first)
            found.extend(i for i, leaf in enumerate(jax.tree.leaves(carry)) if leaf is y)
            return carry, y

        params = (cell, flag_weights, halt)
        first = jax.ShapeDtypeStruct(xs.shape[:1], bool)
        new, y = jax.eval_shape(trace, params, carry, inputs[:, 0], first)
        carry = jax.tree.map(lambda old, new: old.astype(new.dtype), carry, new)
        step = _CellStep(self.flag, found[0] if found else None)
        return step, params, step.start(carry, y), inputs

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


class ACT(_Recurrent):
    """Adaptive Computation Time over a recurrent cell (Graves 2016, section 2).

    At each input the cell runs until its halting unit says stop; the state carried on and the
    output are means over the steps taken, weighted by the halting rule (eq 9).

    Args:
      in_features: size of an input. (The cell gets one more: the flag of the first step, eq 3.)
      hidden_features: size of the state.
      cell: a cell class or factory ``cell(in_features, hidden_features, rngs=...)``, e.g.
        `nnx.SimpleCell`, `nnx.GRUCell`, `nnx.LSTMCell`, `nnx.OptimizedLSTMCell`.
      max_steps: M, the limit on ponder steps at one input (eq 13).
      epsilon: lets a first step halt (eq 7).
      halt_bias: initial bias b_h of the halting unit (eq 5): 1 in the paper; a negative one starts
        with long ponders and is less prone to collapse to one step.
      loop, lanes: as in `unroll`.
      dtype: compute dtype of the cell, e.g. ``jnp.bfloat16``; halting stays in float32.
      rngs: `nnx.Rngs`.

    >>> model = ACT(3, 8, max_steps=10, rngs=nnx.Rngs(0))
    >>> state, outputs, ponder = model(jnp.ones((2, 5, 3)))
    >>> outputs.shape, ponder.steps.shape, ponder.cost.dtype
    ((2, 5, 8), (2, 5), dtype('float32'))
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        cell: Callable[..., Any] = nnx.GRUCell,
        max_steps: int = 100,
        epsilon: float = 0.01,
        halt_bias: float = 1.0,
        loop: str = "while",
        lanes: int | None = None,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_features, hidden_features, cell=cell, flag=True, dtype=dtype, rngs=rngs)
        check_limits(max_steps, epsilon)
        check_choice("loop", loop, ("while", "scan"))
        self.max_steps, self.epsilon, self.loop, self.lanes = max_steps, epsilon, loop, lanes
        bias = nnx.initializers.constant(halt_bias)
        self.halt = nnx.Linear(hidden_features, 1, bias_init=bias, dtype=dtype, rngs=rngs)

    def __call__(self, xs, *, initial_state=None, lengths=None):
        """Runs over whole sequences.

        Args:
          xs: float ``[B, T, in_features]``.
          initial_state: the cell's carry, each array ``[B, hidden_features]``; zeros by default.
          lengths: int ``[B]``, how many inputs of each sequence are real; all by default.

        Returns:
          ``(final_state, outputs, ponder)``: the carry after each sequence's last input, the
          outputs ``[B, T, hidden_features]``, and the `Ponder` record ``[B, T]``.
        """
        step, params, state, inputs = self._prepare(xs, initial_state, self.halt)
        final, states, ponder = unroll(
            step,
            params,
            state,
            inputs,
            max_steps=self.max_steps,
            epsilon=self.epsilon,
            lengths=lengths,
            loop=self.loop,
            lanes=self.lanes,
        )
        return step.read(final)[0], step.read(states)[1], ponder


class Repeat(_Recurrent):
    """Repeat-RNN: every input is given to the cell a fixed number of times (Fojo 2018, chapter 5).

    The state after the last repetition is carried on and is the output. Nothing is learned about
    halting: the `Ponder` record holds ``steps = repeats`` and no remainder.

    Args:
      in_features, hidden_features, cell, dtype, rngs: as in `ACT`.
      repeats: how often each input is given.
      flag: whether the input is augmented by a flag of the first repetition.

    >>> model = Repeat(3, 8, repeats=2, rngs=nnx.Rngs(0))
    >>> _, outputs, ponder = model(jnp.ones((2, 5, 3)))
    >>> outputs.shape, int(ponder.steps[0, 0])
    ((2, 5, 8), 2)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        cell: Callable[..., Any] = nnx.GRUCell,
        repeats: int,
        flag: bool = True,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_features, hidden_features, cell=cell, flag=flag, dtype=dtype, rngs=rngs)
        check_positive("repeats", repeats)
        self.repeats = repeats

    def __call__(self, xs, *, initial_state=None, lengths=None):
        """As `ACT.__call__`."""
        step, params, state, inputs = self._prepare(xs, initial_state, None)
        final, states, steps = repeat(
            step, params, state, inputs, repeats=self.repeats, lengths=lengths
        )
        ponder = Ponder(steps, jnp.zeros_like(steps, halting_dtype(inputs.dtype)))
        return step.read(final)[0], step.read(states)[1], ponder


class RNN(Repeat):
    """The plain RNN: `Repeat` with one repetition and no flag, so that it is the cell as it is.

    >>> model = RNN(3, 8, cell=nnx.OptimizedLSTMCell, rngs=nnx.Rngs(0))
    >>> _, outputs, _ = model(jnp.ones((2, 5, 3)))
    >>> outputs.shape
    (2, 5, 8)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        cell: Callable[..., Any] = nnx.GRUCell,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            in_features, hidden_features, cell=cell, repeats=1, flag=False, dtype=dtype, rngs=rngs
        )
