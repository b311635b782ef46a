"""The kernel of the optimizer's step, interpreted: the plain step; and that a GPU is given it."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from actjax.learned import CoordinatewiseLSTM, GroupedLSTM, columns, kernel, lstm_optimizer
from tests.learned_parts import network
from tests.test_kernel import kernels_for_cuda

pytestmark = pytest.mark.usefixtures("quick_compilation")
INTERPRETED = columns._alone(partial(kernel.advance, interpret=True))
SEES_ALL = {"see_params": True, "see_scale": True, "output_bias": True}


def state(made, count, dtype=jnp.float32):
    """Arguments of a step: ok, memory, gradients of many sizes and what else may be seen."""
    keys = jax.random.split(jax.random.key(1), 3)
    memory = jax.random.normal(keys[0], (columns.memory_rows(made), count), jnp.float32)
    memory = memory.at[: made.moment_rows].set(abs(memory[: made.moment_rows]))
    gradient = jax.random.normal(keys[1], (count,), jnp.float32)
    gradient *= jnp.exp(5 * jax.random.normal(keys[2], (count,), jnp.float32))
    seen = jnp.sin(gradient) if made.see_params else None, gradient if made.see_scale else None
    return jnp.asarray(True), memory.astype(dtype), gradient, seen


def biased(made):
    for part in made.networks if isinstance(made, GroupedLSTM) else [made]:
        if part.output_bias is not None:
            part.output_bias[...] += 0.3
    return made


def assert_close(found, wanted, rtol=2e-6):
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1, abs(b).max()))


# Units that tiles of one size are, or of two, or that the last of them fills up.
CASES = {
    "as in the papers": (20, {}, 129, jnp.float32),
    "bfloat16": (20, {}, 1000, jnp.bfloat16),
    "raw": (3, {"preprocess": "raw", "layers": 1, **SEES_ALL}, 1, jnp.float32),
    "moments": (24, {"preprocess": "adam", **SEES_ALL}, 7, jnp.float32),
    "deep": (17, {"layers": 3, "p": 7.0, "output_scale": 1}, 130, jnp.float32),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_plain_step(case):
    units, options, count, dtype = CASES[case]
    made = biased(CoordinatewiseLSTM(units, rngs=nnx.Rngs(0), **options))
    check(made, count, dtype)


def test_equals_the_plain_step_group_by_group():
    check(GroupedLSTM([network(layers=1, p=7.0), network(7, layers=1)], (9, 140)), 2 * 149)


def check(made, count, dtype=jnp.float32):
    ok, memory, gradient, seen = state(made, count, dtype)
    found = jax.jit(partial(INTERPRETED, made))
    wanted = jax.jit(partial(columns._whole, made))(ok, memory, gradient, seen)
    # The other sums may round to another bfloat16.
    assert_close(found(ok, memory, gradient, seen), wanted, 2e-6 if dtype == jnp.float32 else 1e-2)
    refused = found(~ok, memory, gradient.at[0].set(jnp.nan), seen)
    np.testing.assert_array_equal(refused[0], memory)
    np.testing.assert_array_equal(refused[1], jnp.zeros(count))


def test_networks_and_problems_are_mapped_over():
    made = nnx.vmap(lambda key: CoordinatewiseLSTM(3, rngs=nnx.Rngs(key)))
    made = made(jax.random.split(jax.random.key(0), 2))
    ok, memory, gradient, seen = state(network(), 5)
    memory = jnp.stack([memory, -memory])
    axes = 0, None, 0, None, None
    found = jax.vmap(INTERPRETED, axes)(made, ok, memory, gradient, seen)
    assert_close(found, jax.vmap(columns._whole, axes)(made, ok, memory, gradient, seen))


# What a GPU is given

LARGE = 2 * columns.BLOCK


def update(made, count=LARGE, dtype=None):
    optimizer = lstm_optimizer(made, state_dtype=dtype)

    def run(gradient, params):
        return optimizer.update(gradient, optimizer.init(params), params)

    return run, jnp.ones(count), jnp.ones(count)


@pytest.mark.not_in("x64", "networks are then in float64")
@pytest.mark.parametrize(
    ("made", "options", "kernels"),
    [
        (lambda: network(preprocess="adam", see_scale=True), {}, 1),
        (lambda: CoordinatewiseLSTM(64, rngs=nnx.Rngs(0)), {"dtype": jnp.bfloat16}, 1),
        (lambda: GroupedLSTM([network(), network(1)], (1, 3)), {}, 2),
        (lambda: network(), {"count": 100}, 0),
        (lambda: network(), {"dtype": jnp.float16}, 0),
        (lambda: type("Other", (CoordinatewiseLSTM,), {})(3, rngs=nnx.Rngs(0)), {}, 0),
        (lambda: network(output_scale=jnp.ones(())), {}, 0),
        (lambda: CoordinatewiseLSTM(65, rngs=nnx.Rngs(0)), {}, 0),
    ],
)
def test_lowers_for_cuda(made, options, kernels):
    assert kernels_for_cuda(*update(made(), **options)) == kernels


@pytest.mark.not_in("x64", "networks are then in float64")
def test_derivatives_are_those_of_the_plain_step():
    run, gradient, params = update(network(layers=1))
    value = lambda gradient: jnp.sum(jnp.sin(30 * run(gradient, params)[0]))
    push = lambda f: lambda x: jax.jvp(f, (x,), (jnp.cos(x),))[1]
    for derivative in (jax.grad(value), push(value), push(jax.grad(value)), jax.vmap(value)):
        x = gradient[None] if derivative.__name__ == "value" else gradient
        assert kernels_for_cuda(derivative, x) == 0
    found = jax.jit(jax.grad(value))(gradient)
    step = lambda x: columns._whole(network(layers=1), True, jnp.zeros((6, LARGE)), x, (None,) * 2)
    wanted = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(30 * step(x)[1]))))(gradient)
    assert_close([found], [wanted], 1e-5)


def test_a_step_is_plain_where_there_is_no_triton(monkeypatch):
    name = "actjax.learned.kernel"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    monkeypatch.delattr("jax.experimental.pallas.triton")
    assert kernels_for_cuda(*update(network())) == 0


@pytest.mark.not_in("x64", "networks are then in float64")
def test_a_step_is_plain_on_gpus_that_triton_does_not_know(monkeypatch):
    class Device:
        compute_capability = "7.5"

    assert columns._kernel_for(network(), jnp.zeros((12, 3))) is kernel
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert columns._kernel_for(network(), jnp.zeros((12, 3))) is None
