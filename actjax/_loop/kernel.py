"""The loop ``kernel``: the adaptive loop over a built-in cell, as one kernel each way.

It gives the numbers of ``while`` at a fraction of its launches, for networks so small that a GPU
spends its time on those. What is inside the kernels is in `kernel_programs`; here they are strung
together. Their residuals are those of one *segment* of iterations. A run that fits in one is three
launches: forward, backward, and the products of the weights' cotangents over the rows that were
used. A longer one is a `lax.while_loop` over segments, all but the last of which are run again on
the way back, from the lanes' registers at their start.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from actjax._loop import kernel_programs as programs
from actjax._loop.adaptive import _any
from actjax._loop.kernel_cells import Cell
from actjax._loop.kernel_plan import KernelPlan, Tuning, make_plan
from actjax._loop.once import in_reverse_only
from actjax._loop.rows import like_inputs, vary
from actjax.halting import Ponder

_REFUSED = "loop='kernel' has first derivatives in reverse mode only: use loop='scan' for others."


class Network(NamedTuple):
    """The arrays of a pondered cell that have gradients; H units, G gates, L leaves of the state.

    Attributes:
      xs: ``[B, T, G * H]``, the products of the inputs with the biases of all gates.
      flags: ``[G * H]``, what the flag of the first step adds to them (Graves 2016, eq 3).
      weights: ``[H, G * H]``, the recurrent weights.
      halt: ``[H]``, the halting unit's weights (eq 5).
      halt_bias: scalar.
      state: L arrays ``[B, H]`` before the first input; the last is the output.
    """

    xs: jax.Array
    flags: jax.Array
    weights: jax.Array
    halt: jax.Array
    halt_bias: jax.Array
    state: list[jax.Array]


def kernel(
    cell: Cell,
    network: Network,
    lengths: jax.Array | None,
    *,
    max_steps: int,
    epsilon: float,
    lanes: int | None = None,
    segment: int | None = None,
    tuning: Tuning | None = None,
) -> tuple[list[jax.Array], jax.Array, Ponder]:
    """Ponders every input: ``(final_state, outputs, ponder)``, as `unroll` of the cell would.

    Args:
      lengths, max_steps, epsilon, lanes, segment: as in `unroll`.
      tuning: how the kernels are cut.

    Raises:
      TypeError: from other derivatives than first ones in reverse mode.
    """
    batch, time, wide = network.xs.shape
    plan = make_plan(
        cell,
        network.xs.dtype,
        batch=batch,
        time=time,
        hidden=wide // cell.gates,
        max_steps=max_steps,
        epsilon=epsilon,
        lanes=lanes,
        segment=segment,
        tuning=tuning,
    )
    network, queues = vary((network, _queues(plan, lengths)), like_inputs(network))
    network = in_reverse_only(network, _REFUSED)
    final, outputs, steps, remainder = _run(plan, network, queues)
    return final, outputs, Ponder(steps, remainder)


def _queues(plan: KernelPlan, lengths) -> dict[str, jax.Array]:
    """The sequences of each program, the longest first, and the inputs that they have."""
    places = plan.programs * plan.queue
    if lengths is None:
        sequence = jnp.arange(plan.batch, dtype=jnp.int32)
        length = jnp.full(plan.batch, plan.time, jnp.int32)
    else:
        lengths = jnp.clip(lengths, 0, plan.time).astype(jnp.int32)
        sequence = jnp.argsort(-lengths, stable=True).astype(jnp.int32)
        length = lengths[sequence]
    filled = [jnp.pad(leaf, (0, places - plan.batch)) for leaf in (sequence, length)]
    if plan.queue > plan.lanes:  # every program is dealt long ones and short ones
        filled = [leaf.reshape(plan.queue, plan.programs).T.reshape(-1) for leaf in filled]
    return dict(zip(("sequence", "length"), filled, strict=True))


# --- Forward -------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(plan: KernelPlan, network: Network, queues):
    read = _read(plan, network)
    state = read["state"]
    written, _, _ = _advance(plan, read, queues, _no_results(plan, state))
    return _results(plan, written, network)


def _read(plan: KernelPlan, network: Network) -> dict[str, jax.Array]:
    """The network's arrays as `programs.advance` reads them."""
    cell, hidden, dtype = plan.cell, plan.hidden, plan.dtype
    rows = network.weights.astype(dtype).reshape(hidden, cell.gates, hidden).swapaxes(0, 1)
    return {
        "xs": network.xs.reshape(plan.batch * plan.time, cell.gates * hidden),
        "flags": network.flags.astype(dtype)[None],
        "weights": rows.reshape(cell.gates * hidden, hidden),
        "halt": network.halt.astype(jnp.float32)[None],
        "halt_bias": network.halt_bias.astype(jnp.float32)[None],
        "state": jnp.concatenate([leaf.astype(dtype) for leaf in network.state], axis=1),
    }


def _no_results(plan: KernelPlan, state) -> dict[str, jax.Array]:
    inputs = plan.batch * plan.time
    return {
        "final": state,
        "outputs": jnp.zeros((inputs, plan.hidden), plan.dtype),
        "steps": jnp.zeros(inputs, jnp.int32),
        "remainder": jnp.zeros(inputs, jnp.float32),
    }


def _results(plan: KernelPlan, written, network: Network):
    sequences = lambda name: written[name].reshape(plan.batch, plan.time, *written[name].shape[1:])
    final = jnp.split(written["final"], plan.cell.leaves, axis=1)
    final = [leaf.astype(given.dtype) for leaf, given in zip(final, network.state, strict=True)]
    return final, sequences("outputs"), sequences("steps"), sequences("remainder")


def _advance(plan: KernelPlan, read, queues, results, *, lanes=None, record=False):
    """One launch of `programs.advance`: ``(results, record, lanes)``.

    Args:
      results: what has been written so far; None where nothing is to be written.
      lanes: the registers to go on from; None at the beginning.
      record: whether a record is kept, and the registers returned.
    """
    made = _record_shapes(plan) if record else {}
    after = {f"{k}_out": v for k, v in _lane_shapes(plan).items()} if plan.segments > 1 else {}
    after = after if record else {}
    written = {} if results is None else results
    shapes = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in written.items()}
    found = programs.launch(
        partial(
            programs.advance,
            plan,
            record=record,
            resume=lanes is not None,
            emit=results is not None,
        ),
        (plan.programs,),
        read | queues | (lanes or {}),
        shapes | made | after,
        alias=written,
        warps=plan.tuning.warps,
    )
    pick = lambda names: {name: found[name] for name in names}
    return pick(written), pick(made), {k.removesuffix("_out"): found[k] for k in after}


def _record_shapes(plan: KernelPlan) -> dict[str, Any]:
    array, rows = jax.ShapeDtypeStruct, plan.rows
    shapes = {
        "states": array((rows, plan.cell.leaves * plan.width), plan.dtype),
        "position": array((rows,), jnp.int32),
        "code": array((rows,), jnp.int32),
        "weight": array((rows,), jnp.float32),
        "iterations": array((plan.programs,), jnp.int32),
    }
    if not plan.again:
        shapes["kept"] = array((rows, plan.cell.kept * plan.width), plan.gate_dtype)
    return shapes


def _lane_shapes(plan: KernelPlan) -> dict[str, Any]:
    array, lanes = jax.ShapeDtypeStruct, plan.all_lanes
    tile = array((lanes, plan.cell.leaves * plan.width), jnp.float32)
    count = array((lanes,), jnp.int32)
    return {
        "lane_state": tile,
        "lane_mean": tile,
        "total": array((lanes,), jnp.float32),
        "n": count,
        "place": count,
        "left": count,
        "taken": array((plan.programs,), jnp.int32),
    }


def _first_lanes(plan: KernelPlan, state, queues) -> dict[str, jax.Array]:
    """The registers that a program without any begins with."""
    cell, lanes = plan.cell, plan.all_lanes
    first = lambda leaf: leaf.reshape(plan.programs, plan.queue)[:, : plan.lanes].reshape(lanes)
    sequence, left = first(queues["sequence"]), first(queues["length"])
    begin = state[sequence].astype(jnp.float32).reshape(lanes, cell.leaves, plan.hidden)
    begin = jnp.pad(begin, ((0, 0), (0, 0), (0, plan.width - plan.hidden)))
    blank = {name: jnp.zeros(a.shape, a.dtype) for name, a in _lane_shapes(plan).items()}
    begin = begin.reshape(lanes, cell.leaves * plan.width)
    taken = blank["taken"] + plan.lanes
    place = sequence * plan.time
    return blank | {"lane_state": begin, "place": place, "left": left, "taken": taken}


def _forward(plan: KernelPlan, network: Network, queues):
    return _once(partial(_recorded, plan))(network, queues)


def _recorded(plan: KernelPlan, network: Network, queues):
    """The loop with a record of its last segment, and the registers at the start of each other."""
    read = _read(plan, network)
    results = _no_results(plan, read["state"])
    if plan.segments == 1:
        results, record, _ = _advance(plan, read, queues, results, record=True)
        return _results(plan, results, network), (network, queues, record, None, None)

    def one_segment(carry):
        count, results, _, lanes, checkpoints = carry
        put = lambda buffer, row: lax.dynamic_update_index_in_dim(buffer, row, count, 0)
        checkpoints = jax.tree.map(put, checkpoints, lanes)
        written = _advance(plan, read, queues, results, lanes=lanes, record=True)
        return count + 1, *written, checkpoints

    lanes = _first_lanes(plan, read["state"], queues)
    checkpoints = jax.tree.map(lambda a: jnp.zeros((plan.segments, *a.shape), a.dtype), lanes)
    lanes, checkpoints = vary((lanes, checkpoints), like_inputs(network))
    # The first segment stands before the loop, whose buffers are then its own: none is filled.
    carry = one_segment((jnp.int32(0), results, None, lanes, checkpoints))
    carry = lax.while_loop(lambda carry: _any(carry[3]["left"] > 0), one_segment, carry)
    count, results, record, _, checkpoints = carry
    saved = network, queues, record, count, checkpoints
    return _results(plan, results, network), saved


# --- Backward ------------------------------------------------------------------------------------


def _backward(plan: KernelPlan, saved, cotangents):
    """Undoes the iterations, the last first, segment by segment."""
    d_network = _once(partial(_undo, plan))(saved, cotangents)
    return d_network, None


def _undo(plan: KernelPlan, saved, cotangents) -> Network:
    network, queues, record, count, checkpoints = saved
    d_final, d_outputs, _, d_remainder = cotangents
    cell, hidden, dtype = plan.cell, plan.hidden, plan.dtype
    read = _read(plan, network)
    blocks = read["weights"].reshape(cell.gates, hidden, hidden)
    d_final = jnp.concatenate([leaf.astype(dtype) for leaf in d_final], axis=1)
    given = {
        "transposed": blocks.swapaxes(1, 2).reshape(cell.gates * hidden, hidden),
        "halt": read["halt"],
        "d_outputs": d_outputs.reshape(plan.batch * plan.time, hidden),
        "d_remainder": d_remainder.reshape(-1),
        "d_final": d_final,
    }
    if plan.again:
        given |= {name: read[name] for name in ("xs", "flags", "weights")}
    results = {"d_xs": jnp.zeros_like(read["xs"]), "d_state": d_final}
    results, sums, back = _retreat(plan, given, record, results, None)
    if plan.segments > 1:

        def one_segment(carry):
            index, results, sums, back = carry
            at = lambda buffer: lax.dynamic_index_in_dim(buffer, index, keepdims=False)
            lanes = jax.tree.map(at, checkpoints)
            _, record, _ = _advance(plan, read, queues, None, lanes=lanes, record=True)
            results, more, back = _retreat(plan, given, record, results, back)
            return index - 1, results, jax.tree.map(jnp.add, sums, more), back

        carry = count - 2, results, sums, back
        carry = lax.while_loop(lambda c: _any(c[0] >= 0), one_segment, carry)
        _, results, sums, _ = carry
    d_weights = sums["d_weights"].swapaxes(0, 1).reshape(hidden, cell.gates * hidden)
    d_state = jnp.split(results["d_state"], cell.leaves, axis=1)
    d = Network(
        results["d_xs"].reshape(network.xs.shape),
        sums["d_flags"],
        d_weights,
        sums["d_halt"],
        sums["d_bias"],
        d_state,
    )
    return jax.tree.map(lambda d, leaf: d.astype(leaf.dtype), d, network)


def _retreat(plan: KernelPlan, given, record, results, back):
    """Undoes one segment: ``(results, sums, back)``; `back` are the lanes' registers.

    What is summed are the cotangents of all that every iteration uses.
    """
    array, cell, hidden, width = jax.ShapeDtypeStruct, plan.cell, plan.hidden, plan.width
    registers = {}
    if plan.segments > 1:
        tile = lambda blocks: array((plan.all_lanes, blocks * width), jnp.float32)
        registers = {
            "d_lane": tile(cell.leaves),
            "d_mean": tile(cell.leaves),
            "d_x": tile(cell.gates),
            "d_last": array((plan.all_lanes,), jnp.float32),
        }
    partial_sums = {
        "d_flags": array((plan.programs, cell.gates * width), jnp.float32),
        "d_halt": array((plan.programs, width), jnp.float32),
        "d_bias": array((plan.programs,), jnp.float32),
    }
    found = programs.launch(
        partial(programs.retreat, plan, resume=back is not None),
        (plan.programs,),
        given | record | (back or {}),
        {name: array(a.shape, a.dtype) for name, a in results.items()}
        | {"d_products": array((plan.rows, cell.gates * width), plan.dtype)}
        | partial_sums
        | {f"{name}_out": shape for name, shape in registers.items()},
        alias=results,
        warps=plan.tuning.back_warps,
    )
    whole = plan.splits, cell.gates, width, width
    d_weights = programs.launch(
        partial(programs.weights, plan),
        (cell.gates * plan.tiles**2, plan.splits),
        {
            "states": record["states"],
            "iterations": record["iterations"],
            "d_products": found["d_products"],
        },
        {"d_weights": array((whole[0] * whole[1] * whole[2], width), jnp.float32)},
        alias={},
        warps=plan.weight_warps,
    )["d_weights"]
    sums = {name: found[name].sum(axis=0) for name in partial_sums}
    sums["d_flags"] = sums["d_flags"].reshape(cell.gates, width)[:, :hidden].reshape(-1)
    sums["d_halt"] = sums["d_halt"][:hidden]
    sums["d_weights"] = d_weights.reshape(whole).sum(axis=0)[:, :hidden, :hidden]
    back = {name: found[f"{name}_out"] for name in registers}
    return {name: found[name] for name in results}, sums, back


_run.defvjp(_forward, _backward)


def _once(function):
    """`function` without derivatives of its own, said in a sentence."""
    once = jax.custom_jvp(function)

    @once.defjvp
    def refuse(primals, tangents):
        raise TypeError(_REFUSED)

    return once
