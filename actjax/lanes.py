"""One iteration of the adaptive loop, forward and transposed. No loops.

Forward, every lane takes one ponder step on its own input; backward, the same iteration is undone
from its record. Rows never meet, so an idle lane may compute what it likes: nothing it does is
written, and no cotangent enters it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from actjax.halting import halting_dtype, halting_step, halting_step_transpose
from actjax.plan import Data, Plan
from actjax.rows import add, blank, cast, is_float, scale, select, zeros


class Lanes(NamedTuple):
    """The registers of L lanes."""

    position: jax.Array  # int32 [L], the input at work: sequence * T + t
    left: jax.Array  # int32 [L], inputs left in the sequence, this one included; 0: idle
    n: jax.Array  # int32 [L], ponder steps taken at this input
    total: jax.Array  # float [L], h^1 + ... + h^n
    state: list  # [L, ...], s^n
    mean: list  # [L, ...], p^1 s^1 + ... + p^n s^n
    taken: jax.Array  # int32, sequences taken from the queue


class Record(NamedTuple):
    """What the backward pass needs to know of one iteration, beside the step's residuals."""

    position: jax.Array  # int32 [L]; `Plan.idle` where a lane was idle
    first: jax.Array  # bool [L], n = 1
    last: jax.Array  # bool [L], n = N
    weight: jax.Array  # float [L], p^n


class Outputs(NamedTuple):
    """What the loop writes, zeros where nothing was pondered."""

    states: list  # [B * T, ...]
    steps: jax.Array  # int32 [B * T]
    remainder: jax.Array  # float [B * T]


class Cotangents(NamedTuple):
    """The registers of the lanes on their way back."""

    state: list  # [L, ...], of s^n
    mean: list  # [L, ...], of the mean-field state of the input at work
    last_weight: jax.Array  # float [L], of p^N there
    x: list  # [L, ...], of the input at work, so far
    xs: list  # [B * T, ...], of the inputs done
    initial: list  # [B, ...], of the initial states of the sequences done; only with a queue


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
        mean=[blank(zero, leaf.shape, halting_dtype(leaf.dtype)) for leaf in state],
        taken=zero.astype(jnp.int32) + plan.lanes,
    )


def no_outputs(plan: Plan, lanes: Lanes, zero: jax.Array) -> Outputs:
    return Outputs(
        states=[blank(zero, (plan.idle, *s.shape[1:]), s.dtype) for s in lanes.state],
        steps=blank(zero, (plan.idle,), jnp.int32),
        remainder=blank(zero, (plan.idle,), lanes.total.dtype),
    )


def advance(plan: Plan, fixed: list, data: Data, lanes: Lanes):
    """Takes a ponder step on every lane: ``(lanes, emitted, record, residuals)``.

    `emitted` holds the arguments of `emit`; `record` and `residuals` are for `retreat`.
    """
    live = lanes.left > 0
    first = lanes.n == 0
    x = [plan.take(leaf, lanes.position) for leaf in data.xs]
    new, halt, residuals = plan.split.forward(fixed, lanes.state, x, first)
    halt = halt.astype(lanes.total.dtype)
    n = lanes.n + 1
    weight, last = halting_step(
        halt, lanes.total, n, max_steps=plan.max_steps, epsilon=plan.epsilon
    )
    mean = [m + scale(weight, s.astype(m.dtype)) for m, s in zip(lanes.mean, new, strict=True)]
    result = cast(mean, new)
    halted = last & live

    record = Record(jnp.where(live, lanes.position, plan.idle), first, last, weight)
    emitted = jnp.where(halted, lanes.position, plan.idle), result, n, weight

    state = select(live, select(last, result, new), lanes.state)
    position = lanes.position + halted.astype(jnp.int32)
    left = lanes.left - halted.astype(jnp.int32)
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


def emit(plan: Plan, outputs: Outputs, position, result, n, remainder) -> Outputs:
    """Writes what the lanes that halted have found."""
    put = lambda leaf, rows: plan.put(leaf, position, rows)  # noqa: E731
    states = [put(leaf, rows) for leaf, rows in zip(outputs.states, result, strict=True)]
    return Outputs(states, put(outputs.steps, n), put(outputs.remainder, remainder))


def final_state(plan: Plan, data: Data, lanes: Lanes, outputs: Outputs) -> list:
    """The state after each sequence's last input, ``[B, ...]``."""
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
    """The registers before the last iteration is undone, and the cotangents of the outputs.

    Args:
      d_final: cotangents of `final_state`.
      d_states: cotangents of `Outputs.states`, None where there is none.
    """
    d_state, d_initial = d_final, []
    if plan.queued:  # the final states were read from the outputs
        last = _last_input(plan, data)
        whole = [blank(zero, (plan.idle, *d.shape[1:]), d.dtype) for d in d_final]
        d_states = [b if d is None else d for d, b in zip(d_states, whole, strict=True)]
        d_states = [d.at[last].add(f, mode="drop") for d, f in zip(d_states, d_final, strict=True)]
        d_initial = select(data.lengths > 0, zeros(d_final), d_final)
        d_state = [blank(zero, (plan.lanes, *d.shape[1:]), d.dtype) for d in d_final]
    xs = [leaf for leaf in data.xs if is_float(leaf)]
    rows = [] if plan.resident else xs
    back = Cotangents(
        state=d_state,
        mean=[blank(zero, d.shape, halting_dtype(d.dtype)) for d in d_state],
        last_weight=blank(zero, (plan.lanes,), halting_dtype(plan.split.halt_dtype)),
        x=[blank(zero, (plan.lanes, *leaf.shape[1:]), leaf.dtype) for leaf in rows],
        xs=[blank(zero, leaf.shape, leaf.dtype) for leaf in xs],
        initial=d_initial,
    )
    return back, d_states


def retreat(plan: Plan, fixed, data: Data, d_outputs, record: Record, residuals, back: Cotangents):
    """Undoes one iteration: ``(back, pending)`` (Graves 2016, eqs 14 to 20).

    Args:
      d_outputs: cotangents of the outputs, ``(states, remainder)``.
      record, residuals: as `advance` gave them.
      back: the registers after the iterations that came later.

    Returns:
      The registers, and what the weights' cotangents need of this iteration: the pending arrays of
      `SplitStep` or, where rows cannot be batched, the cotangents themselves.
    """
    d_states, d_remainder = d_outputs
    live = record.position < plan.idle
    x = [plan.take(leaf, record.position) for leaf in data.xs]
    new, recovered = plan.split.recover(fixed, residuals, x, record.first)

    # What was carried on after the last step was the mean; it went to the output too.
    arrived = [
        d if out is None else d + plan.take(out, record.position)
        for d, out in zip(back.state, d_states, strict=True)
    ]
    d_mean = select(record.last, cast(arrived, back.mean), back.mean)
    d_weight = sum(
        (m * s.astype(m.dtype)).reshape(plan.lanes, -1).sum(-1).astype(record.weight.dtype)
        for m, s in zip(d_mean, new, strict=True)
    )
    d_last = jnp.where(record.last, d_weight, back.last_weight)
    d_halt = halting_step_transpose(
        d_weight, d_last, plan.take(d_remainder, record.position), record.last
    )
    carried = select(record.last, zeros(back.state), back.state)
    d_new = add(carried, [scale(record.weight, m) for m in d_mean])
    d_new = select(live, d_new, zeros(d_new))
    d_before, dx, pending = plan.split.backward(
        recovered, d_new, jnp.where(live, d_halt, 0), with_weights=plan.late is None
    )

    d_state = select(live, d_before, back.state)
    d_x, d_xs, d_initial = back.x, back.xs, back.initial
    if plan.resident:
        d_xs = add(d_xs, dx)
    else:
        d_x = add(select(record.last, zeros(d_x), d_x), dx)
        at = jnp.where(record.first, record.position, plan.idle)
        d_xs = [plan.put(d, at, rows) for d, rows in zip(d_xs, d_x, strict=True)]
    if plan.queued:
        begun = live & record.first & (record.position % plan.time == 0)
        at = jnp.where(begun, record.position // plan.time, plan.batch)
        d_initial = [
            d.at[at].set(rows, mode="drop") for d, rows in zip(d_initial, d_state, strict=True)
        ]
        d_state = select(begun, zeros(d_state), d_state)
    return Cotangents(d_state, d_mean, d_last, d_x, d_xs, d_initial), pending


def weight_cotangents(plan: Plan, data: Data, record: Record, residuals, pending) -> list:
    """The weights' cotangents, summed over a chunk of iterations, ``[chunk, L, ...]`` each."""
    flat = lambda tree: jax.tree.map(lambda leaf: leaf.reshape((-1, *leaf.shape[2:])), tree)  # noqa: E731
    record, residuals, pending = flat((record, residuals, pending))
    if plan.resident:
        x = [jnp.tile(leaf, (plan.chunk,) + (1,) * (leaf.ndim - 1)) for leaf in data.xs]
    else:
        x = [plan.take(leaf, record.position) for leaf in data.xs]
    return plan.late.late(data.weights, residuals, x, record.first, pending)
