"""What the adaptive loop knows before it runs: its arrays, and its static shape."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from actjax._contracts import check_effects
from actjax._loop import devices
from actjax._loop.rows import blank, is_float, like_inputs, per_row
from actjax._loop.transpose import SplitStep
from actjax.halting import Rule, halting_dtype

_LATE_ROWS = 512  # rows of one product of the weight cotangents
_MANY_LATE_ROWS = 4096  # on an accelerator, where adding the products up is felt, in long runs
_LONG = 16  # inputs a lane
_BLOCK = 4  # iterations, on an accelerator, between two looks at whether all is done
_UNROLLED = 400  # equations of as many steps as a block has
_LARGE = 1 << 18  # weights, of whose products blank rows at a run's end would be felt
_FEW_LANES = 64  # of which each may look at all
_SEGMENT_BASE = 16
_SEGMENT_STEPS = 6  # ponder steps an input whose residuals are kept without being asked
_SEGMENT_BYTES = 1 << 28  # and the memory that this may take, on a CPU
_SEGMENT_SHARE = 1 / 16  # or elsewhere, of the device's; each member of a `vmap` takes as much
_FEWEST_LANES = 16  # by default; a product of fewer rows costs as much
_ITERATION = 1 << 27  # operations, beside which what else an iteration costs is nothing


class Data(NamedTuple):
    """The arrays that a loop only reads: B sequences of T inputs."""

    weights: list  # leaves of params
    state: list  # [B, ...] initial state
    xs: list  # [B * T, ...] inputs
    below: list  # [B, L, ...] the layers before the first input; empty without layers
    count: jax.Array | None  # int32 [B], how many they are
    lengths: jax.Array  # int32 [B]
    order: jax.Array  # int32 [B], the queue


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The static shape of one loop.

    Attributes:
      split: the step of one iteration, `lanes` rows.
      rule: when an input's steps end, and with what weights.
      averaged: which of the state's floats leave their mean behind; the others leave their last.
      layers: whether inputs leave all their states behind, for the next input's steps to look at.
      accelerated: whether launches cost more than copies: what an iteration writes lies side by
        side (see `Pack`), and what it keeps goes to memory that holds anything before.
      late: the step of `chunk` iterations' rows at once; None if the step does not allow it, and
        weight cotangents are added up at every iteration.
      block: iterations between two looks at whether all is done, whose writes are one; `chunk` and
        `segment` are multiples.
      segment: iterations whose residuals are kept at a time.
      segments: how many segments the longest run has.
    """

    split: SplitStep
    late: SplitStep | None
    rule: Rule
    averaged: tuple[bool, ...]
    layers: bool
    accelerated: bool
    batch: int
    time: int
    lanes: int
    max_steps: int
    block: int
    chunk: int
    segment: int
    segments: int

    @property
    def halt_dtype(self) -> jnp.dtype:
        return halting_dtype(self.split.halt_dtype)

    @property
    def idle(self) -> int:
        """The position of a lane with nothing to do: one past the last input."""
        return self.batch * self.time

    @property
    def output_rows(self) -> int:
        """Rows of the outputs: one an input and, with layers, one before each sequence."""
        return self.batch * (self.time + self.layers)

    def output_row(self, position: jax.Array) -> jax.Array:
        """Where the outputs of an input stand; past the end for `idle`. With layers, what the
        input before it left stands one row above."""
        return position + position // self.time + 1 if self.layers else position

    @property
    def queued(self) -> bool:
        """Whether lanes take further sequences from the queue."""
        return self.lanes < self.batch

    @property
    def resident(self) -> bool:
        """Whether each lane has one input for life, so that rows need no index."""
        return self.time == 1 and not self.queued

    def take(self, leaf: jax.Array, position: jax.Array) -> jax.Array:
        """The rows of `leaf`, ``[B * T, ...]``, at the lanes' positions."""
        return leaf if self.resident else leaf.at[position].get(mode="clip")

    def take_output(self, leaf: jax.Array, position: jax.Array) -> jax.Array:
        """The rows of `leaf`, ``[output_rows, ...]``, that belong to the lanes' positions."""
        if not self.layers:
            return self.take(leaf, position)
        return leaf.at[self.output_row(position)].get(mode="clip")

    def count_up_to(self, mask: jax.Array) -> jax.Array:
        """For each lane, how many hold of those up to it, itself included: int32 ``[lanes]``.

        A running sum is a chain of half a dozen operations; of few lanes each counts for itself.
        """
        if self.lanes > _FEW_LANES:
            return jnp.cumsum(mask, dtype=jnp.int32)
        lane = jnp.arange(self.lanes)
        return (mask[None] & (lane[None] <= lane[:, None])).sum(axis=1, dtype=jnp.int32)

    def put(self, leaf: jax.Array, position: jax.Array, rows: jax.Array) -> jax.Array:
        """Writes the lanes' rows at their positions; those at `idle` are dropped."""
        if self.resident:
            return jnp.where(per_row(position < self.idle, leaf), rows, leaf)
        return leaf.at[position].set(rows, mode="drop")


def make_plan(
    step: Callable, data: Data, *, batch, time, lanes, max_steps, rule, averaged, segment
) -> Plan:
    """Traces the step and settles how much is kept at a time."""
    layers, accelerated = data.count is not None, devices.accelerated()
    pairs = zip(averaged, data.state, strict=True)
    averaged = tuple(is_mean for is_mean, leaf in pairs if is_float(leaf))
    zero = like_inputs(data.weights, data.state, data.xs, data.below)

    def split_for(rows):
        first = blank(zero, (rows,), bool)
        like = lambda leaf: jnp.broadcast_to(leaf[:1], (rows, *leaf.shape[1:]))
        x = [*data.xs, *data.below, data.count, data.count] if layers else data.xs
        state = list(map(like, data.state))
        options = {"read": averaged, "once": accelerated}
        return SplitStep(step, data.weights, state, list(map(like, x)), first, **options)

    split = split_for(lanes)
    bound, least = time * max_steps, math.ceil(batch * time / lanes)
    if lanes < batch:  # lanes that are served from a queue are all busy until its last sequences
        bound += (batch - 1) * bound // lanes
    if segment is None:
        row_bytes = sum(math.prod(s.shape) * s.dtype.itemsize for s in split.residuals)
        wanted = _SEGMENT_BASE + _SEGMENT_STEPS * least
        segment = max(
            math.isqrt(bound),
            min(wanted, _segment_bytes(jax.local_devices()[0]) // max(1, row_bytes)),
        )
    segment = min(segment, bound)
    late_rows = _MANY_LATE_ROWS if accelerated and least >= _LONG else _LATE_ROWS
    chunk = min(max(1, late_rows // lanes), segment)
    if sum(leaf.size for leaf in data.weights) >= _LARGE:
        chunk = min(chunk, least)  # full after one step an input
    block = max(1, min(_BLOCK, least // 2, _UNROLLED // split.equations)) if accelerated else 1
    chunk = math.ceil(chunk / block) * block
    segment = math.ceil(segment / chunk) * chunk
    late = None
    if split.by_rows:
        try:
            many = split_for(chunk * lanes)
        except (TypeError, ValueError):
            pass  # the step takes only the number of rows that it was made for
        else:
            late = many if many.follows(split) else None
    segments = math.ceil(bound / segment)
    static = batch, time, lanes, max_steps, block, chunk, segment, segments
    return Plan(split, late, rule, averaged, layers, accelerated, *static)


def _segment_bytes(device: jax.Device) -> int:
    """The memory of a device that residuals may take by default."""
    stats = device.memory_stats() or {}
    return max(_SEGMENT_BYTES, int(stats.get("bytes_limit", 0) * _SEGMENT_SHARE))


def flatten(step: Callable, params, state, xs) -> tuple[Callable, list, list, list, Callable]:
    """Returns the step on flat lists of leaves, the leaves of its arguments, and the way back.

    Arrays that the step closes over become weights, so that they have their gradients too.
    """
    arguments = jax.tree.map(jnp.asarray, (params, state, xs))
    (params, params_tree), (state, state_tree), (xs, xs_tree) = map(jax.tree.flatten, arguments)

    def flat(params, state, x, first):
        new, halt = step(
            params_tree.unflatten(params), state_tree.unflatten(state), xs_tree.unflatten(x), first
        )
        return jax.tree.leaves(new), halt

    x = [leaf[:, 0] for leaf in xs]
    first = jax.ShapeDtypeStruct(x[0].shape[:1], bool)
    traced = jax.make_jaxpr(flat)(params, state, x, first)
    check_effects(traced.effects)
    closed_over = [jnp.asarray(c) for c in traced.consts]
    if not closed_over:
        return flat, params, state, xs, state_tree.unflatten

    def opened(weights, state, x, first):
        own, closed_over = weights[: len(params)], weights[len(params) :]
        traced = jax.make_jaxpr(flat)(own, state, x, first)
        arguments = jax.tree.leaves((own, state, x, first))
        *new, halt = jax.core.eval_jaxpr(traced.jaxpr, closed_over, *arguments)
        return new, halt

    return opened, params + closed_over, state, xs, state_tree.unflatten


def flatten_layers(step: Callable, params, layers, xs):
    """As `flatten` for a step of `unroll_layers`, with the leaves of the layers to start from.

    To its trace the layers below are one more input; the loop reads them as they come.
    """

    def one_step(params, state, x, first):
        x, below, n = x
        return step(params, state, x, below, n)

    steady = jax.tree.map(lambda leaf: leaf[:, None], (layers, layers.count))
    flat, weights, state, inputs, unflatten = flatten(
        one_step, params, layers.deepest, (xs, *steady)
    )
    below = list(map(jnp.asarray, jax.tree.leaves(layers.states)))
    return flat, weights, state, below, inputs[: len(jax.tree.leaves(xs))], unflatten


def divide(data: Data) -> tuple[Any, Any]:
    """Parts the arrays with gradients from those without."""
    part = lambda leaves, kind: [leaf if is_float(leaf) == kind else None for leaf in leaves]
    with_both = data.weights, data.state, data.xs
    floats = *(part(leaves, True) for leaves in with_both), data.below
    others = *(part(leaves, False) for leaves in with_both), data.count, data.lengths, data.order
    return floats, others


def join(floats, others) -> Data:
    """Undoes `divide`."""
    *with_floats, below = floats
    pair = lambda a, b: [y if x is None else x for x, y in zip(a, b, strict=True)]
    return Data(*map(pair, with_floats, others[:3]), below, *others[3:])


def lanes_of(lanes: int | None, total: int, batch: int, time: int, operations: int) -> int:
    """How many lanes `batch` sequences get: their share of `lanes`, or by default what pays.

    Args:
      operations: of one step on one row.
    """
    if lanes is None:
        return min(_default_lanes(batch, time, operations), batch)
    return share_of(lanes, total, batch)


def share_of(lanes: int, total: int, batch: int) -> int:
    """How many of `lanes`, which are there for `total` sequences, `batch` of them get."""
    return min(-(-lanes * batch // total), batch)


def _default_lanes(batch: int, time: int, operations: int) -> int:
    """As `benchmarks/ponder.py` has it: the wait at the end of a batch matters where T is small.

    Where a step is dear, fewer lanes already make large products, stay in the cache and wait less
    (`benchmarks/recursive.py`).
    """
    if jax.default_backend() != "cpu" or time >= 16:
        return batch
    part = batch // (2 if time >= 4 else 4)
    return max(_FEWEST_LANES, min(part, _ITERATION // max(1, operations)))
