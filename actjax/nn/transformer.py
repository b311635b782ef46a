"""The Universal Transformer: one block, applied to a sequence until its positions have halted.

Dehghani et al. 2019, "Universal Transformers", with adaptive computation time for each position.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from actjax._checks import (
    check_choice,
    check_lengths,
    check_loop_and_lanes,
    check_positive,
    check_rngs,
)
from actjax._unroll import ponder
from actjax.halting import Ponder, Rule, Threshold, chosen_rule, halting_dtype
from actjax.steps import by_position, start_positions


class Block(nnx.Module):
    """A transformer's block with its norms before (pre-norm): attention, then two dense layers.

    Args:
      features: size of a position's state.
      heads: of the attention; they divide `features`.
      hidden_features: width between the dense layers; four times `features` by default.
      dtype: compute dtype.
      rngs: `nnx.Rngs`.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        *,
        hidden_features: int | None = None,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        width = 4 * features if hidden_features is None else hidden_features
        self.attention_norm = nnx.LayerNorm(features, dtype=dtype, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            heads, features, dtype=dtype, decode=False, rngs=rngs
        )
        self.dense_norm = nnx.LayerNorm(features, dtype=dtype, rngs=rngs)
        self.widen = nnx.Linear(features, width, dtype=dtype, rngs=rngs)
        self.narrow = nnx.Linear(width, features, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Takes ``[rows, S, features]`` to the same; mask is bool ``[rows, 1, S, S]``."""
        x = x + self.attention(self.attention_norm(x), mask=mask)
        return x + self.narrow(nnx.gelu(self.widen(self.dense_norm(x))))


class UniversalTransformer(nnx.Module):
    """A transformer that learns how often to apply its block (Dehghani et al. 2019).

    Every step adds embeddings of position and of step and applies `block`. By default positions
    halt one by one, and one that has halted keeps its state, to which the others go on to attend; a
    sequence costs as many steps as its slowest position.

    Args:
      features: size of a position's state.
      heads: of the attention, as in `Block`.
      max_steps: M, the limit on steps.
      rule: how halting probabilities end the steps, `actjax.halting.Graves` by default; also
        `PonderNet` or `Threshold`.
      halt: ``"positions"``, or ``"sequence"``: a sequence halts as a whole, by the halting unit of
        the mean of its positions.
      block: from ``[rows, S, features]`` and a mask to the same, in the place of `Block`.
      halt_bias: initial bias of the halting unit.
      loop, lanes: as in `actjax.unroll`. Fewer lanes than sequences keep those that are done from
        waiting for the slowest.
      hidden_features, dtype, rngs: as in `Block`; halting stays in float32.

    >>> model = UniversalTransformer(16, 2, max_steps=6, rngs=nnx.Rngs(0))
    >>> outputs, ponder = jax.jit(model)(jnp.ones((2, 5, 16)))
    >>> outputs.shape, ponder.steps.shape
    ((2, 5, 16), (2, 5))
    """

    def __init__(
        self,
        features: int,
        heads: int,
        *,
        max_steps: int,
        rule: Rule | None = None,
        halt: str = "positions",
        block: nnx.Module | None = None,
        hidden_features: int | None = None,
        halt_bias: float = 1.0,
        loop: str = "while",
        lanes: int | None = None,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        check_positive("features", features)
        check_positive("heads", heads)
        check_positive("max_steps", max_steps)
        check_choice("halt", halt, ("positions", "sequence"))
        check_loop_and_lanes(loop, lanes)
        if hidden_features is not None:
            check_positive("hidden_features", hidden_features)
        if features % heads:
            raise ValueError(f"heads must divide features = {features}, got {heads!r}.")
        self.features, self.max_steps, self.dtype = features, max_steps, dtype
        self.rule, self.by = chosen_rule(rule), halt
        self.loop, self.lanes = loop, lanes
        options = {"hidden_features": hidden_features, "dtype": dtype, "rngs": rngs}
        self.block = Block(features, heads, **options) if block is None else block
        bias = nnx.initializers.constant(halt_bias)
        self.halt = nnx.Linear(features, 1, bias_init=bias, dtype=dtype, rngs=rngs)

    def __call__(self, x, *, lengths=None) -> tuple[jax.Array, Ponder]:
        """Runs over whole sequences.

        Args:
          x: float ``[B, S, features]``, embedded.
          lengths: int ``[B]``, how many positions of each sequence are real; all by default. The
            others are attended to by none, and have zeros for output.

        Returns:
          ``(outputs, ponder)``: ``[B, S, features]``, and the `Ponder` record, ``[B, S]`` by
          positions or ``[B]`` by sequences.
        """
        step, model, state, inputs = self.prepare(x, lengths)
        by_positions = self.by == "positions"
        final, record = ponder(
            step,
            model,
            state,
            inputs,
            max_steps=self.max_steps,
            rule=Threshold() if by_positions else self.rule,
            loop=self.loop,
            lanes=self.lanes,
        )
        x, present = inputs
        if by_positions:
            outputs = final.result[0]
            record = Ponder(final.steps, final.remainder, final.extra)
        else:
            outputs = final[0]
        return jnp.where(present[..., None], outputs.astype(x.dtype), 0), record

    def prepare(self, x, lengths=None):
        """Returns ``(step, model, state, inputs)`` for `actjax.ponder`."""
        x = jnp.asarray(x)
        if x.ndim != 3 or x.shape[-1] != self.features or 0 in x.shape:
            raise ValueError(
                f"x must have shape [batch, positions, {self.features}] with no empty axis, "
                f"got {x.shape}."
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"x must hold floating-point numbers, got {x.dtype}.")
        x = x if self.dtype is None else x.astype(self.dtype)
        batch, count = x.shape[:2]
        if lengths is None:
            present = jnp.ones((batch, count), bool)
        else:
            places = jnp.arange(count, dtype=jnp.int32)[None]
            present = places < check_lengths(lengths, batch, count)[:, None]
        x = jnp.where(present[..., None], x, 0)
        if self.by == "positions":
            start = x, jnp.zeros((batch, count), jnp.int32)
            state = start_positions(start, rule=self.rule, present=present)
            step = by_position(_apply, max_steps=self.max_steps, rule=self.rule)
            return step, self, state, (x, present)
        return _apply_to_sequence, self, (x, jnp.zeros(batch, jnp.int32)), (x, present)

    def apply(self, x: jax.Array, n: jax.Array, present: jax.Array):
        """Applies the block once.

        Args:
          x: float ``[rows, S, features]``.
          n: int ``[rows]``, the number of the step.
          present: bool ``[rows, S]``, which positions there are.

        Returns:
          ``(x, logits)``: the new states, and the halting unit's logits ``[rows, S]``.
        """
        position = _sinusoid(jnp.arange(x.shape[1]), self.features)[None]
        embedded = x + (position + _sinusoid(n, self.features)[:, None]).astype(x.dtype)
        x = self.block(embedded, mask=present[:, None, None]).astype(x.dtype)
        logits = self.halt(x)[..., 0]
        return x, logits.astype(halting_dtype(logits.dtype))


def _apply(model, state, inputs, first):
    """A step of `by_position`: its states have the number of steps beside them."""
    (x, n), (_, present) = state, inputs
    number = n.max(1) + 1
    x, logits = model.apply(x, number, present)
    return (x, jnp.broadcast_to(number[:, None], n.shape)), jax.nn.sigmoid(logits)


def _apply_to_sequence(model, state, inputs, first):
    (x, n), (_, present) = state, inputs
    n = jnp.where(first, 1, n + 1)
    x, logits = model.apply(x, n, present)
    count = jnp.maximum(present.sum(1), 1).astype(logits.dtype)
    mean = jnp.where(present, logits, 0).sum(1) / count  # the halting unit is linear
    return (x, n), jax.nn.sigmoid(mean)


def _sinusoid(places: jax.Array, features: int) -> jax.Array:
    """The embedding of integers ``[...]`` by sines and cosines, ``[..., features]``."""
    rates = 10_000.0 ** (-jnp.arange(0, features, 2) / features)
    angle = places[..., None].astype(rates.dtype) * rates.reshape((1,) * places.ndim + (-1,))
    both = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return both.reshape(*places.shape, -1)[..., :features]
