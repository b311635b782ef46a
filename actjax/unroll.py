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
from actjax.halting import Ponder, halting_dtype, halting_step, halting_step_transpose
from actjax.plan import (
    Data,
    Lanes,
    Outputs,
    Plan,
    Record,
    blank,
    divide,
    flatten,
    is_float,
    join,
    like_inputs,
    make_plan,
    per_row,
    scale,
    select,
    zeros,
)

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
      lanes: how many sequences the "while" loop has at work at a time, at most B, which is the
        default. Fewer waste less on sequences that take longest; more make larger products.
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
    lanes = batch if lanes is None else min(lanes, batch)
    return _while(step, params, state, xs, lengths, max_steps, epsilon, lanes, segment)


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

    live = _live(lengths, batch, time)
    state, states = lax.scan(one_input, state, (jax.tree.map(_swap, xs), live))
    return state, jax.tree.map(_swap, states), _swap(jnp.where(live, jnp.int32(repeats), 0))


def _swap(leaf):
    return jnp.swapaxes(leaf, 0, 1)


def _live(lengths, batch, time):
    """Which inputs are real, bool ``[T, B]``."""
    if lengths is None:
        return jnp.ones((time, batch), bool)
    return jnp.arange(time)[:, None] < lengths[None, :]


def _zero_mean(state):
    return jax.tree.map(lambda s: jnp.zeros_like(s, halting_dtype(s.dtype)), state)


def _cast(mean, state):
    return jax.tree.map(lambda m, s: m.astype(s.dtype), mean, state)


# --- The masked scan ---------------------------------------------------------------------------


def _scan(step, params, state, xs, lengths, max_steps, epsilon):
    batch, time = jax.tree.leaves(xs)[0].shape[:2]
    live = _live(lengths, batch, time)
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

        total = jnp.zeros_like(live, dtype)
        carry = (state, _zero_mean(state), total, jnp.zeros_like(live, jnp.int32), total, live)
        carry, _ = lax.scan(one_step, carry, jnp.arange(1, max_steps + 1))
        _, mean, _, steps, remainder, _ = carry
        new = _cast(mean, state)
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
    final, outputs = _adaptive(plan, *divide(data))
    outputs = jax.tree.map(lambda leaf: leaf.reshape((batch, time, *leaf.shape[1:])), outputs)
    return unflatten(final), unflatten(outputs.states), Ponder(outputs.steps, outputs.remainder)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _adaptive(plan: Plan, floats, others):
    data = join(floats, others)
    fixed = plan.split.hoist(data.weights)

    def iteration(carry):
        lanes, outputs = carry
        lanes, emitted, _, _ = _advance(plan, fixed, data, lanes)
        return lanes, _emit(plan, outputs, *emitted)

    lanes = _start(plan, data)
    carry = lanes, _no_outputs(plan, data, lanes)
    lanes, outputs = lax.while_loop(lambda carry: _any(carry[0].left > 0), iteration, carry)
    return _finish(plan, data, lanes, outputs)


def _adaptive_forward(plan: Plan, floats, others):
    unwrap = lambda tree: jax.tree.map(lambda p: p.value, tree, is_leaf=_is_primal)  # noqa: E731
    data = join(unwrap(floats), unwrap(others))
    fixed = plan.split.hoist(data.weights)
    zero = like_inputs(data)

    def iteration(carry):
        j, lanes, outputs, kept = carry
        lanes, emitted, record, residuals = _advance(plan, fixed, data, lanes)
        return j + 1, lanes, _emit(plan, outputs, *emitted), _write(kept, j, (record, residuals))

    def segment(carry):
        count, _, lanes, outputs, kept, checkpoints = carry
        checkpoints = _write(checkpoints, count, lanes)
        busy = lambda carry: (carry[0] < plan.segment) & _any(carry[1].left > 0)  # noqa: E731
        j, lanes, outputs, kept = lax.while_loop(busy, iteration, (0, lanes, outputs, kept))
        return count + 1, j, lanes, outputs, kept, checkpoints

    lanes = _start(plan, data)
    record = Record(
        position=blank(zero, (plan.segment, plan.lanes), jnp.int32),
        first=blank(zero, (plan.segment, plan.lanes), bool),
        last=blank(zero, (plan.segment, plan.lanes), bool),
        weight=blank(zero, (plan.segment, plan.lanes), lanes.total.dtype),
    )
    kept = record, [blank(zero, (plan.segment, *s.shape), s.dtype) for s in plan.split.residuals]
    checkpoints = jax.tree.map(
        lambda leaf: blank(zero, (plan.segments, *leaf.shape), leaf.dtype), lanes
    )
    carry = 0, 0, lanes, _no_outputs(plan, data, lanes), kept, checkpoints
    if plan.segments == 1:
        carry = segment(carry)
    else:
        carry = lax.while_loop(lambda carry: _any(carry[2].left > 0), segment, carry)
    count, j, lanes, outputs, kept, checkpoints = carry
    return _finish(plan, data, lanes, outputs), (data, count, j, kept, checkpoints)


def _start(plan: Plan, data: Data) -> Lanes:
    """The lanes with the first sequences of the queue."""
    sequence = data.order[: plan.lanes]
    state = [leaf[sequence] if plan.queued else leaf for leaf in data.state]
    left = data.lengths[sequence]
    n = jnp.zeros_like(left)
    total = jnp.zeros_like(left, halting_dtype(plan.split.halt_dtype))
    taken = jnp.zeros_like(left[0]) + plan.lanes
    return Lanes(sequence * plan.time, left, n, total, state, _zero_mean(state), taken)


def _no_outputs(plan: Plan, data: Data, lanes: Lanes) -> Outputs:
    zero = like_inputs(data)
    return Outputs(
        states=[blank(zero, (plan.idle, *s.shape[1:]), s.dtype) for s in lanes.state],
        steps=blank(zero, (plan.idle,), jnp.int32),
        remainder=blank(zero, (plan.idle,), lanes.total.dtype),
    )


def _advance(plan: Plan, fixed, data: Data, lanes: Lanes):
    """One iteration, a ponder step on every lane: ``(lanes, emitted, record, residuals)``."""
    live = lanes.left > 0
    first = lanes.n == 0
    x = [plan.take(leaf, lanes.position) for leaf in data.xs]
    new, halt, residuals = plan.split.forward(fixed, lanes.state, x, first)
    halt = halt.astype(lanes.total.dtype)
    n = lanes.n + 1
    weight, last = halting_step(
        halt, lanes.total, n, max_steps=plan.max_steps, epsilon=plan.epsilon
    )
    mean = [
        m + scale(weight, s.astype(m.dtype)) for m, s in zip(lanes.mean, new, strict=True)
    ]
    result = _cast(mean, new)
    halted = last & live

    record = Record(jnp.where(live, lanes.position, plan.idle), first, last, weight)
    emitted = jnp.where(halted, lanes.position, plan.idle), result, n, weight
    state = select(live, select(last, result, new), lanes.state)
    position, left = lanes.position + halted, lanes.left - halted
    taken = lanes.taken
    if plan.queued:
        free = halted & (left == 0)
        place = taken + jnp.cumsum(free, dtype=jnp.int32) - 1
        sequence = data.order.at[place].get(mode="clip")
        refill = free & (place < plan.batch)
        position = jnp.where(refill, sequence * plan.time, position)
        left = jnp.where(refill, data.lengths[sequence], left)
        state = select(refill, [leaf[sequence] for leaf in data.state], state)
        taken = taken + free.sum(dtype=jnp.int32)
    lanes = Lanes(
        position,
        left,
        n=jnp.where(last, 0, n),
        total=jnp.where(last, 0, lanes.total + halt),
        state=state,
        mean=select(last, zeros(mean), mean),
        taken=taken,
    )
    return lanes, emitted, record, residuals


def _emit(plan: Plan, outputs: Outputs, position, result, n, remainder) -> Outputs:
    put = lambda leaf, rows: plan.put(leaf, position, rows)  # noqa: E731
    states = [put(leaf, rows) for leaf, rows in zip(outputs.states, result, strict=True)]
    return Outputs(states, put(outputs.steps, n), put(outputs.remainder, remainder))


def _finish(plan: Plan, data: Data, lanes: Lanes, outputs: Outputs):
    """The state after each sequence's last input, and the outputs."""
    if not plan.queued:
        return lanes.state, outputs
    last = _last_input(plan, data)
    final = [leaf.at[last].get(mode="clip") for leaf in outputs.states]
    return select(data.lengths > 0, final, data.state), outputs


def _last_input(plan: Plan, data: Data) -> jax.Array:
    """The position of each sequence's last input, int32 ``[B]``; `idle` where it has none."""
    start = jnp.arange(plan.batch, dtype=jnp.int32) * plan.time
    return jnp.where(data.lengths > 0, start + data.lengths - 1, plan.idle)


def _adaptive_backward(plan: Plan, saved, cotangents):
    data, count, j, kept, checkpoints = saved
    fixed = plan.split.hoist(data.weights)
    zero = like_inputs(data)
    rows = plan.lanes
    d_final, d_outputs = cotangents
    d_final = [_instantiate(d, zero) for d in d_final]
    d_remainder = _instantiate(d_outputs.remainder, zero)
    d_states = [None if isinstance(d, SymbolicZero) else d for d in d_outputs.states]
    d_state, d_initial = d_final, []
    if plan.queued:  # the final states were read from the outputs
        d_states = [_instantiate(d, zero) for d in d_outputs.states]
        last = _last_input(plan, data)
        d_states = [d.at[last].add(f, mode="drop") for d, f in zip(d_states, d_final, strict=True)]
        d_initial = select(data.lengths > 0, zeros(d_final), d_final)
        d_state = [blank(zero, (rows, *d.shape[1:]), d.dtype) for d in d_final]

    def iteration(carry):
        """Transposes iteration j - 1."""
        j, d_state, d_mean, d_last, d_x, d_xs, d_initial, handed_on, kept = carry
        j = j - 1
        record, residuals = jax.tree.map(lambda leaf: leaf[j], kept)
        live = record.position < plan.idle
        x = [plan.take(leaf, record.position) for leaf in data.xs]
        new, recovered = plan.split.recover(fixed, residuals, x, record.first)

        # The last step's state went on, as part of the mean, to the output and to the next input.
        arrived = [
            d if out is None else d + plan.take(out, record.position)
            for d, out in zip(d_state, d_states, strict=True)
        ]
        d_mean = select(record.last, _cast(arrived, d_mean), d_mean)
        d_weight = sum(
            (m * s.astype(m.dtype)).reshape(rows, -1).sum(-1).astype(d_last.dtype)
            for m, s in zip(d_mean, new, strict=True)
        )
        d_last = jnp.where(record.last, d_weight, d_last)
        d_halt = halting_step_transpose(
            d_weight, d_last, plan.take(d_remainder, record.position), record.last
        )
        d_new = [
            scale(record.weight, m).astype(d.dtype) + d
            for m, d in zip(d_mean, select(record.last, zeros(d_state), d_state), strict=True)
        ]
        d_before, dx, pending = plan.split.backward(
            recovered,
            select(live, d_new, zeros(d_new)),
            jnp.where(live, d_halt, 0),
            with_weights=plan.late is None,
        )
        d_state = select(live, d_before, d_state)
        if plan.late is None:
            handed_on = _add(handed_on, pending)
        else:
            handed_on = _write(handed_on, j, pending)
        if plan.resident:
            d_xs = _add(d_xs, dx)
        else:
            d_x = _add(select(record.last, zeros(d_x), d_x), dx)
            at = jnp.where(record.first, record.position, plan.idle)
            d_xs = [plan.put(d, at, new) for d, new in zip(d_xs, d_x, strict=True)]
        if plan.queued:
            begun = record.first & live & (record.position % plan.time == 0)
            at = jnp.where(begun, record.position // plan.time, plan.batch)
            d_initial = [d.at[at].set(new, mode="drop") for d, new in zip(d_initial, d_state)]
            d_state = select(begun, zeros(d_state), d_state)
        return j, d_state, d_mean, d_last, d_x, d_xs, d_initial, handed_on, kept

    def late(j, d_weights, handed_on, kept):
        """Adds the weight cotangents of the first j iterations of a segment."""

        def chunk(carry):
            start, d_weights = carry
            take = lambda leaf: lax.dynamic_slice_in_dim(leaf, start, plan.chunk).reshape(  # noqa: E731
                (-1, *leaf.shape[2:])
            )
            (record, residuals), pending = jax.tree.map(take, (kept, handed_on))
            x = [
                jnp.tile(leaf, (plan.chunk,) + (1,) * (leaf.ndim - 1))
                if plan.resident
                else plan.take(leaf, record.position)
                for leaf in data.xs
            ]
            new = plan.late.late(data.weights, residuals, x, record.first, pending)
            return start + plan.chunk, _add(d_weights, new)

        return lax.while_loop(lambda carry: carry[0] < j, chunk, (0, d_weights))[1]

    def segment(carry):
        """Transposes segment `index`, of which `j` iterations are kept or, if 0, none yet."""
        index, j, d_weights, d_state, d_xs, d_initial, d_mean, d_last, d_x, handed_on, kept = carry

        def again(carry):
            i, lanes, kept = carry
            lanes, _, record, residuals = _advance(plan, fixed, data, lanes)
            return i + 1, lanes, _write(kept, i, (record, residuals))

        if plan.segments > 1:
            lanes = jax.tree.map(lambda leaf: leaf[index], checkpoints)
            start = jnp.where(j == 0, 0, plan.segment)
            _, _, kept = lax.while_loop(
                lambda carry: carry[0] < plan.segment, again, (start, lanes, kept)
            )
            j = jnp.where(j == 0, plan.segment, j)
        inner = j, d_state, d_mean, d_last, d_x, d_xs, d_initial, handed_on, kept
        inner = lax.while_loop(lambda carry: carry[0] > 0, iteration, inner)
        _, d_state, d_mean, d_last, d_x, d_xs, d_initial, handed_on, kept = inner
        if plan.late is not None:
            d_weights = late(j, d_weights, handed_on, kept)
        return index - 1, 0, d_weights, d_state, d_xs, d_initial, d_mean, d_last, d_x, handed_on, kept

    wide = lambda leaf: blank(zero, leaf.shape, halting_dtype(leaf.dtype))  # noqa: E731
    d_weights = [wide(leaf) for leaf in data.weights if is_float(leaf)]
    xs = [leaf for leaf in data.xs if is_float(leaf)]
    d_xs = [blank(zero, leaf.shape, leaf.dtype) for leaf in xs]
    d_x = [] if plan.resident else [blank(zero, (rows, *leaf.shape[1:]), leaf.dtype) for leaf in xs]
    d_mean = [blank(zero, d.shape, halting_dtype(d.dtype)) for d in d_state]
    d_last = blank(zero, (rows,), kept[0].weight.dtype)
    if plan.late is None:
        handed_on, d_weights = d_weights, []
    else:
        handed_on = [blank(zero, (plan.segment, *s.shape), s.dtype) for s in plan.split.pending]
    carry = count - 1, j, d_weights, d_state, d_xs, d_initial, d_mean, d_last, d_x, handed_on, kept
    if plan.segments == 1:
        carry = segment(carry)
    else:
        carry = lax.while_loop(lambda carry: carry[0] >= 0, segment, carry)
    _, _, d_weights, d_state, d_xs, d_initial, _, _, _, handed_on, _ = carry
    d_weights = handed_on if plan.late is None else d_weights
    d_floats = (
        _fill(d_weights, data.weights),
        d_initial if plan.queued else d_state,
        _fill(d_xs, data.xs),
    )
    return d_floats, None


_adaptive.defvjp(_adaptive_forward, _adaptive_backward, symbolic_zeros=True)


def _is_primal(leaf) -> bool:
    return hasattr(leaf, "perturbed")


def _fill(cotangents, leaves):
    """The cotangents in the places of the leaves that have one."""
    cotangents = iter(cotangents)
    return [next(cotangents).astype(leaf.dtype) if is_float(leaf) else None for leaf in leaves]


def _instantiate(cotangent, zero):
    if isinstance(cotangent, SymbolicZero):
        return blank(zero, cotangent.shape, cotangent.dtype)
    return cotangent


def _write(buffers, index, rows):
    """Writes `rows` at `index` along the leading axis of the buffers."""
    return jax.tree.map(
        lambda b, r: lax.dynamic_update_index_in_dim(b, r, index, 0), buffers, rows
    )


def _add(a, b):
    return jax.tree.map(lambda x, y: x + y.astype(x.dtype), a, b)


@custom_vmap
def _any(busy: jax.Array) -> jax.Array:
    return jnp.any(busy)


@_any.def_vmap
def _any_of_all(_, in_batched, busy):
    """One answer for all members of a `vmap`, so that its loop selects over no buffer.

    Members that are done go on with idle lanes, which change nothing.
    """
    return _any(busy), False
