"""The modules: what they compute with, what they refuse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import actjax
from tests import reference

pytestmark = pytest.mark.usefixtures("quick_compilation")
CELLS = [nnx.SimpleCell, nnx.GRUCell, nnx.LSTMCell, nnx.OptimizedLSTMCell]
XS = jax.random.normal(jax.random.key(0), (3, 4, 5))


class OddCell(nnx.SimpleCell):
    """A cell that `actjax` does not know, whose output is not part of its carry."""

    def __call__(self, carry, inputs):
        carry, y = super().__call__(carry, inputs)
        return carry, 2 * y


def naive(model, xs, max_steps=6):
    """ACT by calling the module's cell on the input with its flag, one example at a time."""
    outputs, steps = [], []
    for x in xs:
        carry = jax.tree.map(lambda leaf: leaf[:1], model.initial_state(1))

        def step(state, x, first):
            carry = jax.tree.unflatten(tree, [leaf[None] for leaf in state[:-1]])  # noqa: B023
            carry, y = model.cell(carry, jnp.append(x, float(first))[None])
            halt = float(jax.nn.sigmoid(model.halt(y))[0, 0])
            return [leaf[0] for leaf in (*jax.tree.leaves(carry), y)], halt

        leaves, tree = jax.tree.flatten(carry)
        state, row = [leaf[0] for leaf in leaves] + [None], []
        for t in range(x.shape[0]):
            state, n, _, _ = reference.ponder_one(
                step, state, x[t], max_steps=max_steps, epsilon=0.01
            )
            row.append(state[-1])
            steps.append(n)
        outputs.append(jnp.stack(row))
    return jnp.stack(outputs), np.reshape(steps, xs.shape[:2])


@pytest.mark.parametrize("cell", [*CELLS, OddCell])
def test_act_is_the_cell_pondered(cell):
    model = actjax.ACT(5, 6, cell=cell, max_steps=6, halt_bias=-1.0, rngs=nnx.Rngs(1))
    model.halt.kernel = nnx.Param(3 * model.halt.kernel[...])
    _, outputs, ponder = jax.jit(lambda model: model(XS))(model)
    expected, steps = naive(model, XS)
    np.testing.assert_array_equal(ponder.steps, steps)
    np.testing.assert_allclose(outputs, expected, atol=2e-6)
    assert len(set(steps.ravel().tolist())) > 1


def test_repeat_and_the_plain_rnn():
    plain = actjax.RNN(5, 6, cell=nnx.OptimizedLSTMCell, rngs=nnx.Rngs(2))
    once = actjax.Repeat(5, 6, cell=nnx.OptimizedLSTMCell, repeats=1, flag=False, rngs=nnx.Rngs(2))
    carry, rows = plain.initial_state(3), []
    for t in range(4):
        carry, y = plain.cell(carry, XS[:, t])
        rows.append(y)
    for model in (plain, once):
        final, outputs, ponder = model(XS)
        np.testing.assert_allclose(outputs, jnp.stack(rows, 1), atol=1e-6)
        np.testing.assert_allclose(final[0], carry[0], atol=1e-6)
        assert (ponder.steps == 1).all() and (ponder.cost == 1).all()

    thrice = actjax.Repeat(5, 6, repeats=3, rngs=nnx.Rngs(3))
    h = thrice.initial_state(3)
    lengths = jnp.array([4, 0, 2])
    final, outputs, ponder = thrice(XS, lengths=lengths)
    for t in range(4):
        new = h
        for n in range(3):
            flag = jnp.full((3, 1), float(n == 0))
            new, _ = thrice.cell(new, jnp.concatenate([XS[:, t], flag], -1))
        live = (t < lengths)[:, None]
        h = jnp.where(live, new, h)
        np.testing.assert_allclose(outputs[:, t], jnp.where(live, new, 0), atol=1e-6)
    np.testing.assert_allclose(final, h, atol=1e-6)
    np.testing.assert_array_equal(ponder.steps, [[3] * 4, [0] * 4, [3, 3, 0, 0]])


def test_the_state_carries_over_and_gradients_reach_everything():
    model = actjax.ACT(5, 6, max_steps=6, halt_bias=-1.0, rngs=nnx.Rngs(1))

    def whole(model, xs, state):
        final, outputs, ponder = model(xs, initial_state=state)
        return (outputs**2).sum() + ponder.cost.sum(), (final, outputs)

    run = jax.jit(jax.value_and_grad(whole, argnums=(0, 1, 2), has_aux=True))
    state = jax.random.normal(jax.random.key(1), (3, 6))
    (_, (final, outputs)), grads = run(model, XS, state)
    middle, first, _ = model(XS[:, :2], initial_state=state)
    end, second, _ = model(XS[:, 2:], initial_state=middle)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), outputs, atol=1e-6)
    np.testing.assert_allclose(end, final, atol=1e-6)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


def test_bfloat16_computes_halting_in_float32():
    model = actjax.ACT(5, 6, max_steps=6, halt_bias=-1.0, dtype=jnp.bfloat16, rngs=nnx.Rngs(1))

    def run(model, loop):
        model.loop = loop
        _, outputs, ponder = model(XS)
        return outputs.astype(jnp.float32).sum() + ponder.cost.sum(), (outputs, ponder)

    results = {}
    for loop in ("scan", "while"):
        function = jax.jit(
            jax.value_and_grad(lambda model, loop=loop: run(model, loop), has_aux=True)
        )
        (_, (outputs, ponder)), _ = results[loop] = function(model)
        assert outputs.dtype == jnp.bfloat16 and ponder.remainder.dtype == jnp.float32
    for a, b in zip(
        jax.tree.leaves(results["while"]), jax.tree.leaves(results["scan"]), strict=True
    ):
        scale = max(1.0, float(jnp.abs(b.astype(jnp.float32)).max()))
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=0.02 * scale)


def test_an_ensemble_is_a_pytree_of_models():
    make = lambda key: actjax.ACT(5, 6, max_steps=6, halt_bias=-1.0, rngs=nnx.Rngs(key))
    keys = jax.random.split(jax.random.key(0), 2)
    together = jax.jit(jax.vmap(lambda model: model(XS)[1]))(jax.vmap(make)(keys))
    for i in range(2):
        np.testing.assert_allclose(together[i], make(keys[i])(XS)[1], atol=1e-6)


def step(params, state, x, first):
    return state, jax.nn.sigmoid(state[:, 0])


STATE, X = jnp.zeros((2, 3)), jnp.zeros((2, 4, 1))
REFUSED = [
    (dict(max_steps=0), "max_steps must be an integer of at least 1, got 0"),
    (dict(max_steps=2.5), "max_steps must be an integer"),
    (dict(epsilon=0.0), "epsilon must be a number strictly between 0 and 1, got 0.0"),
    (dict(epsilon=1), "epsilon must be"),
    (dict(loop="for"), "loop must be 'while' or 'scan', got 'for'"),
    (dict(lanes=0), "lanes must be an integer of at least 1, got 0"),
    (dict(segment=-3), "segment must be"),
    (dict(lengths=jnp.array([1, 5])), "lengths must lie between 0 and the 4 inputs given, got 5"),
    (dict(lengths=jnp.array([-1, 2])), "got -1"),
    (dict(lengths=jnp.array([1.0, 2.0])), "lengths must be 2 integers"),
    (dict(lengths=jnp.array([1])), "lengths must be 2 integers"),
    (
        dict(xs=jnp.zeros((2,))),
        r"xs must hold arrays of shape \[batch, time, ...\], got shape \(2,\)",
    ),
    (dict(xs=()), "xs must hold at least one array"),
    (dict(xs=jnp.zeros((0, 4, 1))), "xs must not be empty"),
    (dict(xs=(X, jnp.zeros((3, 4)))), "xs must agree on the leading axes"),
    (dict(state=jnp.zeros((3, 3))), "state must hold arrays that lead with the batch size 2"),
    (dict(state=jnp.zeros((2, 3), int)), "state must hold floating-point arrays"),
    (dict(state=()), "state must hold at least one array"),
    (dict(step=lambda p, s, x, f: s), "step must return"),
    (dict(step=lambda p, s, x, f: (s[:, :2], s[:, 0])), "step must return a state of the same"),
    (dict(step=lambda p, s, x, f: (s, s)), "step must return one float halting probability"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED)
def test_bad_input_is_refused_in_a_sentence(changed, message):
    arguments = dict(step=step, params=(), state=STATE, xs=X, max_steps=3) | changed
    positional = [arguments.pop(name) for name in ("step", "params", "state", "xs")]
    with pytest.raises(ValueError, match=message):
        actjax.unroll(*positional, **arguments)


def test_modules_refuse_too():
    make = lambda **options: actjax.ACT(5, 6, rngs=nnx.Rngs(0), **options)
    for options in (dict(max_steps=0), dict(epsilon=2.0), dict(loop="x")):
        with pytest.raises(ValueError, match=next(iter(options))):
            make(**options)
    with pytest.raises(ValueError, match=r"xs must have shape \[batch, time, 5\]"):
        make()(jnp.zeros((2, 4, 3)))
    with pytest.raises(ValueError, match="repeats must be an integer of at least 1, got 0"):
        actjax.Repeat(5, 6, repeats=0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="hidden_features"):
        actjax.RNN(5, 0, rngs=nnx.Rngs(0))


def test_initial_states_that_do_not_fit_are_refused():
    lstm = actjax.ACT(5, 6, cell=nnx.OptimizedLSTMCell, rngs=nnx.Rngs(0))
    layered = actjax.LFACT(5, 6, max_layers=4, rngs=nnx.Rngs(0))
    other = actjax.LFACT(5, 6, max_layers=3, rngs=nnx.Rngs(0))
    for model, state in (
        (lstm, lstm.initial_state(2)),
        (lstm, jnp.zeros((3, 6))),
        (actjax.RNN(5, 6, rngs=nnx.Rngs(0)), jnp.zeros((3, 5))),
        (layered, other.initial_state(3)),
        (layered, layered.initial_state(2)),
        (layered, jnp.zeros((3, 6))),
    ):
        with pytest.raises(ValueError, match="initial_state must hold arrays of shapes"):
            model(XS, initial_state=state)


@pytest.mark.parametrize(("cell", "dtype"), [(nnx.GRUCell, jnp.bfloat16), (OddCell, None)])
def test_lfact_takes_its_own_initial_state(cell, dtype):
    model = actjax.LFACT(5, 6, cell=cell, max_layers=3, dtype=dtype, rngs=nnx.Rngs(0))
    run = jax.jit(lambda state: model(XS, initial_state=state))
    start = model.initial_state(3)
    final, outputs, _ = run(start)
    single = start._replace(states=jax.tree.map(lambda s: s.astype(jnp.float32), start.states))
    for given in (None, single):
        np.testing.assert_array_equal(run(given)[1], outputs)
    assert run(final)[1].shape == outputs.shape


def test_more_is_refused_in_a_sentence():
    for x in (1.0, jnp.zeros((0, 2))):
        with pytest.raises(ValueError, match="x must"):
            actjax.ponder(step, (), STATE, x, max_steps=3)
    with pytest.raises(ValueError, match=r"^x must hold arrays of shape \[batch, ...\]"):
        actjax.ponder(step, (), STATE, 1.0, max_steps=3)
    with pytest.raises(ValueError, match="step must return a state of the same"):
        actjax.repeat(lambda p, s, x, f: (s[:, :2], s[:, 0]), (), STATE, X, repeats=2)
    with pytest.raises(ValueError, match="floating-point arrays, through which gradients flow"):
        actjax.repeat(step, (), STATE.astype(int), X, repeats=2)
    with pytest.raises(ValueError, match="layers must hold floating-point states"):
        mixed = actjax.Layers((jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), int)), jnp.ones(2, int))
        actjax.unroll_layers(lambda p, s, x, b, n: (s, s[0][:, 0]), (), mixed, X)
    with pytest.raises(ValueError, match="epsilon must be"):
        actjax.halting_weights(jnp.ones(3), epsilon=2.0)
    with pytest.raises(ValueError, match=r"halts must have shape \[..., M\]"):
        actjax.halting_weights(jnp.ones((3, 0)))
    for model in (actjax.ACT, partial(actjax.LFACT, max_layers=2)):
        with pytest.raises(ValueError, match="lanes must be an integer of at least 1, got -1"):
            model(5, 6, lanes=-1, rngs=nnx.Rngs(0))
    rule = actjax.halting_weights(jnp.full(3, 0.5), epsilon=np.float32(0.01))
    assert rule.steps == 2


@pytest.mark.parametrize("cell", [nnx.SimpleCell, nnx.GRUCell, nnx.OptimizedLSTMCell, nnx.LSTMCell])
@pytest.mark.parametrize("kind", ["act", "repeat"])
def test_units_added_for_the_products_change_no_number(monkeypatch, kind, cell):
    """As on a GPU, where a size that is no multiple of 64 is computed at one that is."""
    from actjax.nn import act

    make = actjax.ACT if kind == "act" else actjax.Repeat
    limit = {"max_steps": 3} if kind == "act" else {"repeats": 2}
    model = make(5, 6, cell=cell, **limit, rngs=nnx.Rngs(0))
    start = jax.tree.map(lambda s: s + 0.1, model.initial_state(3))

    def total(model, xs, start):
        final, outputs, ponder = model(xs, initial_state=start)
        assert outputs.shape[-1] == 6
        return (outputs**2).sum() + ponder.remainder.sum(), (final, ponder)

    results = []
    for size in (6, 10):
        monkeypatch.setattr(act, "wanted", lambda features: size)  # noqa: B023
        run = jax.value_and_grad(lambda *given: total(*given), argnums=(0, 1, 2), has_aux=True)
        results.append(jax.jit(run)(model, XS, start))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *results)
