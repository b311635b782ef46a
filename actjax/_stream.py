"""Inference that stops: sequences of any length in, each one's results out as soon as it is done.

A whole batch waits for its slowest sequence, and a padded one computes padding. Here every lane of
the adaptive loop works on its own sequence, a *chunk* of inputs at a time; when enough lanes have
come to the end of their chunks, the loop returns, what they found is handed out, and they go on
with the next chunk of their sequence or with the next sequence (continuous batching). The shapes
never change, so everything is compiled once, and the memory is that of one chunk a lane.

    host     sequences --cut--> chunks ----+                       +--join--> results
    device                                 v turn                  |
             lanes: admit R chunks -> ponder until R lanes are done -> their outputs
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from actjax._checks import check_positive
from actjax._loop.lanes import Lanes, Outputs, advance, emit, no_outputs, read_outputs, start
from actjax._loop.plan import Data, Plan, flatten, flatten_layers, make_plan
from actjax._loop.rows import averaged, like_inputs, per_row, select
from actjax.halting import FixedSteps, Graves
from actjax.nn.act import ACT, Repeat
from actjax.nn.lfact import LFACT


class Result(NamedTuple):
    """What one sequence came to.

    Attributes:
      index: its place among the sequences given, from 0.
      outputs: float ``[T, hidden_features]``, as the model gives them for it alone.
      steps: int32 ``[T]``, N of each input.
      remainder: float ``[T]``, R of each input.
    """

    index: int
    outputs: np.ndarray
    steps: np.ndarray
    remainder: np.ndarray


def stream(
    model: ACT | LFACT | Repeat,
    sequences: Iterable[np.ndarray],
    *,
    lanes: int = 64,
    chunk: int = 32,
    refill: int | None = None,
) -> Iterator[Result]:
    """Runs a model over sequences as they come, and yields each one's results as it is done.

    Args:
      model: `ACT`, `LFACT`, `Repeat` or `RNN`.
      sequences: float arrays ``[T_i, in_features]``, T_i at least 1; read as lanes come free, so
        they may be generated without end.
      lanes: sequences at work at a time.
      chunk: inputs of a sequence that are on the device at a time.
      refill: lanes that have to be done before they are all served. Fewer wait less; more cost
        fewer turns between host and device. A quarter of the lanes by default.

    Yields:
      `Result`, in the order in which sequences are done.

    Raises:
      ValueError: a model of another kind, a count below 1, or a sequence of the wrong shape.

    >>> import actjax
    >>> from flax import nnx
    >>> model = actjax.ACT(3, 8, max_steps=5, rngs=nnx.Rngs(0))
    >>> texts = [np.ones((length, 3), np.float32) for length in (50, 2, 7)]
    >>> [(r.index, r.outputs.shape) for r in stream(model, texts, lanes=2, chunk=4)]
    [(1, (2, 8)), (2, (7, 8)), (0, (50, 8))]
    """
    if not isinstance(model, (ACT, LFACT, Repeat)):
        raise ValueError(f"model must be ACT, LFACT, Repeat or RNN, got {type(model).__name__}.")
    refill = max(1, lanes // 4) if refill is None else refill
    for name, value in (("lanes", lanes), ("chunk", chunk), ("refill", refill)):
        check_positive(name, value)
    return _stream(model, iter(sequences), lanes, chunk, min(refill, lanes))


def stream_batch(
    model: ACT | LFACT | Repeat, sequences: Iterable[np.ndarray], **options
) -> list[Result]:
    """`stream` over all `sequences`, the results in their order.

    Args:
      model, options: as in `stream`.
    """
    return sorted(stream(model, sequences, **options), key=lambda result: result.index)


# --- On the host -------------------------------------------------------------------------------


class _Open(NamedTuple):
    """A sequence that a lane is at work on."""

    index: int
    inputs: np.ndarray
    begun: int  # inputs that have been admitted
    length: int  # of them, those in the chunk at work
    found: list  # what the chunks before gave


def _stream(model, sequences, lanes, chunk, refill):
    numbered = enumerate(sequences)
    state, open_at, free = _blank(model, lanes, chunk), {}, list(range(lanes))
    waiting = []  # lanes whose sequence goes on
    while True:
        admitted = []
        while waiting and len(admitted) < refill:
            admitted.append((waiting.pop(), False))
        while free and len(admitted) < refill:
            index, inputs = next(numbered, (None, None))
            if index is None:
                break
            lane = free.pop()
            open_at[lane] = _Open(index, _checked(model, index, inputs), 0, 0, [])
            admitted.append((lane, True))
        if not open_at:
            return
        rows = np.zeros((refill, chunk, model.in_features), np.float32)
        lane_of, length = np.full(refill, lanes), np.zeros(refill, np.int32)
        fresh = np.zeros(refill, bool)
        for row, (lane, new) in enumerate(admitted):
            entry = open_at[lane]
            piece = entry.inputs[entry.begun : entry.begun + chunk]
            rows[row, : len(piece)] = piece
            lane_of[row], length[row], fresh[row] = lane, len(piece), new
            open_at[lane] = entry._replace(begun=entry.begun + len(piece), length=len(piece))
        more = bool(free) and len(admitted) == refill  # there may be others to serve at once
        state, done, found = _turn(model, state, rows, lane_of, length, fresh, more, chunk)
        done, found = jax.device_get((done, found))
        for row in range(refill):
            lane = int(done[row])
            if lane == lanes:
                continue
            entry = open_at[lane]
            entry.found.append([leaf[row, : entry.length] for leaf in found])
            if entry.begun < len(entry.inputs):
                waiting.append(lane)
                continue
            del open_at[lane]
            free.append(lane)
            yield Result(entry.index, *map(np.concatenate, zip(*entry.found, strict=True)))


def _checked(model, index: int, inputs: Any) -> np.ndarray:
    inputs = np.asarray(inputs, np.float32)
    if inputs.ndim != 2 or inputs.shape[1] != model.in_features or not len(inputs):
        raise ValueError(
            f"sequences must have shape [time, {model.in_features}] with at least one input, "
            f"got {inputs.shape} at place {index}."
        )
    return inputs


# --- On the device -----------------------------------------------------------------------------


class _State(NamedTuple):
    """What stays on the device between turns."""

    lanes: Lanes
    inputs: Array  # [lanes, chunk, ...], projected
    outputs: Outputs
    served: Array  # bool [lanes], at work or done but not handed out
    iterations: Array  # int32, of the last turn


@functools.partial(jax.jit, static_argnums=(1, 2))
def _blank(model, lanes: int, chunk: int) -> _State:
    plan, data, _ = _loop(model, lanes, chunk)
    registers = start(plan, data, like_inputs(data.state))
    outputs = no_outputs(plan, data, like_inputs(data.state))
    inputs = data.xs[0].reshape(lanes, chunk, -1)
    return _State(registers, inputs, outputs, jnp.zeros(lanes, bool), jnp.int32(0))


@functools.partial(jax.jit, static_argnums=7, donate_argnums=1)
def _turn(model, state: _State, rows, lane_of, length, fresh, more, chunk: int):
    """Admits chunks and ponders until as many lanes are done, or all: ``(state, done, found)``.

    Args:
      rows: inputs ``[R, chunk, in_features]`` of the chunks, and `length` ``[R]`` of each.
      lane_of: int ``[R]``, the lane of each; one past the last for none.
      fresh: bool ``[R]``, whether a sequence begins with it.
      more: whether to return at once, since there are more chunks to admit.

    Returns:
      `done` int ``[R]``, lanes whose chunk is done, one past the last for none, and of each the
      outputs, N and R, ``[R, chunk, ...]``.
    """
    count, refill = state.served.size, len(lane_of)
    plan, data, read = _loop(model, count, chunk)
    projected = _flatten(model, rows)[1].xs[0]
    put = lambda leaf, new: leaf.at[lane_of].set(new, mode="drop")
    inputs = put(state.inputs, projected.reshape(refill, chunk, -1))
    data = data._replace(xs=[inputs.reshape(count * chunk, -1)])

    was = state.lanes
    admitted = jnp.zeros(count, bool).at[lane_of].set(True, mode="drop")
    new = jnp.zeros(count, bool).at[lane_of].set(fresh, mode="drop")
    fresh_registers = plan.rule.start(jnp.zeros(count, plan.halt_dtype))
    clear = lambda leaf: jnp.where(per_row(admitted, leaf), 0, leaf)
    lanes = was._replace(
        position=jnp.where(admitted, jnp.arange(count, dtype=jnp.int32) * chunk, was.position),
        left=put(was.left, length),
        n=clear(was.n),  # idle lanes ponder on, to no effect
        registers=select(admitted, fresh_registers, was.registers),
        mean=jax.tree.map(clear, was.mean),
        state=select(new, data.state, was.state),
    )
    outputs = state.outputs
    if plan.layers:
        outputs = _carry_layers(plan, data, outputs, was, admitted, new)
    served = state.served | admitted
    fixed = plan.split.hoist(data.weights)

    def waits(lanes):
        return served & (lanes.left == 0)

    def busy(carry):
        _, lanes, _ = carry
        enough = waits(lanes).sum() >= refill
        return (lanes.left > 0).any() & ~enough & ~more

    def iteration(carry):
        i, lanes, outputs = carry
        lanes, emitted, _, _ = advance(plan, fixed, data, outputs, lanes)
        return i + 1, lanes, emit(plan, data, outputs, emitted)

    i, lanes, outputs = lax.while_loop(busy, iteration, (jnp.int32(0), lanes, outputs))
    done = waits(lanes)
    lane = jnp.argsort(~done, stable=True)[:refill]
    handed = jnp.where(done[lane], lane, count)
    # Nothing halts what is only repeated: `Repeat` has no remainder.
    told = read_outputs(plan, data, outputs)
    remainder = told.remainder * (not isinstance(model, Repeat))
    by_lane = lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:])[lane, -chunk:]
    found = by_lane(read(told.states)), by_lane(told.steps), by_lane(remainder)
    served = served.at[handed].set(False, mode="drop")
    return _State(lanes, inputs, outputs, served, i), handed, found


def _carry_layers(plan: Plan, data: Data, outputs: Outputs, was: Lanes, admitted, new) -> Outputs:
    """What the first input of an admitted chunk finds below: what the last one before it left."""
    begin = jnp.arange(plan.batch) * (plan.time + 1)
    end = plan.output_row(was.position)  # of the chunk before

    def carried(leaf, first):
        rows = jnp.where(per_row(new, first), first.astype(leaf.dtype), leaf[end])
        return leaf.at[jnp.where(admitted, begin, plan.output_rows)].set(rows, mode="drop")

    layers = list(map(carried, outputs.layers, data.below))
    return outputs._replace(layers=layers, count=carried(outputs.count, data.count))


def _loop(model, lanes: int, chunk: int):
    """The plan of a loop over `lanes` chunks, its arrays with blank inputs, and how outputs are
    read from the leaves of its states."""
    flat, data, means, read = _flatten(model, jnp.zeros((lanes, chunk, model.in_features)))
    limits = {ACT: "max_steps", LFACT: "max_layers", Repeat: "repeats"}
    limit = next(getattr(model, name) for kind, name in limits.items() if isinstance(model, kind))
    plan = make_plan(
        flat,
        data,
        batch=lanes,
        time=chunk,
        lanes=lanes,
        max_steps=limit,
        rule=_rule(model),
        averaged=means,
        segment=None,
    )
    return plan, data, read


def _rule(model):
    if isinstance(model, Repeat):
        return FixedSteps(model.repeats)
    return Graves(model.epsilon) if model.rule is None else model.rule


def _flatten(model, xs):
    """The model's step on flat lists, the loop's arrays, which leaves leave their mean behind, and
    how outputs are read."""
    rows, chunk = xs.shape[:2]
    if isinstance(model, LFACT):
        step, params, layers, inputs = model.prepare_layers(xs)
        step, cell, count = dataclasses.replace(step, masked=False), step.cell, layers.count
        flat, weights, state, below, xs, unflatten = flatten_layers(step, params, layers, inputs)
        means = (False,) * len(state)
    else:
        cell, params, state, inputs = model.prepare(xs, None, getattr(model, "halt", None))
        means = averaged(_rule(model).mean, state)
        flat, weights, state, xs, unflatten = flatten(cell, params, state, inputs)
        below, count = [], None
    xs = [leaf.reshape(rows * chunk, *leaf.shape[2:]) for leaf in xs]
    none, order = jnp.zeros(rows, jnp.int32), jnp.arange(rows, dtype=jnp.int32)
    data = Data(weights, state, xs, below, count, none, order)
    return flat, data, means, lambda states: cell.read(unflatten(states))[1]
