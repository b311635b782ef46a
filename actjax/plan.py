"""What the adaptive loop knows before it runs, and the records that it carries. No loops."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from actjax.transpose import SplitStep

_LATE_ROWS = 512  # rows of one product of the weight cotangents
_SEGMENT_STEPS = 6  # ponder steps an input whose residuals are kept without being asked
_SEGMENT_BYTES = 1 << 28  # and the memory that this may take


class Data(NamedTuple):
    """The arrays that a loop only reads: B sequences of T inputs."""

    weights: list  # leaves of params
    state: list  # [B, ...] initial state
    xs: list  # [B * T, ...] inputs
    lengths: jax.Array  # int32 [B]
    order: jax.Array  # int32 [B], the queue


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


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The static shape of one loop.

    Attributes:
      split: the step of one iteration, `lanes` rows.
      late: the step of `chunk` iterations' rows at once; None if the step does not allow it, and
        weight cotangents are added up at every iteration.
      segment: iterations whose residuals are kept at a time.
      segments: how many segments the longest run has.
    """

    split: SplitStep
    late: SplitStep | None
    batch: int
    time: int
    lanes: int
    max_steps: int
    epsilon: float
    chunk: int
    segment: int
    segments: int

    @property
    def idle(self) -> int:
        """The position of a lane with nothing to do: one past the last input."""
        return self.batch * self.time

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

    def put(self, leaf: jax.Array, position: jax.Array, rows: jax.Array) -> jax.Array:
        """Writes the lanes' rows at their positions; those at `idle` are dropped."""
        if self.resident:
            return jnp.where(per_row(position < self.idle, leaf), rows, leaf)
        return leaf.at[position].set(rows, mode="drop")


def make_plan(
    step: Callable, data: Data, *, batch, time, lanes, max_steps, epsilon, segment
) -> Plan:
    """Traces the step and settles how much is kept at a time."""

    def split_for(rows):
        first = jnp.zeros(rows, bool)
        like = lambda leaf: jnp.broadcast_to(leaf[:1], (rows, *leaf.shape[1:]))  # noqa: E731
        state, x = list(map(like, data.state)), list(map(like, data.xs))
        return SplitStep(step, data.weights, state, x, first)

    split = split_for(lanes)
    # Lanes that are served from a queue as they come free are all busy until its last sequences.
    bound = (batch - 1) * time * max_steps // lanes + time * max_steps
    if segment is None:
        kept = split.residuals + split.pending
        row_bytes = sum(math.prod(s.shape) * s.dtype.itemsize for s in kept)
        wanted = 16 + _SEGMENT_STEPS * math.ceil(batch * time / lanes)
        segment = max(math.isqrt(bound), min(wanted, _SEGMENT_BYTES // max(1, row_bytes)))
    segment = min(segment, bound)
    chunk = min(max(1, _LATE_ROWS // lanes), segment)
    segment = math.ceil(segment / chunk) * chunk
    late = split_for(chunk * lanes) if split.by_rows else None
    if late is not None and not late.follows(split):
        late = None
    segments = math.ceil(bound / segment)
    return Plan(
        split, late, batch, time, lanes, max_steps, epsilon, chunk, segment, segments
    )


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

    return flat, params, state, xs, state_tree.unflatten


def is_float(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def divide(data: Data) -> tuple[Any, Any]:
    """Parts the arrays with gradients from those without."""
    part = lambda leaves, kind: [leaf if is_float(leaf) == kind else None for leaf in leaves]  # noqa: E731
    floats = part(data.weights, True), data.state, part(data.xs, True)
    return floats, (part(data.weights, False), part(data.xs, False), data.lengths, data.order)


def join(floats, others) -> Data:
    """Undoes `divide`."""
    weights, state, xs = floats
    other_weights, other_xs, lengths, order = others
    pair = lambda a, b: [y if x is None else x for x, y in zip(a, b, strict=True)]  # noqa: E731
    return Data(pair(weights, other_weights), state, pair(xs, other_xs), lengths, order)


def per_row(values: jax.Array, leaf: jax.Array) -> jax.Array:
    """`values`, one a row, shaped to go with the rows of `leaf`."""
    return values.reshape(values.shape + (1,) * (leaf.ndim - 1))


def select(mask: jax.Array, new: Any, old: Any) -> Any:
    """Rows of `new` where `mask`, else of `old`; both pytrees of ``[rows, ...]``."""
    return jax.tree.map(lambda a, b: jnp.where(per_row(mask, a), a, b), new, old)


def scale(weight: jax.Array, leaf: jax.Array) -> jax.Array:
    """The rows of `leaf` by `weight`, one a row, in the dtype of `leaf`."""
    return per_row(weight, leaf).astype(leaf.dtype) * leaf


def zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def like_inputs(data: Data) -> jax.Array:
    """A zero that varies over devices as the inputs do: what every buffer is filled with."""
    leaves = [*data.weights, *data.state, *data.xs]
    return sum(jnp.zeros_like(leaf, jnp.float32).ravel()[:1].sum() for leaf in leaves)


def blank(zero: jax.Array, shape: Sequence[int], dtype) -> jax.Array:
    return jnp.broadcast_to(zero.astype(dtype), shape)
