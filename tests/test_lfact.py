"""Layer-flexible ACT against loops in NumPy, its degenerate cases, and an example by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import actjax
from actjax import Layers
from actjax.nn.attention import Attention, transmission
from tests import reference

pytestmark = pytest.mark.usefixtures("quick_compilation")
B, T, D, H, L = 4, 5, 3, 6, 4
LENGTHS = [5, 0, 2, 4]
XS = np.random.default_rng(0).standard_normal((B, T, D)).astype(np.float32)


def make(dtype=jnp.float32, **options):
    """A model whose weights are large enough for N to differ from input to input."""
    options = {"max_layers": L, "halt_bias": 0.1, **options}
    model = actjax.LFACT(D, H, rngs=nnx.Rngs(3), **options)
    return jax.tree.map(lambda leaf: (3 * leaf).astype(dtype), model)


def weights(model):
    """The model's weights under the names of the reference, float64."""
    cell, both = model.cell, model.combine.both
    found = {
        "kernel": cell.dense_i.kernel,
        "bias": cell.dense_i.bias,
        "recurrent": cell.dense_h.kernel,
        "flag": 0,
        "halt": np.zeros(H),
        "halt_bias": 0,
        "w1": both.primary.kernel,
        "b": both.primary.bias,
        "w2": both.transmitted.kernel,
        "wh": model.halt.primary.kernel[:, 0],
        "bh": model.halt.primary.bias[0],
        "vh": model.halt.transmitted.kernel[:, 0],
        **{name: getattr(model, name) for name in ("query", "key", "score", "score_bias")},
    }
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


def starts():
    """Layers before the first input, a different number for each sequence."""
    rng = np.random.default_rng(5)
    counts = [1, 4, 2, 3]
    listed = [[rng.standard_normal(H) / 2 for _ in range(count)] for count in counts]
    states = np.zeros((B, L, H), np.float32)
    for b, layers in enumerate(listed):
        states[b, : len(layers)] = layers
    return listed, Layers(jnp.asarray(states), jnp.array(counts))


@pytest.mark.parametrize("attend", ["all", "lower"])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_both_loops_agree_with_the_reference(attend, lengths):
    listed, start = starts()
    model = make(attend=attend)
    final, rows, steps, remainder = reference.lfact(
        weights(model), reference.gru_step, listed, XS, max_layers=L, attend=attend, lengths=lengths
    )
    assert len(np.unique(steps)) > 2  # the example is worth its name
    length = None if lengths is None else jnp.array(lengths)
    for options in ({"loop": "scan"}, {}, {"lanes": 2}):
        for name, value in options.items():
            setattr(model, name, value)
        run = jax.jit(lambda model: model.layers(XS, initial_state=start, lengths=length))
        found_final, layers, ponder = run(model)
        np.testing.assert_array_equal(ponder.steps, steps)
        np.testing.assert_array_equal(layers.count, steps)
        np.testing.assert_allclose(ponder.remainder, remainder, atol=1e-5)
        for b in range(B):
            for t, row in enumerate(rows[b]):
                np.testing.assert_allclose(layers.states[b, t, : len(row)], row, atol=1e-5)
                assert not layers.states[b, t, len(row) :].any()
            np.testing.assert_allclose(found_final.states[b, : len(final[b])], final[b], atol=1e-5)
            assert int(found_final.count[b]) == len(final[b])


def objective(model, xs, start, lengths=None):
    final, layers, ponder = model.layers(xs, initial_state=start, lengths=lengths)
    weight = jnp.arange(1.0, L + 1)[None, None, :, None]
    leaves = jax.tree.leaves(layers.states)
    value = sum((weight * jnp.sin(2 * leaf)).sum() for leaf in leaves)
    value += jnp.cos(jax.tree.leaves(final.deepest)[-1]).sum()
    value += sum((3 * leaf * leaf).sum() for leaf in jax.tree.leaves(layers.deepest))
    return value + (jnp.arange(1.0, xs.shape[1] + 1)[None] * ponder.remainder).sum()


@pytest.mark.parametrize(
    ("cell", "options"),
    [(nnx.GRUCell, {}), (nnx.OptimizedLSTMCell, {"combine": "mlp", "attend": "lower"})],
)
def test_gradients_of_the_loops_agree(cell, options):
    model = make(cell=cell, **options)
    start = model.initial_state(B)
    lengths = jnp.array(LENGTHS)
    differentiate = jax.jit(jax.value_and_grad(objective, argnums=(0, 1, 2), allow_int=True))
    results = []
    for setting in ({"loop": "scan"}, {"loop": "while"}, {"lanes": 3}):
        for name, value in setting.items():
            setattr(model, name, value)
        results.append(differentiate(model, XS, start, lengths))
    for result in results[1:]:
        for slow, fast in zip(jax.tree.leaves(results[0]), jax.tree.leaves(result), strict=True):
            if slow.dtype == jax.dtypes.float0:
                continue
            scale = max(1.0, float(abs(slow).max()))
            np.testing.assert_allclose(fast, slow, atol=1e-5 * scale)


def test_gradients_agree_with_finite_differences():
    with jax.enable_x64(True):
        model = make(jnp.float64)
        xs, (_, start) = jnp.asarray(XS, jnp.float64), starts()
        start = start._replace(states=start.states.astype(jnp.float64))
        gradient = jax.jit(jax.grad(objective))(model, xs, start)
        value = jax.jit(objective)
        rng = np.random.default_rng(1)
        direction = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape)), model)
        along = sum(map(jnp.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
        moved = lambda size: jax.tree.map(lambda leaf, d: leaf + size * d, model, direction)
        slope = (value(moved(1e-6), xs, start) - value(moved(-1e-6), xs, start)) / 2e-6
        np.testing.assert_allclose(along, slope, rtol=1e-6)


def test_one_layer_is_one_recurrence_without_ponder():
    """L = 1: u_t = f(x_t, g(u_{t-1}, u_{t-1})), with N = R = 1."""
    model = make(max_layers=1)
    _, outputs, ponder = model(XS)
    w, rows = weights(model), []
    u = np.zeros((B, H))
    for t in range(T):
        v = reference.sigmoid(u @ w["w1"] + u @ w["w2"] + w["b"])
        u = np.stack([reference.gru_step(w, [v[b]], XS[b, t], 0)[0][0] for b in range(B)])
        rows.append(u)
    np.testing.assert_allclose(outputs, np.stack(rows, 1), atol=1e-5)
    assert (np.asarray(ponder.steps) == 1).all() and (np.asarray(ponder.remainder) == 1).all()


@pytest.mark.parametrize("masked", [False, True])
def test_attention_over_a_single_state_returns_it(masked):
    keys = jax.random.split(jax.random.key(0), 4)
    attention = Attention(
        *(50 * jax.random.normal(key, (H,)) for key in keys[:3]), jnp.ones((L, H))
    )
    states = jax.random.normal(keys[3], (B, L, H))
    below = Layers(states, jnp.ones(B, int))
    given = transmission(attention, states[:, 1], below, jnp.array([1, 2, 3, 4]), masked=masked)
    np.testing.assert_array_equal(given, states[:, 0])


@pytest.mark.parametrize("masked", [False, True])
def test_lower_layers_are_all_layers_once_n_reaches_them(masked):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    attention = Attention(draw(H), draw(H), draw(H), draw(L, H))
    below = Layers(draw(B, L, H), jnp.array([1, 2, 3, 4]))
    query = draw(B, H)
    give = lambda n, attend: transmission(
        attention, query, below, jnp.full(B, n), attend=attend, masked=masked
    )
    np.testing.assert_array_equal(give(4, "lower"), give(4, "all"))
    np.testing.assert_array_equal(give(1, "lower"), below.states[:, 0])
    assert (np.abs(give(2, "lower") - give(2, "all")).max(-1) > 1e-3).tolist() == [0, 0, 1, 1]


def test_two_inputs_of_two_layers_by_hand():
    """One feature; a cell that adds its input; sigma the identity; every weight 1, every bias 0.

    h = .5 always, so two layers halt (.5 + .5 >= 1 - epsilon); attention is even (V_n = 0).
    t = 1, x = 1: below {0}.    U = 0; u^1 = 0 + 0 + 1 = 1;         U = 0; u^2 = 1 + 0 + 1 = 2.
    t = 2, x = 3: below {1, 2}. U = 1.5; u^1 = 2 + 1.5 + 3 = 6.5;   u^2 = 6.5 + 1.5 + 3 = 11.
    """

    class Adder(nnx.Module):
        def __init__(self, in_features, hidden_features, *, rngs):
            pass

        def initialize_carry(self, shape, rngs):
            return jnp.zeros((shape[0], 1))

        def __call__(self, carry, x):
            return carry + x, carry + x

    for loop in ("scan", "while"):
        model = actjax.LFACT(
            1, 1, cell=Adder, max_layers=3, activation=lambda z: z, loop=loop, rngs=nnx.Rngs(0)
        )
        model.combine = jax.tree.map(jnp.ones_like, model.combine)
        model.combine.both.primary.bias = nnx.Param(jnp.zeros(1))
        model.halt = jax.tree.map(jnp.zeros_like, model.halt)
        model.score = nnx.Param(jnp.zeros((3, 1)))
        _, layers, ponder = model.layers(jnp.array([[[1.0], [3.0]]]))
        assert layers.states[0, :, :, 0].tolist() == [[1, 2, 0], [6.5, 11, 0]]
        assert ponder.steps.tolist() == [[2, 2]] and ponder.remainder.tolist() == [[0.5, 0.5]]


def test_a_sequence_can_be_continued_and_padding_changes_nothing():
    model = make()
    whole_final, whole, _ = model(XS)
    middle, first, _ = model(XS[:, :2])
    final, second, _ = model(XS[:, 2:], initial_state=middle)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, atol=1e-6)
    np.testing.assert_allclose(final.states, whole_final.states, atol=1e-6)
    padded = np.where(np.arange(T)[:, None] < np.array(LENGTHS)[:, None, None], XS, np.nan)
    _, cut, _ = model(padded, lengths=jnp.array(LENGTHS))
    for b, length in enumerate(LENGTHS):
        np.testing.assert_allclose(cut[b, :length], whole[b, :length], atol=1e-6)
        assert not cut[b, length:].any()


def test_it_runs_under_vmap_and_in_bfloat16():
    models = jax.vmap(lambda key: actjax.LFACT(D, H, max_layers=L, rngs=nnx.Rngs(key)))(
        jax.random.split(jax.random.key(0), 2)
    )
    many = jax.jit(jax.vmap(jax.grad(objective), in_axes=(0, None, None)))
    start = make().initial_state(B)
    together = many(models, XS, start)
    one = jax.jit(jax.grad(objective))
    for index in range(2):
        alone = one(jax.tree.map(lambda m, i=index: m[i], models), XS, start)
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(b[index], a, atol=1e-4)
    half = actjax.LFACT(D, H, max_layers=L, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    _, outputs, ponder = half(jnp.asarray(XS, jnp.bfloat16))
    assert outputs.dtype == jnp.bfloat16 and ponder.remainder.dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_layers": 0}, "max_layers must be an integer of at least 1, got 0"),
        ({"combine": "sum"}, "combine must be 'affine' or 'mlp', got 'sum'"),
        ({"attend": "deepest"}, "attend must be 'all' or 'lower', got 'deepest'"),
        ({"epsilon": 1.0}, "epsilon must be a number strictly between 0 and 1, got 1.0"),
    ],
)
def test_a_model_that_cannot_be_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**options)


def test_layers_that_cannot_be_are_refused():
    step = lambda params, state, x, below, n: (state, state[:, 0])
    run = lambda layers: actjax.unroll_layers(step, (), layers, XS)
    with pytest.raises(ValueError, match="must count between 1 and the limit 3, got 0"):
        run(Layers(jnp.zeros((B, 3, H)), jnp.zeros(B, int)))
    with pytest.raises(ValueError, match="must count 4 integers"):
        run(Layers(jnp.zeros((B, 3, H)), jnp.zeros(B)))
    with pytest.raises(ValueError, match="must be a Layers record, got"):
        run(jnp.zeros((B, 3, H)))
