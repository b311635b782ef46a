"""Every loop of the package: a step function run a learned number of times on each input."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from actjax.checks import (
    check_choice,
    check_lengths,
    check_limits,
    check_positive,
    check_rows,
    check_state,
    check_step,
)
from actjax.halting import Ponder, halting_dtype, halting_step

Step = Callable[[Any, Any, Any, jax.Array], tuple[Any, jax.Array]]


def ponder(step: Step, params, state, x, *, max_steps: int, epsilon: float = 0.01, loop="while"):
    """Ponders one input: `unroll` over a sequence of length 1."""
    xs = jax.tree.map(lambda leaf: jnp.asarray(leaf)[:, None], x)
    final, _, record = unroll(
        step, params, state, xs, max_steps=max_steps, epsilon=epsilon, loop=loop
    )
    return final, Ponder(record.steps[:, 0], record.remainder[:, 0])


def unroll(
    step: Step, params, state, xs, *, max_steps, epsilon=0.01, lengths=None, loop="while", lanes=None
):
    check_limits(max_steps, epsilon)
    check_choice("loop", loop, ("while", "scan"))
    batch, time = check_rows("xs", xs, 2)
    check_state(state, batch)
    if lanes is not None:
        check_positive("lanes", lanes)
    if lengths is not None:
        check_lengths(lengths, batch, time)
    return _scan(step, params, state, xs, lengths, max_steps=max_steps, epsilon=epsilon)


def repeat(step: Step, params, state, xs, *, repeats: int, lengths=None):
    batch, time = check_rows("xs", xs, 2)

    def one_input(state, inputs):
        x, live = inputs

        def one_step(current, n):
            new, _ = step(params, current, x, jnp.broadcast_to(n == 0, live.shape))
            return new, None

        new, _ = lax.scan(one_step, state, jnp.arange(repeats))
        state = _select(live, new, state)
        return state, state

    live = _live(lengths, batch, time)
    state, states = lax.scan(one_input, state, (jax.tree.map(_swap, xs), live))
    steps = jnp.where(live, repeats, 0).astype(jnp.int32).T
    return state, jax.tree.map(_swap, states), steps


def _swap(leaf):
    return jnp.swapaxes(leaf, 0, 1)


def _live(lengths, batch, time):
    if lengths is None:
        return jnp.ones((time, batch), bool)
    return jnp.arange(time)[:, None] < lengths[None, :]


def _rows(weight, leaf):
    return weight.reshape(weight.shape + (1,) * (leaf.ndim - 1))


def _select(mask, new, old):
    return jax.tree.map(lambda a, b: jnp.where(_rows(mask, a), a, b), new, old)


def _scan(step, params, state, xs, lengths, *, max_steps, epsilon):
    batch, time = check_rows("xs", xs, 2)

    def one_input(state, inputs):
        x, live = inputs

        def one_step(carry, n):
            current, mean, total, steps, remainder, running = carry
            new, halt = step(params, current, x, jnp.broadcast_to(n == 1, running.shape))
            halt = halt.astype(total.dtype)
            weight, last = halting_step(halt, total, n, max_steps=max_steps, epsilon=epsilon)
            weight = jnp.where(running, weight, 0)
            mean = jax.tree.map(
                lambda m, s: m + _rows(weight.astype(m.dtype), m) * s.astype(m.dtype), mean, new
            )
            steps = steps + running.astype(jnp.int32)
            remainder = jnp.where(running & last, weight, remainder)
            total = total + jnp.where(running, halt, 0)
            return (new, mean, total, steps, remainder, running & ~last), None

        _, halt = jax.eval_shape(step, params, state, x, live)
        zero = jnp.zeros(live.shape, halting_dtype(halt.dtype))
        mean = jax.tree.map(lambda s: jnp.zeros_like(s, halting_dtype(s.dtype)), state)
        carry = (state, mean, zero, jnp.zeros(live.shape, jnp.int32), zero, live)
        carry, _ = lax.scan(one_step, carry, jnp.arange(1, max_steps + 1))
        _, mean, _, steps, remainder, _ = carry
        mean = jax.tree.map(lambda m, s: m.astype(s.dtype), mean, state)
        state = _select(live, mean, state)
        return state, (state, steps, remainder)

    live = _live(lengths, batch, time)
    check_step(step, params, state, jax.tree.map(lambda leaf: leaf[:, 0], xs), live[0])
    state, outputs = lax.scan(one_input, state, (jax.tree.map(_swap, xs), live))
    states, steps, remainder = jax.tree.map(_swap, outputs)
    return state, states, Ponder(steps, remainder)
