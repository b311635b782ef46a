"""Sweeps: members equal to the same runs alone, retirement, divergence, resumption."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from actjax.training import init_state, make_train_step
from actjax.training.ensemble import _bucket, stack_states, sweep
from actjax.training.loop import fit

SIZE = 5
LEAVES = jax.tree.leaves


def sample(key, data):
    x = jax.random.normal(key, (8, 3))
    return x, jnp.sin(x.sum(-1)) + data


def loss_fn(model, batch, rate):
    x, y = batch
    error = jnp.tanh(x @ model["in"]) @ model["out"] - y
    return rate * jnp.mean(error**2), {"error_max": jnp.abs(error).max()}


OPTIMIZER = optax.sgd(0.02, momentum=0.9)  # Adam makes steps of what is rounding in a gradient
TRAIN_STEP = make_train_step(sample, loss_fn, OPTIMIZER, control=lambda rate, metrics: rate)
DATA = jnp.zeros(())


def make_state(key, rate):
    a, b = jax.random.split(key)
    model = {"in": jax.random.normal(a, (3, 4)), "out": jax.random.normal(b, (4,))}
    return init_state(model, OPTIMIZER, rate)


def ensemble(size=SIZE):
    keys = jax.random.split(jax.random.key(3), size)
    return stack_states(make_state, keys, jnp.linspace(0.5, 2.0, size)), keys


def run(**options):
    states, keys = ensemble()
    defaults = {"steps": 30, "data": DATA, "log_every": 5, "rows_per_dispatch": 2}
    return sweep(TRAIN_STEP, states, keys=keys, **defaults | options)


@pytest.mark.parametrize("batching", ["vmap", "map"])
def test_members_equal_the_same_runs_alone(batching):
    result = run(batching=batching)
    states, keys = ensemble()
    assert result.history["loss"].shape == (6, SIZE) and not result.retired.any()
    np.testing.assert_array_equal(result.history["step"], np.arange(5, 31, 5))
    for member in range(SIZE):
        alone = fit(
            TRAIN_STEP,
            jax.tree.map(lambda a, m=member: a[m], states),
            key=keys[member],
            steps=30,
            data=DATA,
            log_every=5,
            checkpoint_every=5,
        )
        for a, b in zip(LEAVES(alone), LEAVES(result.states), strict=True):
            np.testing.assert_allclose(a, b[member], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batching", ["vmap", "map"])
def test_retired_members_stop_and_leave_the_others_alone(batching):
    leave_at = np.array([10, 30, 20, 10, 30])
    seen = []

    def retire(history):
        seen.append(np.isfinite(history["loss"][-1]).sum())
        return history["step"][-1] >= leave_at

    result, whole = run(retire=retire, batching=batching), run(batching=batching)
    np.testing.assert_array_equal(result.states.step, leave_at)
    assert seen == [5, 3, 2, 2]
    for name in ("loss", "error_max"):
        ran = np.arange(5, 31, 5)[:, None] <= leave_at
        np.testing.assert_array_equal(np.isfinite(result.history[name]), ran)
        np.testing.assert_allclose(
            result.history[name][ran], whole.history[name][ran], rtol=1e-5, atol=1e-6
        )
    for a, b in zip(LEAVES(result.states), LEAVES(whole.states), strict=True):
        np.testing.assert_allclose(
            np.asarray(a)[[1, 4]], np.asarray(b)[[1, 4]], rtol=1e-5, atol=1e-6
        )


def test_a_sweep_ends_when_all_have_retired():
    result = run(retire=lambda history: np.ones(SIZE, bool))
    assert result.retired.all() and not result.diverged.any()
    assert (result.states.step == 10).all()


@pytest.mark.parametrize("size", [1, 2, 5, 8, 20])
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_buckets_hold_every_member_once_evenly(size, devices):
    shares = set()
    for count in range(1, size + 1):
        members = np.sort(np.random.default_rng(count).permutation(size)[:count])
        take, put = _bucket(members, size, devices)
        real = put < size
        np.testing.assert_array_equal(np.sort(put[real]), members)
        np.testing.assert_array_equal(take[real], put[real])
        per_device = real.reshape(devices, -1).sum(1)
        assert per_device.max() - per_device.min() <= 1
        assert len(take) <= max(devices, 2 * count + devices)
        shares.add(len(take) // devices)
    assert len(shares) <= 1 + np.ceil(np.log2(size))


@pytest.mark.not_in("nans", "JAX stops the run before we do")
def test_a_diverged_member_keeps_its_last_good_state():
    states, keys = ensemble()
    rates = states.extra.at[2].set(jnp.nan)
    result = sweep(
        TRAIN_STEP,
        states._replace(extra=rates),
        keys=keys,
        steps=20,
        data=DATA,
        log_every=5,
        rows_per_dispatch=2,
    )
    assert result.diverged.tolist() == [False, False, True, False, False]
    np.testing.assert_array_equal(result.states.model["in"][2], states.model["in"][2])
    assert (np.delete(result.states.step, 2) == 20).all() and result.states.step[2] == 0


def test_a_sweep_resumes_to_the_same_bits(tmp_path):
    def retire(history):
        return history["step"][-1] >= np.array([20, 60, 60, 40, 60])

    options = {"retire": retire, "checkpoint_every": 10}
    whole = run(steps=60, **options)
    run(steps=30, directory=tmp_path, **options)
    (tmp_path / "metrics.jsonl").open("a").write('{"step": 35, "lo')
    resumed = run(steps=60, directory=tmp_path, **options)
    for a, b in zip(LEAVES(whole.states), LEAVES(resumed.states), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(whole.history["loss"], resumed.history["loss"])
    again = run(steps=60, directory=tmp_path, **options)
    np.testing.assert_array_equal(again.history["loss"], resumed.history["loss"])


@pytest.mark.parametrize("stop", [25, 28])
def test_a_sweep_that_ended_between_two_checkpoints_goes_on_writing_them(stop, tmp_path):
    whole = run(steps=53, directory=tmp_path / "whole")
    run(steps=stop, directory=tmp_path / "cut")
    resumed = run(steps=53, directory=tmp_path / "cut")
    for a, b in zip(LEAVES(whole.states), LEAVES(resumed.states), strict=True):
        np.testing.assert_array_equal(a, b)
    rows = resumed.history["step"]
    assert set(rows) == {*whole.history["step"], stop}
    saved = [[p.name for p in (tmp_path / n / "checkpoints").iterdir()] for n in ("whole", "cut")]
    assert sorted(saved[0]) == sorted(saved[1])
    with pytest.raises(
        ValueError, match="steps must be at least 53, which the run has done already, got 40"
    ):
        run(steps=40, directory=tmp_path / "cut")


ON_FOUR_DEVICES = """
import numpy as np, jax, sys
sys.path.insert(0, "tests")
from test_sweep import *
assert len(jax.devices()) == 4
for batching in ("vmap", "map"):
    leave_at = np.array([10, 30, 30, 20, 30])
    spread = run(batching=batching, retire=lambda history: history["step"][-1] >= leave_at)
    alone = run(batching=batching, devices=jax.devices()[:1])
    for a, b in zip(LEAVES(spread.states), LEAVES(alone.states)):
        a, b = np.asarray(a)[[1, 2, 4]], np.asarray(b)[[1, 2, 4]]
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
states, keys = ensemble(8)
result = sweep(TRAIN_STEP, states, keys=keys, steps=2, data=DATA, log_every=1)
for leaf in LEAVES(result.states):
    assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {2}
"""


def test_sharded_over_four_devices():
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiling is most of the time
    done = subprocess.run(
        [sys.executable, "-c", ON_FOUR_DEVICES],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"batching": "loop"}, "batching must be 'vmap' or 'map', got 'loop'"),
        ({"checkpoint_every": 15}, "checkpoint_every must be a multiple of .* = 10, got 15"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)
