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
    optimizer = optax.sgd(0.1, momentum=0.9)  # Adam makes steps of what is rounding
    step = training.make_train_step(sample, loss, optimizer, mesh=mesh)
    state = training.init_state(core, optimizer)
    state = state if mesh is None else replicate(state, mesh)
    return training.make_chunk(step, 3)(state, jax.random.key(0), ())

alone = train(None)
for mesh in (make_mesh(data=4), jax.make_mesh((4,), ("data",))):  # automatic and explicit
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(train(mesh)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
print("equal")
"""
CORES = {
    "act": "ACT(8, 6, max_steps=6, halt_bias=-0.5, rngs=rngs)",
    "lfact": "LFACT(8, 6, max_layers=4, halt_bias=-0.5, rngs=rngs)",
}


def assert_prints(script, text):
    """Runs a script on four devices; its output begins with `text`."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    flags |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiling is most of the time
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | flags, capture_output=True, text=True
    )
    assert done.stdout.startswith(text), done.stderr[-2000:]


LANES = """
import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
from actjax import training
from actjax.training.sharding import make_mesh

assert jax.device_count() == 4
sample = lambda key, data: jax.random.normal(key, (32, 4))
begin = lambda model, x: jnp.full_like(x, 0.5)

def loss(model, x, y):
    y = jnp.tanh(model(x + y))
    return (y**2).mean(), (y, jnp.abs(y).mean(-1) < 0.5, {"seen": y.mean(), "at_max": y.max()})

def train(mesh):
    model, optimizer = nnx.Linear(4, 4, rngs=nnx.Rngs(0)), optax.sgd(0.1)
    options = {"max_steps": 4, "explore": 0.5, "mesh": mesh}
    step = training.make_recycled_step(sample, loss, optimizer, start=begin, **options)
    state = training.init_recycled(
        model, optimizer, sample, begin, jax.random.key(0), mesh=mesh
    )
    state, _, metrics = training.make_chunk(step, 7)(state, jax.random.key(1), ())
    if mesh is not None:
        assert not jax.tree.leaves(state.extra)[0].is_fully_replicated
        for fresh in training.with_average(state), training.with_best(state):  # or it would be
            places = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(fresh)}
            assert places == {4}  # compiled twice: for what is given, and for what comes back
    return state, metrics

alone = train(None)
assert 0 < alone[1]["recycled"] < 1
for mesh in (make_mesh(), jax.make_mesh((4,), ("data",))):  # automatic and explicit
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(train(mesh)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
print("equal")
"""


def test_four_devices_recycle_lanes_as_one():
    assert_prints(LANES, "equal\n")


@pytest.mark.parametrize("core", CORES)
def test_four_devices_train_as_one(core):
    assert_prints(SCRIPT.replace("CORE", CORES[core]), "equal\n")


CARRIED = """
import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
from actjax import training

MESH = jax.make_mesh((4,), ("data",))

class Net(nnx.Module):
    def __init__(self, axis=None, rate=0.0):
        rngs = nnx.Rngs(0)
        self.norm = nnx.BatchNorm(3, axis_name=axis, rngs=rngs)
        self.drop = nnx.Dropout(rate, rngs=rngs)
        self.layer = nnx.Linear(3, 1, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.turn = nnx.Param(jnp.exp(0.5j))
        self.kept = nnx.Cache(jnp.full((), 0.1))

    def __call__(self, x):
        self.calls[...] += 1
        return self.layer(self.drop(self.norm(x)))[:, 0].astype(self.turn.dtype) * self.turn

def sample(key, data=()):
    x = jax.random.normal(key, (8, 3))
    return x, jnp.sin(x.sum(-1))

def loss(model, batch):
    turned = model(batch[0])
    error = jnp.abs(turned - batch[1].astype(turned.dtype))
    return (error ** 2).mean(), {"hits": (error < 1).sum(), "error_max": error.max()}

def train(model, mesh=None, optimizer=optax.sgd(0.05, momentum=0.9), loss=loss):
    step = training.make_train_step(sample, loss, optimizer, mesh=mesh)
    state = training.init_state(model, optimizer)
    return training.make_chunk(step, 3)(state, jax.random.key(0), ())

def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, atol=1e-5)

# statistics of the whole batch: the numbers of one device
for optimizer in (optax.sgd(0.05, momentum=0.9), optax.lbfgs(), optax.polyak_sgd()):
    alone = train(Net(), optimizer=optimizer)[0]
    assert_same(alone, train(Net("data"), MESH, optimizer)[0])
# each device's own, of which the mean is kept
state, _, metrics = train(Net(), MESH)
alone, _, counted = train(Net())
np.testing.assert_allclose(state.model.norm.mean, alone.model.norm.mean, atol=1e-6)
assert (state.model.norm.var[...] < alone.model.norm.var[...]).all()
assert int(state.model.calls[...]) == 3 and state.model.kept[...] == alone.model.kept[...]
# noise: each device's own, another each update
seen = []
def drawn(model, batch):
    mask = model.drop(jnp.ones((2, 64)))
    pick = jax.nn.one_hot(jax.lax.axis_index("data"), 4)[:, None] * mask[:1]
    return loss(model, batch)[0], {"mask_max": pick}
step = training.make_train_step(sample, drawn, optax.sgd(0.0), mesh=MESH)
state = training.init_state(Net(rate=0.5), optax.sgd(0.0))
for _ in range(2):
    state, metrics = jax.jit(step)(state, jax.random.key(0))
    seen += list(np.asarray(metrics["mask_max"]))
assert len({tuple(mask) for mask in seen}) == 8
assert int(state.model.drop.rngs.count[...]) == 4  # two draws an update, on all devices alike
# a counter of what one device sees
def counting(model, batch):
    model.calls[...] += (batch[0] > 0).sum()
    return loss(model, batch)
try:
    train(Net(), MESH, loss=counting)
except ValueError as error:
    print(error)
"""


def test_what_a_model_carries_is_of_all_devices():
    refusal = "model.calls.value must be of a floating-point type, whose mean over devices is taken"
    assert_prints(CARRIED, refusal)


def test_a_mesh_without_a_data_axis_is_refused():
    mesh = jax.make_mesh((1,), ("rows",), devices=jax.devices()[:1])
    with pytest.raises(ValueError, match=r"mesh must have an axis 'data', got \('rows',\)"):
        sharding.data_parallel(None, mesh)


@pytest.mark.parametrize("batch", [(jax.numpy.zeros((8, 2)), jax.numpy.zeros(())), ()])
def test_a_batch_without_rows_is_refused(batch):
    mesh = jax.sharding.AbstractMesh((1, 4), (sharding.MEMBERS, sharding.DATA))
    with pytest.raises(ValueError, match="batch must hold arrays that lead with its rows"):
        sharding.data_parallel(None, mesh)(None, batch)


def test_a_batch_that_devices_cannot_share_is_refused():
    mesh = jax.sharding.AbstractMesh((1, 4), (sharding.MEMBERS, sharding.DATA))
    with pytest.raises(ValueError, match="batch must have rows that 4 devices can share, got 6"):
        sharding.data_parallel(None, mesh)(None, jax.numpy.zeros((6, 2)))


def test_a_mesh_of_other_devices_than_there_are_is_refused():
    count = jax.device_count()
    with pytest.raises(ValueError, match=f"must be the number of devices, {count}, got 3 x 2"):
        sharding.make_mesh(data=3, members=2)


EXPLICIT = """
from functools import partial
import jax, jax.numpy as jnp, numpy as np, actjax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec as P

mesh = jax.make_mesh((4,), ("data",))
rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
assert mesh.axis_types == (jax.sharding.AxisType.Explicit,)
xs = np.random.default_rng(0).standard_normal((8, 3, 4)).astype(np.float32)
lengths = np.array([3, 1, 0, 2, 3, 3, 1, 2], np.int32)
rngs = lambda: nnx.Rngs(0)
act = lambda **more: actjax.ACT(4, 6, max_steps=4, halt_bias=-0.5, rngs=rngs(), **more)
lfact = lambda loop: actjax.LFACT(4, 6, max_layers=3, halt_bias=-0.5, loop=loop, rngs=rngs())

def of_model(model, xs, lengths, state=None):
    final, outputs, ponder = model(xs, lengths=lengths, initial_state=state)
    final = sum((leaf**2).sum() for leaf in jax.tree.leaves(final) if leaf.ndim > 1)
    return (outputs**2).sum() + ponder.cost.sum() + final

def of_pair(model, xs, lengths):
    decoded = model(xs, steps=2, lengths=jnp.maximum(lengths, 1))
    return (decoded.outputs**2).sum() + decoded.ponder.cost.sum()

def of_positions(model, xs, lengths):
    outputs, ponder = model(jnp.concatenate([xs, xs**2], -1), lengths=lengths)
    return (outputs**2).sum() + ponder.cost.sum()

def expected(model, xs, lengths):
    squares = lambda _, outputs, x: ((outputs[:, :4] - x)**2).sum(-1)
    loss, kl, _ = model.expected_loss(xs, xs, squares, lengths=lengths)
    return (loss + kl).sum()

def step(table, state, x, *rest):
    x, symbol = x
    state = jnp.tanh(state + x + table[symbol])  # a gather, as no step would make on the mesh
    return state, jax.nn.sigmoid(state[:, 0])

def of_functions(table, xs, lengths, loop):
    inputs, zeros = (xs, (xs[..., 0] > 0).astype(jnp.int32)), jnp.zeros_like(xs[:, 0])
    final, states, ponder = actjax.unroll(
        step, table, zeros, inputs, max_steps=4, lengths=lengths, loop=loop, lanes=4)
    start = actjax.Layers(jnp.zeros((8, 3, 4)), jnp.ones(8, jnp.int32))
    _, layers, _ = actjax.unroll_layers(step, table, start, inputs, lengths=lengths, loop=loop)
    x = jax.tree.map(lambda leaf: leaf[:, 0], inputs)
    _, first = actjax.ponder(step, table, zeros, x, max_steps=4, loop=loop)
    again = actjax.repeat(step, table, zeros, inputs, repeats=2, lengths=lengths)[1]
    total = states.sum() + (final**2).sum() + ponder.cost.sum() + first.cost.sum()
    return total + (layers.deepest**2).sum() + (again**2).sum()

def cases(loop):
    lstm = act(lanes=4, cell=nnx.OptimizedLSTMCell, loop=loop)
    yield of_model, lstm, loop == "while"
    yield of_model, lfact(loop), loop == "scan"
    yield of_pair, actjax.Seq2Seq(act(loop=loop), act(loop=loop)), False
    yield partial(of_functions, loop=loop), np.eye(2, 4, dtype=np.float32), loop == "while"
    yield of_model, actjax.Repeat(4, 6, repeats=2, rngs=rngs()), False
    yield of_model, actjax.RNN(4, 6, rngs=rngs()), True

others = [
    (of_positions, actjax.UniversalTransformer(8, 2, max_steps=3, rngs=rngs()), True),
    (expected, actjax.PonderNet(4, 6, max_steps=3, rngs=rngs()), False),
    (of_model, act(loop="kernel", cell=nnx.SimpleCell), True),
]
for loss, params, compare in [*cases("while"), *cases("scan"), *others]:
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    spread = jax.device_put((xs, lengths), rows)
    run.trace(params, *spread)  # the parameters on no mesh, as in a plain call
    if compare:
        alone, many = run(params, xs, lengths), run(jax.device_put(params, everywhere), *spread)
        for a, b in zip(*map(jax.tree.leaves, (alone, many)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert many[1][1].sharding.spec[0] == "data"

model = jax.device_put(act(), everywhere)
sequences = [row[:max(length, 1)] for row, length in zip(xs, lengths)]
for a, b in zip(*(actjax.stream_batch(m, sequences[:3], lanes=2, chunk=2) for m in (act(), model))):
    np.testing.assert_allclose(a.outputs, b.outputs, atol=1e-6)
print("equal")
"""


def test_an_explicit_mesh_has_the_numbers_of_one_device():
    """What JAX refuses it refuses when it traces, so that few need to be compiled."""
    assert_prints(EXPLICIT, "equal\n")
