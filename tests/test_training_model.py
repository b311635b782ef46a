"""What a training step makes of a model: its parameters trained, all else carried or left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import actjax
from actjax import training
from actjax.learned import CoordinatewiseLSTM, Head, act_optimizer

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY = jax.random.key(3)
# with weight decay, and not Adam, which makes steps of what is rounding in a gradient
OPTIMIZER = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05, momentum=0.9))
LEAVES = jax.tree.leaves


class Net(nnx.Module):
    """Batch statistics, noise and a counter beside ACT."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.core = actjax.ACT(3, 4, cell=nnx.SimpleCell, max_steps=4, halt_bias=-0.5, rngs=rngs)

    def __call__(self, xs):
        self.calls[...] += 1
        _, outputs, ponder = self.core(self.drop(self.norm(xs)))
        return outputs.mean((1, 2)), ponder


def sample(key, data=()):
    xs = 2 + jax.random.normal(key, (8, 2, 3))
    return xs, jnp.sin(xs.sum((1, 2)))


def loss_fn(model, batch):
    xs, targets = batch
    outputs, ponder = model(xs)
    return ((outputs - targets) ** 2).mean() + 0.01 * ponder.cost.mean(), {}


def fit(steps, *, wrt=None, **options):
    step = training.make_train_step(sample, loss_fn, OPTIMIZER, wrt=wrt)
    state = training.init_state(Net(nnx.Rngs(0)), OPTIMIZER, wrt=wrt)
    return training.fit(step, state, key=KEY, steps=steps, log_every=2, **options)


@pytest.fixture(scope="module")
def trained():
    return fit(6)


def test_a_module_is_trained_as_by_nnx_itself(trained):
    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param)

    @nnx.jit
    def update(model, optimizer, batch):
        _, gradient = nnx.value_and_grad(loss_fn, has_aux=True)(model, batch)
        optimizer.update(model, gradient)

    for step in range(6):
        update(model, optimizer, sample(jax.random.fold_in(KEY, step)))
    for a, b in zip(LEAVES(trained.model), LEAVES(model), strict=True):
        if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # six updates in float32
    assert int(trained.model.calls[...]) == int(trained.model.drop.rngs.count[...]) == 6
    # towards the inputs' mean of 2 by a hundredth of the way at a time, and no weight decay
    np.testing.assert_allclose(trained.model.norm.mean[...], 2 * (1 - 0.99**6), rtol=0.3)
    names = {type(v) for v in LEAVES(trained.model, is_leaf=lambda v: isinstance(v, nnx.Variable))}
    assert {nnx.BatchStat, nnx.RngCount, nnx.RngKey, nnx.Param} <= names


def test_what_is_carried_is_in_the_checkpoint(trained, tmp_path):
    fit(2, directory=tmp_path)
    assert training.digest(fit(6, directory=tmp_path)) == training.digest(trained)


def test_frozen_parts_stay_and_have_no_optimizer_state():
    frozen = nnx.PathContains("norm")
    after, before = fit(2, wrt=nnx.All(nnx.Param, nnx.Not(frozen))), Net(nnx.Rngs(0))
    np.testing.assert_array_equal(after.model.norm.scale[...], before.norm.scale[...])
    assert (after.model.norm.mean[...] != 0).all()  # not a parameter: it follows its own rule
    assert (after.model.core.cell.dense_i.kernel[...] != before.core.cell.dense_i.kernel[...]).all()
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(after)]
    assert not [path for path in paths if "opt_state" in path and "norm" in path]


PLAIN = {"w": jnp.ones(3), "activation": jnp.tanh, "ids": jnp.arange(3), "name": "plain"}


def plain_loss(model, batch):
    xs, targets = batch
    outputs = model["activation"]((xs[..., model["ids"]] @ model["w"]).sum(1))
    return ((outputs - targets) ** 2).mean(), {}


def test_integers_and_functions_among_the_leaves_stay_as_they_are(tmp_path):
    step = training.make_train_step(sample, plain_loss, OPTIMIZER)
    step = training.keep_best(step, lambda model, data: -model["w"].sum(), every=2)
    state = training.with_best(training.init_state(PLAIN, OPTIMIZER))
    for steps in (2, 4):
        after = training.fit(step, state, key=KEY, steps=steps, log_every=2, directory=tmp_path)
    for model in (after.model, after.extra.model):
        assert model["activation"] is jnp.tanh and model["name"] == "plain"
        np.testing.assert_array_equal(model["ids"], PLAIN["ids"])
        assert (model["w"] != 1).all()
    stacked = training.stack_states(lambda scale: state, jnp.ones(2))
    swept = training.sweep(
        step, stacked, keys=jnp.stack([KEY, KEY]), steps=4, log_every=2, rows_per_dispatch=1
    ).states
    assert swept.model["activation"] is jnp.tanh
    np.testing.assert_allclose(swept.model["w"][1], after.model["w"], rtol=1e-5)


def test_members_of_a_sweep_carry_their_own_statistics_and_noise(trained):
    make = lambda key: training.init_state(Net(nnx.Rngs(0)), OPTIMIZER)
    keys = jnp.stack([KEY, jax.random.key(4), KEY])
    step = training.make_train_step(sample, loss_fn, OPTIMIZER)
    leave = lambda history: np.array([False, False, True])
    options = {"steps": 6, "log_every": 2, "rows_per_dispatch": 1, "retire": leave}
    states = training.sweep(step, training.stack_states(make, keys), keys=keys, **options).states
    assert states.model.calls[...].tolist() == [6, 6, 2]
    np.testing.assert_allclose(states.model.norm.mean[0], trained.model.norm.mean[...], rtol=1e-5)
    assert (states.model.norm.mean[1] != trained.model.norm.mean[...]).all()


def test_the_best_model_comes_with_its_statistics_and_is_found_at_the_end():
    def seen(model, data):
        model(sample(KEY)[0])  # writes to it, which is dropped
        return model.norm.mean.sum()

    step = training.make_train_step(sample, loss_fn, OPTIMIZER)
    step = training.keep_best(step, seen, every=4)
    fresh = training.init_state(Net(nnx.Rngs(0)), OPTIMIZER)
    after = training.fit(step, training.with_best(fresh), key=KEY, steps=3, log_every=3)
    assert int(after.extra.step) == 3 and np.isfinite(after.extra.score)
    for a, b in zip(LEAVES(after.model), LEAVES(after.extra.model), strict=True):
        assert (a == b).all()
    assert int(after.model.calls[...]) == 3


def test_a_run_that_goes_on_does_not_see_the_validation_at_its_end(tmp_path):
    step = training.make_train_step(sample, plain_loss, OPTIMIZER)
    step = training.keep_best(step, lambda model, data: model["w"].sum(), every=4)  # ever less
    state = training.with_best(training.init_state(PLAIN, OPTIMIZER))
    options = {"key": KEY, "log_every": 1}
    parts = [
        training.fit(step, state, steps=steps, directory=tmp_path, **options) for steps in (3, 3, 8)
    ]
    assert [int(part.extra.step) for part in parts] == [3, 3, 4]
    whole = training.fit(step, state, steps=8, **options)
    assert training.digest(whole) == training.digest(parts[-1])


def quadratic(model, batch):
    xs, targets = batch
    return ((xs.sum(1) @ model["w"] + model["b"] - targets) ** 2).mean(), {}


def learned():
    rngs = nnx.Rngs(0)
    return act_optimizer(CoordinatewiseLSTM(4, rngs=rngs), Head(4, rngs=rngs))


OPTIMIZERS = {
    "polyak_sgd": optax.polyak_sgd,
    "reduce_on_plateau": lambda: optax.chain(
        optax.sgd(1e-2), optax.contrib.reduce_on_plateau(patience=1)
    ),
    "lbfgs": optax.lbfgs,
    "act_optimizer": learned,
    "MultiSteps": lambda: optax.MultiSteps(optax.polyak_sgd(), 2),
    "sam": lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1)),  # takes none of the three
    "schedule_free": lambda: optax.contrib.schedule_free_sgd(0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_that_look_at_the_loss(name):
    optimizer = OPTIMIZERS[name]()
    params = {"w": jnp.array([0.5, -1.0, 0.0]), "b": jnp.zeros(())}
    step = jax.jit(training.make_train_step(sample, quadratic, optimizer))
    state = training.init_state(params, optimizer)
    opt_state = optimizer.init(params)

    @jax.jit
    def update(params, opt_state, batch):
        value_fn = lambda params: quadratic(params, batch)[0]
        value, grad = jax.value_and_grad(value_fn)(params)
        extra = {} if name == "sam" else {"value": value, "grad": grad, "value_fn": value_fn}
        with jax.numpy_dtype_promotion("standard"):  # Optax's own arithmetic mixes types
            updates, opt_state = optimizer.update(grad, opt_state, params, **extra)
        return optax.apply_updates(params, updates), opt_state

    for number in range(3):
        key = jax.random.fold_in(KEY, number)
        state, _ = step(state, key)
        params, opt_state = update(params, opt_state, sample(key))
    for a, b in zip(LEAVES(state.model), LEAVES(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1), optax.adam(0.1), optax.lbfgs()])
def test_complex_parameters_go_downhill(optimizer):
    """A rotation of the plane turns the whole path of gradient descent, and of its kind."""
    goal = jnp.array([0.3 + 0.7j, -1.0])
    loss = lambda model, batch: ((jnp.abs(model["z"] - goal) ** 2).sum() + model["x"] ** 2, {})
    step = training.make_train_step(lambda key, data: (), loss, optimizer)
    start = {"z": jnp.array([1 + 2j, 0.5]), "x": jnp.ones(())}
    state = training.init_state(start, optimizer)
    after = training.fit(step, state, key=KEY, steps=100, log_every=100)
    np.testing.assert_allclose(after.model["z"], goal, atol=0.02)
    np.testing.assert_allclose(after.model["x"], 0, atol=0.02)


class Writer(nnx.Module):
    """A model that writes what `write` says when it is called."""

    def __init__(self, write):
        self.w = nnx.Param(jnp.ones(3))
        self.table = nnx.Variable(jnp.zeros(2))
        self.write = write

    def __call__(self, xs):
        self.write(self, xs)
        return (xs @ self.w).sum(1), None


def writer_loss(model, batch):
    return ((model(batch[0])[0] - batch[1]) ** 2).mean(), {}


def add_state(model, xs):
    model.late = nnx.BatchStat(xs.mean((0, 1)))


def reshape_state(model, xs):
    model.table.set_value(jnp.zeros(3))


def sow(model, xs):
    model.seen = nnx.Intermediate((xs,))
    model.table[...] = 1  # an integer, which takes the type that the state has


def train_once(model, loss=writer_loss, optimizer=OPTIMIZER, given=OPTIMIZER):
    step = training.make_train_step(sample, loss, optimizer)
    return step(training.init_state(model, given), KEY)


def test_what_is_sown_is_dropped_and_what_is_written_keeps_its_type():
    state, _ = train_once(Writer(sow))
    assert not hasattr(state.model, "seen")
    assert state.model.table.dtype == state.model.w.dtype and (state.model.table[...] == 1).all()


SHARED = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
PARAMS = {"w": jnp.ones(3), "b": jnp.zeros(())}
STATE = training.init_state(PARAMS, optax.sgd(0.1))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: train_once(Writer(add_state)), r"model must hold all its state .*, got \.late"),
        (lambda: train_once(Writer(reshape_state)), r"model\.table.* must keep its shape \(2,\), "),
        (lambda: train_once((SHARED, SHARED)), r"model must hold every variable in one place, got"),
        (lambda: train_once({"ids": jnp.arange(3)}), "wrt must choose at least one .*, got None"),
        (
            lambda: train_once(PARAMS, quadratic, given=optax.sgd(0.1)),
            r"state must be that of init_state .*, got opt_state.*trace.* of shape None",
        ),
        (
            lambda: train_once(PARAMS, optimizer=nnx.Optimizer(SHARED, OPTIMIZER, wrt=nnx.Param)),
            "optimizer must be an Optax transformation, got an object of Optimizer",
        ),
        (
            lambda: train_once(PARAMS, lambda model, batch: model["b"]),
            "loss_fn must return .* with a dict of metrics, got",
        ),
        (
            lambda: train_once(PARAMS, lambda model, batch: (model["w"], {})),
            r"loss_fn must return a loss that is a float scalar, got float.. of shape \(3,\)",
        ),
        (
            lambda: train_once(PARAMS, lambda model, batch: (model["b"], {"seconds": 1.0})),
            "metrics must have other names than loss, .* which are written .*, got 'seconds'",
        ),
        (
            lambda: train_once(PARAMS, lambda model, batch: (model["b"], {"loss": 1.0})),
            "metrics must have other names than loss, .* which are written .*, got 'loss'",
        ),
        (
            lambda: training.keep_best(lambda *_: (STATE, {"validation_max": 0.0}), ..., every=1)(
                training.with_best(STATE), jax.random.key(0)
            ),
            "metrics must have other names than validation_max, .*, got 'validation_max'",
        ),
        (
            lambda: training.fit(
                lambda state, *_: (state, {"step": 0.0}), STATE, key=jax.random.key(0), steps=1
            ),
            "metrics must have other names than step, .* which are written .*, got 'step'",
        ),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError, match=sentence) as refusal:
        call()
    assert "\n" not in str(refusal.value)
