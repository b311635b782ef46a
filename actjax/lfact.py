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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from actjax.cells import CellStep, Recurrent
from actjax.checks import check_choice, check_limits, check_positive
from actjax.halting import Ponder, halting_dtype
from actjax.layers import Layers
from actjax.unroll import unroll_layers

COMBINE = ("affine", "mlp")
ATTEND = ("all", "lower")


class Attention(NamedTuple):
    """The weights of eq 5, vectors that act elementwise.

    Attributes:
      query: W_Q, float ``[features]``.
      key: V_Q, float ``[features]``.
      bias: b_Q, float ``[features]``.
      score: V_n, float ``[L, features]``, a vector for each layer that is transmitted to.
    """

    query: jax.Array
    key: jax.Array
    bias: jax.Array
    score: jax.Array


def transmission(
    attention: Attention,
    query: jax.Array,
    keys: jax.Array,
    below: Layers,
    n: jax.Array,
    *,
    attend: str = "all",
) -> Any:
    """What the layers of the step before transmit to layer n: U^n_{t-1} (LFACT 2020, eq 5).

    Args:
      attention: the weights.
      query: float ``[rows, features]``, the primary state that enters layer n.
      keys: float ``[rows, L, features]``, the primary states of the step before.
      below: those layers: states to be averaged ``[rows, L, ...]``, count ``[rows]``.
      n: int ``[rows]``, 1 for the first layer.
      attend: "all" layers below (c = N), or only those "lower" than n or as deep (c = min(N, n)).

    Returns:
      Pytree of ``[rows, ...]``, the mean of ``below.states`` under the attention weights alpha.

    >>> below = Layers(jnp.array([[[1.0], [5.0], [0.0]]]), jnp.array([2]))
    >>> even = Attention(jnp.zeros(1), jnp.zeros(1), jnp.zeros(1), jnp.zeros((3, 1)))
    >>> transmission(even, jnp.ones((1, 1)), below.states, below, jnp.array([1]))
    Array([[3.]], dtype=float32)
    """
    layer = jax.nn.one_hot(n - 1, attention.score.shape[0], dtype=attention.score.dtype)
    by_row = lambda vector: jnp.broadcast_to(vector, query.shape)  # noqa: E731
    weights = Attention(*map(by_row, attention[:3]), score=layer @ attention.score)
    seen = below.present
    if attend == "lower":
        seen &= jnp.arange(seen.shape[-1]) < n[:, None]

    # The arrays of every pair of layers are computed again on the way back, and the weights given
    # to each row, so that what an iteration of the loop keeps does not grow with L.
    @jax.checkpoint
    def attended(weights, query, keys, states):
        weights = jax.tree.map(lambda leaf: leaf[:, None], weights)
        hidden = jax.nn.sigmoid(weights.query * query[:, None] + weights.key * keys + weights.bias)
        beta = (weights.score * hidden).sum(-1).astype(halting_dtype(hidden.dtype))
        alpha = jax.nn.softmax(jnp.where(seen, beta, -jnp.inf), axis=-1)

        def mean(leaf):
            weight = alpha.reshape(alpha.shape + (1,) * (leaf.ndim - 2)).astype(leaf.dtype)
            return (weight * leaf).sum(1)

        return jax.tree.map(mean, states)

    return attended(weights, query, keys, below.states)


@dataclasses.dataclass(frozen=True)
class LayerStep:
    """One layer of LFACT, as `unroll_layers` wants it; equal settings are equal steps.

    Its parameters are ``(cell, combine, attention, halt)``: the cell f with the products of its
    inputs taken, g as a function of both states in one vector, `Attention`, and the halting unit
    as a function of ``[u, U]``.
    """

    cell: CellStep
    attend: str

    def __call__(self, params, state, x, below, n):
        cell, combine, attention, halt = params
        carry, query = self.cell.read(state)
        keys = self.cell.read(below.states)[1]
        transmitted = transmission(attention, query, keys, below, n, attend=self.attend)
        received, y = self.cell.read(transmitted)
        leaves, tree = jax.tree.flatten(carry)
        combined = combine(jnp.concatenate([*leaves, *jax.tree.leaves(received)], axis=-1))
        ends = np.cumsum([leaf.shape[-1] for leaf in leaves])
        carry, output = cell(tree.unflatten(jnp.split(combined, ends[:-1], axis=-1)), x)
        h = halt(jnp.concatenate([output, y], axis=-1))[:, 0]
        return self.cell.state(carry, output), jax.nn.sigmoid(h.astype(halting_dtype(h.dtype)))


class Combine(nnx.Module):
    """g: the primary state and what is transmitted, as one vector, to the state the cell gets.

    "affine" is ``activation(W [u, U] + b)``, the paper's choice; "mlp" has a hidden layer of the
    state's size before it.
    """

    def __init__(self, features: int, kind: str, activation: Callable, *, dtype, rngs: nnx.Rngs):
        self.activation = activation
        self.hidden = None
        if kind == "mlp":
            self.hidden = nnx.Linear(2 * features, features, dtype=dtype, rngs=rngs)
        wide = features if kind == "mlp" else 2 * features
        self.out = nnx.Linear(wide, features, dtype=dtype, rngs=rngs)

    def __call__(self, both: jax.Array) -> jax.Array:
        if self.hidden is not None:
            both = self.activation(self.hidden(both))
        return self.activation(self.out(both))


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
      epsilon, halt_bias, loop, lanes, dtype, rngs: as in `ACT`.

    >>> model = LFACT(3, 8, max_layers=4, rngs=nnx.Rngs(0))
    >>> final, outputs, ponder = model(jnp.ones((2, 5, 3)))
    >>> outputs.shape, ponder.steps.shape, final.states.shape
    ((2, 5, 8), (2, 5), (2, 4, 8))
    """

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
        epsilon: float = 0.01,
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
        check_limits(max_layers, epsilon)
        check_choice("combine", combine, COMBINE)
        check_choice("attend", attend, ATTEND)
        check_choice("loop", loop, ("while", "scan"))
        self.max_layers, self.attend, self.epsilon = max_layers, attend, epsilon
        self.loop, self.lanes = loop, lanes
        features = sum(leaf.shape[-1] for leaf in jax.tree.leaves(self.initial_carry(1)))
        self.combine = Combine(features, combine, activation, dtype=dtype, rngs=rngs)
        vector = lambda shape, scale: nnx.Param(scale * rngs.params.normal(shape))  # noqa: E731
        self.query = vector((hidden_features,), 1.0)
        self.key = vector((hidden_features,), 1.0)
        self.score = vector((max_layers, hidden_features), hidden_features**-0.5)
        self.score_bias = nnx.Param(jnp.zeros(hidden_features))
        bias = nnx.initializers.constant(halt_bias)
        self.halt = nnx.Linear(2 * hidden_features, 1, bias_init=bias, dtype=dtype, rngs=rngs)

    def initial_state(self, batch_size: int) -> Layers:
        """What the first input finds below: one layer, the cell's carry before any input."""
        return self.as_layers(self.initial_carry(batch_size))

    def as_layers(self, carry: Any) -> Layers:
        """A carry of the cell, ``[B, hidden_features]`` each, as the only layer of a step."""
        leaves = jax.tree.leaves(carry)
        pad = lambda leaf: jnp.pad(leaf[:, None], ((0, 0), (0, self.max_layers - 1), (0, 0)))  # noqa: E731
        return Layers(jax.tree.map(pad, carry), jnp.ones(leaves[0].shape[0], jnp.int32))

    def __call__(self, xs, *, initial_state=None, lengths=None):
        """Runs over whole sequences.

        Args:
          xs: float ``[B, T, in_features]``.
          initial_state: a `Layers` record as this method returns it; see `initial_state` for the
            default.
          lengths: int ``[B]``, how many inputs of each sequence are real; all by default.

        Returns:
          ``(final_state, outputs, ponder)``: the `Layers` of each sequence's last input, the
          deepest layers' outputs ``[B, T, hidden_features]``, and the `Ponder` record ``[B, T]``.
        """
        final, layers, ponder = self.layers(xs, initial_state=initial_state, lengths=lengths)
        return final, layers.deepest, ponder

    def layers(self, xs, *, initial_state=None, lengths=None) -> tuple[Layers, Layers, Ponder]:
        """As `__call__`, but with the outputs of all layers, ``[B, T, L, hidden_features]``.

        They are what the loss of eq 6 looks at; see `actjax.losses.over_layers`.
        """
        step, (cell, _, _), state, inputs = self.prepare(xs, None, None)
        layers = self.as_layers(state) if initial_state is None else initial_state
        attention = Attention(self.query[...], self.key[...], self.score_bias[...], self.score[...])
        final, layers, ponder = unroll_layers(
            LayerStep(step, self.attend),
            (cell, self.combine, attention, self.halt),
            layers,
            inputs,
            epsilon=self.epsilon,
            lengths=lengths,
            loop=self.loop,
            lanes=self.lanes,
        )
        return final, layers._replace(states=step.read(layers.states)[1]), ponder
