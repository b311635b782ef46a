"""Every loop of the package: a step function run a learned number of times on each input.

`unroll` is the entry. Its two loops give the same numbers:

``scan``   every input is given M steps, and those after its halting are masked: fixed cost,
           differentiable every way. The reference.
``while``  one `lax.while_loop` over *lanes*. A lane points into a sequence; every iteration takes
           one ponder step on all lanes; a lane that halts writes its result and goes on to its next
           input at once, and after a sequence's last input it takes the next one from a queue. No
           lane waits for another: the cost follows the steps taken. Reverse mode only; the backward
           pass replays the recorded schedule in reverse.

The ``while`` loop keeps the residuals of one *segment* of iterations, and the lanes' registers at
the start of each. The backward pass recomputes every segment but the last from there; a run that
fits in one segment recomputes nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero

from actjax import checks
from actjax.halting import Ponder, halting_dtype, halting_step
from actjax.lanes import (
    Record,
    advance,
    emit,
    final_state,
    no_outputs,
    retreat,
    start,
    start_back,
    weight_cotangents,
)
from actjax.plan import Data, Plan, divide, flatten, join, make_plan
from actjax.rows import add, blank, cast, is_float, like_inputs, scale, select, vary, zeros

Step = Callable[[Any, Any, Any, jax.Array], tuple[Any, jax.Array]]


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
    and inside `lax.scan`; forward mode and higher derivatives need ``loop="scan"``.

    Args:
      step: one ponder step for any number of rows, ``(params, state, x, first) -> (state, halt)``:
        state and x lead with the row axis, first is bool ``[rows]`` (n = 1, eq 3), halt is float
        ``[rows]`` in (0, 1) (eq 5). Rows must not interact. A read-out that is not linear belongs
        into the state, so that its mean is taken.
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
    checks.check_choice("loop", loop, ("while", "scan"))
    batch, time = checks.check_rows("xs", xs, 2)
    checks.check_state(state, batch)
    for name, value in (("lanes", lanes), ("segment", segment)):
        if value is not None:
            checks.check_positive(name, value)
    if lengths is not None:
        checks.check_lengths(lengths, batch, time)
    x = jax.tree.map(lambda leaf: leaf[:, 0], xs)
    checks.check_step(step, params, state, x, jax.ShapeDtypeStruct((batch,), bool))
    if loop == "scan":
        return _scan(step, params, state, xs, lengths, max_steps, epsilon)
    lanes = _default_lanes(batch, time) if lanes is None else lanes
    lanes = min(lanes, batch)
    return _while(step, params, state, xs, lengths, max_steps, epsilon, lanes, segment)


def _default_lanes(batch: int, time: int) -> int:
    """As `benchmarks/ponder.py` has it: the wait at the end of a batch matters where T is small."""
    if jax.default_backend() != "cpu" or time >= 16:
        return batch
    return max(16, batch // (2 if time >= 4 else 4))


def repeat(step: Step, params, state, xs, *, repeats: int, lengths=None):
    """Runs `step` over sequences, each input a fixed number of times (Fojo 2018, chapter 5).

    Args:
      step, params, state, xs, lengths: as in `unroll`; what the step says of halting is not used.
      repeats: how many steps each input is given.

    Returns:
      ``(final_state, states, steps)``: as in `unroll`, but the state is the one after the last step
      and `steps`, int32 ``[B, T]``, is `repeats` or, where padded, 0.
    """
    checks.check_positive("repeats", repeats)
    batch, time = checks.check_rows("xs", xs, 2)
    checks.check_state(state, batch)
    if lengths is not None:
        checks.check_lengths(lengths, batch, time)

    def one_input(state, inputs):
        x, live = inputs

        def one_step(current, n):
            new, _ = step(params, current, x, jnp.broadcast_to(n == 0, live.shape))
            return new, None

        new, _ = lax.scan(one_step, state, jnp.arange(repeats))
        return select(live, new, state), select(live, new, zeros(new))

    zero = like_inputs(params, state, xs)
    live, state = vary((_live(lengths, batch, time), state), zero)
    state, states = lax.scan(one_input, state, (jax.tree.map(_swap, xs), live))
    return state, jax.tree.map(_swap, states), _swap(jnp.where(live, jnp.int32(repeats), 0))


def _swap(leaf):
    return jnp.swapaxes(leaf, 0, 1)


def _live(lengths, batch, time):
    """Which inputs are real, bool ``[T, B]``."""
    if lengths is None:
        return jnp.ones((time, batch), bool)
    return jnp.arange(time)[:, None] < lengths[None, :]


# --- The masked scan ---------------------------------------------------------------------------


def _scan(step, params, state, xs, lengths, max_steps, epsilon):
    batch, time = jax.tree.leaves(xs)[0].shape[:2]
    zero = like_inputs(params, state, xs)
    live, state = vary((_live(lengths, batch, time), state), zero)
    x = jax.tree.map(lambda leaf: leaf[:, 0], xs)
    dtype = halting_dtype(jax.eval_shape(step, params, state, x, live[0])[1].dtype)

    def one_input(state, inputs):
        x, live = inputs

        def one_step(carry, n):
            current, mean, total, steps, remainder, running = carry
            new, halt = step(params, current, x, jnp.broadcast_to(n == 1, running.shape))
            halt = halt.astype(dtype)
            weight, last = halting_step(halt, total, n, max_steps=max_steps, epsilon=epsilon)
            weight = jnp.where(running, weight, 0)
            mean = jax.tree.map(lambda m, s: m + scale(weight, s.astype(m.dtype)), mean, new)
            steps = steps + running.astype(jnp.int32)
            remainder = jnp.where(running & last, weight, remainder)
            total = total + jnp.where(running, halt, 0)
            return (new, mean, total, steps, remainder, running & ~last), None

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


# --- The adaptive loop -------------------------------------------------------------------------


def _while(step, params, state, xs, lengths, max_steps, epsilon, lanes, segment):
    step, weights, state, xs, unflatten = flatten(step, params, state, xs)
    batch, time = xs[0].shape[:2]
    lengths = jnp.full(batch, time) if lengths is None else jnp.clip(jnp.asarray(lengths), 0, time)
    # The longest first, which keeps the lanes busy to the end; the empty ones last, never taken.
    order = jnp.argsort(-lengths, stable=True) if lanes < batch else jnp.arange(batch)
    xs = [leaf.reshape((batch * time, *leaf.shape[2:])) for leaf in xs]
    data = Data(weights, state, xs, lengths.astype(jnp.int32), order.astype(jnp.int32))
    data = vary(data, like_inputs(weights, state, xs))
    plan = make_plan(
        step,
        data,
        batch=batch,
        time=time,
        lanes=lanes,
        max_steps=max_steps,
        epsilon=epsilon,
        segment=segment,
    )
    try:
        final, outputs = _adaptive(plan, *divide(data))
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError(
            "loop='while' has no forward-mode derivative: use loop='scan', or reverse mode."
        ) from error
    outputs = jax.tree.map(lambda leaf: leaf.reshape((batch, time, *leaf.shape[1:])), outputs)
    return unflatten(final), unflatten(outputs.states), Ponder(outputs.steps, outputs.remainder)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _adaptive(plan: Plan, floats, others):
    """The loop without a record: ``(final_state, outputs)``."""
    data = join(floats, others)
    fixed = plan.split.hoist(data.weights)

    def iteration(carry):
        lanes, outputs = carry
        lanes, emitted, _, _ = advance(plan, fixed, data, lanes)
        return lanes, emit(plan, outputs, *emitted)

    zero = like_inputs(floats)
    lanes = start(plan, data, zero)
    outputs = no_outputs(plan, lanes, zero)
    lanes, outputs = lax.while_loop(lambda c: _any(c[0].left > 0), iteration, (lanes, outputs))
    return final_state(plan, data, lanes, outputs), outputs


def _adaptive_forward(plan: Plan, floats, others):
    """The loop with a record of its last segment, and the registers at the start of each."""
    is_primal = lambda leaf: hasattr(leaf, "perturbed")  # noqa: E731
    unwrap = lambda tree: jax.tree.map(lambda leaf: leaf.value, tree, is_leaf=is_primal)  # noqa: E731
    data = join(unwrap(floats), unwrap(others))
    fixed = plan.split.hoist(data.weights)
    zero = like_inputs(data.weights, data.state, data.xs)

    def iteration(carry):
        j, lanes, outputs, kept = carry
        lanes, emitted, record, residuals = advance(plan, fixed, data, lanes)
        return j + 1, lanes, emit(plan, outputs, *emitted), _write(kept, j, (record, residuals))

    def one_segment(carry):
        count, _, lanes, outputs, kept, checkpoints = carry
        checkpoints = _write(checkpoints, count, lanes)
        busy = lambda carry: (carry[0] < plan.segment) & _any(carry[1].left > 0)  # noqa: E731
        j, lanes, outputs, kept = lax.while_loop(busy, iteration, (0, lanes, outputs, kept))
        return count + 1, j, lanes, outputs, kept, checkpoints

    lanes = start(plan, data, zero)
    buffer = lambda count, like: blank(zero, (count, *like.shape), like.dtype)  # noqa: E731
    record = Record(lanes.position, lanes.left > 0, lanes.left > 0, lanes.total)
    kept = jax.tree.map(partial(buffer, plan.segment), (record, plan.split.residuals))
    checkpoints = jax.tree.map(partial(buffer, plan.segments), lanes)
    carry = 0, 0, lanes, no_outputs(plan, lanes, zero), kept, checkpoints
    if plan.segments == 1:
        carry = one_segment(carry)
    else:
        carry = lax.while_loop(lambda carry: _any(carry[2].left > 0), one_segment, carry)
    count, j, lanes, outputs, kept, checkpoints = carry
    result = final_state(plan, data, lanes, outputs), outputs
    return result, (data, count, j, kept, checkpoints)


def _adaptive_backward(plan: Plan, saved, cotangents):
    """Undoes the iterations, the last first, segment by segment."""
    data, count, j, kept, checkpoints = saved
    fixed = plan.split.hoist(data.weights)
    zero = like_inputs(data.weights, data.state, data.xs)
    filled = lambda d: blank(zero, d.shape, d.dtype) if isinstance(d, SymbolicZero) else d  # noqa: E731
    d_final, d_outputs = cotangents
    d_states = [None if isinstance(d, SymbolicZero) else d for d in d_outputs.states]
    back, d_states = start_back(plan, data, list(map(filled, d_final)), d_states, zero)
    d_outputs = d_states, filled(d_outputs.remainder)

    def iteration(carry):
        j, back, kept, pending = carry
        record, residuals = _read(kept, j - 1)
        back, new = retreat(plan, fixed, data, d_outputs, record, residuals, back)
        pending = add(pending, new) if plan.late is None else _write(pending, j - 1, new)
        return j - 1, back, kept, pending

    def chunk(carry):
        begin, j, kept, pending, d_weights = carry
        cut = lambda leaf: lax.dynamic_slice_in_dim(leaf, begin, plan.chunk)  # noqa: E731
        (record, residuals), rows = jax.tree.map(cut, (kept, pending))
        new = weight_cotangents(plan, data, record, residuals, rows)
        return begin + plan.chunk, j, kept, pending, add(d_weights, new)

    def again(carry):
        i, lanes, kept = carry
        lanes, _, record, residuals = advance(plan, fixed, data, lanes)
        return i + 1, lanes, _write(kept, i, (record, residuals))

    def one_segment(carry):
        """Undoes segment `index`, of which j iterations are kept or, where j = 0, none yet."""
        index, j, back, kept, pending, d_weights = carry
        if plan.segments > 1:
            i = jnp.where(j == 0, 0, plan.segment)
            lanes = _read(checkpoints, index)
            _, _, kept = lax.while_loop(lambda c: c[0] < plan.segment, again, (i, lanes, kept))
            j = jnp.where(j == 0, plan.segment, j)
        carry = j, back, kept, pending
        _, back, kept, pending = lax.while_loop(lambda c: c[0] > 0, iteration, carry)
        if plan.late is not None:
            carry = 0, j, kept, pending, d_weights
            *_, kept, pending, d_weights = lax.while_loop(lambda c: c[0] < c[1], chunk, carry)
        return index - 1, 0, back, kept, pending, d_weights

    d_weights = [
        blank(zero, leaf.shape, halting_dtype(leaf.dtype))
        for leaf in data.weights
        if is_float(leaf)
    ]
    pending = [blank(zero, (plan.segment, *s.shape), s.dtype) for s in plan.split.pending]
    if plan.late is None:
        pending, d_weights = d_weights, []
    carry = count - 1, j, back, kept, pending, d_weights
    if plan.segments == 1:
        carry = one_segment(carry)
    else:
        carry = lax.while_loop(lambda carry: carry[0] >= 0, one_segment, carry)
    _, _, back, _, pending, d_weights = carry

    d_weights = pending if plan.late is None else d_weights
    d_state = back.initial if plan.queued else back.state
    return (_place(d_weights, data.weights), d_state, _place(back.xs, data.xs)), None


_adaptive.defvjp(_adaptive_forward, _adaptive_backward, symbolic_zeros=True)


def _place(cotangents, leaves):
    """The cotangents in the places of the leaves that have one."""
    rest = iter(cotangents)
    return [next(rest).astype(leaf.dtype) if is_float(leaf) else None for leaf in leaves]


def _write(buffers, index, rows):
    put = lambda b, r: lax.dynamic_update_index_in_dim(b, r, index, 0)  # noqa: E731
    return jax.tree.map(put, buffers, rows)


def _read(buffers, index):
    return jax.tree.map(lambda b: lax.dynamic_index_in_dim(b, index, keepdims=False), buffers)


@custom_vmap
def _any(busy: jax.Array) -> jax.Array:
    return jnp.any(busy)


@_any.def_vmap
def _any_of_all(_, in_batched, busy):
    """One answer for all members of a `vmap`, so that its loop selects over no buffer.

    Members that are done go on with idle lanes, which change nothing.
    """
    return _any(busy), False
