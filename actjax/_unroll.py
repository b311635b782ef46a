"""Running a step function a learned number of times on each input of a sequence.

`unroll` and `ponder` carry on the mean of an input's states (Graves 2016), `unroll_layers` all of
them (LFACT 2020), and `repeat` is the baseline that always takes the same number of steps. This
file says what they mean and refuses what they cannot take; the loops are in `actjax._loop`.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from actjax import _checks as checks
from actjax import _contracts as contracts
from actjax._layers import Layers
from actjax._loop import calls
from actjax.halting import Ponder, Rule, chosen_rule


class Step(Protocol):
    """One ponder step for any number of rows, as `unroll`, `ponder` and `repeat` call it.

    Rows must not interact, and a row's result must not depend on its place among them or on their
    number, as noise drawn for all rows does: what belongs to a row, a PRNG key of its own or its
    index, goes into x or the state. A read-out that is not linear belongs into the state, so that
    its mean is taken. Under ``loop="while"`` a step may have no effects, such as `jax.debug.print`:
    ``loop="scan"`` runs such a step as it stands, with the same numbers.

    >>> def step(params, state, x, first):  # a cell without a read-out; halts by its first unit
    ...     h, n = state
    ...     n = jnp.where(first, 1, n + 1)  # integers are carried along, without a gradient
    ...     h = jnp.tanh(params * h + x)
    ...     return (h, n), jax.nn.sigmoid(h[:, 0])
    >>> state = jnp.zeros((3, 4)), jnp.zeros(3, int)
    >>> (h, n), record = ponder(step, 0.5, state, jnp.ones((3, 4)), max_steps=10)
    >>> n, record.steps
    (Array([2, 2, 2], dtype=int32), Array([2, 2, 2], dtype=int32))
    """

    def __call__(
        self, params: Any, state: Any, x: Any, first: jax.Array, /
    ) -> tuple[Any, jax.Array]:
        """Takes a step.

        Args:
          params: any pytree, as it was given.
          state: pytree of ``[rows, ...]``.
          x: pytree of ``[rows, ...]``, the inputs at work.
          first: bool ``[rows]``, whether it is the first step at the input (n = 1, eq 3).

        Returns:
          ``(state, halt)``: the state of the same structure, shapes and dtypes, and the halting
          probabilities, float ``[rows]`` in [0, 1] (eq 5). That is checked at the first
          step of a call outside of `jit`; elsewhere a halt out of range, a logit say, makes weights
          out of range without a word, and `actjax.steps.checked` finds it.
        """
        ...


class LayerStep(Protocol):
    """One ponder step that looks at the layers of the input before, as `unroll_layers` calls it.

    What `Step` says of rows holds here too.
    """

    def __call__(
        self, params: Any, state: Any, x: Any, below: Layers, n: jax.Array, /
    ) -> tuple[Any, jax.Array]:
        """Makes a layer.

        Args:
          params, state, x: as in `Step`; the state is of floats.
          below: the layers of the input before, its states ``[rows, L, ...]``.
          n: int32 ``[rows]``, 1 for the first layer.

        Returns:
          ``(state, halt)``: as in `Step`.
        """
        ...


def ponder(
    step: Step,
    params,
    state,
    x,
    *,
    max_steps: int,
    epsilon: float | None = None,
    rule: Rule | None = None,
    loop: str = "while",
    lanes: int | None = None,
) -> tuple[Any, Ponder]:
    """Ponders one input: `unroll` over a sequence of length 1.

    Args:
      step, params, state, max_steps, epsilon, rule, loop, lanes: as in `unroll`.
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
        step,
        params,
        state,
        xs,
        max_steps=max_steps,
        epsilon=epsilon,
        rule=rule,
        loop=loop,
        lanes=lanes,
    )
    return final, jax.tree.map(lambda leaf: leaf[:, 0], record)


def unroll(
    step: Step,
    params,
    state,
    xs,
    *,
    max_steps: int,
    epsilon: float | None = None,
    rule: Rule | None = None,
    lengths=None,
    loop: str = "while",
    lanes: int | None = None,
    segment: int | None = None,
) -> tuple[Any, Any, Ponder]:
    """Runs `step` over sequences, each input for as many steps as it asks for (Graves 2016, sec 2).

    At input t the state goes through ``s^n = step(s^{n-1}, x_t)`` until the halting probabilities
    sum to ``1 - epsilon``; the mean-field state ``sum p^n s^n`` (eq 9) is the output at t and the
    state that t + 1 starts from. Works under `jit`, `vmap`, `grad`, `jax.checkpoint`, `shard_map`
    and inside `lax.scan`, and forward over reverse (`jax.hessian`); forward mode alone, reverse
    over reverse, and `jax.export` with open dimensions need ``loop="scan"``. Sequences that are
    sharded over the explicit axes of a mesh, as `jax.make_mesh` has them, stay where they are:
    every device runs its own, and params are copied to all devices of those axes.

    `jit` your evaluation as you do your training: outside of it every call is compiled anew, since
    a function may have closed over what has changed. A step that is a frozen dataclass is known by
    its fields, and compiled once; the modules' steps are.

    Args:
      step: one ponder step for any number of rows, ``(params, state, x, first) -> (state, halt)``:
        see `Step`.
      params: any pytree of arrays and numbers; functions among them belong into the step.
      state: pytree of arrays ``[B, ...]``, the state before the first input. Integers, booleans
        and PRNG keys in it are carried along: they leave their last value behind, no mean, and
        have no gradient.
      xs: pytree of arrays ``[B, T, ...]``.
      max_steps: M, the limit on steps at one input (eq 13), whatever the rule.
      epsilon: how far below 1 the halting probabilities may sum (eq 7), 0.01 unless given: that of
        ``halting.Graves(epsilon)``, whose rule it is without `rule`.
      rule: when an input's steps end, and what weights they have: any other `halting.Rule`. Its
        `mean` says what an input leaves behind, the mean of its states or the last.
      lengths: int ``[B]``, the inputs of each sequence that are real, 0 to T; all by default. What
        lies beyond costs nothing, has zeros for output and is never given to the step.
      loop: "while" (cost follows the steps taken) or "scan" (fixed cost, the reference).
      lanes: how many sequences the "while" loop has at work at a time, at most B. Fewer wait less
        for the sequence that takes longest; more make larger products. The default is B, except
        on a CPU for short sequences: B / 2 below 16 inputs and B / 4 below 4, or what makes 2^27
        operations of a step if that is fewer, but at least 16.
      segment: iterations whose residuals the backward pass of the "while" loop keeps at a time.
        By default enough for 6 steps an input, within 1/16 of the device's memory where it tells
        how much that is (GPU, TPU), else 256 MB; under `vmap` each member has as much.

    Returns:
      ``(final_state, states, ponder)``: the state after each sequence's last input ``[B, ...]``,
      after every input ``[B, T, ...]`` (zeros, or keys of zeros, where padded), and the `Ponder`
      record ``[B, T]``.

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
    checks.check_positive("max_steps", max_steps)
    batch, time = checks.check_rows("xs", xs, 2)
    checks.check_loop(loop, batch, time)
    checks.check_state(state, batch)
    checks.check_arrays("params", params)
    lengths = checks.check_options(lengths, batch, time, lanes=lanes, segment=segment)
    rule = chosen_rule(rule, epsilon)
    contracts.check_mean(rule, state)
    call = calls.Unroll(step, rule, loop, batch, lanes, segment, max_steps)
    return calls.run(call, params, (state, xs, lengths))


def unroll_layers(
    step: LayerStep,
    params,
    layers: Layers,
    xs,
    *,
    epsilon: float | None = None,
    rule: Rule | None = None,
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
        (state, halt)``: see `LayerStep`.
      params, xs, epsilon, rule, lengths, loop, lanes, segment: as in `unroll`.
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
    batch, time = checks.check_rows("xs", xs, 2)
    checks.check_loop(loop, batch, time)
    checks.check_layers(layers, batch)
    checks.check_arrays("params", params)
    lengths = checks.check_options(lengths, batch, time, lanes=lanes, segment=segment)
    layers = Layers(layers.states, jnp.asarray(layers.count, jnp.int32))
    rule = chosen_rule(rule, epsilon)
    contracts.check_mean(rule, layers.deepest)
    call = calls.UnrollLayers(step, rule, loop, batch, lanes, segment)
    return calls.run(call, params, (layers, xs, lengths))


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
    checks.check_arrays("params", params)
    lengths = checks.check_options(lengths, batch, time)
    return calls.run(calls.Repeat(step, repeats), params, (state, xs, lengths))
