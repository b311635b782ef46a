"""Both loops against the NumPy reference, and what must hold however they run."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import actjax
from actjax._loop.plan import Plan
from tests import reference

B, T, D, H, M = 5, 4, 3, 6, 7
GATES = {"simple": 1, "gru": 3, "lstm": 4}
LENGTHS = [4, 0, 1, 3, 2]


def weights(cell, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    wide = GATES[cell] * H
    shapes = {"kernel": (D, wide), "recurrent": (H, wide), "bias": (wide,), "flag": (wide,)}
    made = {name: 0.7 * rng.standard_normal(shape) for name, shape in shapes.items()}
    made |= {"halt": rng.standard_normal(H), "halt_bias": np.array(-1.0)}
    return {name: value.astype(dtype) for name, value in made.items()}


def inputs(seed=1, dtype=np.float32, batch=B, time=T):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, time, D)).astype(dtype)


def start(cell, seed=2, dtype=np.float32, batch=B):
    rng = np.random.default_rng(seed)
    count = 2 if cell == "lstm" else 1
    return [0.5 * rng.standard_normal((batch, H)).astype(dtype) for _ in range(count)]


def step(cell, w, state, x, first):
    z = x @ w["kernel"] + w["bias"][None] + first[:, None].astype(x.dtype) * w["flag"][None]
    if cell == "simple":
        state = [jnp.tanh(z + state[0] @ w["recurrent"])]
    elif cell == "gru":
        (h,) = state
        a, b = jnp.split(z, 3, axis=-1), jnp.split(h @ w["recurrent"], 3, axis=-1)
        r, u = jax.nn.sigmoid(a[0] + b[0]), jax.nn.sigmoid(a[1] + b[1])
        state = [(1 - u) * jnp.tanh(a[2] + r * b[2]) + u * h]
    else:
        c, h = state
        i, f, g, o = jnp.split(z + h @ w["recurrent"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        state = [c, jax.nn.sigmoid(o) * jnp.tanh(c)]
    return state, jax.nn.sigmoid(state[-1] @ w["halt"] + w["halt_bias"])


def loss(w, state, xs, cell, read=jnp, **options):
    """A loss that looks at everything, and what it looked at."""
    options = {"max_steps": M, **options}
    final, states, ponder = actjax.unroll(partial(step, cell), w, state, xs, **options)
    weight = jnp.arange(1.0, xs.shape[1] + 1, dtype=xs.dtype) / 4
    value = sum(jnp.sin(3 * leaf).sum() for leaf in final)
    value += jnp.cos(2 * states[-1]).sum() + (weight[None] * ponder.remainder).sum()
    return value, (final, states, ponder)


def gradients(cell, w, state, xs, **options):
    function = jax.jit(
        jax.value_and_grad(partial(loss, cell=cell, **options), argnums=(0, 1, 2), has_aux=True)
    )
    (value, record), grads = function(w, state, xs)
    return value, record, grads


def reference_loss(w, state, xs, cell, lengths=None, **options):
    options = {"max_steps": M, "epsilon": 0.01, **options}
    slow_step = partial(getattr(reference, f"{cell}_step"), w)
    states = [[leaf[b] for leaf in state] for b in range(len(xs))]
    final, outputs, steps, remainder = reference.unroll(
        slow_step, states, xs, lengths=lengths, **options
    )
    weight = np.arange(1, xs.shape[1] + 1) / 4
    value = sum(np.sin(3 * leaf).sum() for row in final for leaf in row)
    padded = sum(xs.shape[1] - len(row) for row in outputs) * H
    value += sum(np.cos(2 * state[-1]).sum() for row in outputs for state in row) + padded
    return value + (weight * remainder).sum(), (final, outputs, steps, remainder)


def assert_trees_close(actual, expected, rtol):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1, np.abs(b).max()))


CASES = [
    ("simple", {"loop": "scan", "lengths": LENGTHS}),
    ("gru", {"loop": "scan"}),
    ("simple", {"lengths": LENGTHS}),
    ("gru", {"lanes": 2, "lengths": LENGTHS}),
    ("lstm", {"lanes": 3, "segment": 3}),
    ("lstm", {"segment": 5, "lengths": LENGTHS}),
]


@pytest.mark.parametrize(("cell", "options"), CASES)
def test_matches_the_reference_in_float64(float64, cell, options):
    options = dict(options)
    lengths = options.pop("lengths", None)
    w, state, xs = (
        make(dtype=np.float64) for make in (partial(weights, cell), partial(start, cell), inputs)
    )
    if lengths is not None:
        options["lengths"] = jnp.array(lengths)
    value, (final, states, ponder), grads = gradients(cell, w, state, xs, **options)

    slow = partial(reference_loss, cell=cell, lengths=lengths)
    expected, (slow_final, slow_states, steps, remainder) = slow(w, state, xs)
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    np.testing.assert_array_equal(ponder.steps, steps)
    np.testing.assert_allclose(ponder.remainder, remainder, atol=1e-10)
    assert len(set(steps[steps > 0].tolist())) > 2
    for b, row in enumerate(slow_states):
        assert_trees_close([leaf[b] for leaf in final], slow_final[b], 1e-10)
        for t, state_t in enumerate(row):
            assert_trees_close([leaf[b, t] for leaf in states], state_t, 1e-10)
        assert not any(np.any(leaf[b, len(row) :]) for leaf in states)

    # The gradient, by central differences of the reference along random directions.
    rng = np.random.default_rng(3)
    for _ in range(3):
        direction = jax.tree.map(lambda a: rng.standard_normal(np.shape(a)), (w, state, xs))
        moved = lambda h: slow(*jax.tree.map(lambda a, d: a + h * d, (w, state, xs), direction))  # noqa: B023
        (up, (_, _, steps_up, _)), (down, (_, _, steps_down, _)) = moved(1e-6), moved(-1e-6)
        assert np.array_equal(steps_up, steps) and np.array_equal(steps_down, steps)
        along = sum(
            np.vdot(g, d)
            for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
        )
        np.testing.assert_allclose(along, (up - down) / 2e-6, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("lanes", [None, 2])
def test_while_equals_scan_in_float32(lanes):
    arguments = weights("gru"), start("gru"), inputs()
    lengths = jnp.array(LENGTHS)
    scan = gradients("gru", *arguments, loop="scan", lengths=lengths)
    adaptive = gradients("gru", *arguments, lanes=lanes, lengths=lengths)
    assert_trees_close(adaptive, scan, 1e-5)


@pytest.mark.parametrize(
    ("halt_bias", "max_steps", "steps"), [(9.0, M, 1), (-20.0, M, M), (0.0, 1, 1)]
)
def test_edges_of_the_rule(halt_bias, max_steps, steps):
    w = weights("simple") | {"halt_bias": np.float32(halt_bias), "halt": np.zeros(H, np.float32)}
    runs = [
        gradients("simple", w, start("simple"), inputs(), loop=loop, max_steps=max_steps)
        for loop in ("scan", "while")
    ]
    assert_trees_close(runs[1], runs[0], 1e-5)
    ponder = runs[1][1][2]
    assert (ponder.steps == steps).all()
    if steps == 1:
        np.testing.assert_array_equal(ponder.cost, 2)


def test_one_example_alone_is_the_same_as_in_a_batch():
    w, state, xs = weights("lstm"), start("lstm"), inputs()
    _, states, ponder = jax.jit(partial(loss, cell="lstm", lanes=2))(w, state, xs)[1]
    alone = jax.jit(partial(loss, cell="lstm"))
    for b in range(B):
        one = slice(b, b + 1)
        _, states_one, ponder_one = alone(w, [leaf[one] for leaf in state], xs[one])[1]
        assert_trees_close([leaf[one] for leaf in states], states_one, 1e-6)
        np.testing.assert_array_equal(ponder.steps[one], ponder_one.steps)


def test_neither_padding_nor_the_order_of_the_queue_changes_anything():
    w, state, xs = weights("gru"), start("gru"), inputs()
    lengths = jnp.array(LENGTHS)
    run = jax.jit(
        jax.value_and_grad(partial(loss, cell="gru", lanes=2), argnums=(0, 1, 2), has_aux=True)
    )
    (value, record), grads = run(w, state, xs, lengths=lengths)
    padded = xs.copy()
    for b, length in enumerate(LENGTHS):
        padded[b, length:] = 1e3
    (value_padded, record_padded), grads_padded = run(w, state, padded, lengths=lengths)
    assert_trees_close((value_padded, record_padded), (value, record), 1e-6)
    assert_trees_close(grads_padded, grads, 1e-6)
    assert not np.any(grads_padded[2][np.arange(T) >= np.array(LENGTHS)[:, None]])

    order = np.array([3, 1, 4, 0, 2])
    shuffled = [leaf[order] for leaf in state]
    (value_shuffled, _), grads_shuffled = run(w, shuffled, xs[order], lengths=lengths[order])
    np.testing.assert_allclose(value_shuffled, value, rtol=1e-5)
    assert_trees_close(grads_shuffled[0], grads[0], 1e-5)


def test_vmap_over_an_ensemble_copies_no_buffer():
    members = [weights("simple", seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    state, xs = start("simple"), inputs()
    one = jax.grad(lambda w: loss(w, state, xs, cell="simple", lanes=3, segment=4)[0])
    together = jax.jit(jax.vmap(one))
    result = together(stacked)
    alone = jax.jit(one)
    for i, member in enumerate(members):
        assert_trees_close(jax.tree.map(lambda leaf: leaf[i], result), alone(member), 1e-5)  # noqa: B023

    # A batched predicate would put a select over every carried buffer into the loop's body.
    jaxpr = jax.make_jaxpr(jax.vmap(one))(stacked)
    assert all(not eqn.params["cond_jaxpr"].out_avals[0].shape for eqn in _whiles(jaxpr.jaxpr))
    assert len(list(_whiles(jaxpr.jaxpr))) >= 4


def _whiles(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "while":
            yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value if hasattr(value, "eqns") else None)
            if inner is not None and hasattr(inner, "eqns"):
                yield from _whiles(inner)


def test_inside_scan_checkpoint_and_forward_over_reverse():
    w, state, xs = weights("simple"), start("simple"), inputs()

    def nested(recurrent, loop):
        inner = jax.checkpoint(
            lambda r: loss(w | {"recurrent": r}, state, xs, cell="simple", loop=loop)[0]
        )
        body = lambda total, _: (total + inner(recurrent * (1 + 1e-3 * total)), None)
        return jax.lax.scan(body, 0.0, None, length=2)[0]

    grads = [
        jax.jit(jax.grad(partial(nested, loop=loop)))(w["recurrent"]) for loop in ("scan", "while")
    ]
    assert_trees_close(grads[1], grads[0], 1e-4)

    def product(loop):
        """Forward mode by more than reverse mode was asked for."""
        given, run = (w["bias"], state, xs), partial(loss, cell="simple", loop=loop)
        gradient = jax.grad(lambda b, state, xs: run(w | {"bias": b}, state, xs)[0])
        return jax.jit(lambda *given: jax.jvp(gradient, given, given)[1])(*given)

    assert_trees_close(product("while"), product("scan"), 1e-4)


def test_what_the_step_closes_over_has_its_gradient():
    w, state, xs = weights("simple"), start("simple"), inputs()

    def closed(recurrent, loop):
        inner = lambda params, *rest: step("simple", params | {"recurrent": recurrent}, *rest)
        rest = {name: leaf for name, leaf in w.items() if name != "recurrent"}
        return actjax.unroll(inner, rest, state, xs, max_steps=M, loop=loop)[1][0].sum()

    grads = [
        jax.jit(jax.grad(partial(closed, loop=loop)))(w["recurrent"]) for loop in ("scan", "while")
    ]
    assert np.abs(grads[0]).max() > 0.1
    assert_trees_close(grads[1], grads[0], 1e-5)


def test_a_step_whose_rows_cannot_be_batched():
    """A step that only takes the rows it was made for adds its weight gradients as it goes."""
    state, xs, mask = start("simple"), inputs(), np.linspace(0.5, 1, B, dtype=np.float32)[:, None]

    def fussy(w, state, x, first):
        (new,), halt = step("simple", w, state, x * mask, first)
        return [new], halt

    def total(w, loop):
        return actjax.unroll(fussy, w, state, xs, max_steps=M, loop=loop)[1][0].sum()

    grads = [
        jax.jit(jax.grad(partial(total, loop=loop)))(weights("simple"))
        for loop in ("scan", "while")
    ]
    assert_trees_close(grads[1], grads[0], 1e-5)


def test_integer_inputs_and_ponder():
    table = np.random.default_rng(0).standard_normal((9, H)).astype(np.float32)
    w, tokens = weights("simple"), np.array([1, 8, 3, 3, 0])

    def lookup(params, state, x, first):
        table, w = params
        new = jnp.tanh(table[x] + state @ w["recurrent"])
        return new, jax.nn.sigmoid(new @ w["halt"] + w["halt_bias"])

    def total(params, loop):
        final, record = actjax.ponder(
            lookup, params, jnp.zeros((B, H)), tokens, max_steps=M, loop=loop
        )
        assert final.shape == (B, H) and record.steps.shape == (B,)
        return (final**2).sum() + record.cost.sum()

    grads = [jax.jit(jax.grad(partial(total, loop=loop)))((table, w)) for loop in ("scan", "while")]
    assert_trees_close(grads[1], grads[0], 1e-5)


def test_steps_do_not_recompile():
    traced = []

    def counted(w, state, x, first):
        traced.append(None)
        return step("simple", w, state, x, first)

    run = jax.jit(lambda w, xs: actjax.unroll(counted, w, start("simple"), xs, max_steps=M)[2])
    first = run(weights("simple"), inputs())
    count = len(traced)
    second = run(weights("simple", seed=7), inputs(seed=8))
    assert len(traced) == count
    assert not np.array_equal(first.steps, second.steps)


def test_iterations_follow_the_work_and_memory_does_not_grow_with_the_limit(monkeypatch):
    sizes = {}
    for limit in (10, 1000):
        plans = []
        made = Plan.__init__
        monkeypatch.setattr(
            Plan,
            "__init__",
            lambda self, *a, **k: (made(self, *a, **k), plans.append(self))[0],  # noqa: B023
        )
        jax.eval_shape(
            partial(loss, cell="gru", max_steps=limit), weights("gru"), start("gru"), inputs()
        )
        monkeypatch.undo()
        (plan,) = plans
        assert plan.segment * plan.segments * plan.lanes >= B * T * limit
        sizes[limit] = plan.segment + plan.segments
    assert sizes[10] <= T * 10 + 2 and sizes[1000] < T * 1000 / 10


def test_forward_mode_is_refused_in_a_sentence():
    bias = weights("simple")["bias"]

    def run(b):
        w = weights("simple") | {"bias": b}
        return loss(w, start("simple"), inputs(), cell="simple")[0]

    with pytest.raises(TypeError, match="loop='scan'"):
        jax.jvp(run, (bias,), (bias,))


def test_implicit_differentiation_outside_of_jit_is_reverse_mode():
    def run(b):
        w = weights("simple") | {"bias": b}
        return loss(w, start("simple"), inputs(), cell="simple")[0]

    def solved(b):  # x = run(b)
        newton = lambda f, x: run(b)
        return jax.lax.custom_root(lambda x: x - run(b), 0.0, newton, lambda g, y: y / g(1.0))

    bias = weights("simple")["bias"]
    np.testing.assert_allclose(jax.grad(solved)(bias), jax.grad(run)(bias), rtol=1e-6)
