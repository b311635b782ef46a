"""The ways to run one adaptive network that `ponder.py` compares, and the plain RNN.

A loop is ``loop(step, params, state, xs, max_steps) -> (states, Ponder)``, with `step` as in
`actjax.unroll`; a contender is the network with that loop, ``(model, xs) -> (outputs, Ponder)``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

import actjax

EPSILON = 0.01


def while_loop(lanes):
    return lambda *arguments: _unroll(*arguments, loop="while", lanes=lanes)


def masked_scan(*arguments):
    return _unroll(*arguments, loop="scan")


def _unroll(step, params, state, xs, max_steps, **options):
    _, states, ponder = actjax.unroll(
        step, params, state, xs, max_steps=max_steps, epsilon=EPSILON, **options
    )
    return states, ponder


def nested_while(step, params, state, xs, max_steps):
    def one_input(state, x):
        state, ponder = actjax.ponder(step, params, state, x, max_steps=max_steps, epsilon=EPSILON)
        return state, (state, ponder)

    return _over_time(one_input, state, xs)


def scan_cond(step, params, state, xs, max_steps):
    def one_input(state, x):
        def one_step(carry, n):
            return lax.cond(jnp.any(carry[-1]), advance, lambda n, carry: carry, n, carry), None

        def advance(n, carry):
            current, mean, total, ponder, running = carry
            new, halt = step(params, current, x, jnp.broadcast_to(n == 1, running.shape))
            weight, last = actjax.halting_step(halt, total, n, max_steps=max_steps, epsilon=EPSILON)
            weight = jnp.where(running, weight, 0)
            mean = jax.tree.map(lambda m, s: m + weight[:, None] * s, mean, new)
            steps = ponder.steps + running
            remainder = jnp.where(running & last, weight, ponder.remainder)
            total = total + jnp.where(running, halt, 0)
            return new, mean, total, actjax.Ponder(steps, remainder), running & ~last

        rows = xs.shape[0]
        zeros = jnp.zeros(rows, jnp.float32)
        ponder = actjax.Ponder(jnp.zeros(rows, jnp.int32), zeros)
        mean = jax.tree.map(jnp.zeros_like, state)
        carry = (state, mean, zeros, ponder, jnp.ones(rows, bool))
        (_, mean, _, ponder, _), _ = lax.scan(
            one_step, carry, 1 + jnp.arange(max_steps, dtype=jnp.int32)
        )
        return mean, (mean, ponder)

    return _over_time(one_input, state, xs)


def _over_time(one_input, state, xs):
    _, outputs = lax.scan(one_input, state, jnp.swapaxes(xs, 0, 1))
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), outputs)


def with_loop(loop):
    """The network with this loop, ``(model, xs) -> (outputs, ponder)``."""

    def apply(model, xs):
        # The step and the input projections of `ACT.__call__`, so that only the loops differ.
        step, params, state, inputs = model.prepare(xs, None, model.halt)
        states, ponder = loop(step, params, state, inputs, model.max_steps)
        return step.read(states)[1], ponder

    return apply


def plain(model, xs):
    _, outputs, ponder = model(xs)
    return outputs, ponder


def contenders(lane_counts) -> dict[str, Callable]:
    lanes = {f"while, {n} lanes": while_loop(n) for n in lane_counts}
    others = {"scan": masked_scan, "scan+cond": scan_cond, "nested while": nested_while}
    return {"plain": plain} | {name: with_loop(loop) for name, loop in (lanes | others).items()}
