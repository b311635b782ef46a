"""One iteration of the adaptive loop, forward and transposed. No loops.

Forward, every lane takes one ponder step on its own input; backward, the same iteration is undone
from its record. An idle lane computes too. Nothing it does is written, but a cotangent of zero that
meets an infinite derivative is NaN, so what it is given is safe: its last input and state.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from actjax._loop.plan import Data, Plan
from actjax._loop.rows import add, blank, cast, is_float, row_sum, scale, select, zeros
from actjax.halting import halting_dtype, halting_step, halting_step_transpose


class Lanes(NamedTuple):
    """The registers of the lanes, one row a lane."""

    position: jax.Array  # int32 [lanes], the input at work: sequence * T + t
    left: jax.Array  # int32 [lanes], inputs left in the sequence, this one included; 0: idle
    n: jax.Array  # int32 [lanes], ponder steps taken at this input
    total: jax.Array  # float [lanes], h^1 + ... + h^n
    state: list  # [lanes, ...], s^n
    mean: list  # [lanes, ...], p^1 s^1 + ... + p^n s^n; empty with layers
    taken: jax.Array  # int32, sequences taken from the queue


class Record(NamedTuple):
    """What the backward pass needs to know of one iteration, beside the step's residuals."""

    position: jax.Array  # int32 [lanes]; `Plan.idle` where a lane was idle
    n: jax.Array  # int32 [lanes]
    last: jax.Array  # bool [lanes], n = N
    weight: jax.Array  # float [lanes], p^n


class Outputs(NamedTuple):
    """What the loop writes, zeros where nothing was pondered; rows are `Plan.output_rows`.

    With layers, a sequence's rows begin with what it starts from, and the loop reads here what the
    input before left behind.
    """

    states: list  # [B * T, ...] mean-field states; with layers the deepest, s^N
    layers: list  # [rows, L, ...], s^1 .. s^N; empty without layers
    steps: jax.Array  # int32 [rows]
    remainder: jax.Array  # float [rows]


class Emitted(NamedTuple):
    """What one iteration has for the outputs."""

    position: jax.Array  # int32 [lanes], the input at work; `Plan.idle` where a lane was idle
    halted: jax.Array  # bool [lanes], whether it is done with
    states: list  # [lanes, ...], the mean-field state; with layers s^n
    n: jax.Array  # int32 [lanes]
    remainder: jax.Array  # float [lanes]


class Cotangents(NamedTuple):
    """The registers of the lanes on their way back."""

    state: list  # [lanes, ...], of s^n
    mean: list  # [lanes, ...], of the mean-field state of the input at work
    last_weight: jax.Array  # float [lanes], of p^N there
    x: list  # [lanes, ...], of the input at work, so far
    xs: list  # [B * T, ...], of the inputs done
    initial: list  # [B, ...], of the initial states of the sequences done; only with a queue
    # Only with layers, [lanes, L, ...] each:
    own: list  # of the layers of the input at work, from the input after it
    below: list  # of the layers that it looks at itself, so far
    begin: list  # [B, L, ...], of those that the sequences done began with; only with a queue


def start(plan: Plan, data: Data, zero: jax.Array) -> Lanes:
    """The lanes with the first sequences of the queue."""
    sequence = data.order[: plan.lanes]
    state = [leaf[sequence] for leaf in data.state] if plan.queued else data.state
    return Lanes(
        position=sequence * plan.time,
        left=data.lengths[sequence],
        n=blank(zero, (plan.lanes,), jnp.int32),
        total=blank(zero, (plan.lanes,), halting_dtype(plan.split.halt_dtype)),
        state=state,
        mean=[] if plan.layers else _blank_mean(state, zero),
        taken=zero.astype(jnp.int32) + plan.lanes,
    )


def _blank_mean(state: list, zero: jax.Array) -> list:
    return [blank(zero, leaf.shape, halting_dtype(leaf.dtype)) for leaf in state]


def no_outputs(plan: Plan, data: Data, lanes: Lanes, zero: jax.Array) -> Outputs:
    rows = plan.output_rows
    outputs = Outputs(
        [blank(zero, (plan.idle, *leaf.shape[1:]), leaf.dtype) for leaf in lanes.state],
        [
            blank(zero, (rows, *below.shape[1:]), leaf.dtype)
            for below, leaf in zip(data.below, lanes.state, strict=bool(data.below))
        ],
        steps=blank(zero, (rows,), jnp.int32),
        remainder=blank(zero, (rows,), lanes.total.dtype),
    )
    if not plan.layers:
        return outputs
    begin = jnp.arange(plan.batch) * (plan.time + 1)
    put = lambda leaf, before: leaf.at[begin].set(before.astype(leaf.dtype))
    layers = list(map(put, outputs.layers, data.below))
    return outputs._replace(layers=layers, steps=put(outputs.steps, data.count))


def _inputs(plan: Plan, data: Data, outputs: Outputs, position: jax.Array, n: jax.Array) -> list:
    """What the step is given beside its state: x and, with layers, those below, their count, n."""
    x = [plan.take(leaf, position) for leaf in data.xs]
    if not plan.layers:
        return x
    row = plan.output_row(position) - 1
    read = lambda leaf: leaf.at[row].get(mode="clip")
    return [*x, *map(read, outputs.layers), read(outputs.steps), n]


def advance(plan: Plan, fixed: list, data: Data, outputs: Outputs, lanes: Lanes):
    """Takes a ponder step on every lane: ``(lanes, emitted, record, residuals)``.

    `emitted` is for `emit`; `record` and `residuals` are for `retreat`.
    """
    live = lanes.left > 0
    n = lanes.n + 1
    x = _inputs(plan, data, outputs, lanes.position, n)
    new, halt, residuals = plan.split.forward(fixed, lanes.state, x, n == 1)
    halt = halt.astype(lanes.total.dtype)
    weight, last = halting_step(
        halt, lanes.total, n, max_steps=plan.max_steps, epsilon=plan.epsilon
    )
    if plan.layers:
        mean, result = [], new
    else:
        mean = [m + scale(weight, s.astype(m.dtype)) for m, s in zip(lanes.mean, new, strict=True)]
        result = cast(mean, new)
    halted = last & live

    record = Record(jnp.where(live, lanes.position, plan.idle), n, last, weight)
    emitted = Emitted(record.position, halted, result, n, weight)

    state = select(live, new if plan.layers else select(last, result, new), lanes.state)
    left = lanes.left - halted.astype(jnp.int32)
    position = lanes.position + (halted & (left > 0)).astype(jnp.int32)
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
    anew = last | ~live
    lanes = Lanes(
        position,
        left,
        n=jnp.where(anew, 0, n),
        total=jnp.where(anew, 0, lanes.total + halt),
        state=state,
        mean=select(anew, zeros(mean), mean),
        taken=taken,
    )
    return lanes, emitted, record, residuals


def emit(plan: Plan, outputs: Outputs, emitted: Emitted) -> Outputs:
    """Writes what the lanes that halted have found and, with layers, every lane's new layer."""
    position = jnp.where(emitted.halted, emitted.position, plan.idle)
    put = lambda leaf, rows: plan.put(leaf, position, rows)
    states = list(map(put, outputs.states, emitted.states))
    layers = outputs.layers
    if plan.layers:
        row, done = plan.output_row(emitted.position), plan.output_row(position)
        put_layer = lambda leaf, rows: leaf.at[row, emitted.n - 1].set(rows, mode="drop")
        layers = list(map(put_layer, layers, emitted.states))
        put = lambda leaf, rows: leaf.at[done].set(rows, mode="drop")
    steps, remainder = put(outputs.steps, emitted.n), put(outputs.remainder, emitted.remainder)
    return Outputs(states, layers, steps, remainder)


def final_state(plan: Plan, data: Data, lanes: Lanes, outputs: Outputs) -> list:
    """The state after each sequence's last input, ``[B, ...]``; with layers they tell it."""
    if plan.layers:
        return []
    if not plan.queued:
        return lanes.state
    last = _last_input(plan, data)
    final = [leaf.at[last].get(mode="clip") for leaf in outputs.states]
    return select(data.lengths > 0, final, data.state)


def _last_input(plan: Plan, data: Data) -> jax.Array:
    """The position of each sequence's last input, int32 ``[B]``; `idle` where it has none."""
    begin = jnp.arange(plan.batch, dtype=jnp.int32) * plan.time
    return jnp.where(data.lengths > 0, begin + data.lengths - 1, plan.idle)


def start_back(plan: Plan, data: Data, d_final: list, d_states: list, zero: jax.Array):
    """The registers before the last iteration is undone, and the cotangents of the output states.

    Args:
      d_final: cotangents of `final_state`.
      d_states: cotangents of `Outputs.states`, None where there is none.
    """
    row = lambda count, leaf: blank(zero, (count, *leaf.shape[1:]), leaf.dtype)
    rows = lambda count, leaves: [row(count, leaf) for leaf in leaves]
    d_state, d_initial, d_begin = d_final, [], []
    if plan.layers:
        d_state = rows(plan.lanes, data.state)
        d_initial = rows(plan.batch, data.state) if plan.queued else []
        d_begin = rows(plan.batch, data.below) if plan.queued else []
    elif plan.queued:  # the final states were read from the outputs
        last = _last_input(plan, data)
        whole = rows(plan.idle, d_final)
        d_states = [b if d is None else d for d, b in zip(d_states, whole, strict=True)]
        d_states = [d.at[last].add(f, mode="drop") for d, f in zip(d_states, d_final, strict=True)]
        d_initial = select(data.lengths > 0, zeros(d_final), d_final)
        d_state = rows(plan.lanes, d_final)
    xs = [leaf for leaf in data.xs if is_float(leaf)]
    back = Cotangents(
        state=d_state,
        mean=[] if plan.layers else _blank_mean(d_state, zero),
        last_weight=blank(zero, (plan.lanes,), halting_dtype(plan.split.halt_dtype)),
        x=[] if plan.resident else rows(plan.lanes, xs),
        xs=rows(plan.idle, xs),
        initial=d_initial,
        own=rows(plan.lanes, data.below),
        below=rows(plan.lanes, data.below),
        begin=d_begin,
    )
    return back, d_states


def retreat(
    plan: Plan,
    fixed: list,
    data: Data,
    outputs: Outputs | None,
    d_outputs: Outputs,
    record: Record,
    residuals: list,
    back: Cotangents,
):
    """Undoes one iteration: ``(back, pending)`` (Graves 2016, eqs 14 to 20).

    Args:
      outputs: what the loop wrote; only with layers.
      d_outputs: cotangents of the outputs; None for a state or layer that has none.
      record, residuals: as `advance` gave them.
      back: the registers after the iterations that came later.

    Returns:
      The registers, and what the weights' cotangents need of this iteration: the pending arrays of
      `SplitStep` or, where rows cannot be batched, the cotangents themselves.
    """
    live = record.position < plan.idle
    first = record.n == 1
    x = _inputs(plan, data, outputs, record.position, record.n)
    new, recovered = plan.split.recover(fixed, residuals, x, first)
    row = plan.output_row(record.position)
    arrived = [None if d is None else plan.take(d, record.position) for d in d_outputs.states]

    if plan.layers:
        # Every state is a layer of its own, and carried on; the last is the deepest too.
        lane = jnp.arange(plan.lanes)
        d_new = add(back.state, [d[lane, record.n - 1] for d in back.own])
        given = [
            None if d is None else d.at[row, record.n - 1].get(mode="clip")
            for d in d_outputs.layers
        ]
        d_new = _add_known(d_new, given)
        d_new = _add_known(d_new, [None if d is None else scale(record.last, d) for d in arrived])
        d_mean, d_last = [], back.last_weight
        d_weight = jnp.zeros_like(d_last)
        d_cost = d_outputs.remainder.at[row].get(mode="clip")
    else:
        # What was carried on after the last step was the mean; it went to the output too.
        d_carried = _add_known(back.state, arrived)
        d_mean = select(record.last, cast(d_carried, back.mean), back.mean)
        d_weight = sum(
            row_sum(m * s.astype(m.dtype)).astype(record.weight.dtype)
            for m, s in zip(d_mean, new, strict=True)
        )
        d_last = jnp.where(record.last, d_weight, back.last_weight)
        carried = select(record.last, zeros(back.state), back.state)
        d_new = add(carried, [scale(record.weight, m) for m in d_mean])
        d_cost = plan.take(d_outputs.remainder, record.position)
    d_halt = halting_step_transpose(d_weight, d_last, d_cost, record.last)
    d_new = select(live, d_new, zeros(d_new))
    d_before, dx, pending = plan.split.backward(
        recovered, d_new, jnp.where(live, d_halt, 0), with_weights=plan.late is None
    )

    d_state = select(live, d_before, back.state)
    d_x, d_xs, d_initial, d_own, d_below, d_begin = back[3:]
    dx, d_looked_at = dx[: len(d_xs)], dx[len(d_xs) :]
    if plan.layers:
        d_below = add(select(record.last, zeros(d_below), d_below), d_looked_at)
        d_own = select(first & live, d_below, d_own)
    if plan.resident:
        d_xs = add(d_xs, dx)
    else:
        d_x = add(select(record.last, zeros(d_x), d_x), dx)
        at = jnp.where(first, record.position, plan.idle)
        d_xs = [plan.put(d, at, rows) for d, rows in zip(d_xs, d_x, strict=True)]
    if plan.queued:
        begun = live & first & (record.position % plan.time == 0)
        at = jnp.where(begun, record.position // plan.time, plan.batch)
        put = lambda leaf, rows: leaf.at[at].set(rows, mode="drop")
        d_initial, d_begin = list(map(put, d_initial, d_state)), list(map(put, d_begin, d_own))
        d_state = select(begun, zeros(d_state), d_state)
        d_own = select(begun, zeros(d_own), d_own)
    registers = d_state, d_mean, d_last, d_x, d_xs, d_initial, d_own, d_below, d_begin
    return Cotangents(*registers), pending


def _add_known(sums: list, others: list) -> list:
    """The sums with those of the others that are not None."""
    pairs = zip(sums, others, strict=True)
    return [a if b is None else a + b.astype(a.dtype) for a, b in pairs]


def weight_cotangents(
    plan: Plan, data: Data, outputs: Outputs | None, record: Record, residuals: list, pending: list
) -> list:
    """The weights' cotangents, summed over a chunk of iterations, ``[chunk, L, ...]`` each."""
    flat = lambda tree: jax.tree.map(lambda leaf: jax.lax.collapse(leaf, 0, 2), tree)
    record, residuals, pending = flat((record, residuals, pending))
    if plan.resident:
        tile = lambda leaf: jnp.tile(leaf, (plan.chunk,) + (1,) * (leaf.ndim - 1))
        data = data._replace(xs=list(map(tile, data.xs)))
    x = _inputs(plan, data, outputs, record.position, record.n)
    return plan.late.late(data.weights, residuals, x, record.n == 1, pending)
