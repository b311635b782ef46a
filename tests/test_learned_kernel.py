"""The kernel of the optimizer's step, interpreted: the plain step; and that a GPU is given it."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from actjax.learned import CoordinatewiseLSTM, GroupedLSTM, columns, kernel, lstm_optimizer
from tests.learned_parts import network
from tests.test_kernel import kernels_for_cuda, told_of_a_gpu

pytestmark = [
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.not_in("x64", "networks are then in float64, and their steps plain"),
]
INTERPRETED = partial(kernel.advance, interpret=True)
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
    "as in the papers": (20, {}, 1000, jnp.float32),
    "deep, bfloat16": (3, {"layers": 3, "p": 7.0, "output_scale": 1}, 129, jnp.bfloat16),
    "raw": (5, {"preprocess": "raw", "layers": 1, **SEES_ALL}, 1, jnp.float32),
    "moments": (16, {"preprocess": "adam", "layers": 1, **SEES_ALL}, 7, jnp.float32),
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
    wanted = jax.jit(partial(columns.plain_step, made))(ok, memory, gradient, seen)
    # The other sums may round to another bfloat16.
    assert_close(found(ok, memory, gradient, seen), wanted, 2e-6 if dtype == jnp.float32 else 1e-2)
    gradient = np.asarray(gradient) * np.float32(np.nan)
    refused = found(~ok, memory, gradient, seen)
    np.testing.assert_array_equal(refused[0], memory)
    np.testing.assert_array_equal(refused[1], jnp.zeros(count))


def test_networks_and_problems_are_mapped_over():
    made = nnx.vmap(lambda key: CoordinatewiseLSTM(3, rngs=nnx.Rngs(key)))
    made = made(jax.random.split(jax.random.key(0), 2))
    ok, memory, gradient, seen = state(network(), 5)
    memory = jnp.stack([memory, -memory])
    axes = 0, None, 0, None, None
    step = columns._alone(INTERPRETED)
    found = jax.jit(jax.vmap(step, axes))(made, ok, memory, gradient, seen)
    for n in range(2):
        one = jax.tree.map(lambda leaf, n=n: leaf[n], made)
        wanted = columns.plain_step(one, ok, memory[n], gradient, seen)
        assert_close([leaf[n] for leaf in found], wanted)


SHARDED = """
import jax

jax.config.update("jax_num_cpu_devices", 2)
import jax.numpy as jnp, numpy as np
from functools import partial
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from actjax.learned import columns
from tests.learned_parts import network
from tests.test_learned_kernel import INTERPRETED, state

made = network(layers=1, see_params=True)
ok, *arguments = state(made, 256)
wanted = columns.plain_step(made, ok, *arguments)
mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
place = lambda leaf, *spec: jax.device_put(leaf, NamedSharding(mesh, P(*spec)))
for axis in ("data", None):
    divided = [place(leaf, *[None] * (leaf.ndim - 1), axis) for leaf in jax.tree.leaves(arguments)]
    run = jax.jit(lambda memory, g, seen: INTERPRETED(made, ok, memory, g, (seen, None)))
    compiled = run.lower(*divided).compile()
    assert "all-gather" not in compiled.as_text()
    for found, known in zip(compiled(*divided), wanted, strict=True):
        np.testing.assert_allclose(found, known, rtol=1e-5, atol=1e-5)
        assert (found.sharding.spec[-1:] == ("data",)) == bool(axis), found.sharding
    assert columns._kernel_for(made, divided[0]).__name__ == "actjax.learned.kernel"
explicit = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
placed = jax.device_put(arguments[0], NamedSharding(explicit, P(None, "data")))
assert columns._kernel_for(made, placed) is None
"""


def test_on_several_devices_each_does_its_own_columns():
    subprocess.run([sys.executable, "-c", SHARDED], check=True)


# What a GPU is given

LARGE = 2 * columns.BLOCK


def update(made, count=LARGE, dtype=None):
    optimizer = lstm_optimizer(made, state_dtype=dtype)

    def run(gradient, params):
        return optimizer.update(gradient, optimizer.init(params), params)

    return run, jnp.ones(count), jnp.ones(count)


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


def test_exported_for_several_platforms():
    """Where the branches of all platforms are lowered for each, and one of them is a kernel."""
    run, *given = update(network(layers=1))
    triton = jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")
    options = {"platforms": ["cpu", "cuda"], "disabled_checks": [triton]}
    exported = told_of_a_gpu(lambda: jax.export.export(jax.jit(run), **options)(*given))
    found, wanted = exported.call(*given), jax.jit(run)(*given)
    assert_close(jax.tree.leaves(found), jax.tree.leaves(wanted))
    assert "triton" in exported.mlir_module()


def test_derivatives_are_those_of_the_plain_step():
    run, gradient, params = update(network(layers=1))
    value = lambda gradient: jnp.sum(jnp.sin(30 * run(gradient, params)[0]))
    forward = lambda f: lambda x: jax.jvp(f, (x,), (jnp.cos(x),))[1]
    for derivative in (jax.grad(value), forward(value), forward(jax.grad(value))):
        assert kernels_for_cuda(derivative, gradient) == 0
    assert kernels_for_cuda(jax.vmap(value), gradient[None]) == 0
    assert kernels_for_cuda(value, gradient) == 1
    found = jax.jit(jax.grad(value))(gradient)
    step = lambda x: columns.plain_step(
        network(layers=1), True, jnp.zeros((6, LARGE)), x, (None,) * 2
    )
    wanted = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(30 * step(x)[1]))))(gradient)
    assert_close([found], [wanted], 1e-5)


def test_a_step_is_plain_where_there_is_no_triton(monkeypatch):
    name = "actjax.learned.kernel"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    monkeypatch.delattr("jax.experimental.pallas.triton")
    assert kernels_for_cuda(*update(network())) == 0


def test_a_step_is_plain_on_gpus_that_triton_does_not_know(monkeypatch):
    class Device:
        compute_capability = "7.5"

    assert columns._kernel_for(network(), jnp.zeros((12, 3))) is kernel
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert columns._kernel_for(network(), jnp.zeros((12, 3))) is None
