"""One iteration of the adaptive loop, forward and transposed. No loops.

Forward, every lane takes one ponder step on its own input; backward, the same iteration is undone
from its record. An idle lane computes too. Nothing it does is written, but a cotangent of zero that
meets an infinite derivative is NaN, so what it is given is safe: its last input and state.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from actjax._loop.pack import Pack
from actjax._loop.plan import Data, Plan
from actjax._loop.rows import add, blank, cast, floats, is_float, merge, scale, select, zeros
from actjax.halting import halting_dtype


class Lanes(NamedTuple):
    """The registers of the lanes, one row a lane."""

    position: jax.Array  # int32 [lanes], the input at work: sequence * T + t
    left: jax.Array  # int32 [lanes], inputs left in the sequence, this one included; 0: idle
    n: jax.Array  # int32 [lanes], ponder steps taken at this input
    registers: Any  # [lanes, ...] floats, the halting rule's own
    state: list  # [lanes, ...], s^n
    mean: list  # [lanes, ...], p^1 s^1 + ... + p^n s^n of those in `Plan.averaged`
    taken: jax.Array  # int32, sequences taken from the queue


class Record(NamedTuple):
    """What the backward pass needs to know of one iteration, beside the step's residuals."""

    position: jax.Array  # int32 [lanes]; `Plan.idle` where a lane was idle
    n: jax.Array  # int32 [lanes]
    last: jax.Array  # bool [lanes], n = N
    registers: Any  # [lanes, ...] floats, the rule's before this step


class Told(NamedTuple):
    """What there is to tell of inputs, or of their cotangents; rows are `Plan.output_rows`."""

    states: list  # [rows, ...], the leaves' means or last values; with layers the deepest, s^N
    remainder: jax.Array  # float [rows], p^N
    extra: Any  # [rows, ...] floats, what else the rule tells
    steps: jax.Array | None  # int32 [rows], N; with layers it stands in `Outputs`


class Outputs(NamedTuple):
    """What the loop writes, zeros where nothing was pondered; rows are `Plan.output_rows`.

    With layers, a sequence's rows begin with what it starts from, and the loop reads here what the
    input before left behind.
    """

    told: list  # a `Told` record as `told_pack` lays it
    layers: list  # [rows, L, ...], s^1 .. s^N; empty without layers
    count: jax.Array | None  # int32 [rows], N; only with layers


class Emitted(NamedTuple):
    """What one iteration has for the outputs."""

    position: jax.Array  # int32 [lanes], the input at work; `Plan.idle` where a lane was idle
    halted: jax.Array  # bool [lanes], whether it is done with
    n: jax.Array  # int32 [lanes]
    states: list  # [lanes, ...], what is left behind if n = N; with layers s^n
    remainder: jax.Array  # float [lanes], p^n
    extra: Any  # [lanes, ...] floats


class Cotangents(NamedTuple):
    """The registers of the lanes on their way back; only floats have any."""

    registers: Any  # [lanes, ...], of the rule's
    state: list  # [lanes, ...], of s^n
    mean: list  # [lanes, ...], of the mean-field state of the input at work
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
        registers=plan.rule.start(blank(zero, (plan.lanes,), plan.halt_dtype)),
        state=state,
        mean=_blank_mean(plan, floats(state), zero),
        taken=zero.astype(jnp.int32) + plan.lanes,
    )


def _averaged(plan: Plan, leaves: list) -> list:
    return [leaf for leaf, is_mean in zip(leaves, plan.averaged, strict=True) if is_mean]


def _with_averaged(plan: Plan, leaves: list, others: list) -> list:
    """The leaves with `others` in the places of those that leave their mean."""
    others, flags = iter(others), zip(leaves, plan.averaged, strict=True)
    return [next(others) if is_mean else leaf for leaf, is_mean in flags]


def _blank_mean(plan: Plan, state: list, zero: jax.Array) -> list:
    return [blank(zero, s.shape, halting_dtype(s.dtype)) for s in _averaged(plan, state)]


def told_pack(plan: Plan, data: Data) -> Pack:
    """How what an iteration has to tell is laid, for rows of lanes or of outputs."""
    halt = jax.ShapeDtypeStruct((plan.lanes,), plan.halt_dtype)
    n, last = (jax.ShapeDtypeStruct(halt.shape, dtype) for dtype in (jnp.int32, bool))
    registers = jax.eval_shape(plan.rule.start, halt)
    _, weight, extra = jax.eval_shape(plan.rule.update, registers, n, halt, last)
    row = lambda leaf: jax.ShapeDtypeStruct((plan.lanes, *leaf.shape[1:]), leaf.dtype)
    # Side by side N lies with p^N, as a float, where that is exact.
    steps = halt if plan.accelerated and plan.max_steps < 1 << 24 else n
    told = Told(list(map(row, data.state)), weight, extra, None if plan.layers else steps)
    return Pack(told, plan.lanes, together=plan.accelerated)


def no_outputs(plan: Plan, data: Data, zero: jax.Array) -> Outputs:
    rows = plan.output_rows
    like = lambda leaf: blank(zero, (rows, *leaf.shape[1:]), leaf.dtype)
    told = list(map(like, told_pack(plan, data).shapes))
    if not plan.layers:
        return Outputs(told, [], None)
    begin = jnp.arange(plan.batch) * (plan.time + 1)
    put = lambda leaf, before: leaf.at[begin].set(before.astype(leaf.dtype))
    layers = [put(like(below), below) for below in data.below]
    return Outputs(told, layers, put(like(data.count), data.count))


def read_outputs(plan: Plan, data: Data, outputs: Outputs) -> Told:
    """What was written, in arrays of its own."""
    told = told_pack(plan, data).unpack(outputs.told)
    return told._replace(steps=outputs.count if plan.layers else told.steps.astype(jnp.int32))


def inputs_at(plan: Plan, data: Data, outputs: Outputs, position: jax.Array, n: jax.Array) -> list:
    """What the step is given beside its state: x and, with layers, those below, their count, n."""
    x = [plan.take(leaf, position) for leaf in data.xs]
    if not plan.layers:
        return x
    row = plan.output_row(position) - 1
    read = lambda leaf: leaf.at[row].get(mode="clip")
    return [*x, *map(read, outputs.layers), read(outputs.count), n]


def advance(plan: Plan, fixed: list, data: Data, outputs: Outputs, lanes: Lanes):
    """Takes a ponder step on every lane: ``(lanes, emitted, record, residuals)``.

    `emitted` is for `emit`; `record` and `residuals` are for `retreat`.
    """
    live = lanes.left > 0
    n = lanes.n + 1
    x = inputs_at(plan, data, outputs, lanes.position, n)
    new, halt, residuals = plan.split.forward(fixed, lanes.state, x, n == 1)
    halt = halt.astype(plan.halt_dtype)
    last = plan.rule.decide(lanes.registers, n, halt) | (n >= plan.max_steps)
    before = lanes.registers, floats(lanes.state), lanes.mean
    (registers, state, mean), told = _update(plan, before, floats(new), halt, n, last, live)
    result, remainder, extra = told
    halted = last & live

    record = Record(jnp.where(live, lanes.position, plan.idle), n, last, lanes.registers)
    emitted = Emitted(record.position, halted, n, merge(new, result), remainder, extra)

    pairs = zip(new, lanes.state, strict=True)
    state = merge([a if is_float(a) else select(live, a, b) for a, b in pairs], state)

    left = lanes.left - halted.astype(jnp.int32)
    position = lanes.position + (halted & (left > 0)).astype(jnp.int32)
    taken = lanes.taken
    if plan.queued:
        free = halted & (left == 0)
        place = taken + plan.count_up_to(free) - 1
        sequence = data.order.at[place].get(mode="clip")
        refill = free & (place < plan.batch)
        position = jnp.where(refill, sequence * plan.time, position)
        left = jnp.where(refill, data.lengths[sequence], left)
        state = select(refill, [leaf[sequence] for leaf in data.state], state)
        taken = place[-1] + 1
    lanes = Lanes(
        position,
        left,
        n=jnp.where(last | ~live, 0, n),
        registers=registers,
        state=state,
        mean=mean,
        taken=taken,
    )
    return lanes, emitted, record, residuals


def _update(plan: Plan, before: tuple, new: list, halt, n, last, live) -> tuple[tuple, tuple]:
    """What a step makes of a lane's registers, and what it has to tell.

    `retreat` transposes it in the first three arguments. It is linear in the states and the means.

    Args:
      before: ``(registers, state, mean)`` as in `Lanes`, of the state only the floats.
      new, halt: what the step gave, the floats.
      n, last, live: int and bools ``[lanes]``.

    Returns:
      ``((registers, state, mean), (result, p^n, extra))``.
    """
    registers, state, mean = before
    registers, weight, extra = plan.rule.update(registers, n, halt, last)
    terms = _averaged(plan, new)
    mean = [m + scale(weight, s.astype(m.dtype)) for m, s in zip(mean, terms, strict=True)]
    result = _with_averaged(plan, new, cast(mean, terms))
    state = select(live, select(last, result, new) if mean else new, state)
    anew, blank_registers = last | ~live, plan.rule.start(jnp.zeros_like(halt))
    registers = select(anew, blank_registers, registers)
    return (registers, state, select(anew, zeros(mean), mean)), (result, weight, extra)


def emit(plan: Plan, data: Data, outputs: Outputs, emitted: Emitted) -> Outputs:
    """Writes what the lanes that halted have found and, with layers, every lane's new layer."""
    position = jnp.where(emitted.halted, emitted.position, plan.idle)
    told = Told(
        emitted.states, emitted.remainder, emitted.extra, None if plan.layers else emitted.n
    )
    rows = told_pack(plan, data).pack(told)
    if not plan.layers:
        put = lambda leaf, rows: plan.put(leaf, position, rows)
        return outputs._replace(told=list(map(put, outputs.told, rows)))
    row, done = plan.output_row(emitted.position), plan.output_row(position)
    put = lambda leaf, rows: leaf.at[done].set(rows, mode="drop")
    put_layer = lambda leaf, rows: leaf.at[row, emitted.n - 1].set(rows, mode="drop")
    told = list(map(put, outputs.told, rows))
    layers = list(map(put_layer, outputs.layers, emitted.states))
    return Outputs(told, layers, put(outputs.count, emitted.n))


def final_state(plan: Plan, data: Data, lanes: Lanes, told: Told) -> list:
    """The state after each sequence's last input, ``[B, ...]``; with layers they tell it."""
    if plan.layers:
        return []
    if not plan.queued:
        return lanes.state
    last = _last_input(plan, data)
    final = [leaf.at[last].get(mode="clip") for leaf in told.states]
    return select(data.lengths > 0, final, data.state)


def _last_input(plan: Plan, data: Data) -> jax.Array:
    """The position of each sequence's last input, int32 ``[B]``; `idle` where it has none."""
    begin = jnp.arange(plan.batch, dtype=jnp.int32) * plan.time
    return jnp.where(data.lengths > 0, begin + data.lengths - 1, plan.idle)


def start_back(plan: Plan, data: Data, d_final: list, d_states: list, zero: jax.Array):
    """The registers before the last iteration is undone, and the cotangents of the states told.

    Args:
      d_final: cotangents of the floats of `final_state`.
      d_states: cotangents of the floats of `Told.states`, None where there is none.
    """
    row = lambda count, leaf: blank(zero, (count, *leaf.shape[1:]), leaf.dtype)
    rows = lambda count, leaves: [row(count, leaf) for leaf in leaves]
    state = floats(data.state)
    d_state, d_initial, d_begin = d_final, [], []
    if plan.layers:
        d_state = rows(plan.lanes, state)
        d_initial = rows(plan.batch, state) if plan.queued else []
        d_begin = rows(plan.batch, data.below) if plan.queued else []
    elif plan.queued:  # the final states were read from the outputs
        last = _last_input(plan, data)
        whole = rows(plan.idle, d_final)
        d_states = [b if d is None else d for d, b in zip(d_states, whole, strict=True)]
        d_states = [d.at[last].add(f, mode="drop") for d, f in zip(d_states, d_final, strict=True)]
        d_initial = select(data.lengths > 0, zeros(d_final), d_final)
        d_state = rows(plan.lanes, d_final)
    xs = floats(data.xs)
    registers = plan.rule.start(blank(zero, (plan.lanes,), plan.halt_dtype))
    back = Cotangents(
        registers=zeros(registers),
        state=d_state,
        mean=_blank_mean(plan, d_state, zero),
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
    d_told: Told,
    d_layers: list,
    record: Record,
    residuals: list,
    back: Cotangents,
):
    """Undoes one iteration: ``(back, pending)`` (Graves 2016, eqs 14 to 20).

    Args:
      outputs: what the loop wrote; only with layers.
      d_told, d_layers: cotangents of the floats; None for a state or layer that has none.
      record, residuals: as `advance` gave them.
      back: the registers after the iterations that came later.

    Returns:
      The registers; what the weights' cotangents need of this iteration, the pending arrays of
      `SplitStep` or, where rows cannot be batched, the cotangents themselves; and, unless inputs
      stay on their lanes, the positions whose first step it was and the cotangents of their inputs.
    """
    live = record.position < plan.idle
    first = record.n == 1
    x = inputs_at(plan, data, outputs, record.position, record.n)
    halt, terms, recovered = plan.split.recover(fixed, residuals, x, first)
    halted = record.last & live

    # What arrives from the outputs, at the rows that the iteration wrote.
    read = lambda d: plan.take_output(d, record.position)
    arrived = jax.tree.map(read, (d_told.states, d_told.remainder, d_told.extra))
    d_result, *d_told = select(halted, arrived, zeros(arrived))
    if plan.layers:  # every state is a layer of its own
        lane, row = jnp.arange(plan.lanes), plan.output_row(record.position)
        own = [d[lane, record.n - 1] for d in back.own]
        given = [None if d is None else d.at[row, record.n - 1].get(mode="clip") for d in d_layers]
        d_result = _add_known(_add_known(own, given), d_result)
        d_result = select(live, d_result, zeros(d_result))
    d_result = [b if d is None else d for d, b in zip(d_result, zeros(back.state), strict=True)]

    # Linear in the states and the means: any values of theirs do where none are kept.
    update = lambda *given: _update(plan, *given, record.n, record.last, live)
    given = record.registers, back.state, back.mean
    new = _with_averaged(plan, back.state, terms)
    _, transpose = jax.vjp(update, given, new, halt.astype(plan.halt_dtype))
    d_before = back.registers, back.state, back.mean
    d_before, d_new, d_halt = transpose((d_before, (d_result, *d_told)))
    d_registers, d_idle, d_mean = d_before
    d_before, dx, pending = plan.split.backward(
        recovered, d_new, jnp.where(live, d_halt, 0), with_weights=plan.late is None
    )

    d_state = select(live, d_before, d_idle)
    d_x, d_xs, d_initial, d_own, d_below, d_begin = back[3:]
    dx, d_looked_at = dx[: len(d_xs)], dx[len(d_xs) :]
    if plan.layers:
        d_below = add(select(record.last, zeros(d_below), d_below), d_looked_at)
        d_own = select(first & live, d_below, d_own)
    if plan.resident:
        d_xs = add(d_xs, dx)
    else:
        d_x = add(select(record.last, zeros(d_x), d_x), dx)
    done = jnp.where(first, record.position, plan.idle), d_x
    if plan.queued:
        begun = live & first & (record.position % plan.time == 0)
        at = jnp.where(begun, record.position // plan.time, plan.batch)
        put = lambda leaf, rows: leaf.at[at].set(rows, mode="drop")
        d_initial, d_begin = list(map(put, d_initial, d_state)), list(map(put, d_begin, d_own))
        d_state = select(begun, zeros(d_state), d_state)
        d_own = select(begun, zeros(d_own), d_own)
    rest = d_x, d_xs, d_initial, d_own, d_below, d_begin
    return Cotangents(d_registers, d_state, d_mean, *rest), pending, done


def _add_known(sums: list, others: list) -> list:
    """The sums with those of the others that are not None."""
    pairs = zip(sums, others, strict=True)
    return [a if b is None else a + b.astype(a.dtype) for a, b in pairs]
