"""The three kernels of ``loop="kernel"``, written in Pallas for Triton.

Each program of `advance` and `retreat` owns some lanes and the sequences that they are to do, and
loops until these are done: nothing is launched for an iteration, and no lane waits for those of
another program. A program holds the registers of its lanes as lists of tiles ``[lanes, units]``.
`weights` takes the products of the weights' cotangents afterwards, over the rows that were used.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from actjax._loop.kernel_plan import KernelPlan
from actjax._loop.kernel_tiles import (
    Matrix,
    Weights,
    add_up,
    by_tile,
    dot,
    inputs_of,
    keep,
    kept_tiles,
    load,
    products_of,
    row_sum,
    span,
    store,
    vector,
    where,
)
from actjax._loop.rows import like_inputs, vary
from actjax.halting import halting_step

LAST, ENDED = 1, 2  # bits of a record's code beside n: the step was an input's, a sequence's last


# --- Forward -------------------------------------------------------------------------------------


def advance(plan: KernelPlan, refs: dict, *, record: bool, resume: bool, emit: bool):
    """Ponders until the program's sequences are done or, if it keeps a record, a segment is full.

    Args:
      refs: by name. Read: xs ``[B T, gates hidden]``, flags ``[1, gates hidden]``, weights, halt
        ``[1, hidden]``, halt_bias ``[1]``, state ``[B, leaves hidden]``, sequence and length
        (the programs' queues). Written: final, outputs, steps, remainder; and the record.
      record: whether what `retreat` needs is kept.
      resume: whether the lanes' registers are read, and written in the end.
      emit: whether results are written.
    """
    cell, lanes, time = plan.cell, plan.lanes, plan.time
    tiles, leaves, gates = range(plan.tiles), range(cell.leaves), range(cell.gates)
    program, lane = pl.program_id(0), span(plan.lanes)
    weights = Weights(plan, refs["weights"], plan.resident)
    flags = [vector(plan, refs["flags"], g) for g in gates]
    halt_weights, halt_bias = vector(plan, refs["halt"], 0), load(refs["halt_bias"], jnp.int32(0))
    begin = Matrix(plan, refs["state"], plan.hidden)
    initial = lambda at, mask=None: [[begin.wide(at, l, j, mask) for j in tiles] for l in leaves]
    own = program * lanes + lane
    if resume:
        state, mean, total, n, position, left, taken = load_lanes(plan, refs, program)
    else:
        first = program * plan.queue + lane
        sequence = load(refs["sequence"], first)
        state = initial(sequence)
        mean = jax.tree.map(jnp.zeros_like, state)
        total, n = jnp.zeros(lanes, jnp.float32), jnp.zeros(lanes, jnp.int32)
        position, left = sequence * time, load(refs["length"], first)
        taken = jnp.int32(lanes)

    def iteration(carry):
        i, state, mean, total, n, position, left, taken = carry
        live, at = left > 0, jnp.minimum(position, plan.batch * time - 1)
        x = inputs_of(plan, refs, at, live, n == 0, flags)
        n = n + 1
        new, kept = by_tile(cell.forward, plan, x, products_of(plan, weights, state[-1]), state)
        logit = row_sum([h * w for h, w in zip(new[-1], halt_weights, strict=True)])
        halt = jax.nn.sigmoid(logit + halt_bias)
        weight, last = halting_step(halt, total, n, max_steps=plan.max_steps, epsilon=plan.epsilon)
        result = jax.tree.map(lambda m, s: m + weight[:, None] * s, mean, new)
        halted = last & live
        ended = halted & (left == 1)
        if record:
            row = (program * plan.segment + i) * lanes + lane
            keep(plan, refs["states"], row, state)
            if not plan.again:
                keep(plan, refs["kept"], row, kept)
            code = 4 * n + jnp.where(last, LAST, 0) + jnp.where(ended, ENDED, 0)
            store(refs["position"], row, jnp.where(live, position, -1))
            store(refs["code"], row, code)
            store(refs["weight"], row, weight)
        if emit:
            outputs = Matrix(plan, refs["outputs"], plan.hidden)
            final = Matrix(plan, refs["final"], plan.hidden)
            for j in tiles:
                outputs.store(result[-1][j], at, 0, j, halted)
                for l in leaves:
                    final.store(result[l][j], at // time, l, j, ended)
            store(refs["steps"], at, n, halted)
            store(refs["remainder"], at, weight, halted)
        state = where(live, where(last, result, new), state)
        mean = where(last, jax.tree.map(jnp.zeros_like, result), result)
        position = position + halted.astype(jnp.int32)
        left = left - halted.astype(jnp.int32)
        if plan.queue > lanes:
            free = ended.astype(jnp.int32)
            earlier = lane[None] < lane[:, None]
            before = jnp.where(earlier, free[None], 0).sum(axis=1, dtype=jnp.int32)
            place = taken + before
            refill = ended & (place < plan.queue)
            place = program * plan.queue + jnp.minimum(place, plan.queue - 1)
            sequence = load(refs["sequence"], place)
            position = jnp.where(refill, sequence * time, position)
            left = jnp.where(refill, load(refs["length"], place), left)
            state = where(refill, initial(sequence, refill), state)
            taken = taken + free.sum(dtype=jnp.int32)
        total = jnp.where(last, 0, total + halt)
        n = jnp.where(last, 0, n)
        return i + 1, state, mean, total, n, position, left, taken

    def busy(carry):
        at_work = jnp.max(carry[6]) > 0
        return at_work & (carry[0] < plan.segment) if record else at_work

    carry = jnp.int32(0), state, mean, total, n, position, left, taken
    i, *registers = lax.while_loop(busy, iteration, carry)
    if record:
        store(refs["iterations"], program, i)
    if "left_out" in refs:
        state, mean, *rest, taken = registers
        keep(plan, refs["lane_state_out"], own, state)
        keep(plan, refs["lane_mean_out"], own, mean)
        for name, value in zip(("total", "n", "place", "left"), rest, strict=True):
            store(refs[f"{name}_out"], own, value)
        store(refs["taken_out"], program, taken)


def load_lanes(plan: KernelPlan, refs: dict, program):
    """The registers of the program's lanes, as `advance` left them at a segment's end."""
    own = program * plan.lanes + span(plan.lanes)
    state, mean = (
        kept_tiles(plan, refs[name], own, plan.cell.leaves) for name in ("lane_state", "lane_mean")
    )
    rest = [load(refs[name], own) for name in ("total", "n", "place", "left")]
    return state, mean, *rest, load(refs["taken"], program)


# --- Backward ------------------------------------------------------------------------------------


def retreat(plan: KernelPlan, refs: dict, *, resume: bool):
    """Undoes the iterations of a segment, the last first (Graves 2016, eqs 14 to 20).

    Args:
      refs: by name. Read: the record, the weights transposed (``[gates * hidden, hidden]``), halt,
        d_outputs, d_remainder, d_final and, where gates are computed again, what `advance` reads.
        Written: d_xs, d_state; d_products (a row a record); d_flags, d_halt ``[programs, ...]``.
      resume: whether the registers are read; they are written where there are refs for them.
    """
    cell, lanes, time = plan.cell, plan.lanes, plan.time
    tiles, leaves, gates = range(plan.tiles), range(cell.leaves), range(cell.gates)
    program, lane = pl.program_id(0), span(lanes)
    own = program * lanes + lane
    transposed = Weights(plan, refs["transposed"], plan.back_resident)
    halt_weights = vector(plan, refs["halt"], 0)
    if plan.again:
        weights = Weights(plan, refs["weights"], False)
        flags = [vector(plan, refs["flags"], g) for g in gates]
    zeros = lambda count: [
        [jnp.zeros((lanes, plan.units), jnp.float32) for _ in tiles] for _ in range(count)
    ]
    if resume:
        d_state, d_mean = (
            kept_tiles(plan, refs[n], own, cell.leaves) for n in ("d_lane", "d_mean")
        )
        d_x, d_last = kept_tiles(plan, refs["d_x"], own, cell.gates), load(refs["d_last"], own)
    else:
        d_state, d_mean, d_x = zeros(cell.leaves), zeros(cell.leaves), zeros(cell.gates)
        d_last = jnp.zeros(lanes, jnp.float32)

    matrix = lambda name: Matrix(plan, refs[name], plan.hidden)
    d_outputs, d_final, d_xs, d_begin = map(matrix, ("d_outputs", "d_final", "d_xs", "d_state"))

    def recorded(i):
        row = (program * plan.segment + i) * lanes + lane
        return [load(refs[name], row) for name in ("position", "code", "weight")]

    def iteration(carry):
        i, (position, code, weight), d_state, d_mean, d_last, d_x, d_flags, d_halt, d_bias = carry
        i = i - 1
        row = (program * plan.segment + i) * lanes + lane
        # Read an iteration ahead: where the other arrays are read depends on it.
        ahead = recorded(jnp.maximum(i - 1, 0))
        live, last, ended = position >= 0, (code & LAST) != 0, (code & ENDED) != 0
        first = code // 4 == 1
        at = jnp.maximum(position, 0)
        state = kept_tiles(plan, refs["states"], row, cell.leaves)
        if plan.again:
            x = inputs_of(plan, refs, at, live, first, flags)
            products = products_of(plan, weights, state[-1])
            new, kept = by_tile(cell.forward, plan, x, products, state)
        else:
            kept = kept_tiles(plan, refs["kept"], row, cell.kept)
            new = by_tile(cell.renew, plan, kept, state)

        # What was carried on after the last step was the mean; it went to the output too.
        given = [[d_final.wide(at // time, l, j, ended) for j in tiles] for l in leaves]
        carried = where(ended, given, d_state)
        arrived = [d_outputs.wide(at, 0, j, last & live) for j in tiles]
        carried[-1] = [a + b for a, b in zip(carried[-1], arrived, strict=True)]
        d_mean = where(last, carried, d_mean)
        d_weight = add_up(
            row_sum([m * s for m, s in zip(d_mean[l], new[l], strict=True)]) for l in leaves
        )
        d_last = jnp.where(last, d_weight, d_last)
        d_cost = load(refs["d_remainder"], at, live)
        # p^n = h^n before the last step, p^N = 1 - (h^1 + ... + h^{N-1}), and h^N only decides.
        d_step = jnp.where(last, 0, d_weight - d_last - d_cost)
        d_logit = jnp.where(live, d_step * weight * (1 - weight), 0)
        d_new = jax.tree.map(lambda d, m: d + weight[:, None] * m, where(~last, d_state, 0), d_mean)
        d_new[-1] = [d + d_logit[:, None] * w for d, w in zip(d_new[-1], halt_weights, strict=True)]
        moved = by_tile(cell.backward, plan, kept, state, d_new)
        dx, d_products, d_before = where(live, moved, 0)
        keep(plan, refs["d_products"], row, d_products)
        for g in gates:
            for k, d in enumerate(d_products[g]):
                operand = d.astype(plan.dtype)
                for j in tiles:
                    d_before[-1][j] += dot(operand, transposed(g, k, j))

        d_x = jax.tree.map(jnp.add, where(~last, d_x, 0), dx)
        begun = first & live
        for g in gates:
            for j in tiles:
                d_xs.store(d_x[g][j], at, g, j, begun)
        for l in leaves:
            for j in tiles:
                d_begin.store(d_before[l][j], at // time, l, j, begun & (at % time == 0))
        d_flags = jax.tree.map(jnp.add, d_flags, where(first, dx, 0))
        d_halt = [d + d_logit[:, None] * s for d, s in zip(d_halt, new[-1], strict=True)]
        d_state = where(live, d_before, d_state)
        return i, ahead, d_state, d_mean, d_last, d_x, d_flags, d_halt, d_bias + d_logit

    count = load(refs["iterations"], program)
    sums = zeros(cell.gates), zeros(1)[0], jnp.zeros(lanes, jnp.float32)
    carry = count, recorded(jnp.maximum(count - 1, 0)), d_state, d_mean, d_last, d_x, *sums
    carry = lax.while_loop(lambda carry: carry[0] > 0, iteration, carry)
    d_state, d_mean, d_last, d_x, d_flags, d_halt, d_bias = carry[2:]
    here = jnp.full(1, program, jnp.int32)
    total = lambda blocks: jax.tree.map(lambda tile: tile.sum(axis=0)[None], blocks)
    keep(plan, refs["d_flags"], here, total(d_flags))
    keep(plan, refs["d_halt"], here, total([d_halt]))
    store(refs["d_bias"], program, d_bias.sum())
    if "d_last_out" in refs:
        for name, value in (("d_lane", d_state), ("d_mean", d_mean), ("d_x", d_x)):
            keep(plan, refs[f"{name}_out"], own, value)
        store(refs["d_last_out"], own, d_last)


def weights(plan: KernelPlan, refs: dict):
    """``sum h^T d_product`` over the rows that were used, one tile of one gate a program.

    Args:
      refs: states, d_products and iterations; written is d_weights
        ``[splits * gates * width, width]``, a split's share of the rows in each.
    """
    units, lanes, count = plan.units, plan.lanes, plan.tuning.rows
    tile, split = pl.program_id(0), pl.program_id(1)
    gate, k, j = tile // plan.tiles**2, tile // plan.tiles % plan.tiles, tile % plan.tiles
    states, d_products = (Matrix(plan, refs[n], plan.width) for n in ("states", "d_products"))
    output = plan.cell.leaves - 1

    def one_program(program, total):
        used = load(refs["iterations"], program) * lanes
        begin = program * plan.segment * lanes

        def more(carry):
            row, total = carry
            here = row + span(count)
            inside, at = here < used, begin + jnp.minimum(here, used - 1)
            h, d = states.load(at, output, k, inside), d_products.load(at, gate, j, inside)
            return row + plan.splits * count, total + dot(h, d, contract=(0, 0))

        # The shares begin with another row block for each program, so that all are alike.
        row = (split + program) % plan.splits * count
        return lax.while_loop(lambda carry: carry[0] < used, more, (row, total))[1]

    total = jnp.zeros((units, units), jnp.float32)
    total = lax.fori_loop(0, plan.programs, one_program, total)
    rows = ((split * plan.cell.gates + gate) * plan.tiles + k) * units + span(units)
    Matrix(plan, refs["d_weights"], plan.width).store(total, rows, 0, j)


# --- Launching -----------------------------------------------------------------------------------


def launch(kernel, grid, read: dict, write: dict, *, alias: dict, warps: int) -> dict:
    """Runs `kernel(refs)` on a GPU or, elsewhere, interpreted; returns what was written.

    Args:
      read: arrays by name.
      write: shapes by name.
      alias: of the written, those that begin as an array given here.
    """
    names = [*read, *(f"{name}_in" for name in alias), *write]
    arguments = [*read.values(), *alias.values()]
    arguments = vary(arguments, like_inputs(arguments))
    # Under `shard_map` what is written varies over devices as what is read.
    kind = lambda array: getattr(jax.typeof(array), "manual_axis_type", None)
    varies = kind(arguments[0]) != kind(jnp.float32(0))
    varies = {"manual_axis_type": kind(arguments[0])} if varies else {}
    shapes = [jax.ShapeDtypeStruct(s.shape, s.dtype, **varies) for s in write.values()]
    aliases = {len(read) + i: list(write).index(name) for i, name in enumerate(alias)}

    def body(*refs):
        kernel(dict(zip(names, refs, strict=True)))

    body.__name__ = f"actjax_{kernel.func.__name__}"

    def call(*arguments, interpret):
        # every ref is a whole array: a lane reads and writes where it is
        whole = pl.BlockSpec(memory_space=pl.ANY)
        return pl.pallas_call(
            body,
            grid=grid,
            in_specs=[whole] * len(arguments),
            out_specs=[whole] * len(shapes),
            out_shape=shapes,
            input_output_aliases=aliases,
            interpret=interpret,
            compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
            name=body.__name__,
        )(*arguments)

    found = lax.platform_dependent(
        *arguments,
        cuda=lambda *arguments: call(*arguments, interpret=False),
        default=lambda *arguments: call(*arguments, interpret=True),
    )
    return dict(zip(write, found, strict=True))
