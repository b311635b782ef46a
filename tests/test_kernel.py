"""``loop="kernel"``, interpreted: the numbers of the other loops; and that it lowers for a GPU."""

import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import actjax
from actjax._loop.kernel_plan import Tuning
from actjax.nn import kernel
from tests import reference

pytestmark = pytest.mark.usefixtures("quick_compilation")
D, M = 3, 7
LENGTHS = [3, 0, 1, 3, 2]


def make(cell, hidden=6, bias=-1.0, seed=1, **options):
    """A network with biases that are not zero and inputs that ask for different ponders."""
    rngs = nnx.Rngs(seed)
    options = {"max_steps": M, "loop": "kernel", **options}
    model = actjax.ACT(D, hidden, cell=cell, halt_bias=bias, rngs=rngs, **options)
    model.halt.kernel[...] *= 3
    for _, leaf in nnx.iter_graph(model.cell):
        if isinstance(leaf, nnx.Param) and leaf.ndim == 1:
            leaf[...] += jnp.linspace(-0.3, 0.3, leaf.size, dtype=leaf.dtype)
    return model


def data(model, batch=5, time=3, dtype=jnp.float32):
    xs = jax.random.normal(jax.random.key(0), (batch, time, D), dtype)
    begin = lambda leaf: 0.5 * jax.random.normal(jax.random.key(3), leaf.shape, leaf.dtype)
    return xs, jax.tree.map(begin, model.initial_state(batch))


def loss(model, xs, state, lengths=None, loop="kernel", **options):
    """A loss that looks at everything, and what it looked at."""
    if options:  # that the module has no place for
        prepared = model.prepare(xs, state, model.halt, lengths)
        limits = {"max_steps": model.max_steps, "epsilon": model.rule.epsilon, "lanes": model.lanes}
        kind = type(model.cell)
        record = kernel.run(*prepared, kind=kind, lengths=lengths, **limits, **options)
    else:
        model.loop = loop
        record = model(xs, initial_state=state, lengths=lengths)
    final, outputs, ponder = record
    weight = jnp.arange(1.0, xs.shape[1] + 1)[None] / 4
    value = sum(jnp.sin(3 * leaf.astype(jnp.float32)).sum() for leaf in jax.tree.leaves(final))
    value += jnp.cos(2 * outputs.astype(jnp.float32)).sum() + (weight * ponder.remainder).sum()
    return value, record


def gradients(*arguments, **options):
    function = partial(loss, **options)
    return jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2), has_aux=True))(*arguments)


def assert_trees_close(actual, expected, rtol=1e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1, np.abs(b).max()))


# Tiles that the last units do not fill, queues, segments and gates that are computed again.
CASES = [
    (nnx.SimpleCell, {"hidden": 20}, 5, {"tuning": Tuning(units=16, rows=16)}),
    (nnx.GRUCell, {}, 5, {}),
    (nnx.GRUCell, {"lanes": 16}, 40, {"tuning": Tuning(gates="again", resident=False)}),
    (nnx.LSTMCell, {}, 5, {"segment": 4}),
    (nnx.OptimizedLSTMCell, {"lanes": 16}, 40, {"segment": 9}),
]


@pytest.mark.parametrize(("cell", "network", "batch", "options"), CASES)
def test_equals_the_scan(cell, network, batch, options):
    model = make(cell, **network)
    xs, state = data(model, batch)
    lengths = jnp.array(LENGTHS * (batch // 5))
    expected = gradients(model, xs, state, lengths, loop="scan")
    found = gradients(model, xs, state, lengths, **options)
    assert_trees_close(found, expected)
    steps = np.asarray(expected[0][1][2].steps)
    assert len(set(steps[steps > 0].tolist())) > 2 and not found[0][1][2].steps[1].any()
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found[1]))


def test_equals_the_reference_alone_and_in_a_batch():
    model = make(nnx.GRUCell)
    xs, state = data(model)
    run = jax.jit(lambda xs, state: model(xs, initial_state=state)[1:])
    outputs, ponder = run(xs, state)
    dense_i, recurrent = model.cell.dense_i, model.cell.dense_h.kernel[...]
    w = {"kernel": dense_i.kernel[:-1], "flag": dense_i.kernel[-1], "bias": dense_i.bias[...]}
    w |= {"recurrent": recurrent, "halt": model.halt.kernel[:, 0], "halt_bias": model.halt.bias[0]}
    w = {name: np.asarray(value, np.float64) for name, value in w.items()}
    starts = [[np.asarray(row, np.float64)] for row in state]
    slow = partial(reference.gru_step, w)
    options = {"max_steps": M, "epsilon": 0.01}
    _, expected, steps, remainder = reference.unroll(slow, starts, np.asarray(xs), **options)
    np.testing.assert_array_equal(ponder.steps, steps)
    np.testing.assert_allclose(ponder.remainder, remainder, atol=1e-5)
    np.testing.assert_allclose(outputs, np.array(expected)[:, :, 0], atol=1e-5)
    alone, ponder_alone = run(xs[1:2], state[1:2])
    np.testing.assert_array_equal(ponder_alone.steps[0], ponder.steps[1])
    np.testing.assert_allclose(alone[0], outputs[1], atol=1e-6)


@pytest.mark.parametrize(("bias", "limit", "steps"), [(9.0, M, 1), (-20.0, M, M), (0.0, 1, 1)])
def test_edges_of_the_rule(bias, limit, steps):
    model = make(nnx.SimpleCell, bias=bias, max_steps=limit)
    model.halt.kernel[...] *= 0
    arguments = model, *data(model, 2, 2)
    found, expected = (gradients(*arguments, loop=loop) for loop in ("kernel", "scan"))
    assert_trees_close(found, expected)
    assert (found[0][1][2].steps == steps).all()
    if steps == 1:
        np.testing.assert_array_equal(found[0][1][2].cost, 2)


def test_an_ensemble_is_one_launch():
    members = [make(nnx.SimpleCell, seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    xs, state = data(members[0])
    one = jax.grad(lambda model: loss(model, xs, state, segment=8)[0])
    together = jax.jit(jax.vmap(one))(stacked)
    alone = jax.jit(one)
    for i, member in enumerate(members):
        assert_trees_close(jax.tree.map(lambda leaf: leaf[i], together), alone(member))  # noqa: B023
    # One segment: three kernels, and no loop around them.
    one = jax.grad(lambda model: loss(model, xs, state)[0])
    names = list(primitives(jax.make_jaxpr(jax.vmap(one))(stacked).jaxpr))
    assert "while" not in names and names.count("pallas_call") == 2 * 3  # on a GPU, interpreted


def primitives(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        if eqn.primitive.name != "pallas_call":
            for value in jax.tree.leaves(list(eqn.params.values())):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from primitives(inner)


def test_bfloat16():
    model = make(nnx.GRUCell, dtype=jnp.bfloat16)
    xs, state = data(model, dtype=jnp.bfloat16)
    found = gradients(model, xs, state)
    ((_, (final, outputs, ponder)), grads) = found
    assert final.dtype == outputs.dtype == jnp.bfloat16
    assert ponder.remainder.dtype == grads[0].halt.kernel.dtype == jnp.float32
    expected = gradients(model, xs, state, loop="scan")
    np.testing.assert_array_equal(ponder.steps, expected[0][1][2].steps)
    assert_trees_close(found, expected, 3e-2)


@pytest.mark.parametrize("hidden", [64, 128, 256])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("cell", [nnx.SimpleCell, nnx.GRUCell, nnx.OptimizedLSTMCell])
def test_lowers_for_cuda(cell, dtype, hidden):
    model = make(cell, hidden, dtype=dtype, lanes=16)
    xs = jnp.ones((20, 2, D), dtype)

    def both(model, xs):
        value = lambda model: model(xs)[1].astype(jnp.float32).sum()
        return value(model), jax.grad(value)(model)

    assert kernels_for_cuda(both, model, xs) == 4  # one forward alone, three with the gradient


@pytest.mark.parametrize(("segment", "count"), [(None, 3), (5, 7)])
def test_lowers_in_shard_map(segment, count):
    model = make(nnx.SimpleCell)
    xs, state = data(model, 4, 2)
    gradient = jax.grad(lambda model, *rest: loss(model, *rest, segment=segment)[0])
    rows = jax.P("data")
    axes = (1,), ("data",), (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh(*axes)
    if jax.__version_info__ >= (0, 12):  # which wants to be told of a device, by the mesh itself
        mesh = jax.sharding.AbstractMesh(*axes, abstract_device=abstract_gpu())
    specs = {"in_specs": (jax.P(), rows, rows), "out_specs": jax.P()}
    shared = jax.shard_map(gradient, mesh=mesh, **specs)
    assert kernels_for_cuda(shared, model, xs, state) == count


def abstract_gpu():
    return jax.sharding.AbstractDevice("NVIDIA H100", 132, "gpu")


def kernels_for_cuda(function, *arguments) -> int:
    traced = lambda: jax.jit(function).trace(*arguments)
    lowered = told_of_a_gpu(lambda: traced().lower(lowering_platforms=("cuda",)))
    calls = re.findall(r"custom_call @(\S*triton\w*)", lowered.as_text())
    return len(calls)


def told_of_a_gpu(lower):
    """What `lower` gives; later versions of JAX want to be told of a device."""
    try:
        return lower()
    except RuntimeError as error:
        if "AbstractDevice" not in str(error):
            raise
    mesh = jax.sharding.AbstractMesh((), (), (), abstract_device=abstract_gpu())
    with jax.sharding.use_abstract_mesh(mesh):
        return lower()


def test_refused_where_jax_has_no_triton(monkeypatch):
    model = make(nnx.GRUCell, 8)
    for name in ("kernel", "kernel_programs", "kernel_tiles"):
        monkeypatch.delitem(sys.modules, f"actjax._loop.{name}")
        monkeypatch.delattr(f"actjax._loop.{name}")
    monkeypatch.delattr("jax.experimental.pallas.triton")
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    sentence = "^jax must have Pallas for Triton, as 0.10 to 0.12 do, for loop='kernel', got 0\\."
    with pytest.raises(ValueError, match=sentence):
        make(nnx.GRUCell, 8)
    with pytest.raises(ValueError, match=sentence):  # as of a model that was read from a file
        model(jnp.ones((2, 2, D)))
    model.loop = "while"
    assert model(jnp.ones((2, 2, D)))[1].shape == (2, 2, 8)


def test_refuses_in_a_sentence():
    class OddCell(nnx.GRUCell):
        pass

    sentence = "^cell must be a SimpleCell, .* at most 256 units .*, got "
    refused = [
        (OddCell, 6, "OddCell"),
        (nnx.GRUCell, 300, "300 units"),
        (partial(nnx.GRUCell, activation_fn=nnx.relu), 6, "activation_fn=relu"),
        (partial(nnx.LSTMCell, gate_fn=nnx.relu), 6, "gate_fn=relu"),
        (partial(nnx.SimpleCell, residual=True), 6, "residual=True"),
        (partial(nnx.GRUCell, dtype=jnp.float16), 6, "float16"),
    ]
    for cell, hidden, got in refused:
        with pytest.raises(ValueError, match=sentence + got):
            actjax.ACT(D, hidden, cell=cell, loop="kernel", rngs=nnx.Rngs(0))
        cell = cell(D, hidden, rngs=nnx.Rngs(0))
        assert kernel.kernel_supports(cell).endswith(f"got {got}.")
    cell = nnx.GRUCell(D, 6, rngs=nnx.Rngs(0))
    assert kernel.kernel_supports(cell) is None
    cell.dense_i = nnx.LoRALinear(D, 18, lora_rank=2, rngs=nnx.Rngs(0))
    assert kernel.kernel_supports(cell).endswith("got dense_i=LoRALinear.")
    with pytest.raises(ValueError, match=r"loop must be 'while' or 'scan'.*, got 'kernel'"):
        actjax.LFACT(D, 6, max_layers=2, loop="kernel", rngs=nnx.Rngs(0))
    step = lambda params, state, x, first: (state, state[:, 0])
    with pytest.raises(ValueError, match="loop must be 'while' or 'scan' for a step of one's own"):
        actjax.unroll(step, (), jnp.ones((2, 3)), jnp.ones((2, 4)), max_steps=3, loop="kernel")


def test_other_derivatives_are_refused_in_a_sentence():
    model = make(nnx.SimpleCell)
    xs, state = data(model, 1, 1)
    value = lambda xs: loss(model, xs, state, segment=None)[0]
    with pytest.raises(TypeError, match=r"use loop='scan'"):
        jax.jvp(value, (xs,), (xs,))
    gradient = jax.grad(value)
    with pytest.raises(TypeError, match=r"use loop='scan'"):
        jax.eval_shape(lambda xs: jax.jvp(gradient, (xs,), (xs,)), xs)
    with pytest.raises(TypeError, match=r"use loop='scan'"):
        jax.eval_shape(jax.grad(lambda xs: gradient(xs).sum()), xs)
