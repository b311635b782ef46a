"""The reference loops: a fixed number of steps an input, masked, differentiable every way.

A masked step is computed all the same, and what it gives must be finite, since weight 0 times an
infinite state, or a cotangent of 0 times an infinite derivative, is NaN. So a row that has halted
is given its last step again, state and all, and one in its padding the state that it ended with.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from actjax._layers import Layers
from actjax._loop.rows import (
    averaged,
    blank,
    cast,
    guarded,
    like_inputs,
    scale,
    select,
    vary,
    zeros,
)
from actjax._variables import renewing
from actjax.halting import Ponder, halting_dtype


def repeat_scan(step, params, state, xs, lengths, repeats: int):
    """`actjax.repeat`."""
    step = renewing(step)
    batch, time = jax.tree.leaves(xs)[0].shape[:2]

    def one_input(state, inputs):
        x, live = inputs

        def one_step(current, n):
            new, _ = step(
                params, guarded(current, lengths), x, jnp.broadcast_to(n == 0, live.shape)
            )
            return new if lengths is None else select(live, new, current), None

        new, _ = lax.scan(one_step, state, jnp.arange(repeats))
        return new, new if lengths is None else select(live, new, zeros(new))

    params = guarded(params, lengths)
    zero = like_inputs(params, state, xs)
    live, state = vary((_live(lengths, batch, time), state), zero)
    state, states = lax.scan(one_input, state, (jax.tree.map(_swap, xs), live))
    return state, jax.tree.map(_swap, states), _swap(jnp.where(live, jnp.int32(repeats), 0))


def masked_scan(step, params, state, xs, lengths, *, max_steps, rule):
    """The reference of `actjax.unroll`."""
    step = renewing(step)
    means = averaged(rule.mean, state)
    batch, time = jax.tree.leaves(xs)[0].shape[:2]
    params = guarded(params, lengths)
    zero = like_inputs(params, state, xs)
    live, state = vary((_live(lengths, batch, time), state), zero)
    x = jax.tree.map(lambda leaf: leaf[:, 0], xs)
    dtype = halting_dtype(jax.eval_shape(step, params, state, x, live[0])[1].dtype)

    def one_input(state, inputs):
        x, live = inputs

        def one_step(carry, _):
            current, results, halting = carry
            n = _number(halting)
            new, halt = step(params, guarded(current, lengths), x, n == 1)
            running = halting.running
            halting, weight = _halt(rule, halting, n, halt.astype(dtype), max_steps)
            results = [
                r + scale(weight, s.astype(r.dtype)) if is_mean else select(running, s, r)
                for r, s, is_mean in zip(results, jax.tree.leaves(new), means, strict=True)
            ]
            return (select(halting.running, new, current), results, halting), None

        leaves, tree = jax.tree.flatten(state)
        results = [
            blank(zero, s.shape, halting_dtype(s.dtype)) if is_mean else s
            for s, is_mean in zip(leaves, means, strict=True)
        ]
        carry = state, results, _start(rule, live, zero, dtype)
        carry, _ = lax.scan(one_step, carry, length=max_steps)
        _, results, halting = carry
        new = tree.unflatten(cast(results, leaves))
        return select(live, new, state), (select(live, new, zeros(new)), halting[1:4])

    state, outputs = lax.scan(one_input, state, (jax.tree.map(_swap, xs), live))
    states, ponder = jax.tree.map(_swap, outputs)
    return state, states, Ponder(*ponder)


class _Halting(NamedTuple):
    """How far the rows are at an input."""

    registers: Any  # the rule's
    steps: jax.Array
    remainder: jax.Array
    extra: Any
    running: jax.Array


def _start(rule, live, zero, dtype) -> _Halting:
    none, steps = blank(zero, live.shape, dtype), blank(zero, live.shape, jnp.int32)
    registers = rule.start(none)
    _, weight, extra = jax.eval_shape(rule.update, registers, steps, none, live)
    like = lambda leaf: blank(zero, leaf.shape, leaf.dtype)
    return _Halting(registers, steps, like(weight), jax.tree.map(like, extra), live)


def _halt(rule, halting: _Halting, n, halt, max_steps: int) -> tuple[_Halting, jax.Array]:
    """The rule applied to step n: how far the rows are then, and p^n, 0 where they had stopped.

    The registers of a row stay what they were at its last step, which is taken again and again.
    """
    registers, steps, remainder, extra, running = halting
    last = rule.decide(registers, n, halt) | (n >= max_steps)
    after, weight, told = rule.update(registers, n, halt, last)
    remainder, extra = select(running & last, (weight, told), (remainder, extra))
    going_on = running & ~last
    halting = _Halting(
        registers=select(going_on, after, registers),
        steps=steps + running.astype(jnp.int32),
        remainder=remainder,
        extra=extra,
        running=going_on,
    )
    return halting, jnp.where(running, weight, 0)


def _number(halting: _Halting) -> jax.Array:
    """The number of each row's step, from 1; of one that has halted, that of its last again."""
    return jnp.maximum(halting.steps + halting.running.astype(jnp.int32), 1)


def masked_scan_layers(step, params, layers: Layers, xs, lengths, *, rule):
    """The reference of `actjax.unroll_layers`."""
    step = renewing(step)
    batch, time = jax.tree.leaves(xs)[0].shape[:2]
    max_layers = jax.tree.leaves(layers.states)[0].shape[1]
    params = guarded(params, lengths)
    zero = like_inputs(params, layers.states, xs)
    live, layers = vary((_live(lengths, batch, time), layers), zero)
    x = jax.tree.map(lambda leaf: leaf[:, 0], xs)
    n = layers.count
    dtype = halting_dtype(jax.eval_shape(step, params, layers.deepest, x, layers, n)[1].dtype)

    def one_input(before, inputs):
        x, live = inputs

        def one_step(carry, n):
            current, states, halting = carry
            row_n = _number(halting)
            given = guarded((current, before), lengths)
            new, halt = step(params, given[0], x, given[1], row_n)
            written = select(halting.running, new, zeros(new))
            states = jax.tree.map(lambda s, row: s.at[:, n - 1].set(row), states, written)
            halting, _ = _halt(rule, halting, row_n, halt.astype(dtype), max_layers)
            return (select(halting.running, new, current), states, halting), None

        halting = _start(rule, live, zero, dtype)
        carry = before.deepest, zeros(before.states), halting
        carry, _ = lax.scan(one_step, carry, jnp.arange(1, max_layers + 1))
        _, states, halting = carry
        after = select(live, Layers(states, halting.steps), before)
        deepest = select(live, after.deepest, zeros(after.deepest))
        return after, (Layers(states, halting.steps, deepest), halting[1:4])

    final, outputs = lax.scan(one_input, layers, (jax.tree.map(_swap, xs), live))
    made, ponder = jax.tree.map(_swap, outputs)
    return final, made, Ponder(*ponder)


def _number(halting: _Halting) -> jax.Array:
    """The number of each row's step, from 1; of one that has halted, that of its last again."""
    return jnp.maximum(halting.steps + halting.running.astype(jnp.int32), 1)


def _swap(leaf):
    return jnp.swapaxes(leaf, 0, 1)


def _live(lengths, batch, time):
    """Which inputs are real, bool ``[T, B]``."""
    if lengths is None:
        return jnp.ones((time, batch), bool)
    return jnp.arange(time, dtype=lengths.dtype)[:, None] < lengths[None, :]
