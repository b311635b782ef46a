"""Learned optimizers among Optax's own: chains, partitions, wrappers, donation, odd pytrees."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from actjax.learned import (
    CoordinatewiseLSTM,
    GroupedLSTM,
    LearnedOptimizer,
    columns,
    freeze_when_halted,
    is_halted,
    lstm_optimizer,
    minimize,
    summed_loss,
)
from actjax.learned.problems import (
    quadratic,
)
from actjax.learned.training import init_meta, make_meta_step
from actjax.training import fit
from actjax.training.state import as_transformation
from tests.learned_parts import (
    OPTIMIZERS,
    PARAMS,
    H,
    act,
    halting_at,
    network,
    updates_of,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


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
    optimizer = as_transformation(optimizer)
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
    bowl = lambda x: jnp.sum(jnp.array([1.0, 30.0]) * (x - 1) ** 2)
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


SEEING = {
    "sees params": {"see_params": True},
    "sees moments and scale": {"preprocess": "adam", "see_scale": True},
}


@pytest.mark.parametrize("kind", ["plain", "grouped", *SEEING])
def test_blocks_of_coordinates_are_all_of_them(kind, monkeypatch):
    made = network(layers=1, **SEEING.get(kind, {}))
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


@pytest.mark.not_in("nans", "JAX donates nothing, to run once more what gave a NaN")
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="blocks are for CPUs")
def test_blocks_are_written_where_they_were_read(monkeypatch):
    monkeypatch.setattr(columns, "BLOCK", 16)
    optimizer = lstm_optimizer(network())
    params = jnp.ones(16 * 16)
    update = lambda g, state, p: optimizer.update(g, state, p)
    state = optimizer.init(params)
    compiled = jax.jit(update, donate_argnums=1).lower(params, state, params).compile()
    memory = f"f{8 * state.memory.dtype.itemsize}[{2 * 2 * H},{params.size}]"
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: lstm_optimizer(network()).init({"ids": jnp.arange(3)}),
            "params must hold arrays of floating-point or complex numbers .* got int",
        ),
        (lambda: act().init({"f": jnp.tanh}), "params must hold arrays"),
        (lambda: act().init(jax.random.key(0)), "params must hold arrays"),
        (
            lambda: minimize(optax.sgd(0.1), jnp.sum, jnp.arange(3), max_steps=1),
            "params must hold arrays",
        ),
        (
            lambda: minimize(optax.sgd(0.1), lambda x: x, jnp.ones(3), max_steps=1),
            r"loss must return one real floating-point number, got shape \(3,\) of float",
        ),
        (
            lambda: minimize(optax.sgd(0.1), lambda z: z, 1j, max_steps=1),
            "loss must return one real floating-point number, got",
        ),
        (
            lambda: minimize(optax.scale_by_backtracking_linesearch(9), jnp.abs, 1j, max_steps=1),
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
        (
            lambda: GroupedLSTM([network(), network(layers=1)], (2, 3)),
            "networks must agree in hidden_features, layers, what they see and moments",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message) as refused:
        call()
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


EXPLICIT = """
import subprocess
import sys

import jax
jax.config.update("jax_num_cpu_devices", 2)
import jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from tests.learned_parts import act, updates_of

mesh = jax.make_mesh((2,), ("data",))
place = lambda values, *spec: jax.device_put(values, NamedSharding(mesh, P(*spec)))
mixed = {
    "a": place(jnp.ones((4, 2)), None, "data"),
    "b": place(jnp.ones(3)),
    "c": place(jnp.ones(4), "data"),
}
plain = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), mixed)
updates, _ = updates_of(act(), mixed, mixed)
wanted, _ = updates_of(act(), plain, plain)
jax.tree.map(np.testing.assert_array_equal, updates, wanted)
assert jax.typeof(updates["c"]).sharding.spec[-1] == "data"
"""


def test_leaves_may_lie_differently_on_an_explicit_mesh():
    subprocess.run([sys.executable, "-c", EXPLICIT], check=True)
