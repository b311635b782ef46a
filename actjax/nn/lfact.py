"""Layer-Flexible Adaptive Computation Time (LFACT 2020): as many layers as an input asks for.

Every ponder step of an input is a layer with a state of its own. At step t, layer n:

    U^n_{t-1}  what the layers of step t - 1 transmit to layer n, by attention     (eq 5)
    v^n_t      = g(u^{n-1}_t, U^n_{t-1})                                 the combined state
    u^n_t      = f(x_t, v^n_t)                                           the primary state
    h^n_t      = sigmoid(W_h u^n_t + V_h U^n_{t-1} + b_h)                the halting unit

with f a recurrent cell and u^0_t = u^N_{t-1}, the deepest state of the step before. Layers are
made until the halting rule of `actjax.halting` says stop (eq 1); the output is the deepest one's,
not a mean. A transmission state belongs to a layer that step t may or may not come to make, so it
is computed when step t gets there, and never otherwise.

The paper numbers layers from 0 in some places and from 1 in others; here they are 1 .. N, N <= L.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from actjax._checks import check_choice, check_like, check_loop_and_lanes, check_positive
from actjax._layers import Layers
from actjax._loop.rows import cast, is_float
from actjax._streamable import Prepared
from actjax._unroll import unroll_layers
from actjax._variables import renewed
from actjax.halting import Ponder, Rule, chosen_rule, halting_dtype
from actjax.nn.attention import ATTEND, Attention, transmission
from actjax.nn.cells import CellStep, Recurrent, check_call, refuse_epsilon
from actjax.nn.noise import by_row, input_keys

COMBINE = ("affine", "mlp")


@dataclasses.dataclass(frozen=True)
class LayerStep:
    """One layer of LFACT, as `unroll_layers` wants it; equal settings are equal steps.

    Its parameters are ``(modules, attention)``: the cell f with the products of its inputs taken, g
    and the halting unit, and `Attention`. `attend` and `masked` are as in `transmission`; with
    streams of `noise` an input is ``(x, keys)``, as in `CellStep`.
    """

    cell: CellStep
    attend: str
    masked: bool
    noise: tuple[str, ...] = ()

    def __call__(self, params, state, x, below, n):
        modules, attention = params
        _, query = self.cell.read(state)
        leaf = -1 if self.cell.output is None else self.cell.output
        transmitted = transmission(
            attention, query, below, n, attend=self.attend, leaf=leaf, masked=self.masked
        )
        if not self.noise:
            return self.apply(renewed(modules), state, x, transmitted)
        x, keys = x
        return by_row(self.apply, modules, self.noise, keys, n, state, x, transmitted)

    def apply(self, modules, state, x, transmitted):
        """The layer, of what is transmitted to it, with modules that it may write."""
        carry, _ = self.cell.read(state)
        received, y = self.cell.read(transmitted)
        combined = modules["combine"](carry, received)
        carry, output = self.cell.advance(modules["cell"], combined, x)
        h = modules["halt"](output, y)[:, 0]
        return self.cell.state(carry, output), jax.nn.sigmoid(h.astype(halting_dtype(h.dtype)))


class Both(nnx.Module):
    """An affine function of a primary and a transmission state: ``W x + V y + b``.

    Either is a pytree of ``[rows, ...]`` that counts as one vector. The two products stand apart,
    so that no copy of both states is made to be kept.
    """

    def __init__(self, features: int, out_features: int, *, bias: float = 0.0, dtype, rngs):
        # Each product sees half of the inputs: with this scale their sum has unit variance.
        kernel = nnx.initializers.variance_scaling(0.5, "fan_in", "truncated_normal")
        options = {"kernel_init": kernel, "dtype": dtype, "rngs": rngs}
        constant = nnx.initializers.constant(bias)
        self.primary = nnx.Linear(features, out_features, bias_init=constant, **options)
        self.transmitted = nnx.Linear(features, out_features, use_bias=False, **options)

    def __call__(self, x, y) -> jax.Array:
        join = lambda tree: jnp.concatenate(jax.tree.leaves(tree), axis=-1)
        return self.primary(join(x)) + self.transmitted(join(y))


class Combine(nnx.Module):
    """g: a primary and a transmission state to the combined one that the cell is given.

    "affine" is ``activation(W_1 x + W_2 y + b)``, the paper's choice; "mlp" has another layer of
    the state's size after it.
    """

    def __init__(self, features: int, kind: str, activation: Callable, *, dtype, rngs: nnx.Rngs):
        self.activation = activation
        self.both = Both(features, features, dtype=dtype, rngs=rngs)
        linear = partial(nnx.Linear, features, features, dtype=dtype, rngs=rngs)
        self.out = linear() if kind == "mlp" else None

    def __call__(self, x, y):
        combined = self.activation(self.both(x, y))
        if self.out is not None:
            combined = self.activation(self.out(combined))
        leaves, tree = jax.tree.flatten(x)
        ends = np.cumsum([leaf.shape[-1] for leaf in leaves])
        return tree.unflatten(jnp.split(combined, ends[:-1], axis=-1))


class LFACT(Recurrent):
    """A recurrent network with a flexible number of layers (LFACT 2020, section 3.1).

    Where the paper's text leaves a choice, it is an argument, with the paper's own choice or the
    nearest reading of it as the default.

    Args:
      in_features: size of an input, which every layer is given.
      hidden_features: size of a state.
      cell: as in `ACT`. Of a cell with several state arrays (an LSTM's c and h), the combined state
        is made from all of them, and attention is by the one that is the output.
      max_layers: L, the limit on layers.
      combine: g, "affine" or "mlp".
      attend: "all" layers of the step before (ALL), or those not above the layer at work, "lower"
        (LTD).
      activation: sigma in g; the paper does not say which.
      epsilon, rule, halt_bias, loop, lanes, dtype, rngs: as in `ACT`.

    >>> model = LFACT(3, 8, max_layers=4, rngs=nnx.Rngs(0))
    >>> final, outputs, ponder = jax.eval_shape(model, jnp.ones((2, 5, 3)))  # or jax.jit(...)
    >>> outputs.shape, ponder.steps.shape, final.states.shape
    ((2, 5, 8), (2, 5), (2, 4, 8))
    """

    epsilon = property(fset=refuse_epsilon)

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        cell: Callable[..., Any] = nnx.GRUCell,
        max_layers: int,
        combine: str = "affine",
        attend: str = "all",
        activation: Callable[[jax.Array], jax.Array] = nnx.sigmoid,
        epsilon: float | None = None,
        rule: Rule | None = None,
        halt_bias: float = 1.0,
        loop: str = "while",
        lanes: int | None = None,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            in_features, hidden_features, cell=cell, flag=False, dtype=dtype, rngs=rngs
        )
        check_positive("max_layers", max_layers)
        check_choice("combine", combine, COMBINE)
        check_choice("attend", attend, ATTEND)
        check_loop_and_lanes(loop, lanes)
        self.max_layers, self.attend, self.rule = max_layers, attend, chosen_rule(rule, epsilon)
        self.loop, self.lanes = loop, lanes
        carry = jax.tree.leaves(self.initial_carry(1))
        if any(leaf.ndim != 2 or not is_float(leaf) for leaf in carry):
            found = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in carry]
            raise ValueError(
                "cell must carry float arrays of shape [batch, features], to be combined, "
                f"got {' and '.join(found)}."
            )
        features = sum(leaf.shape[-1] for leaf in carry)
        self.combine = Combine(features, combine, activation, dtype=dtype, rngs=rngs)
        vector = lambda shape, scale: nnx.Param(scale * rngs.params.normal(shape))
        self.query = vector((hidden_features,), 1.0)
        self.key = vector((hidden_features,), 1.0)
        self.score = vector((max_layers, hidden_features), hidden_features**-0.5)
        self.score_bias = nnx.Param(jnp.zeros(hidden_features))
        self.halt = Both(hidden_features, 1, bias=halt_bias, dtype=dtype, rngs=rngs)

    def initial_state(self, batch_size: int) -> Layers:
        """What the first input finds below: one layer, the cell's state before any input."""
        _, _, state, _ = self._enter(jnp.zeros((batch_size, 1, self.in_features)), None, None)
        return self.as_layers(state)

    def as_layers(self, state: Any) -> Layers:
        """A state of the cell, ``[B, hidden_features]`` each, as the only layer of a step."""
        leaves = jax.tree.leaves(state)
        pad = lambda leaf: jnp.pad(leaf[:, None], ((0, 0), (0, self.max_layers - 1), (0, 0)))
        return Layers(jax.tree.map(pad, state), jnp.ones(leaves[0].shape[0], jnp.int32))

    def __call__(self, xs, *, initial_state=None, lengths=None, rngs=None):
        """Runs over whole sequences.

        Args:
          xs: float ``[B, T, in_features]``.
          initial_state: a `Layers` record as this method returns it; see `initial_state` for the
            default.
          lengths, rngs: as in `ACT.__call__`.

        Returns:
          ``(final_state, outputs, ponder)``: the `Layers` of each sequence's last input, the
          deepest layers' outputs ``[B, T, hidden_features]``, and the `Ponder` record ``[B, T]``.
        """
        final, layers, ponder = self.layers(
            xs, initial_state=initial_state, lengths=lengths, rngs=rngs
        )
        return final, layers.deepest, ponder

    def layers(
        self, xs, *, initial_state=None, lengths=None, rngs=None
    ) -> tuple[Layers, Layers, Ponder]:
        """As `__call__`, but with the outputs of all layers, ``[B, T, L, hidden_features]``.

        They are what the loss of eq 6 looks at; see `actjax.losses.over_layers`.
        """
        step, params, start, inputs = self.prepare_layers(xs, initial_state, lengths, rngs)
        final, layers, ponder = unroll_layers(
            step,
            params,
            start,
            inputs,
            rule=self.rule,
            lengths=lengths,
            loop=self.loop,
            lanes=self.lanes,
        )
        outputs = lambda states: step.cell.read(states)[1]
        layers = Layers(outputs(layers.states), layers.count, outputs(layers.top))
        return final, layers, ponder

    def for_stream(self, xs) -> Prepared:
        """What `actjax.stream` runs."""
        step, params, layers, inputs = self.prepare_layers(xs)
        step = dataclasses.replace(step, masked=False)
        limits = self.max_layers, step.cell.read
        return Prepared(step, params, layers, inputs, *limits, rule=self.rule)

    def prepare_layers(self, xs, initial_state=None, lengths=None, rngs=None):
        """Returns ``(step, params, layers, inputs)`` for `unroll_layers`, as `prepare` does."""
        cell_step, (cell, _), state, inputs = self._enter(xs, None, lengths)
        layers = self.as_layers(state)
        if initial_state is not None:
            top = getattr(initial_state, "top", None)
            check_like("initial_state", initial_state, layers._replace(top=top))
            states = cast(initial_state.states, layers.states)
            layers = Layers(states, initial_state.count)
        attention = Attention(self.query[...], self.key[...], self.score_bias[...], self.score[...])
        modules = {"cell": cell, "combine": self.combine, "halt": self.halt}
        step = LayerStep(cell_step, self.attend, masked=self.loop == "scan")
        noise = check_call(step.apply, modules, rngs, state, inputs[:, 0], state)
        if noise:
            step = dataclasses.replace(step, noise=noise)
            inputs = inputs, input_keys(rngs, noise, *inputs.shape[:2])
        return step, (modules, attention), layers, inputs
