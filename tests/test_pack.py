"""What an iteration writes: few arrays, side by side where launches are dear, the same numbers."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import actjax
from actjax._loop import devices, plan
from actjax._loop.pack import Pack
from tests.test_unroll import assert_trees_close

pytestmark = pytest.mark.usefixtures("quick_compilation")
XS = np.random.default_rng(0).standard_normal((4, 5, 3)).astype(np.float32)
LENGTHS = np.array([5, 3, 1, 4])


def model(kind, **options):
    if kind == "lfact":
        return actjax.LFACT(3, 8, max_layers=5, halt_bias=-0.5, rngs=nnx.Rngs(0), **options)
    cell = nnx.GRUCell if kind == "gru" else nnx.OptimizedLSTMCell
    return actjax.ACT(3, 8, cell=cell, max_steps=5, halt_bias=-0.5, rngs=nnx.Rngs(0), **options)


def objective(model, xs):
    _, outputs, ponder = model(xs, lengths=LENGTHS)
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


@pytest.mark.parametrize(
    ("kind", "options", "scatters"),
    [("gru", {}, 2), ("lstm", {}, 2), ("lstm", {"dtype": jnp.bfloat16}, 3)],
)
def test_an_iteration_writes_few_arrays(monkeypatch, kind, options, scatters):
    """Forward a record, its residuals, results; backward what late products need, the inputs'."""
    monkeypatch.setattr(devices, "accelerated", lambda: True)
    traced = jax.make_jaxpr(differentiate)(model(kind, **options), XS)
    found = writes(traced.jaxpr)
    assert found["dynamic_update_slice"] <= 4 and found["scatter"] <= scatters


@pytest.mark.parametrize(
    ("kind", "options"), [("lstm", {"lanes": 2}), ("gru", {"dtype": jnp.bfloat16}), ("lfact", {})]
)
def test_side_by_side_are_the_same_numbers(monkeypatch, kind, options):
    results = []
    for together in (False, True):
        monkeypatch.setattr(devices, "accelerated", lambda: together)  # noqa: B023
        results.append(jax.jit(lambda *given: differentiate(*given))(model(kind, **options), XS))
    assert_trees_close(results[1], results[0], 1e-6)


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
    for counts_as, count in ((None, 5), (jnp.float32, 5)):
        pack = Pack(tree, 2, together=True, counts_as=counts_as)
        packed = pack.pack(jax.tree.map(jnp.asarray, tree))
        assert [p.shape for p in packed] == [s.shape for s in pack.shapes]
        assert len(packed) == count
        back = pack.unpack(packed)
        assert jax.tree.map(lambda a: a.dtype, back) == jax.tree.map(lambda a: a.dtype, tree)
        jax.tree.map(np.testing.assert_array_equal, back, tree)
    apart = Pack(tree, 2, together=False)
    assert len(apart.shapes) == len(tree)


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
