"""What an iteration writes: few arrays, side by side where launches are dear, the same numbers."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import actjax
from actjax._layers import Layers
from actjax._loop import devices, plan
from actjax._loop.pack import Pack
from actjax.nn.attention import Attention, transmission
from tests.test_unroll import assert_trees_close

pytestmark = pytest.mark.usefixtures("quick_compilation")
XS = np.random.default_rng(0).standard_normal((4, 5, 3)).astype(np.float32)
LENGTHS = np.array([5, 3, 1, 4])
LONG = np.random.default_rng(0).standard_normal((4, 12, 3)).astype(np.float32)
LONG_LENGTHS = np.array([12, 3, 0, 9])


def model(kind, **options):
    if kind == "lfact":
        return actjax.LFACT(3, 8, max_layers=5, halt_bias=-0.5, rngs=nnx.Rngs(0), **options)
    cell = nnx.GRUCell if kind == "gru" else nnx.OptimizedLSTMCell
    return actjax.ACT(3, 8, cell=cell, max_steps=5, halt_bias=-0.5, rngs=nnx.Rngs(0), **options)


def objective(model, xs):
    lengths = LENGTHS if xs.shape[1] == 5 else LONG_LENGTHS
    _, outputs, ponder = model(xs, lengths=lengths)
    return (outputs.astype(jnp.float32) ** 2).sum() + ponder.cost.sum(), ponder


differentiate = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)


def writes(jaxpr, looping=False):
    """How many arrays the bodies of the loops of a gradient write into."""
    found = Counter()
    for eqn in jaxpr.eqns:
        if looping and eqn.primitive.name in ("scatter", "dynamic_update_slice"):
            found[eqn.primitive.name] += 1
        for value in jax.tree.leaves(list(eqn.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += writes(inner, looping or eqn.primitive.name == "while")
    return found


@pytest.fixture
def as_accelerated(monkeypatch):
    """Calls a function as on an accelerator; loops are traced once for the shapes of a call."""

    def call(function, *given):
        with monkeypatch.context() as patched:
            patched.setattr(devices, "accelerated", lambda: True)
            jax.clear_caches()
            result = function(*given)
        jax.clear_caches()
        return result

    return call


@pytest.mark.parametrize(
    ("kind", "options", "scatters"),
    [("gru", {}, 2), ("lstm", {}, 2), ("lstm", {"dtype": jnp.bfloat16}, 3)],
)
def test_iterations_write_few_arrays(as_accelerated, kind, options, scatters):
    """Forward a record, its residuals, results; backward what late products need, the inputs'."""
    trace = jax.make_jaxpr(differentiate)
    traced = as_accelerated(lambda: trace(model(kind, **options), XS))
    found = writes(traced.jaxpr)
    assert found["dynamic_update_slice"] <= 4 and found["scatter"] <= scatters
    assert writes(trace(model(kind, **options), XS).jaxpr).total() > found.total() + 4


@pytest.mark.parametrize(
    ("kind", "options"),
    [("lstm", {"lanes": 2}), ("gru", {"dtype": jnp.bfloat16}), ("lfact", {})],
)
def test_side_by_side_are_the_same_numbers(as_accelerated, kind, options):
    """In blocks of four iterations, a queue served within them; of what LFACT makes in twos."""
    run = lambda: jax.jit(lambda *given: differentiate(*given))(model(kind, **options), LONG)
    (apart, d_apart), (beside, d_beside) = run(), as_accelerated(run)
    assert_trees_close(beside, apart, 1e-6)
    # Sums of bfloat16 products are rounded once for every so many rows.
    assert_trees_close(d_beside, d_apart, 1e-5 if "dtype" not in options else 2e-2)


def test_blocks_and_segments_are_the_same_numbers(as_accelerated):
    """Segments are whole blocks, and what was not kept is computed again by the block."""
    weights = np.random.default_rng(1).standard_normal((8, 5)).astype(np.float32)

    def step(weights, state, x, first):
        new = jnp.tanh(jnp.concatenate([x, state], axis=-1) @ weights[:, :4])
        return new, jax.nn.sigmoid((x[:, 0] + new[:, 0]) * weights[0, 4])

    def loss(weights, xs):
        state = jnp.zeros((len(xs), 4))
        options = {"lengths": LONG_LENGTHS, "max_steps": 4, "segment": 7}
        final, outputs, ponder = actjax.unroll(step, weights, state, xs, lanes=2, **options)
        return (final**2).sum() + (outputs**2).sum() + ponder.cost.sum()

    xs = np.concatenate([LONG, LONG[..., :1]], axis=-1)
    run = lambda: jax.jit(jax.value_and_grad(lambda *given: loss(*given), (0, 1)))(weights, xs)
    assert_trees_close(as_accelerated(run), run(), 2e-6)


def test_integers_in_the_state_are_exact(as_accelerated):
    """Of every size: N is kept as a float beside the other results, what a step counts is not."""

    def step(_, state, x, first):
        count, given = state
        return (count + jnp.ones((), count.dtype), given), x[:, 0]

    def run():
        for dtype, begin in ((jnp.int32, 1 << 24), (jnp.uint32, (1 << 32) - 9), (jnp.int8, 100)):
            given = (jnp.full(4, begin, dtype), jnp.zeros(4)), LONG[:, :2] * 0
            _, (counts, _), ponder = actjax.unroll(step, (), *given, max_steps=3, lanes=2)
            assert counts.dtype == dtype and ponder.steps.dtype == jnp.int32
            np.testing.assert_array_equal(counts, begin + np.tile([3, 6], (4, 1)))
            np.testing.assert_array_equal(ponder.steps, 3)

    as_accelerated(run)


def test_layers_are_attended_to_at_once_as_one_by_one(as_accelerated):
    """With the first layers of a sequence still missing, and layers that a row has not."""
    rng = np.random.default_rng(2)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    below = Layers((draw(6, 5, 3), draw(6, 5, 2, 2)), jnp.array([1, 2, 3, 4, 5, 1]))
    attention, query = Attention(draw(3), draw(3), draw(3), draw(5, 3)), draw(6, 3)
    n = jnp.array([1, 3, 2, 5, 1, 2])

    def loss(attention, query, states, attend):
        layers = below._replace(states=states)
        sent = transmission(attention, query, layers, n, attend=attend, leaf=0)
        return sum((jnp.cos(leaf) * leaf).sum() for leaf in sent)

    def both(*given):
        differentiate = jax.value_and_grad(loss, argnums=(0, 1, 2))
        return [differentiate(*given, attend) for attend in ("all", "lower")]

    run = lambda: jax.jit(lambda *given: both(*given))(attention, query, below.states)
    assert_trees_close(as_accelerated(run), run(), 2e-6)


def test_a_pack_gives_back_what_it_was_given():
    """Columns of one, of none and of many; flags; several dtypes; arrays without rows."""
    tree = {
        "flag": np.array([True, False]),
        "n": np.array([3, 1 << 20], np.int32),
        "wide": np.arange(12.0, dtype=np.float32).reshape(2, 3, 2),
        "none": np.zeros((2, 0), np.float32),
        "one": np.array([0.5, 7.0], np.float32),
        "half": np.ones((2, 3), jnp.bfloat16),
        "mask": np.array([[True], [False]]),
        "scalar": np.float32(4),
    }
    pack = Pack(tree, 2, together=True)
    packed = pack.pack(jax.tree.map(jnp.asarray, tree))
    assert [p.shape for p in packed] == [s.shape for s in pack.shapes]
    assert len(packed) == 5
    back = pack.unpack(packed)
    assert jax.tree.map(lambda a: a.dtype, back) == jax.tree.map(lambda a: a.dtype, tree)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    apart = Pack(tree, 2, together=False)
    assert len(apart.shapes) == len(tree)
    assert len(Pack(tree, 2, together=True, most=47).shapes) == 6  # "wide" has 48 bytes


def test_residuals_may_take_a_share_of_the_devices_memory():
    class Device:
        def __init__(self, **stats):
            self.memory_stats = lambda: stats or None

    assert plan._segment_bytes(Device()) == 1 << 28
    assert plan._segment_bytes(Device(bytes_in_use=3)) == 1 << 28
    assert plan._segment_bytes(Device(bytes_limit=1 << 36)) == 1 << 32


@pytest.mark.parametrize("lanes", [1, 5, plan._FEW_LANES, plan._FEW_LANES + 1])
def test_lanes_count_those_up_to_them(lanes, monkeypatch):
    mask = np.random.default_rng(lanes).random(lanes) < 0.5
    monkeypatch.setattr(
        plan.Plan, "__init__", lambda self, lanes: self.__dict__.update(lanes=lanes)
    )
    found = plan.Plan(lanes).count_up_to(jnp.asarray(mask))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, np.cumsum(mask))
