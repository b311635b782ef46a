"""Calls outside of `jit`: what is compiled once is not compiled again."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import monitoring

import actjax

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def compiled():
    """The compilations so far, a list that grows."""
    names = []

    def listen(name, *_, **__):
        if name.endswith("backend_compile_duration"):
            names.append(name)

    monitoring.register_event_duration_secs_listener(listen)
    yield names
    monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize(
    "make",
    [
        lambda: actjax.ACT(3, 4, max_steps=3, rngs=nnx.Rngs(0)),
        lambda: actjax.LFACT(3, 4, max_layers=3, loop="scan", rngs=nnx.Rngs(0)),
        lambda: actjax.Repeat(3, 4, repeats=2, rngs=nnx.Rngs(0)),
    ],
    ids=["act", "lfact", "repeat"],
)
def test_a_second_call_of_a_network_compiles_nothing(make, compiled):
    def run(seed):
        model, xs = make(), jax.random.normal(jax.random.key(seed), (2, 3, 3))
        loss = lambda model: (model(xs, lengths=[3, 1])[1] ** 2).sum()
        return loss(model), jax.grad(loss)(model)

    first = run(0)
    assert compiled
    compiled.clear()
    second = run(1)
    assert not compiled
    assert first[0] != second[0]


def squares(params, outputs, targets):
    return ((outputs - targets) ** 2).sum(-1)


def pair():
    return actjax.Seq2Seq(*(actjax.RNN(3, 3, rngs=nnx.Rngs(seed)) for seed in (0, 1)))


@pytest.mark.parametrize(
    "call",
    [
        lambda xs: actjax.UniversalTransformer(3, 3, max_steps=3, rngs=nnx.Rngs(0))(xs)[0],
        lambda xs: actjax.PonderNet(3, 3, rngs=nnx.Rngs(0))(xs, sample=jax.random.key(0))[1],
        lambda xs: actjax.PonderNet(3, 3, rngs=nnx.Rngs(0)).expected_loss(xs, xs, squares)[0],
        lambda xs: pair().generate(xs, lambda outputs, key: outputs, steps=3)[0],
    ],
    ids=["universal", "drawn", "expected", "generated"],
)
def test_steps_that_transform_others_are_compiled_once(call, compiled):
    first = call(jax.random.normal(jax.random.key(0), (2, 3, 3)))
    assert compiled
    compiled.clear()
    second = call(jax.random.normal(jax.random.key(1), (2, 3, 3)))
    assert not compiled
    assert (first != second).any()


def test_a_function_may_have_closed_over_what_changes():
    factor = {"of": 1.0}

    def step(params, state, x, first):
        return state + factor["of"] * x, jnp.ones(len(state))

    run = lambda: actjax.unroll(step, (), jnp.zeros((1, 1)), jnp.ones((1, 1, 1)), max_steps=2)[0]
    before, factor["of"] = run(), 2.0
    assert (float(before[0, 0]), float(run()[0, 0])) == (1.0, 2.0)
