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

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from actjax import _checks as checks
from actjax import _contracts as contracts
from actjax._layers import Layers
from actjax._loop.lanes import Lanes, Outputs, advance, emit, no_outputs, read_outputs, start
from actjax._loop.plan import Data, Plan, flatten, flatten_layers, make_plan
from actjax._loop.rows import averaged, like_inputs, per_row, select
from actjax._streamable import Prepared, Streamable
from actjax.halting import chosen_rule


class Result(NamedTuple):
    """What one sequence came to.

    Attributes:
      index: its place among the sequences given, from 0.
      outputs: pytree of ``[T, ...]``, as the model gives them for it alone; ``[T,
        hidden_features]`` for the modules of `actjax.nn`.
      steps: int32 ``[T]``, N of each input.
      remainder: float ``[T]``, R of each input.
      state: what the model carries after the last input, without the batch axis: its final state.
      extra: pytree of floats ``[T]``, what else the halting rule tells of each input, as in
        `Ponder.extra`; None for Graves'.
    """

    index: int  # type: ignore[assignment]
    outputs: Any
    steps: np.ndarray
    remainder: np.ndarray
    state: Any
    extra: Any = None


def stream(
    model: Streamable,
    sequences: Iterable[Any],
    *,
    lanes: int = 64,
    chunk: int = 32,
    refill: int | None = None,
) -> Iterator[Result]:
    """Runs a model over sequences as they come, and yields each one's results as it is done.

    Args:
      model: `ACT`, `LFACT`, `Repeat`, `RNN`, a `StepModel` around a pure step, or any pytree with
        the method of `Streamable`. One that draws noise is refused; see ``model.eval()``.
      sequences: of each its inputs, T_i of them, at least 1: an array ``[T_i, in_features]`` or,
        for a model that reads other things, a pytree of arrays ``[T_i, ...]``. All are of the
        first one's shapes and dtypes, but for T_i. They are read as lanes come free, so they may be
        generated without end.
      lanes: sequences at work at a time.
      chunk: inputs of a sequence that are on the device at a time.
      refill: lanes that have to be done before they are all served. Fewer wait less; more cost
        fewer turns between host and device. A quarter of the lanes by default.

    Yields:
      `Result`, in the order in which sequences are done.

    Raises:
      ValueError: a model that is not `Streamable` or no pytree of arrays, a count below 1, or a
        sequence of the wrong shape or dtype.

    >>> import actjax
    >>> from flax import nnx
    >>> model = actjax.ACT(3, 8, max_steps=5, rngs=nnx.Rngs(0))
    >>> texts = [np.ones((length, 3), np.float32) for length in (50, 2, 7)]
    >>> [(r.index, r.outputs.shape) for r in stream(model, texts, lanes=2, chunk=4)]
    [(1, (2, 8)), (2, (7, 8)), (0, (50, 8))]
    """
    if not isinstance(model, Streamable):
        raise ValueError(
            "model must have the method for_stream, as ACT, LFACT, Repeat and RNN do, "
            f"got {type(model).__name__}."
        )
    checks.check_arrays("model", model)
    refill = max(1, lanes // 4) if refill is None else refill
    for name, value in (("lanes", lanes), ("chunk", chunk), ("refill", refill)):
        checks.check_positive(name, value)
    return _stream(model, iter(sequences), lanes, chunk, min(refill, lanes))


def stream_batch(model: Streamable, sequences: Iterable[Any], **options) -> list[Result]:
    """`stream` over all `sequences`, the results in their order.

    Args:
      model, options: as in `stream`.
    """
    return sorted(stream(model, sequences, **options), key=lambda result: result.index)


# --- On the host -------------------------------------------------------------------------------


class _Open(NamedTuple):
    """A sequence that a lane is at work on."""

    index: int  # type: ignore[assignment]
    inputs: list  # leaves [T, ...]
    begun: int  # inputs that have been admitted
    length: int  # of them, those in the chunk at work
    found: list  # what the chunks before gave


def _stream(model, sequences, lanes, chunk, refill):
    numbered = enumerate(sequences)
    first = next(numbered, None)
    if first is None:
        return
    like = _Like.of(first[1])
    like.checked(*first)
    numbered = itertools.chain([first], numbered)
    state, open_at, free = _blank(model, like.blank(lanes, chunk)), {}, list(range(lanes))
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
            open_at[lane] = _Open(index, like.checked(index, inputs), 0, 0, [])
            admitted.append((lane, True))
        if not open_at:
            return
        rows = like.blank(refill, chunk)
        lane_of, length = np.full(refill, lanes), np.zeros(refill, np.int32)
        fresh = np.zeros(refill, bool)
        for row, (lane, new) in enumerate(admitted):
            entry = open_at[lane]
            count = min(chunk, len(entry.inputs[0]) - entry.begun)
            for leaf, given in zip(jax.tree.leaves(rows), entry.inputs, strict=True):
                leaf[row, :count] = given[entry.begun : entry.begun + count]
            lane_of[row], length[row], fresh[row] = lane, count, new
            open_at[lane] = entry._replace(begun=entry.begun + count, length=count)
        more = bool(free) and len(admitted) == refill  # there may be others to serve at once
        state, done, found, final = _turn(model, state, rows, lane_of, length, fresh, more)
        done, found, final = jax.device_get((done, found, final))
        for row in range(refill):
            lane = int(done[row])
            if lane == lanes:
                continue
            entry = open_at[lane]
            entry.found.append(_row(found, (row, slice(entry.length))))
            if entry.begun < len(entry.inputs[0]):
                waiting.append(lane)
                continue
            del open_at[lane]
            free.append(lane)
            *joined, extra = jax.tree.map(lambda *pieces: np.concatenate(pieces), *entry.found)
            yield Result(entry.index, *joined, _row(final, row), extra)


def _row(tree, at):
    return jax.tree.map(lambda leaf: leaf[at], tree)


class _Like(NamedTuple):
    """What all sequences have in common."""

    tree: Any
    shapes: list  # of one input, a leaf each
    dtypes: list

    @classmethod
    def of(cls, sequence: Any) -> "_Like":
        leaves, tree = jax.tree.flatten(_arrays(sequence))
        dtypes = [jax.dtypes.canonicalize_dtype(leaf.dtype) for leaf in leaves]
        return cls(tree, [leaf.shape[1:] for leaf in leaves], dtypes)

    def blank(self, rows: int, chunk: int) -> Any:
        both = zip(self.shapes, self.dtypes, strict=True)
        return self.tree.unflatten(np.zeros((rows, chunk, *s), dtype) for s, dtype in both)

    def checked(self, index: int, sequence: Any) -> list:
        """The arrays of one sequence."""
        leaves, tree = jax.tree.flatten(_arrays(sequence))
        shapes = [leaf.shape for leaf in leaves]
        lengths = {shape[:1] for shape in shapes}
        fits = tree == self.tree and [shape[1:] for shape in shapes] == self.shapes
        if not fits or len(lengths) != 1 or lengths & {(), (0,)}:
            axes = [str(["time", *shape]).replace("'", "") for shape in self.shapes]
            raise ValueError(
                f"sequences must have shape {' and '.join(axes)} with at least one input, "
                f"got {' and '.join(map(str, shapes))} at place {index}."
            )
        for leaf, dtype in zip(leaves, self.dtypes, strict=True):
            given = jax.dtypes.canonicalize_dtype(leaf.dtype)
            if given != dtype and not (
                jnp.issubdtype(given, jnp.integer) and jnp.issubdtype(dtype, jnp.floating)
            ):
                raise ValueError(
                    f"sequences must all be of the dtype of the first, {dtype}, "
                    f"got {given} at place {index}."
                )
        return leaves


def _arrays(sequence: Any) -> Any:
    """A list of numbers is an array, as any array-like is; a dict or a tuple of them a pytree."""
    is_list = lambda node: isinstance(node, list)
    return jax.tree.map(np.asarray, sequence, is_leaf=is_list)


# --- On the device -----------------------------------------------------------------------------


class _State(NamedTuple):
    """What stays on the device between turns."""

    lanes: Lanes
    inputs: list  # [lanes, chunk, ...] each, projected
    outputs: Outputs
    served: Array  # bool [lanes], at work or done but not handed out
    iterations: Array  # int32, of the last turn


@jax.jit
def _blank(model, xs) -> _State:
    """The lanes without work; xs are blank inputs for each, ``[lanes, chunk, ...]``."""
    plan, data, _ = _loop(model, xs)
    registers = start(plan, data, like_inputs(data.state))
    outputs = no_outputs(plan, data, like_inputs(data.state))
    inputs = [leaf.reshape(plan.lanes, plan.time, *leaf.shape[1:]) for leaf in data.xs]
    return _State(registers, inputs, outputs, jnp.zeros(plan.lanes, bool), jnp.int32(0))


@functools.partial(jax.jit, donate_argnums=1)
def _turn(model, state: _State, rows, lane_of, length, fresh, more):
    """Admits chunks and ponders until as many lanes are done, or all.

    Args:
      rows: inputs ``[R, chunk, ...]`` of the chunks, and `length` ``[R]`` of each.
      lane_of: int ``[R]``, the lane of each; one past the last for none.
      fresh: bool ``[R]``, whether a sequence begins with it.
      more: whether to return at once, since there are more chunks to admit.

    Returns:
      ``(state, done, found, final)``: `done` int ``[R]``, lanes whose chunk is done, one past the
      last for none, and of each the outputs, N and R, ``[R, chunk, ...]``, and the state after the
      chunk's last input, ``[R, ...]``.
    """
    count, refill = state.served.size, len(lane_of)
    blank = lambda leaf: jnp.zeros((count, *leaf.shape[1:]), leaf.dtype)
    plan, data, ready = _loop(model, jax.tree.map(blank, rows))
    chunk = plan.time
    put = lambda leaf, new: leaf.at[lane_of].set(new, mode="drop")
    given = jax.tree.leaves(model.for_stream(rows).inputs)
    inputs = [
        put(leaf, new.astype(leaf.dtype)) for leaf, new in zip(state.inputs, given, strict=True)
    ]
    data = data._replace(xs=[lax.collapse(leaf, 0, 2) for leaf in inputs])

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
    told = read_outputs(plan, data, outputs)
    by_lane = lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:])[lane, -chunk:]
    states = ready.unflatten(list(map(by_lane, told.states)))
    remainder = by_lane(told.remainder)
    remainder = remainder if ready.halts else jnp.zeros_like(remainder)
    extra = jax.tree.map(by_lane, told.extra)
    found = ready.read(states)[1], by_lane(told.steps), remainder, extra
    if plan.layers:
        row = plan.output_row(lanes.position[lane])
        deepest = ready.unflatten([leaf[row] for leaf in outputs.layers])
        assert outputs.count is not None
        final = Layers(deepest, outputs.count[row])
    else:
        final = ready.read(ready.unflatten([leaf[lane] for leaf in lanes.state]))[0]
    served = served.at[handed].set(False, mode="drop")
    return _State(lanes, inputs, outputs, served, i), handed, found, final


def _carry_layers(plan: Plan, data: Data, outputs: Outputs, was: Lanes, admitted, new) -> Outputs:
    """What the first input of an admitted chunk finds below: what the last one before it left.

    The chunk's own places are cleared: layers are zeros up to the limit.
    """
    begin = jnp.arange(plan.batch) * (plan.time + 1)
    end = plan.output_row(was.position)  # of the chunk before, where its lane has stayed
    cleared = jnp.repeat(admitted, plan.time + 1)

    def carried(leaf, first):
        rows = jnp.where(per_row(new, first), first.astype(leaf.dtype), leaf[end])
        leaf = jnp.where(per_row(cleared, leaf), 0, leaf)
        return leaf.at[jnp.where(admitted, begin, plan.output_rows)].set(rows, mode="drop")

    layers = list(map(carried, outputs.layers, data.below))
    return outputs._replace(layers=layers, count=carried(outputs.count, data.count))


class _Ready(NamedTuple):
    """How results are read from the leaves of the loop's states."""

    unflatten: Callable
    read: Callable
    halts: bool


def _loop(model, xs) -> tuple[Plan, Data, _Ready]:
    """The plan of a loop over ``[lanes, chunk, ...]`` inputs, its arrays, and what reads them."""
    ready = model.for_stream(xs)
    if not isinstance(ready, Prepared):
        raise ValueError(
            f"model must return a Prepared record from for_stream, got {checks.shown(ready)}."
        )
    step, params, state, inputs, max_steps, read, epsilon, rule, halts = ready
    lanes, chunk = checks.check_rows("inputs", inputs, 2)
    checks.check_positive("max_steps", max_steps)
    rule = chosen_rule(rule, epsilon)
    x = jax.tree.map(lambda leaf: leaf[:, 0], inputs)
    row = lambda dtype: jax.ShapeDtypeStruct((lanes,), dtype)
    if isinstance(state, Layers):
        max_steps, count = checks.check_layers(state, lanes), state.count
        contracts.check_step(step, params, state.deepest, x, state, row(jnp.int32))
        contracts.check_mean(rule, state.deepest)
        flat, weights, state, below, xs, unflatten = flatten_layers(step, params, state, inputs)
        means = (False,) * len(state)
    else:
        checks.check_state(state, lanes)
        contracts.check_step(step, params, state, x, row(bool))
        contracts.check_mean(rule, state)
        means = averaged(rule.mean, state)
        flat, weights, state, xs, unflatten = flatten(step, params, state, inputs)
        below, count = [], None
    xs = [lax.collapse(leaf, 0, 2) for leaf in xs]
    none, order = jnp.zeros(lanes, jnp.int32), jnp.arange(lanes, dtype=jnp.int32)
    data = Data(weights, state, xs, below, count, none, order)
    static = dict(batch=lanes, time=chunk, lanes=lanes, max_steps=max_steps, rule=rule)
    plan = make_plan(flat, data, **static, averaged=means, segment=None)
    return plan, data, _Ready(unflatten, read, halts)
