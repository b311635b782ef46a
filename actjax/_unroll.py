"""Running a step function a learned number of times on each input of a sequence.

`unroll` and `ponder` carry on the mean of an input's states (Graves 2016), `unroll_layers` all of
them (LFACT 2020), and `repeat` is the baseline that always takes the same number of steps. This
file says what they mean and refuses what they cannot take; the loops are in `actjax._loop`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from actjax import _checks as checks
from actjax._layers import Layers
from actjax._loop import adaptive, scan
from actjax._loop.rows import blank_padding
from actjax.halting import Ponder

Step = Callable[[Any, Any, Any, jax.Array], tuple[Any, jax.Array]]
LayerStep = Callable[[Any, Any, Any, Layers, jax.Array], tuple[Any, jax.Array]]


def ponder(
    step: Step, params, state, x, *, max_steps: int, epsilon: float = 0.01, loop: str = "while"
) -> tuple[Any, Ponder]:
    """Ponders one input: `unroll` over a sequence of length 1.

    Args:
      step, params, state, max_steps, epsilon, loop: as in `unroll`.
      x: pytree of arrays ``[B, ...]``, the input.

    Returns:
      ``(state, ponder)``: the mean-field state ``[B, ...]`` and the `Ponder` record, ``[B]`` each.

    >>> def step(params, state, x, first):
    ...     state = jnp.tanh(params * state + x)
    ...     return state, jax.nn.sigmoid(state[:, 0])
    >>> state, record = ponder(step, 0.5, jnp.zeros((3, 4)), jnp.ones((3, 4)), max_steps=10)
    >>> state.shape, record.steps
    ((3, 4), Array([2, 2, 2], dtype=int32))
    """
    checks.check_rows("x", x, 1)
    xs = jax.tree.map(lambda leaf: jnp.asarray(leaf)[:, None], x)
    final, _, record = unroll(
        step, params, state, xs, max_steps=max_steps, epsilon=epsilon, loop=loop
    )
    return final, Ponder(record.steps[:, 0], record.remainder[:, 0])


def unroll(
    step: Step,
    params,
    state,
    xs,
    *,
    max_steps: int,
    epsilon: float = 0.01,
    lengths=None,
    loop: str = "while",
    lanes: int | None = None,
    segment: int | None = None,
) -> tuple[Any, Any, Ponder]:
    """Runs `step` over sequences, each input for as many steps as it asks for (Graves 2016, sec 2).

    At input t the state goes through ``s^n = step(s^{n-1}, x_t)`` until the halting probabilities
    sum to ``1 - epsilon``; the mean-field state ``sum p^n s^n`` (eq 9) is the output at t and the
    state that t + 1 starts from. Works under `jit`, `vmap`, `grad`, `jax.checkpoint`, `shard_map`
    and inside `lax.scan`, and forward over reverse (`jax.hessian`); forward mode alone, and reverse
    over reverse, need ``loop="scan"``.

    Args:
      step: one ponder step for any number of rows, ``(params, state, x, first) -> (state, halt)``:
        state and x lead with the row axis, first is bool ``[rows]`` (n = 1, eq 3), halt is float
        ``[rows]`` in (0, 1) (eq 5). Rows must not interact, and a row's result must not depend on
        its place among them or on their number, as noise drawn for all rows does: what belongs to
        a row, a key of its own or its index, goes into xs or the state. A read-out that is not
        linear belongs into the state, so that its mean is taken. Under ``loop="while"`` it may
        have no effects, as `jax.debug.print` has.
      params: any pytree.
      state: pytree of float arrays ``[B, ...]``, the state before the first input.
      xs: pytree of arrays ``[B, T, ...]``.
      max_steps: M, the limit on steps at one input (eq 13).
      epsilon: how far below 1 the halting probabilities may sum (eq 7).
      lengths: int ``[B]``, the inputs of each sequence that are real, 0 to T; all by default. What
        lies beyond costs nothing and has zeros for output.
      loop: "while" (cost follows the steps taken) or "scan" (fixed cost, the reference).
      lanes: how many sequences the "while" loop has at work at a time, at most B. Fewer wait less
        for the sequence that takes longest; more make larger products. The default is B, except
        on a CPU for short sequences: B / 2 below 16 inputs and B / 4 below 4, but at least 16.
      segment: iterations whose residuals the backward pass of the "while" loop keeps at a time.
        By default enough for 6 steps an input, within 256 MB.

    Returns:
      ``(final_state, states, ponder)``: the state after each sequence's last input ``[B, ...]``,
      after every input ``[B, T, ...]``, and the `Ponder` record ``[B, T]``.

    Raises:
      ValueError: an argument is of the wrong rank, size or range; said before any compilation.

    >>> def step(params, state, x, first):
    ...     state = jnp.tanh(params * state + x)
    ...     return state, jax.nn.sigmoid(state[:, 0])
    >>> final, states, record = unroll(step, 0.5, jnp.zeros((3, 4)), jnp.ones((3, 7, 4)),
    ...                                max_steps=10)
    >>> states.shape, record.cost.shape
    ((3, 7, 4), (3, 7))
    """
    checks.check_limits(max_steps, epsilon)
    checks.check_loop(loop)
    batch, time = checks.check_rows("xs", xs, 2)
    checks.check_state(state, batch)
    params, state, xs = jax.tree.map(jnp.asarray, (params, state, xs))
    lengths = checks.check_options(lengths, batch, time, lanes=lanes, segment=segment)
    xs = blank_padding(xs, lengths)
    x = jax.tree.map(lambda leaf: leaf[:, 0], xs)
    checks.check_step(step, params, state, x, jax.ShapeDtypeStruct((batch,), bool))
    limits = {"max_steps": max_steps, "epsilon": epsilon}
    if loop == "scan":
        return scan.masked_scan(step, params, state, xs, lengths, **limits)
    lanes = min(_default_lanes(batch, time) if lanes is None else lanes, batch)
    return adaptive.adaptive(
        step, params, state, xs, lengths, lanes=lanes, segment=segment, **limits
    )


def unroll_layers(
    step: LayerStep,
    params,
    layers: Layers,
    xs,
    *,
    epsilon: float = 0.01,
    lengths=None,
    loop: str = "while",
    lanes: int | None = None,
    segment: int | None = None,
) -> tuple[Layers, Layers, Ponder]:
    """Runs `step` over sequences, each input making as many layers as it asks for (LFACT 2020).

    At input t the state goes through ``s^n = step(s^{n-1}, x_t, below, n)`` until the halting rule
    of `unroll` stops it; s^0 is the deepest state of the input before. Nothing is averaged: all
    states s^1 .. s^N are kept as the layers of input t, and the steps at t + 1 are given them as
    `below`. The cost follows the layers made, not the limit L, save that `below` has L places.

    Args:
      step: one ponder step for any number of rows, ``(params, state, x, below, n) ->
        (state, halt)``: `below` is a `Layers` record of the input before, its states
        ``[rows, L, ...]``; n is int ``[rows]``, 1 for the first layer; the rest as in `unroll`.
      params, xs, epsilon, lengths, loop, lanes, segment: as in `unroll`.
      layers: what the first input finds below: states ``[B, L, ...]``, count int ``[B]``, 1 to L.
        L, the places there are, is the limit on layers at one input.

    Returns:
      ``(final, layers, ponder)``: the `Layers` after each sequence's last input, those of every
      input (states ``[B, T, L, ...]``), and the `Ponder` record ``[B, T]``.

    Raises:
      ValueError: as in `unroll`.

    >>> def step(params, state, x, below, n):
    ...     state = jnp.tanh(params * state + x + below.deepest)
    ...     return state, jax.nn.sigmoid(state[:, 0])
    >>> start = Layers(jnp.zeros((3, 5, 4)), jnp.ones(3, int))  # L = 5
    >>> final, layers, record = unroll_layers(step, 0.5, start, jnp.ones((3, 7, 4)))
    >>> final.states.shape, layers.states.shape, record.cost.shape
    ((3, 5, 4), (3, 7, 5, 4), (3, 7))
    """
    checks.check_limits(1, epsilon)
    checks.check_loop(loop)
    batch, time = checks.check_rows("xs", xs, 2)
    lengths = checks.check_options(lengths, batch, time, lanes=lanes, segment=segment)
    xs = blank_padding(xs, lengths)
    max_layers = checks.check_layers(layers, batch)
    states, params, xs = jax.tree.map(jnp.asarray, (layers.states, params, xs))
    layers = Layers(states, jnp.asarray(layers.count, jnp.int32))
    x = jax.tree.map(lambda leaf: leaf[:, 0], xs)
    n = jax.ShapeDtypeStruct((batch,), jnp.int32)
    checks.check_step(step, params, layers.deepest, x, layers, n)
    if loop == "scan":
        return scan.masked_scan_layers(step, params, layers, xs, lengths, epsilon=epsilon)
    lanes = min(_default_lanes(batch, time) if lanes is None else lanes, batch)
    limits = {"max_steps": max_layers, "epsilon": epsilon}
    return adaptive.adaptive_layers(
        step, params, layers, xs, lengths, lanes=lanes, segment=segment, **limits
    )


def repeat(step: Step, params, state, xs, *, repeats: int, lengths=None):
    """Runs `step` over sequences, each input a fixed number of times (Fojo 2018, chapter 5).

    Args:
      step, params, state, xs, lengths: as in `unroll`; what the step says of halting is not used.
      repeats: how many steps each input is given.

    Returns:
      ``(final_state, states, steps)``: as in `unroll`, but the state is the one after the last step
      and `steps`, int32 ``[B, T]``, is `repeats` or, where padded, 0.

    Raises:
      ValueError: as in `unroll`.
    """
    checks.check_positive("repeats", repeats)
    batch, time = checks.check_rows("xs", xs, 2)
    checks.check_state(state, batch)
    params, state, xs = jax.tree.map(jnp.asarray, (params, state, xs))
    lengths = checks.check_options(lengths, batch, time)
    xs = blank_padding(xs, lengths)
    x = jax.tree.map(lambda leaf: leaf[:, 0], xs)
    checks.check_step(step, params, state, x, jax.ShapeDtypeStruct((batch,), bool))
    return scan.repeat_scan(step, params, state, xs, lengths, repeats)


def _default_lanes(batch: int, time: int) -> int:
    """As `benchmarks/ponder.py` has it: the wait at the end of a batch matters where T is small."""
    if jax.default_backend() != "cpu" or time >= 16:
        return batch
    return max(16, batch // (2 if time >= 4 else 4))
