"""The gradient of meta-training, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from actjax.learned import Graves, HorizonPrior, LearnedOptimizer, Softmax, meta, summed_loss
from actjax.learned.problems import regression
from actjax.learned.training import halting_objective, init_meta, make_meta_step
from actjax.training import fit
from tests.test_learned_optimizer import FAMILY, POSTERIOR, head, network

pytestmark = pytest.mark.usefixtures("quick_compilation")


def unrolled(learned, steps, second_order, chunk=None):
    rollout = meta.start(learned.network, FAMILY, jax.random.key(0), 4)
    return meta.unroll(learned, FAMILY, rollout, steps, second_order=second_order, chunk=chunk)


def test_second_order_gradient_is_the_true_one():
    learned = LearnedOptimizer(network())

    @jax.jit
    def loss(scale):
        moved = jax.tree.map(lambda leaf: leaf * scale, learned)
        return unrolled(moved, 4, True)[1].losses.sum(0).mean()

    with jax.enable_x64(True):
        step = 1e-3
        found = float(jax.grad(loss)(jnp.float32(1.0)))
        numeric = float(loss(jnp.float32(1 + step)) - loss(jnp.float32(1 - step))) / (2 * step)
    assert found == pytest.approx(numeric, rel=2e-2)


def test_first_order_gradient_takes_the_optimizees_gradients_as_constants():
    learned = LearnedOptimizer(network())
    _, curves = jax.jit(lambda o: unrolled(o, 4, False))(learned)

    def by_hand(learned):
        """The same unroll, differentiated by JAX with stop_gradient alone."""
        r = meta.start(learned.network, FAMILY, jax.random.key(0), 4)
        total, params, memory, gradient = 0.0, r.params, r.memory, r.gradient
        for n in range(4):
            memory, update = learned.network(memory, meta.coordinates(gradient))
            params = params + update.reshape(params.shape)
            losses, gradient = meta.evaluate(FAMILY, params, r.data, r.keys, n + 1)
            gradient, total = jax.lax.stop_gradient(gradient), total + losses
        return total.mean()

    value, wanted = jax.jit(jax.value_and_grad(by_hand))(learned)
    np.testing.assert_allclose(value, curves.losses.sum(0).mean(), rtol=1e-5)
    for chunk in (None, 2):
        found = jax.jit(
            jax.grad(lambda o, c=chunk: unrolled(o, 4, False, c)[1].losses.sum(0).mean())
        )(learned)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))


def test_drawn_columns_estimate_the_gradient_without_bias():
    learned = LearnedOptimizer(network(layers=1))
    start = jax.jit(lambda: meta.start(learned.network, FAMILY, jax.random.key(0), 4))()

    @jax.jit
    def gradient(drawn):
        def loss(learned):
            return meta.unroll(learned, FAMILY, start, 4, drawn=drawn)[1].losses.sum(0).mean()

        return jax.value_and_grad(loss)(learned)

    @jax.jit
    def exact():
        return jax.value_and_grad(
            lambda o: meta.unroll(o, FAMILY, start, 4)[1].losses.sum(0).mean()
        )(learned)

    order = jax.random.permutation(jax.random.key(1), 12)  # of the 3 x 4 columns
    (value, first), (_, second) = gradient(order[:6]), gradient(order[6:])
    wanted_value, wanted = exact()
    np.testing.assert_allclose(value, wanted_value, rtol=1e-5)
    for a, b, c in zip(*map(jax.tree.leaves, (first, second, wanted)), strict=True):
        scale = float(jnp.abs(c).max())
        np.testing.assert_allclose((a + b) / 2, c, rtol=1e-3, atol=1e-4 * scale)
        assert float(jnp.abs(a - c).max()) > 1e-2 * scale


def test_a_window_is_full_backpropagation_cut_at_its_start():
    learned = LearnedOptimizer(network())

    @jax.jit
    def gradients(learned):
        start = meta.start(learned.network, FAMILY, jax.random.key(0), 4)
        middle = jax.lax.stop_gradient(meta.unroll(learned, FAMILY, start, 2)[0])

        def first(o):
            return meta.unroll(o, FAMILY, start, 2)[1].losses.sum()

        def second(o):
            return meta.unroll(o, FAMILY, middle, 2)[1].losses.sum()

        def full(o):
            return meta.unroll(o, FAMILY, start, 4)[1].losses.sum()

        return [jax.value_and_grad(f)(learned) for f in (first, second, full)]

    (value_1, grad_1), (value_2, grad_2), (value, grad) = gradients(learned)
    np.testing.assert_allclose(value_1 + value_2, value, rtol=1e-5)
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    windows, whole = flat(grad_1) + flat(grad_2), flat(grad)
    cosine = windows @ whole / np.linalg.norm(windows) / np.linalg.norm(whole)
    assert 0.7 < cosine < 0.99999  # the cut costs something, and not everything


def test_training_learns_and_resumes(tmp_path):
    optimizer = optax.adam(1e-2)
    make_family = lambda data: FAMILY
    step = make_meta_step(
        make_family,
        summed_loss(),
        optimizer,
        batch_size=16,
        horizon=10,
        window=5,
        validate_every=20,
        validation_size=32,
    )
    learned = LearnedOptimizer(network(layers=1))

    def begin():
        return init_meta(learned, optimizer, make_family, batch_size=16)

    options = {"key": jax.random.key(0), "log_every": 20, "checkpoint_every": 20}
    once = fit(step, begin(), steps=60, **options)
    fit(step, begin(), steps=40, directory=tmp_path, **options)
    again = fit(step, begin(), steps=60, directory=tmp_path, **options)
    for a, b in zip(jax.tree.leaves(once.model), jax.tree.leaves(again.model), strict=True):
        np.testing.assert_array_equal(a, b)
    cost = jax.jit(lambda o: unrolled(o, 10, False)[1].losses.sum(0).mean())
    assert float(cost(once.extra.best)) < 0.7 * float(cost(learned))
    assert float(once.extra.best_loss) <= float(once.extra.validation_loss)


def test_a_meta_step_takes_only_states_of_its_own_batch_size():
    make_family = lambda data: FAMILY
    step = make_meta_step(make_family, summed_loss(), optax.sgd(0.1), batch_size=8)
    state = init_meta(
        LearnedOptimizer(network(layers=1)), optax.sgd(0.1), make_family, batch_size=4
    )
    with pytest.raises(ValueError, match="batch_size must be that of init_meta, 4 problems, got 8"):
        step(state, jax.random.key(0))
    donate = jax.jit(lambda state: jax.tree.map(jnp.copy, state), donate_argnums=0)
    assert int(donate(state).step) == 0  # no buffer is there twice: `make_chunk` can take it


@pytest.mark.parametrize(
    ("objective", "train_network"),
    [
        (halting_objective(POSTERIOR, gap_weight=0.1), False),
        (halting_objective(Softmax(HorizonPrior(0.7)), horizons="sample"), True),
        (halting_objective(Graves(1e-2)), True),
    ],
    ids=["head alone", "softmax", "graves"],
)
def test_halting_is_learned_jointly_or_by_the_head_alone(objective, train_network):
    optimizer = optax.adam(1e-2)
    make_family = lambda data: regression(2, observations=8, max_condition=5.0)
    step = make_meta_step(
        make_family,
        objective,
        optimizer,
        batch_size=8,
        horizon=6,
        window=3,
        train_network=train_network,
        validate_every=2,
        validation_size=8,
    )
    learned = LearnedOptimizer(network(layers=1), head())
    state = init_meta(learned, optimizer, make_family, batch_size=8)
    after, metrics = jax.jit(step)(state, jax.random.key(0))
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), after.model, learned)
    assert all(jax.tree.leaves(moved.head))
    assert set(jax.tree.leaves(moved.network)) == {train_network}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.model))
    assert 1 <= float(metrics["halting_step"]) <= 6
