"""Attention of a layer to the layers of the step before (LFACT 2020, eq 5)."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from actjax._checks import check_choice
from actjax._layers import Layers
from actjax._loop import devices
from actjax._loop.rows import blank, like_inputs, row_sum, scale
from actjax.halting import halting_dtype

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
    below: Layers,
    n: jax.Array,
    *,
    attend: str = "all",
    leaf: int = -1,
    masked: bool = False,
) -> Any:
    """What the layers of the step before transmit to layer n: U^n_{t-1}.

    Args:
      attention: the weights, cast to the dtype of the states.
      query: float ``[rows, features]``, the primary state that enters layer n.
      below: those layers: states ``[rows, L, ...]``, count ``[rows]``.
      n: int ``[rows]``, 1 for the first layer.
      attend: "all" layers below (c = N), or only those "lower" than n or as deep (c = min(N, n)).
      leaf: which leaf of the states the query is compared with, ``[rows, L, features]``.
      masked: computes all L scores and masks them: the reference, differentiable every way.
        Otherwise the cost follows the layers that there are, and there is reverse mode only.

    Returns:
      Pytree of ``[rows, ...]``, the mean of ``below.states`` under the attention weights alpha.

    >>> below = Layers(jnp.array([[[1.0], [5.0], [0.0]]]), jnp.array([2]))
    >>> even = Attention(jnp.zeros(1), jnp.zeros(1), jnp.zeros(1), jnp.zeros((3, 1)))
    >>> jax.jit(transmission)(even, jnp.ones((1, 1)), below, jnp.array([1]))
    Array([[3.]], dtype=float32)
    """
    check_choice("attend", attend, ATTEND)
    attention = jax.tree.map(lambda vector: vector.astype(query.dtype), attention)
    layer = jax.nn.one_hot(n - 1, attention.score.shape[0], dtype=query.dtype)
    count = below.count if attend == "all" else jnp.minimum(below.count, n)
    states, tree = jax.tree.flatten(below.states)
    looped = _attend_at_once if devices.accelerated() else _attend
    attended = _attend_masked if masked else looped
    return jax.tree.unflatten(tree, attended(leaf, attention, query, layer, states, count))


def _attend_masked(leaf, attention, query, layer, states, count):
    query = attention.query[None] * query + attention.bias[None]
    hidden = jax.nn.sigmoid(query[:, None] + attention.key[None, None] * states[leaf])
    beta = ((layer @ attention.score)[:, None] * hidden).sum(-1)
    seen = jnp.arange(beta.shape[1], dtype=count.dtype)[None] < count[:, None]
    beta = jnp.where(seen, beta.astype(halting_dtype(beta.dtype)), -jnp.inf)
    alpha = jax.nn.softmax(beta, axis=-1)
    mean = lambda s: jnp.einsum("rl,rl...->r...", alpha.astype(s.dtype), s)
    return list(map(mean, states))


# The same, layer by layer for as many as any row has. Where no row has two, there is nothing to
# compare: the weights are 1, and no score is computed. The transpose is written out so that the
# gradients of the vectors are summed over a row's layers before the rows are.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(leaf, attention, query, layer, states, count):
    return _attend_forward(leaf, attention, query, layer, states, count)[0]


def _attend_forward(leaf, attention, query, layer, states, count):
    zero = like_inputs(query, states)
    depth, compared = _depth(count)
    pairs = _Pairs.of(attention, query, layer)

    def compare(i, beta):
        row = (pairs.score * pairs.hidden(_layer(states[leaf], i))).sum(-1)
        return _put(beta, i, jnp.where(i < count, row.astype(beta.dtype), -jnp.inf))

    def gather(i, sums):
        weight = _layer(alpha, i)
        return [s + scale(weight, _layer(x, i)) for s, x in zip(sums, states, strict=True)]

    rows, limit = states[0].shape[:2]
    beta = blank(zero, (rows, limit), halting_dtype(query.dtype))
    beta = _for_each(compared, compare, jnp.where(jnp.arange(limit)[None] < 1, beta, -jnp.inf))
    alpha = jax.nn.softmax(beta, axis=-1)
    sums = [scale(alpha[:, 0], s[:, 0]) for s in states]
    return _for_each(depth, gather, sums, begin=1), (attention, query, layer, states, count, alpha)


def _attend_backward(leaf, saved, d_means):
    attention, query, layer, states, count, alpha = saved
    zero = like_inputs(query, states, d_means)
    depth, compared = _depth(count)
    pairs = _Pairs.of(attention, query, layer)

    def gather(i, carry):
        d_alpha, d_states = carry
        both = zip(d_means, states, strict=True)
        row = sum(row_sum(d * _layer(x, i)) for d, x in both)
        weight = _layer(alpha, i)
        d_states = [_put(s, i, scale(weight, d)) for s, d in zip(d_states, d_means, strict=True)]
        return _put(d_alpha, i, row.astype(alpha.dtype)), d_states

    def compare(i, carry):
        d_query, d_key, d_score, d_keys = carry
        state, d_row = _layer(states[leaf], i), _layer(d_beta, i)[:, None].astype(query.dtype)
        hidden = pairs.hidden(state)
        d = d_row * pairs.score * hidden * (1 - hidden)
        d_keys = _put(d_keys, i, _layer(d_keys, i) + d * pairs.key)
        return d_query + d, d_key + d * state, d_score + d_row * hidden, d_keys

    d_states = [blank(zero, s.shape, s.dtype) for s in states]
    carry = blank(zero, alpha.shape, alpha.dtype), d_states
    d_alpha, d_states = _for_each(depth, gather, carry)
    d_beta = _d_beta(alpha, d_alpha)
    d_query, d_key, d_score = [blank(zero, query.shape, query.dtype)] * 3
    d_query, d_key, d_score, d_states[leaf] = _for_each(
        compared, compare, (d_query, d_key, d_score, d_states[leaf])
    )
    return _cotangents(attention, query, layer, d_query, d_key, d_score, d_states)


_attend.defvjp(_attend_forward, _attend_backward)


# All layers at once, where the rounds of a loop are launches that cost more than what they spare.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_at_once(leaf, attention, query, layer, states, count):
    return _at_once_forward(leaf, attention, query, layer, states, count)[0]


def _at_once_forward(leaf, attention, query, layer, states, count):
    pairs = _Pairs.of(attention, query, layer).with_layers()
    beta = (pairs.score * pairs.hidden(states[leaf])).sum(-1)
    seen = jnp.arange(beta.shape[1], dtype=count.dtype)[None] < count[:, None]
    beta = jnp.where(seen, beta.astype(halting_dtype(beta.dtype)), -jnp.inf)
    alpha = jax.nn.softmax(beta, axis=-1)
    means = [_weighted(alpha, s).sum(1) for s in states]
    return means, (attention, query, layer, states, count, alpha)


def _at_once_backward(leaf, saved, d_means):
    attention, query, layer, states, _, alpha = saved
    pairs = _Pairs.of(attention, query, layer).with_layers()
    d_means = [jnp.broadcast_to(d[:, None], s.shape) for d, s in zip(d_means, states, strict=True)]
    products = (d * s for d, s in zip(d_means, states, strict=True))
    d_alpha = sum(p.sum(range(2, p.ndim)).astype(alpha.dtype) for p in products)
    d_row = _d_beta(alpha, d_alpha)[..., None].astype(query.dtype)
    state, hidden = states[leaf], pairs.hidden(states[leaf])
    d = d_row * pairs.score * hidden * (1 - hidden)
    d_states = [_weighted(alpha, d) for d in d_means]
    d_states[leaf] = d_states[leaf] + d * pairs.key
    sums = d.sum(1), (d * state).sum(1), (d_row * hidden).sum(1)
    return _cotangents(attention, query, layer, *sums, d_states)


_attend_at_once.defvjp(_at_once_forward, _at_once_backward)


def _weighted(alpha, leaf):
    """The layers of `leaf`, ``[rows, L, ...]``, by their weights."""
    return alpha.reshape(alpha.shape + (1,) * (leaf.ndim - 2)).astype(leaf.dtype) * leaf


def _d_beta(alpha, d_alpha):
    """The softmax, transposed."""
    return alpha * (d_alpha - (alpha * d_alpha).sum(-1, keepdims=True))


def _cotangents(attention, query, layer, d_query, d_key, d_score, d_states):
    """Those of the arguments of eq 5, from what a row's layers gave the vectors together."""
    d_attention = Attention(
        query=(d_query * query).sum(0),
        key=d_key.sum(0),
        bias=d_query.sum(0),
        score=layer.T @ d_score,
    )
    return d_attention, d_query * attention.query[None], None, d_states, None


class _Pairs(NamedTuple):
    """What a row brings to its scores with the layers below, ``[rows, features]`` each; the key is
    that of all rows."""

    query: jax.Array
    key: jax.Array  # [1, features]: the same for all
    score: jax.Array

    @classmethod
    def of(cls, attention, query, layer):
        query = attention.query[None] * query + attention.bias[None]
        return cls(query, attention.key[None], layer @ attention.score)

    def with_layers(self) -> "_Pairs":
        """The same for all layers: ``[rows, 1, features]``."""
        return jax.tree.map(lambda leaf: leaf[:, None], self)

    def hidden(self, state):
        return jax.nn.sigmoid(self.query + self.key * state)


def _depth(count):
    """How many layers the deepest row has, and how many have to be compared."""
    depth = jnp.max(count)
    return depth, jnp.where(depth > 1, depth, 0)


def _for_each(count, body, carry, begin=0):
    """``body(i, carry)`` for the layers i = begin .. count - 1."""
    step = lambda c: (c[0] + 1, body(*c))
    begin = jnp.full_like(count, begin)
    return lax.while_loop(lambda c: c[0] < count, step, (begin, carry))[1]


def _layer(leaf, i):
    return lax.dynamic_index_in_dim(leaf, i, axis=1, keepdims=False)


def _put(leaf, i, rows):
    return lax.dynamic_update_index_in_dim(leaf, rows, i, axis=1)
