"""The optimizers that come with the library, and what they were trained on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from actjax import learned
from actjax.learned import files, meta
from actjax.learned.features import MOMENT_ROWS, adam, leaf_scales
from actjax.learned.problems import convolutions, networks, quadratic, regression, together
from experiments.learned import held_out, weights
from experiments.learned.problems import PROBLEMS

SHIPPED = sorted(path.stem for path in files.SHIPPED.glob("*.npz"))
# what each is tried on here: problems of its kind, of other sizes than those it was trained on
TRIED = {
    "mlp": networks((6, 9, 3), batch_size=16, rows=64),
    "quadratic": quadratic(4),
    "regression": regression(3, observations=20, max_condition=10.0),
}
MOMENTS = {"layers": 1, "preprocess": "adam", "see_scale": True}


def summed(family, optimizer, steps=60, count=16):
    """The loss summed over steps, its mean over fresh problems."""
    optimizer = optax.with_extra_args_support(optimizer)

    def one(key):
        params, data = family.sample(key)

        def step(carry, index):
            params, state = carry
            here = jax.random.fold_in(key, index)
            loss, gradient = jax.value_and_grad(family.loss)(params, data, here)
            updates, state = optimizer.update(gradient, state, params, value=loss)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))[1].sum()

    return float(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(5), count)).mean())


def test_all_that_is_promised_ships_and_is_small():
    assert SHIPPED == sorted(TRIED)
    for name in SHIPPED:
        assert (files.SHIPPED / f"{name}.npz").stat().st_size < 200_000


@pytest.mark.parametrize("name", TRIED)
def test_what_ships_is_far_better_than_a_rate_never_tuned(name):
    made = learned.load(name)  # whose checksum holds, or this raises
    found = summed(TRIED[name], learned.lstm_optimizer(made.network))
    still = summed(TRIED[name], optax.set_to_zero())
    untuned = summed(TRIED[name], optax.adam(1e-3))  # Optax's usual rate
    assert found < 0.9 * untuned < 0.9 * still * 1.01


def test_the_regression_optimizer_stops_by_itself_and_later_on_harder_problems():
    optimizer = learned.load("regression").optimizer()
    family = regression(10, observations=50, max_condition=10.0)

    def solve(key):
        params, data = family.sample(key)
        loss = lambda params: family.loss(params, data)
        found = learned.minimize(optimizer, loss, params, max_steps=100)
        return found._replace(state=family.difficulty(data), params=family.loss(params, data))

    found = jax.jit(jax.vmap(solve))(jax.random.split(jax.random.key(3), 64))
    assert found.halted.all()
    assert found.loss.mean() < found.params.mean() - 0.3  # params: the loss at the start
    easy = found.state < 0.5
    assert found.steps[~easy].mean() > found.steps[easy].mean() + 1


def test_moments_are_those_of_adam_and_know_no_scale():
    gradients = jax.random.normal(jax.random.key(0), (7, 4))
    moments, large = jnp.zeros((MOMENT_ROWS, 4)), jnp.zeros((MOMENT_ROWS, 4))
    mean, square = np.zeros(4), np.zeros(4)
    for count, gradient in enumerate(gradients, 1):
        moments, seen = adam(moments, gradient)
        large, same = adam(large, 1e4 * gradient)
        np.testing.assert_allclose(same, seen, rtol=1e-4, atol=1e-5)
        mean = 0.9 * mean + 0.1 * np.asarray(gradient)
        square = 0.99 * square + 0.01 * np.asarray(gradient) ** 2
        step = mean / (1 - 0.9**count) / np.sqrt(square / (1 - 0.99**count))
        np.testing.assert_allclose(seen[1], step, rtol=1e-4)


def test_an_untrained_network_of_moments_is_adam():
    made = learned.CoordinatewiseLSTM(4, output_scale=0.1, **MOMENTS, rngs=nnx.Rngs(0))
    made.output_kernel[...] = jnp.zeros_like(made.output_kernel[...])
    ours, plain = learned.lstm_optimizer(made), optax.adam(0.1, b2=0.99)
    params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    states = ours.init(params), plain.init(params)
    for seed in range(3):
        gradient = jax.tree.map(
            lambda leaf, s=seed: jax.random.normal(jax.random.key(s), leaf.shape), params
        )
        (a, first), (b, second) = (
            optimizer.update(gradient, state, params)
            for optimizer, state in zip((ours, plain), states, strict=True)
        )
        states = first, second
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), a, b)


def test_the_scale_of_a_leaf_is_its_own():
    params = {"b": jnp.zeros(2), "w": jnp.array([[3.0, 4.0]]), "z": jnp.array([1.0 + 1.0j])}
    found = 3 * np.asarray(leaf_scales(params))
    root = np.log(np.sqrt(12.5))
    np.testing.assert_allclose(found, [np.log(1e-3)] * 2 + [root] * 2 + [np.log(2) / 2] * 2, 1e-5)
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf], -1), params)
    batched = np.asarray(leaf_scales(two, batched=True))[4:8].reshape(2, 2)
    np.testing.assert_allclose(batched, np.log([[12.5, 50]] * 2) / 6, rtol=1e-5)


def test_meta_training_unrolls_what_the_transformation_does(quick_compilation):
    """Moments and scales too, and the derivative through drawn columns is that through all."""
    family = together(quadratic(2), networks((2, 3, 2), batch_size=4, rows=8))
    made = learned.LearnedOptimizer(learned.CoordinatewiseLSTM(3, **MOMENTS, rngs=nnx.Rngs(0)))

    @jax.jit
    def unrolled(made, drawn):
        rollout = meta.start(made.network, family, jax.random.key(1), 2)

        def loss(made, columns):
            after, curves = meta.unroll(made, family, rollout, 4, drawn=columns)
            return curves.losses.sum(), (after, rollout)

        whole, (after, before) = jax.grad(loss, has_aux=True)(made, None)
        return whole, jax.grad(loss, has_aux=True)(made, drawn)[0], after, before

    count = 2 * (2 + 6 + 3 + 6 + 2)
    whole, through_drawn, after, before = unrolled(made, jnp.arange(count))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), whole, through_drawn
    )
    optimizer = made.optimizer()
    for n in (0, 1):
        one = lambda tree, n=n: jax.tree.map(lambda leaf: leaf[..., n], tree)
        params, data = one(before.params), one(before.data)
        state = optimizer.init(params)
        for index in range(4):
            key = jax.random.fold_in(before.keys[n], index)
            gradient = jax.grad(family.loss)(params, data, key)
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            params,
            one(after.params),
        )


@pytest.mark.parametrize(
    "make",
    [
        lambda: networks((5, 4, 3), batch_size=8, rows=16),
        lambda: networks((5, 4, 1), batch_size=8, rows=16, targets="values"),
        lambda: networks((5, 4, 3), batch_size=8, rows=16, targets="classes", pixels=True),
        lambda: convolutions(8, (2, 3), 3, batch_size=8, rows=16),
    ],
)
def test_networks_start_at_one_and_stay_finite(make):
    family = make()
    keys = jax.random.split(jax.random.key(0), 256)
    params, data = jax.jit(jax.vmap(family.sample))(keys)
    loss = jax.jit(jax.vmap(family.loss))
    first = loss(params, data, keys)
    assert 0.7 < jnp.median(first) < 1.3  # in units of the loss of one minibatch
    far = loss(jax.tree.map(lambda leaf: 1e4 * leaf, params), data, keys)
    assert jnp.isfinite(far).all() and far.max() < 200  # its logarithm


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: networks((2, 2), batch_size=0), "batch_size must be an integer of at least 1"),
        (lambda: convolutions(rows=0), "rows must be an integer of at least 1, got 0"),
        (lambda: networks((2, 2), targets="x"), "targets must be"),
        (lambda: convolutions(6), "side must be a multiple of 4 for 2 convolutions, got 6."),
        (
            lambda: learned.lstm_optimizer(
                learned.CoordinatewiseLSTM(2, **MOMENTS, rngs=nnx.Rngs(0)), state_dtype=jnp.bfloat16
            ),
            "state_dtype must be None for a network that keeps moments, got",
        ),
        (
            lambda: learned.CoordinatewiseLSTM(2, see_scale=True, rngs=nnx.Rngs(0))(
                learned.LSTMState((), ()), jnp.ones(2)
            ),
            "scale must be given to a network made with see_scale, got None",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_comparison_on_held_out_problems_is_paired():
    """Adam at its best rate and the learned optimizer meet the same weights and minibatches."""
    family = held_out.supervised(
        held_out.dense((10, 3, 1), jnp.tanh), held_out.squared_error, *held_out.friedman(70)
    )
    found = held_out.compare(family, learned.load("mlp").network, seeds=2, steps=3)
    tried = {float(rate): mean for rate, mean in found["sums_by_rate"].items()}
    assert min(tried.values()) == pytest.approx(found["adam"].sum(1).mean())
    key = jax.random.key(held_out.SEED)
    again = held_out.curves(family, key, 2, 3, optax.adam(found["rate"]))
    np.testing.assert_allclose(again, found["adam"], rtol=1e-4)
    row = held_out.summary(found | {"learned": found["adam"] - 1})
    assert row["difference"] == -3 and row["standard_error"] == 0 and row["lower_on"] == 2
    assert [len(data) for data in held_out.friedman(70)] == [70, 70]


def test_the_digits_are_those_of_their_source():
    with np.load(held_out.DIGITS) as digits:
        assert digits["images"].shape == (1797, 8, 8) and digits["images"].max() == 16
        counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
        assert np.bincount(digits["labels"]).tolist() == counts


@pytest.mark.usefixtures("quick_compilation")
def test_the_record_of_what_ships_is_of_fresh_problems(monkeypatch):
    small = {"horizon": 6, "window": 3, "test_size": 8, "tuning_size": 8}
    for problem, preset in (("quadratic", "weights"), ("regression", "head")):
        presets = PROBLEMS[problem].presets
        monkeypatch.setitem(presets, preset, dataclasses.replace(presets[preset], **small))
    row = weights.tested(learned.load("quadratic"), "quadratic", "weights")
    assert row["problems"] == 8 and 0 < row["learned"]["sum"] < row["adam"]["sum"]
    found, chosen = weights.with_rule(learned.load("regression"), "regression", "head")
    assert found.stop == learned.MassRule(chosen["threshold"])
    row = weights.tested(found, "regression", "head")
    assert row["cost"]["oracle"] <= row["cost"]["learned"] and 1 <= row["steps"]["mean"] <= 6


@pytest.mark.parametrize("size", [1e20, 1e37])
def test_a_gradient_whose_square_overflows_is_a_large_gradient(size):
    optimizer, params = learned.load("mlp").optimizer(), jnp.ones(2)
    state = optimizer.init(params)
    for gradient in (1.0, size, 1.0):
        updates, state = optimizer.update(jnp.full(2, gradient), state, params)
        assert np.isfinite(updates).all()


def test_scales_of_leaves_of_any_dtype_and_size():
    half, large = jnp.full(2, 1000, jnp.float16), jnp.full(2, 1e25)
    np.testing.assert_allclose(leaf_scales(half), np.log(1000) / 3, rtol=1e-6)
    np.testing.assert_allclose(leaf_scales(large), np.log(1e15) / 3, rtol=1e-6)
    with jax.debug_nans(True):
        assert leaf_scales({"none": jnp.zeros((0, 2)), "one": jnp.ones(1)}).tolist() == [0.0]
        assert jax.grad(lambda leaf: leaf_scales(leaf).sum())(jnp.zeros(2)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: networks((3,)), "sizes must have at least 2 entries"),
        (lambda: networks((3, 0, 2)), "sizes must be an integer of at least 1, got 0"),
        (lambda: convolutions(8, ()), "channels must have at least 1 entries"),
        (lambda: convolutions(-8, (2,)), "side must be an integer of at least 1"),
        (lambda: convolutions(8, (2,), classes=0), "classes must be an integer of at least 1"),
        (lambda: together(), "families must be at least one Family"),
        (lambda: networks((3, 2)).sample(0), "key must be a PRNG key"),
        (lambda: together(quadratic(2)).sample(0), "key must be a PRNG key"),
    ],
)
def test_problems_refuse_in_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
