"""Iterations of the adaptive loop by the block, with what they write written once.

A loop looks before every block whether any lane has something to do. On a GPU that look, and every
write, is a launch of its own; on a CPU they cost nothing, and a block is one iteration. Where the
lanes run dry within a block, its last iterations change nothing and are recorded as idle.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from actjax._loop.lanes import (
    Cotangents,
    Lanes,
    Outputs,
    Record,
    advance,
    emit,
    inputs_at,
)
from actjax._loop.pack import Pack
from actjax._loop.plan import Data, Plan

_OPERAND = 1 << 20  # bytes of an iteration that a product reads where they were written


def kept_pack(plan: Plan) -> Pack:
    """How a `Record` and the step's residuals are laid."""
    n = jax.ShapeDtypeStruct((plan.lanes,), jnp.int32)
    last = jax.ShapeDtypeStruct(n.shape, bool)
    registers = jax.eval_shape(plan.rule.start, jax.ShapeDtypeStruct(n.shape, plan.halt_dtype))
    kept = Record(n, n, last, registers), plan.split.residuals
    return Pack(kept, plan.lanes, together=plan.accelerated)


def pending_pack(plan: Plan) -> Pack:
    """How what is handed on to the products of the weights' cotangents is laid."""
    return Pack(plan.split.pending, plan.lanes, together=plan.accelerated, most=_OPERAND)


def advance_block(
    plan: Plan, fixed: list, data: Data, outputs: Outputs, lanes: Lanes, *, tell: bool = True
):
    """Takes `plan.block` steps on every lane: ``(lanes, outputs, kept)``.

    What the iterations have to tell and to keep is written once for all of them.

    Args:
      tell: whether the outputs are written.

    Returns:
      The registers, the outputs and, as `kept_pack` lays it, ``[block, lanes, ...]`` each, what
      `retreat` needs to know of the iterations.
    """
    kept, told, laid = [], [], kept_pack(plan)
    for _ in range(plan.block):
        lanes, emitted, record, residuals = advance(plan, fixed, data, outputs, lanes)
        kept.append(laid.pack((record, residuals)))
        if tell and plan.layers:  # the next iteration looks at them
            outputs = emit(plan, data, outputs, emitted)
        told.append(emitted)
    if tell and not plan.layers:
        outputs = emit(plan, data, outputs, _joined(told))
    return lanes, outputs, [jnp.stack(rows) for rows in zip(*kept, strict=True)]


def _joined(trees: list) -> Any:
    """The rows of trees alike, one tree after the other."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)


def retreat_block(plan: Plan, undo: Callable, kept: list, back: Cotangents):
    """Undoes the iterations that are `kept`, the last first: ``(back, pending)``, as `retreat`.

    Args:
      undo: `retreat`, but for its last three arguments.
      kept: what `advance_block` kept of each, in their order.

    Returns:
      The registers, and the pending arrays of the iterations in the order of `kept`.
    """
    pending, done, laid = [], [], kept_pack(plan)
    for k in reversed(range(plan.block)):
        back, new, x = undo(*laid.unpack(kept[k]), back)
        pending.insert(0, new)
        done.append(x)
    if not plan.resident:
        at, rows = _joined(done)
        d_xs = [plan.put(d, at, of_input) for d, of_input in zip(back.xs, rows, strict=True)]
        back = back._replace(xs=d_xs)
    return back, pending


def weight_cotangents(
    plan: Plan, data: Data, outputs: Outputs | None, record: Record, residuals: list, pending: list
) -> list:
    """The weights' cotangents, summed over a chunk of iterations, ``[chunk, L, ...]`` each."""
    flat = lambda tree: jax.tree.map(lambda leaf: jax.lax.collapse(leaf, 0, 2), tree)
    record, residuals, pending = flat((record, residuals, pending))
    if plan.resident:
        tile = lambda leaf: jnp.tile(leaf, (plan.chunk,) + (1,) * (leaf.ndim - 1))
        data = data._replace(xs=list(map(tile, data.xs)))
    x = inputs_at(plan, data, outputs, record.position, record.n)
    return plan.late.late(data.weights, residuals, x, record.n == 1, pending)
