"""When to stop: rules over a `HaltState`, and over whole recorded curves with their controls.

A rule is any callable `HaltState -> bool` of the state's shape. It sees only the past: the June
text's softmax posterior at inference is the one over steps up to now.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from actjax._checks import check_key
from actjax.learned.heads import HaltState


@dataclasses.dataclass(frozen=True)
class MassRule:
    """Stop at the first step where the probability of having stopped exceeds `threshold`.

    Of the softmax posterior that is the mass before t, 1 - q(t|T=t): flat logits then stop at step
    11 for .9, and logits that keep rising never do. Graves' own rule is threshold 1 - a rounding.
    """

    threshold: Any = 0.5

    def __post_init__(self):
        if isinstance(self.threshold, (int, float)) and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be a number from 0 to 1, got {self.threshold!r}.")

    def __call__(self, state: HaltState) -> jax.Array:
        return state.mass > self.threshold


@dataclasses.dataclass(frozen=True)
class PriceRule:
    """Stop at the first step whose predicted gain does not pay the price of another.

    The softmax head predicts the gain as the logit's increment: r_t / k + (t - 1) log a is the best
    logit, so it should rise exactly while a step gains more than -k log a nats.

    Args:
      margin: gain over price, in units of the KL weight, below which to stop; 0 is break-even.
      first: steps always taken.
    """

    margin: Any = 0.0
    first: int = 1

    def __call__(self, state: HaltState) -> jax.Array:
        return (state.gain < self.margin) & (state.steps >= self.first)


def sampled(key: jax.Array) -> MassRule:
    """A stopping time drawn from the posterior: the mass rule with a random threshold.

    Exactly q for stick-breaking. Draw one key a problem.
    """
    check_key("key", key)
    return MassRule(jax.random.uniform(key))


def halting_states(posterior, scores: jax.Array) -> HaltState:
    """The states a posterior goes through on recorded scores [..., H]: fields [..., H]."""

    def step(state, score):
        state = posterior.advance(state, score)
        return state, state

    _, states = jax.lax.scan(step, posterior.begin(scores[..., 0]), jnp.moveaxis(scores, -1, 0))
    return jax.tree.map(lambda field: jnp.moveaxis(field, 0, -1), states)


def first_step(stop: jax.Array) -> jax.Array:
    """The first step, counted from 1, at which `stop` [..., H] holds, or H: int32 [...]."""
    horizon = stop.shape[-1]
    found = jnp.argmax(stop, axis=-1) + 1
    return jnp.where(stop.any(-1), found, horizon).astype(jnp.int32)


def at_step(curves: jax.Array, steps: jax.Array) -> jax.Array:
    """The value of curves [..., H] after `steps` [...]: [...]."""
    return jnp.take_along_axis(curves, steps[..., None] - 1, axis=-1)[..., 0]


def plateau_steps(losses: jax.Array, tolerance: float, patience: int = 5) -> jax.Array:
    """A control: stop once the best loss fell by less than `tolerance` in `patience` steps."""
    best = jax.lax.cummin(losses, axis=losses.ndim - 1)
    fall = best[..., :-patience] - best[..., patience:]
    never = jnp.zeros_like(losses[..., :patience], bool)
    return first_step(jnp.concatenate([never, fall < tolerance], axis=-1))


def oracle_steps(losses: jax.Array, price: float) -> jax.Array:
    """The best step of each curve in hindsight, at `price` a step: what no rule can beat."""
    steps = jnp.arange(1, losses.shape[-1] + 1, dtype=losses.dtype)
    cost = losses + price * jnp.broadcast_to(steps, losses.shape)
    return jnp.argmin(cost, axis=-1).astype(jnp.int32) + 1
