"""Learned optimizers among Optax's own: chains, partitions, searches, donation, odd pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from actjax.learned import (
    CoordinatewiseLSTM,
    Graves,
    GroupedLSTM,
    Head,
    HorizonPrior,
    LearnedOptimizer,
    MassRule,
    Softmax,
    StickBreaking,
    act_optimizer,
    columns,
    freeze_when_halted,
    is_halted,
    lstm_optimizer,
    meta,
    minimize,
    summed_loss,
)
from actjax.learned.problems import (
    Family,
    Images,
    classifier,
    convolutional,
    mlp,
    quadratic,
    regression,
)
from actjax.learned.stopping import first_step, halting_states, oracle_steps, plateau_steps
from actjax.learned.training import halting_objective, init_meta, make_meta_step
from actjax.training import fit
from actjax.training.state import as_transformation

pytestmark = pytest.mark.usefixtures("quick_compilation")
H = 3
POSTERIORS = (Softmax(HorizonPrior(0.7)), StickBreaking(HorizonPrior(0.7)), Graves())
PARAMS = {"w": jnp.array([[0.5, -1.0]]), "b": jnp.ones(())}


def network(seed=0, **options):
    return CoordinatewiseLSTM(H, rngs=nnx.Rngs(seed), **options)


def head(seed=1, **options):
    made = Head(H, width=2, rngs=nnx.Rngs(seed), **options)
    made.kernel[...] = jnp.ones_like(made.kernel[...])
    return made


def act(posterior=POSTERIORS[1], stop=MassRule(1.0), **options):  # noqa: B008
    return act_optimizer(network(), head(), posterior, stop=stop, **options)


def halting_at(step):
    return act(stop=lambda belief: belief.steps >= step)


OPTIMIZERS = {
    "lstm": lambda: lstm_optimizer(network()),
    "bfloat16": lambda: lstm_optimizer(network(), state_dtype=jnp.bfloat16),
    **{type(p).__name__: lambda p=p: act(p) for p in POSTERIORS},
}


def updates_of(optimizer, params, gradients, steps=2):
    """Every update over a few steps of one compiled scan."""
    optimizer = as_transformation(optimizer)

    @jax.jit
    def run(params, gradients):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(gradients, state, params, value=jnp.float32(1.0))
            return (optax.apply_updates(params, updates), state), updates

        return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)

    (_, state), updates = run(params, gradients)
    return updates, state


# Complex parameters


@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.1), optax.adam(0.1), optax.lbfgs(), optax.polyak_sgd()],
    ids=["sgd", "adam", "lbfgs", "polyak"],
)
def test_complex_parameters_go_downhill(optimizer):
    loss = lambda z: jnp.abs(z["a"] - 0.3 - 0.7j) ** 2 + (z["b"] - 1) ** 2
    found = minimize(optimizer, loss, {"a": 1 + 2j, "b": 0.0}, max_steps=100)
    assert abs(found.params["a"] - 0.3 - 0.7j) < 1e-2 and found.loss < 1e-3
    assert found.params["a"].dtype == jnp.complex64


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_complex_number_is_two_coordinates(make):
    pair = {"a": jnp.array([0.5, -2.0]), "b": jnp.array([1e-6, 3.0])}
    both = jax.lax.complex(pair["a"], pair["b"])
    apart, _ = updates_of(make(), pair, pair)
    found, _ = updates_of(make(), both, both)
    np.testing.assert_allclose(found.real, apart["a"], rtol=1e-5)
    np.testing.assert_allclose(found.imag, apart["b"], rtol=1e-5)
    assert np.abs(found.imag).min() > 0


@pytest.mark.parametrize("second_order", [False, True])
def test_problems_in_complex_parameters_are_those_in_real_ones(second_order):
    def sample(key):
        return jnp.array([0.2 + 0.1j, -0.4j]), jax.random.normal(key, (4,))

    def loss(z, data, key):
        return jnp.sum(jnp.abs(z * (1 + 2j) - jax.lax.complex(data[:2], data[2:])) ** 2)

    twin = Family(
        lambda key: (lambda z, data: ((z.real, z.imag), data))(*sample(key)),
        lambda pair, data, key: loss(jax.lax.complex(*pair), data, key),
        None,
        None,
    )

    def value(learned, family):
        start = meta.start(learned.network, family, jax.random.key(0), 3)
        return meta.unroll(learned, family, start, 3, second_order=second_order)[1].losses.sum()

    learned = LearnedOptimizer(network(layers=1))
    (a, da), (b, db) = (
        jax.jit(jax.value_and_grad(lambda o, family=family: value(o, family)))(learned)
        for family in (Family(sample, loss, None, None), twin)
    )
    np.testing.assert_allclose(a, b, rtol=1e-5)
    for x, y in zip(jax.tree.leaves(da), jax.tree.leaves(db), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4 * float(jnp.abs(y).max()))


# Optimizers that look at the loss


def bowl(x):
    return jnp.sum(jnp.array([1.0, 30.0]) * (x - 1) ** 2)


SEARCHES = {
    "lbfgs": optax.lbfgs(),
    "polyak": optax.polyak_sgd(),
    "plateau": optax.chain(optax.sgd(0.03), optax.contrib.reduce_on_plateau(patience=3)),
    "momo": optax.contrib.momo(0.1),
    "backtracking": optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20, store_grad=True)
    ),
    "behind": optax.chain(optax.lbfgs(), optax.scale(0.5)),
    "wrapped": optax.apply_if_finite(optax.lbfgs(), 3),
    "adam": optax.adam(0.1),
}


@pytest.mark.parametrize("optimizer", SEARCHES.values(), ids=SEARCHES)
def test_minimize_is_the_loop_of_optax_documents(optimizer):
    found = jax.jit(lambda x: minimize(optimizer, bowl, x, max_steps=9))(jnp.zeros(2))
    optimizer = optax.with_extra_args_support(optimizer)

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(bowl)(params)
        more = {"value": value, "grad": grad, "value_fn": bowl}
        updates, state = optimizer.update(grad, state, params, **more)
        return optax.apply_updates(params, updates), state

    params = jnp.zeros(2)
    state = optimizer.init(params)
    for _ in range(9):
        params, state = step(params, state)
    np.testing.assert_allclose(found.params, params, rtol=1e-4, atol=1e-5)
    assert found.loss < 0.7 * bowl(jnp.zeros(2)) and int(found.steps) == 9


def test_a_search_with_the_last_word_is_not_asked_twice():
    def evaluations(optimizer):
        text = str(jax.make_jaxpr(lambda x: minimize(optimizer, bowl, x, max_steps=2))(1.0))
        return text.count("cond[")

    assert evaluations(optax.lbfgs()) > evaluations(SEARCHES["behind"])


# Chains that halt


@pytest.mark.parametrize(
    "behind",
    [optax.add_decayed_weights(-0.1), optax.trace(0.9), optax.chain(optax.ema(0.5))],
    ids=["decay", "momentum", "average"],
)
def test_nothing_moves_after_halting(behind):
    chain = optax.chain(halting_at(2), behind)
    gradients = {"w": jnp.ones((1, 2)), "b": jnp.ones(())}
    bare, _ = updates_of(chain, PARAMS, gradients, 4)
    found, state = updates_of(freeze_when_halted(chain), PARAMS, gradients, 4)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(bare), strict=True):
        np.testing.assert_array_equal(a[:2], b[:2])
        assert not np.any(a[2:]) and np.any(b[2:])
    assert bool(is_halted(state)) and int(state[0].count) == 2
    _, early = updates_of(freeze_when_halted(chain), PARAMS, gradients, 2)
    jax.tree.map(np.testing.assert_array_equal, state, early)


def test_a_group_of_a_partition_may_be_frozen_empty_or_halt_by_itself():
    labels = {"w": "first", "b": "frozen"}
    optimizer = optax.partition(
        {"first": halting_at(2), "none": halting_at(3), "frozen": optax.set_to_zero()}, labels
    )
    updates, state = updates_of(optimizer, PARAMS, PARAMS, 3)
    assert not np.any(updates["b"]) and np.all(updates["w"][:2]) and not np.any(updates["w"][2])
    assert bool(is_halted(state))  # also the group without parameters
    loss = lambda p: jnp.sum(p["w"] ** 2) + p["b"] ** 2
    found = minimize(optimizer, loss, PARAMS, max_steps=9)
    assert int(found.steps) == 2 and bool(found.halted) and float(found.params["b"]) == 1


def test_decay_is_behind_with_a_minus_or_in_front_with_a_plus():
    gradients = jax.tree.map(jnp.cos, PARAMS)
    plain, _ = updates_of(lstm_optimizer(network()), PARAMS, gradients, 1)
    decay = optax.add_decayed_weights
    behind, _ = updates_of(
        optax.chain(lstm_optimizer(network()), decay(-0.1)), PARAMS, gradients, 1
    )
    front, _ = updates_of(optax.chain(decay(0.1), lstm_optimizer(network())), PARAMS, gradients, 1)
    seen = jax.tree.map(lambda g, p: g + 0.1 * p, gradients, PARAMS)
    wanted, _ = updates_of(lstm_optimizer(network()), PARAMS, seen, 1)
    for name in PARAMS:
        np.testing.assert_allclose(behind[name][0], plain[name][0] - 0.1 * PARAMS[name], rtol=1e-5)
        np.testing.assert_allclose(front[name], wanted[name], rtol=1e-5)


# State and pytrees


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_state_is_donated_and_has_one_count(make):
    optimizer = optax.with_extra_args_support(make())
    params = jax.tree.map(jnp.copy, PARAMS)
    state = optimizer.init(params)
    assert int(optax.tree.get(state, "count")) == 0

    def step(params, state):
        updates, state = optimizer.update(params, state, params, value=jnp.float32(1.0))
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(2):
        params, state = step(params, state)
    assert int(optax.tree.get(state, "count")) == 2


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_any_pytree_of_numbers(make):
    leaves = {
        "none": None,
        "empty": jnp.zeros((0, 2)),
        "scalar": np.float32(0.5),
        "half": jnp.full((2,), 0.5, jnp.bfloat16),
        "complex": jnp.full((1, 2), 0.5 + 0.5j),
    }
    updates, _ = updates_of(make(), leaves, leaves, 1)
    like = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), jax.tree.map(jnp.asarray, leaves))
    assert jax.tree.map(lambda leaf: (leaf.shape[1:], leaf.dtype), updates) == like
    values = [np.ravel(leaf).astype(np.complex64) for leaf in jax.tree.leaves(updates)]
    values = np.concatenate(values)  # all see the same gradient, so all move alike
    np.testing.assert_allclose(values.real, values.real[0], rtol=1e-2)
    nothing, state = updates_of(make(), {}, {}, 1)
    assert nothing == {} and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.memory))


WRAPPED = {
    "apply_if_finite": lambda o: optax.apply_if_finite(o, 3),
    "MultiSteps": lambda o: optax.MultiSteps(o, 1),
    "flatten": optax.flatten,
    "chain": lambda o: optax.chain(optax.clip(10.0), o, optax.identity()),
    "masked": lambda o: optax.masked(o, True),
    "inject": lambda o: optax.inject_hyperparams(
        lambda inner, scale: optax.chain(inner, optax.scale(scale)), static_args="inner"
    )(o, scale=1.0),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_by_optax_it_does_the_same(name):
    for make in (OPTIMIZERS["lstm"], OPTIMIZERS["Softmax"]):
        if name == "flatten" and make is OPTIMIZERS["Softmax"]:
            continue  # Optax hands no extra arguments through it
        plain, _ = updates_of(make(), PARAMS, PARAMS)
        found, _ = updates_of(WRAPPED[name](make()), PARAMS, PARAMS)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)


def test_lookahead_synchronises():
    optimizer = optax.lookahead(lstm_optimizer(network()), sync_period=2, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(PARAMS)
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(PARAMS, state, params)
        params = optax.apply_updates(params, updates)
    plain, _ = updates_of(lstm_optimizer(network()), PARAMS, PARAMS)
    wanted = PARAMS["w"] + 0.5 * plain["w"].sum(0)
    np.testing.assert_allclose(params.slow["w"], wanted, rtol=1e-5)
    np.testing.assert_allclose(params.fast["w"], wanted, rtol=1e-5)


def test_optimizers_are_mapped_over():
    networks = nnx.vmap(lambda key: network_of(key))(jax.random.split(jax.random.key(0), 2))

    @jax.jit
    @jax.vmap
    def solve(network, start):
        return minimize(lstm_optimizer(network), bowl, start, max_steps=3)

    starts = jnp.zeros((2, 2))
    found = solve(networks, starts)
    for n in range(2):
        one = jax.tree.map(lambda leaf, n=n: leaf[n], networks)
        alone = minimize(lstm_optimizer(one), bowl, starts[n], max_steps=3)
        np.testing.assert_allclose(found.params[n], alone.params, rtol=1e-5, atol=1e-6)
    assert np.abs(found.params[0] - found.params[1]).max() > 1e-3


def network_of(key):
    return CoordinatewiseLSTM(H, rngs=nnx.Rngs(key))


# One pass over the coordinates


@pytest.mark.parametrize("kind", ["plain", "grouped", "sees params"])
def test_blocks_of_coordinates_are_all_of_them(kind, monkeypatch):
    made = network(layers=1, see_params=kind == "sees params")
    if kind == "grouped":
        made = GroupedLSTM([made, network(7, layers=1)], (9, 14))
    optimizer = lstm_optimizer(made)
    values = jnp.sin(jnp.arange(23.0))
    loss = lambda scale: sum(
        jnp.sum(leaf**2)
        for leaf in jax.tree.leaves(updates_of(optimizer, values, scale * values))
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    )

    def all_of_it():
        return *updates_of(optimizer, values, values, 3), jax.grad(loss)(1.0)

    whole = all_of_it()
    monkeypatch.setattr(columns, "BLOCK", 4)
    for a, b in zip(jax.tree.leaves(all_of_it()), jax.tree.leaves(whole), strict=True):
        # the same sums, in products of another shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="blocks are for CPUs")
def test_blocks_are_written_where_they_were_read(monkeypatch):
    monkeypatch.setattr(columns, "BLOCK", 16)
    optimizer = lstm_optimizer(network())
    params = jnp.ones(16 * 16)
    update = lambda g, state, p: optimizer.update(g, state, p)
    compiled = jax.jit(update, donate_argnums=1).lower(params, optimizer.init(params), params)
    compiled = compiled.compile()
    memory = f"f32[{2 * 2 * H},{params.size}]"
    lines = [line.split(" = ", 1)[-1] for line in compiled.as_text().splitlines()]
    assert any(line.startswith(memory) for line in lines)
    assert not [line for line in lines if line.startswith(memory) and " copy(" in line]


# The best of a meta-training run


def test_a_run_shorter_than_its_first_validation_is_validated():
    make_family = lambda data: quadratic(2)
    optimizer = optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau())
    options = {"batch_size": 4, "horizon": 2, "window": 2, "validation_size": 4}
    step = make_meta_step(make_family, summed_loss(), optimizer, validate_every=800, **options)
    learned = LearnedOptimizer(network(layers=1))
    begin = init_meta(learned, optimizer, make_family, batch_size=4)
    state = fit(step, begin, key=jax.random.key(0), steps=3)
    assert np.isfinite(state.extra.best_loss)
    assert float(state.extra.best_loss) == float(state.extra.validation_loss)
    jax.tree.map(np.testing.assert_array_equal, state.extra.best, state.model)
    assert any(
        np.any(a != b)
        for a, b in zip(jax.tree.leaves(state.model), jax.tree.leaves(learned), strict=True)
    )


# The modes that people debug in

MODES = {
    "nans": lambda: jax.debug_nans(True),
    "ranks": lambda: jax.numpy_rank_promotion("raise"),
    "dtypes": lambda: jax.numpy_dtype_promotion("strict"),
    "leaks": jax.checking_leaks,
    "x64": lambda: jax.enable_x64(True),
}


IMAGES = Images(np.zeros((5, 32, 32, 3), np.uint8), np.arange(5, dtype=np.uint8))
FAMILIES = (
    quadratic(2, "mixed"),
    regression(2, observations=3, max_condition=5.0),
    classifier(mlp((32 * 32 * 3, 2, 5)), IMAGES, batch_size=2),
    classifier(convolutional((2,), classes=5), IMAGES, batch_size=2),
)


def everything():
    """A few steps of all that learns and halts, and one of learning it."""
    scores, gain = jnp.zeros((2, 3), jnp.float32), -jnp.ones((2, 3), jnp.float32)
    for posterior in POSTERIORS:
        loss = lambda p: p["b"] ** 2 + p["w"].sum() ** 2
        found = minimize(act(posterior), loss, PARAMS, max_steps=2)
        assert int(found.steps) == 2
        assert np.isfinite(posterior.objective(scores, gain)).all()
        assert np.isfinite(posterior.log_posterior(scores)[..., 0]).all()
        assert int(first_step(halting_states(posterior, scores).mass > 2)[0]) == 3
        if not isinstance(posterior, Graves):
            assert np.isfinite(posterior.gap(scores, gain)).all()
    assert list(oracle_steps(-gain, 0.1)) == [1, 1] and list(plateau_steps(gain, 0.1, 1)) == [2, 2]
    half = jnp.ones(2, jnp.bfloat16)
    updates_of(act(Graves(), state_dtype=jnp.bfloat16), half, half)
    learned, options = LearnedOptimizer(network(layers=1), head()), {"horizon": 2, "window": 1}
    for family in FAMILIES:
        begin = lambda key, family=family: meta.start(learned.network, family, key, 2)
        step = lambda rollout, family=family: meta.unroll(learned, family, rollout, 2)
        jax.eval_shape(step, jax.eval_shape(begin, jax.random.key(0)))
    objective = halting_objective(POSTERIORS[0], horizons="sample", gap_weight=0.1)
    step = make_meta_step(
        lambda data: FAMILIES[0],
        objective,
        optax.sgd(0.1),
        batch_size=2,
        validate_every=1,
        validation_size=2,
        **options,
    )
    state = init_meta(learned, optax.sgd(0.1), lambda data: FAMILIES[0], batch_size=2)
    state, metrics = jax.jit(step)(state, jax.random.key(0))
    assert np.isfinite(metrics["validation_loss"])


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_everything_holds_in_the_modes_of_jax(mode):
    with mode():
        everything()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: lstm_optimizer(network()).init({"ids": jnp.arange(3)}),
            "params must hold arrays of floating-point or complex numbers .* got int32",
        ),
        (lambda: act().init({"f": jnp.tanh}), "params must hold arrays"),
        (lambda: act().init(jax.random.key(0)), "params must hold arrays"),
        (
            lambda: minimize(optax.sgd(0.1), jnp.sum, jnp.arange(3), max_steps=1),
            "params must hold arrays",
        ),
        (
            lambda: minimize(optax.sgd(0.1), lambda x: x, jnp.ones(3), max_steps=1),
            "loss must return one real floating-point number, got",
        ),
        (
            lambda: minimize(optax.sgd(0.1), lambda z: z, 1j, max_steps=1),
            "loss must return one real floating-point number, got",
        ),
        (
            lambda: minimize(SEARCHES["backtracking"], jnp.abs, 1j, max_steps=1),
            "optimizer must search lines by optax.scale_by_zoom_linesearch",
        ),
        (
            lambda: freeze_when_halted(optax.sgd(0.1)).init(1.0),
            "optimizer must hold a transformation",
        ),
        (
            lambda: lstm_optimizer(network(), state_dtype=int),
            "state_dtype must be a floating-point",
        ),
        (
            lambda: (lambda o, p: o.update(p, o.init(p), p))(
                lstm_optimizer(GroupedLSTM([network(), network()], (2, 3))), jnp.ones(7)
            ),
            r"params must hold the 5 coordinates of the network's groups \(2, 3\)",
        ),
        (lambda: GroupedLSTM([network()], (2, 3)), "sizes must hold one size for each of 1"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message) as refused:
        call()
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)
