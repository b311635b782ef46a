"""The loops over ponder steps: a step function run a learned number of times on each input.

The two loops of `actjax.unroll` give the same numbers:

``scan``   every input is given M steps, and those after its halting are masked: fixed cost,
           differentiable every way. The reference.
``while``  one `lax.while_loop` over *lanes*. A lane points into a sequence; every iteration takes
           one ponder step on all lanes; a lane that halts writes its result and goes on to its next
           input at once, and after a sequence's last input it takes the next one from a queue. No
           lane waits for another: the cost follows the steps taken. Reverse mode, and forward over
           reverse; the backward pass replays the recorded schedule in reverse.

The ``while`` loop keeps the residuals of one *segment* of iterations, and the lanes' registers at
the start of each. The backward pass recomputes every segment but the last from there; a run that
fits in one segment recomputes nothing.

What an input leaves behind is either the mean of its states (``layers=False``) or all of them, its
*layers*, which the next input's steps look at (``layers=True``): see `unroll` and `unroll_layers`.
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero

from actjax._layers import Layers
from actjax._loop.blocks import (
    advance_block,
    kept_pack,
    pending_pack,
    retreat_block,
    weight_cotangents,
)
from actjax._loop.lanes import (
    Told,
    final_state,
    no_outputs,
    read_outputs,
    retreat,
    start,
    start_back,
)
from actjax._loop.once import in_forward_only, in_reverse_only
from actjax._loop.plan import Data, Plan, divide, flatten, flatten_layers, join, make_plan
from actjax._loop.rows import add, averaged, blank, empty, is_float, like_inputs, select, vary
from actjax.halting import Ponder, halting_dtype

_FORWARD = "loop='while' has no forward-mode derivative: use loop='scan', or reverse mode."
_REVERSE = (
    "loop='while' has no reverse-mode derivative of its gradient: use loop='scan', or forward "
    "over reverse, as jax.hessian does."
)


def adaptive(step, params, state, xs, lengths, **static):
    """The ``while`` loop of `actjax.unroll`; `static` as `make_plan` takes it."""
    static["averaged"] = averaged(static["rule"].mean, state)
    step, weights, state, xs, unflatten = flatten(step, params, state, xs)
    final, told, _ = _run(step, weights, state, [], None, xs, lengths, **static)
    ponder = Ponder(told.steps, told.remainder, told.extra)
    return unflatten(final), unflatten(told.states), ponder


def adaptive_layers(step, params, layers: Layers, xs, lengths, **static):
    """The ``while`` loop of `actjax.unroll_layers`; `static` as `make_plan` takes it."""
    batch, time = jax.tree.leaves(xs)[0].shape[:2]
    step, weights, state, below, xs, unflatten = flatten_layers(step, params, layers, xs)
    static["averaged"] = (False,) * len(state)
    _, *outputs = _run(step, weights, state, below, layers.count, xs, lengths, **static)
    told, made = outputs
    length = jnp.full(batch, time) if lengths is None else jnp.clip(lengths, 0, time)
    at_end = lambda leaf: leaf[jnp.arange(batch), length]
    final = Layers(unflatten(list(map(at_end, made))), at_end(told.steps))
    told, made = jax.tree.map(lambda leaf: leaf[:, 1:], (told, made))
    made = Layers(unflatten(made), told.steps, unflatten(told.states))
    return final, made, Ponder(told.steps, told.remainder, told.extra)


def _run(step, weights, state, below, count, xs, lengths, *, lanes, **static):
    """Runs the loop on flat lists of leaves: ``(final_state, told, layers)``, led by [B, T].

    With layers they are led by [B, 1 + T]: what a sequence starts with comes first.
    """
    batch, time = xs[0].shape[:2]
    lengths = jnp.full(batch, time) if lengths is None else jnp.clip(lengths, 0, time)
    # The longest first, which keeps the lanes busy to the end. The empty ones come last, since a
    # lane that has taken one stays idle.
    order = jnp.argsort(-lengths, stable=True) if lanes < batch else jnp.arange(batch)
    xs = [leaf.reshape((batch * time, *leaf.shape[2:])) for leaf in xs]
    data = Data(weights, state, xs, below, count, *map(jnp.int32, (lengths, order)))
    data = vary(data, like_inputs(weights, state, xs, below))
    plan = make_plan(step, data, batch=batch, time=time, lanes=lanes, **static)
    floats, others = divide(data)
    final, *outputs = _adaptive(plan, in_reverse_only(floats, _FORWARD), others)
    by_sequence = lambda leaf: leaf.reshape((batch, len(leaf) // batch, *leaf.shape[1:]))
    return final, *jax.tree.map(by_sequence, outputs)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _adaptive(plan: Plan, floats, others):
    """The loop without a record: ``(final_state, told, layers)``."""
    data = join(floats, others)
    fixed = plan.split.hoist(data.weights)

    def iterations(carry):
        lanes, outputs = carry
        lanes, outputs, _ = advance_block(plan, fixed, data, outputs, lanes)
        return lanes, outputs

    zero = like_inputs(floats)
    lanes = start(plan, data, zero)
    outputs = no_outputs(plan, data, zero)
    lanes, outputs = lax.while_loop(lambda c: _any(c[0].left > 0), iterations, (lanes, outputs))
    told = read_outputs(plan, data, outputs)
    return final_state(plan, data, lanes, told), told, outputs.layers


def _adaptive_forward(plan: Plan, floats, others):
    """The loop with a record of its last segment, and the registers at the start of each."""
    is_primal = lambda leaf: hasattr(leaf, "perturbed")
    unwrap = lambda tree: jax.tree.map(lambda leaf: leaf.value, tree, is_leaf=is_primal)
    data = join(unwrap(floats), unwrap(others))
    fixed = plan.split.hoist(data.weights)
    zero = like_inputs(data.weights, data.state, data.xs, data.below)

    def iterations(carry):
        j, lanes, outputs, kept = carry
        lanes, outputs, rows = advance_block(plan, fixed, data, outputs, lanes)
        return j + plan.block, lanes, outputs, _write_rows(kept, j, rows)

    def one_segment(carry):
        count, _, lanes, outputs, kept, checkpoints = carry
        checkpoints = _write(checkpoints, count, lanes)
        busy = lambda carry: (carry[0] < plan.segment) & _any(carry[1].left > 0)
        j, lanes, outputs, kept = lax.while_loop(busy, iterations, (0, lanes, outputs, kept))
        return count + 1, j, lanes, outputs, kept, checkpoints

    lanes = start(plan, data, zero)
    make = empty if plan.accelerated else blank
    buffer = lambda count, like: make(zero, (count, *like.shape), like.dtype)
    laid = kept_pack(plan)
    kept = list(map(partial(buffer, plan.segment), laid.shapes))
    checkpoints = jax.tree.map(partial(buffer, plan.segments), lanes)
    carry = 0, 0, lanes, no_outputs(plan, data, zero), kept, checkpoints
    if plan.segments == 1:
        carry = one_segment(carry)
    else:
        carry = lax.while_loop(lambda carry: _any(carry[2].left > 0), one_segment, carry)
    count, j, lanes, outputs, kept, checkpoints = carry
    if plan.late is not None and (plan.accelerated or not plan.late.finite_at_zero):
        # The last chunk is filled up with rows that give no NaN by cotangents of zero.
        begin = (j - 1) // plan.chunk * plan.chunk
        rows, row = _read_rows(kept, begin, plan.chunk), _read_rows(kept, j - 1, 1)
        kept = _write_rows(kept, begin, select(begin + jnp.arange(plan.chunk) < j, rows, row))
    told = read_outputs(plan, data, outputs)
    result = final_state(plan, data, lanes, told), told, outputs.layers
    read_again = outputs._replace(told=None) if plan.layers else None
    return result, (data, read_again, count, j, kept, checkpoints)


def _adaptive_backward(plan: Plan, saved, cotangents):
    """Undoes the iterations, the last first, segment by segment."""
    data, outputs, count, j, kept, checkpoints = saved
    fixed = plan.split.hoist(data.weights)
    zero = like_inputs(data.weights, data.state, data.xs, data.below)
    filled = lambda d: blank(zero, d.shape, d.dtype) if isinstance(d, SymbolicZero) else d
    known = lambda d: None if isinstance(d, SymbolicZero) else d
    d_final, d_told, d_layers = cotangents
    d_final, d_states = _of_floats(d_final, data.state), _of_floats(d_told.states, data.state)
    d_states, d_layers = list(map(known, d_states)), list(map(known, d_layers))
    back, d_states = start_back(plan, data, list(map(filled, d_final)), d_states, zero)
    is_blank = lambda d: isinstance(d, SymbolicZero)
    told = jax.tree.map(filled, (d_told.remainder, d_told.extra), is_leaf=is_blank)
    d_told = Told(d_states, *told, None)
    laid, handed_on = kept_pack(plan), pending_pack(plan)
    undo = partial(retreat, plan, fixed, data, outputs, d_told, d_layers)

    def one_chunk(carry):
        """Undoes the iterations from j - 1 back to a multiple of `plan.chunk`, and takes what the
        weights' cotangents need of them in products of many rows."""
        j, back, kept, pending, d_weights = carry
        begin = (j - 1) // plan.chunk * plan.chunk

        def iterations(carry):
            j, back, kept, pending = carry
            j = j - plan.block
            rows = [_read(kept, j + k) for k in range(plan.block)]
            back, new = retreat_block(plan, undo, rows, back)
            if plan.late is None:
                return j, back, kept, reduce(add, reversed(new), pending)
            new = [jnp.stack(rows) for rows in zip(*map(handed_on.pack, new), strict=True)]
            return j, back, kept, _write_rows(pending, j - begin, new)

        carry = j, back, kept, pending
        j, back, kept, pending = lax.while_loop(lambda c: c[0] > begin, iterations, carry)
        if plan.late is not None:
            record, residuals = laid.unpack(_read_rows(kept, begin, plan.chunk))
            new = handed_on.unpack(pending)
            new = weight_cotangents(plan, data, outputs, record, residuals, new)
            d_weights = add(d_weights, new)
        return j, back, kept, pending, d_weights

    def again(carry):
        i, lanes, kept = carry
        lanes, _, rows = advance_block(plan, fixed, data, outputs, lanes, tell=False)
        return i + plan.block, lanes, _write_rows(kept, i, rows)

    def one_segment(carry):
        """Undoes segment `index`, of which j iterations are kept or, where j = 0, none yet."""
        index, j, back, kept, pending, d_weights = carry
        if plan.segments > 1:
            i = jnp.where(j == 0, 0, plan.segment)
            lanes = _read(checkpoints, index)
            _, _, kept = lax.while_loop(lambda c: c[0] < plan.segment, again, (i, lanes, kept))
            j = jnp.where(j == 0, plan.segment, j)
        carry = j, back, kept, pending, d_weights
        return index - 1, *lax.while_loop(lambda c: c[0] > 0, one_chunk, carry)

    d_weights = [
        blank(zero, leaf.shape, halting_dtype(leaf.dtype))
        for leaf in data.weights
        if is_float(leaf)
    ]
    pending = [blank(zero, (plan.chunk, *s.shape), s.dtype) for s in handed_on.shapes]
    if plan.late is None:
        pending, d_weights = d_weights, []
    carry = count - 1, j, back, kept, pending, d_weights
    if plan.segments == 1:
        carry = one_segment(carry)
    else:
        carry = lax.while_loop(lambda carry: carry[0] >= 0, one_segment, carry)
    _, _, back, _, pending, d_weights = carry

    d_weights = pending if plan.late is None else d_weights
    d_state = back.initial if plan.queued else back.state
    d_state = _place(d_state, data.state)
    first = lambda d: d[:: len(d) // plan.batch]
    d_below = [
        d if given is None else d + first(given)
        for d, given in zip(back.begin if plan.queued else back.own, d_layers, strict=True)
    ]
    floats = _place(d_weights, data.weights), d_state, _place(back.xs, data.xs), d_below
    return in_forward_only(floats, _REVERSE), None


_adaptive.defvjp(_adaptive_forward, _adaptive_backward, symbolic_zeros=True)


def _of_floats(cotangents, leaves):
    """The cotangents of the leaves that have one; none where none are given."""
    pairs = zip(cotangents, leaves, strict=bool(cotangents))
    return [d for d, leaf in pairs if is_float(leaf)]


def _place(cotangents, leaves):
    """The cotangents in the places of the leaves that have one."""
    rest = iter(cotangents)
    return [next(rest).astype(leaf.dtype) if is_float(leaf) else None for leaf in leaves]


def _write(buffers, index, rows):
    put = lambda b, r: lax.dynamic_update_index_in_dim(b, r, index, 0)
    return jax.tree.map(put, buffers, rows)


def _write_rows(buffers, index, rows):
    put = lambda b, r: lax.dynamic_update_slice_in_dim(b, r, index, 0)
    return jax.tree.map(put, buffers, rows)


def _read_rows(buffers, index, count):
    return jax.tree.map(lambda b: lax.dynamic_slice_in_dim(b, index, count), buffers)


def _read(buffers, index):
    return jax.tree.map(lambda b: lax.dynamic_index_in_dim(b, index, keepdims=False), buffers)


@custom_vmap
def _any(busy: jax.Array) -> jax.Array:
    return jnp.any(busy)


@_any.def_vmap
def _any_of_all(_, in_batched, busy):
    """One answer for all members of a `vmap`, so that its loop selects over no buffer.

    Members that are done go on with idle lanes, which change nothing.
    """
    return _any(busy), False
