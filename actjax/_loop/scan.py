"""The reference loops: a fixed number of steps an input, masked, differentiable every way.

A masked step is computed all the same, and what it gives must be finite, since weight 0 times an
infinite state, or a cotangent of 0 times an infinite derivative, is NaN. So a row that has halted
is given its last step again, state and all, and one in its padding the state that it ended with.
"""

import jax
import jax.numpy as jnp
from jax import lax

from actjax._layers import Layers
from actjax._loop.rows import blank, cast, guarded, like_inputs, scale, select, vary, zeros
from actjax.halting import Ponder, halting_dtype, halting_step


def repeat_scan(step, params, state, xs, lengths, repeats: int):
    """`actjax.repeat`."""
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


def masked_scan(step, params, state, xs, lengths, *, max_steps, epsilon):
    """The reference of `actjax.unroll`."""
    batch, time = jax.tree.leaves(xs)[0].shape[:2]
    params = guarded(params, lengths)
    zero = like_inputs(params, state, xs)
    live, state = vary((_live(lengths, batch, time), state), zero)
    x = jax.tree.map(lambda leaf: leaf[:, 0], xs)
    dtype = halting_dtype(jax.eval_shape(step, params, state, x, live[0])[1].dtype)

    def one_input(state, inputs):
        x, live = inputs

        def one_step(carry, n):
            current, mean, total, steps, remainder, running = carry
            first = _number(steps, running) == 1
            new, halt = step(params, guarded(current, lengths), x, first)
            halt = halt.astype(dtype)
            weight, last = halting_step(halt, total, n, max_steps=max_steps, epsilon=epsilon)
            weight = jnp.where(running, weight, 0)
            mean = jax.tree.map(lambda m, s: m + scale(weight, s.astype(m.dtype)), mean, new)
            steps = steps + running.astype(jnp.int32)
            remainder = jnp.where(running & last, weight, remainder)
            total = total + jnp.where(running, halt, 0)
            running = running & ~last
            return (select(running, new, current), mean, total, steps, remainder, running), None

        total, steps = blank(zero, live.shape, dtype), blank(zero, live.shape, jnp.int32)
        mean = jax.tree.map(lambda s: blank(zero, s.shape, halting_dtype(s.dtype)), state)
        carry = (state, mean, total, steps, total, live)
        carry, _ = lax.scan(one_step, carry, jnp.arange(1, max_steps + 1))
        _, mean, _, steps, remainder, _ = carry
        new = cast(mean, state)
        return select(live, new, state), (select(live, new, zeros(new)), steps, remainder)

    state, outputs = lax.scan(one_input, state, (jax.tree.map(_swap, xs), live))
    states, steps, remainder = jax.tree.map(_swap, outputs)
    return state, states, Ponder(steps, remainder)


def masked_scan_layers(step, params, layers: Layers, xs, lengths, *, epsilon):
    """The reference of `actjax.unroll_layers`."""
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
            current, states, total, steps, remainder, running = carry
            given = guarded((current, before), lengths)
            new, halt = step(params, given[0], x, given[1], _number(steps, running))
            halt = halt.astype(dtype)
            weight, last = halting_step(halt, total, n, max_steps=max_layers, epsilon=epsilon)
            states = jax.tree.map(
                lambda s, row: s.at[:, n - 1].set(select(running, row, jnp.zeros_like(row))),
                states,
                new,
            )
            steps = steps + running.astype(jnp.int32)
            remainder = jnp.where(running & last, weight, remainder)
            total = total + jnp.where(running, halt, 0)
            running = running & ~last
            return (select(running, new, current), states, total, steps, remainder, running), None

        total, steps = blank(zero, live.shape, dtype), blank(zero, live.shape, jnp.int32)
        carry = (before.deepest, zeros(before.states), total, steps, total, live)
        carry, _ = lax.scan(one_step, carry, jnp.arange(1, max_layers + 1))
        _, states, _, steps, remainder, _ = carry
        after = select(live, Layers(states, steps), before)
        deepest = select(live, after.deepest, zeros(after.deepest))
        return after, (states, steps, deepest, remainder)

    final, outputs = lax.scan(one_input, layers, (jax.tree.map(_swap, xs), live))
    *made, remainder = jax.tree.map(_swap, outputs)
    made = Layers(*made)
    return final, made, Ponder(made.count, remainder)


def _swap(leaf):
    return jnp.swapaxes(leaf, 0, 1)


def _number(steps, running):
    """The number of each row's step, from 1; of one that has halted, that of its last again."""
    return jnp.maximum(steps + running.astype(jnp.int32), 1)


def _live(lengths, batch, time):
    """Which inputs are real, bool ``[T, B]``."""
    if lengths is None:
        return jnp.ones((time, batch), bool)
    return jnp.arange(time)[:, None] < lengths[None, :]
