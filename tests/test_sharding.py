"""Data parallelism on virtual CPU devices: the numbers of one device, and what is refused."""

import os
import subprocess
import sys

import jax
import pytest

from actjax.training import sharding

SCRIPT = """
import jax, numpy as np, optax, actjax
from flax import nnx
from actjax import losses, training
from actjax.tasks import parity
from actjax.training.sharding import make_mesh, replicate

assert jax.device_count() == 4
sample = lambda key, data=(): parity.sample(key, 8, bits=8)

def loss(model, batch):
    _, outputs, ponder = model(batch.inputs)
    error = ((outputs.mean(-1) - batch.targets) ** 2).mean()
    return error + 0.01 * ponder.cost.mean(), losses.ponder_metrics(ponder)

def train(mesh):
    rngs = nnx.Rngs(0)
    core = actjax.CORE
    optimizer = optax.adam(1e-2)
    step = training.make_train_step(sample, loss, optimizer, mesh=mesh)
    state = training.init_state(core, optimizer)
    state = state if mesh is None else replicate(state, mesh)
    return training.make_chunk(step, 3)(state, jax.random.key(0), ())

alone, shared = train(None), train(make_mesh(data=4))
for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(shared), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)
print("equal")
"""
CORES = {
    "act": "ACT(8, 6, max_steps=6, halt_bias=-0.5, rngs=rngs)",
    "lfact": "LFACT(8, 6, max_layers=4, halt_bias=-0.5, rngs=rngs)",
}


@pytest.mark.parametrize("core", CORES)
def test_four_devices_train_as_one(core):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    flags |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiling is most of the time
    script = SCRIPT.replace("CORE", CORES[core])
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | flags, capture_output=True, text=True
    )
    assert done.stdout == "equal\n", done.stderr[-2000:]


def test_a_batch_that_devices_cannot_share_is_refused():
    mesh = jax.sharding.AbstractMesh((1, 4), (sharding.MEMBERS, sharding.DATA))
    with pytest.raises(ValueError, match="batch must have rows that 4 devices can share, got 6"):
        sharding.data_parallel(None, mesh)(None, jax.numpy.zeros((6, 2)))


def test_a_mesh_of_other_devices_than_there_are_is_refused():
    count = jax.device_count()
    with pytest.raises(ValueError, match=f"must be the number of devices, {count}, got 3 x 2"):
        sharding.make_mesh(data=3, members=2)
