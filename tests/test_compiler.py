"""What the compiler is told of programs that ponder."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import actjax
from actjax import training
from actjax.training import ensemble
from actjax.training.compiler import options_for


def test_adaptive_loops_alone_have_options_of_their_own_on_a_gpu():
    act = actjax.ACT(3, 4, max_steps=3, rngs=nnx.Rngs(0))
    scanned = actjax.ACT(3, 4, max_steps=3, loop="scan", rngs=nnx.Rngs(0))
    for model in (
        act,
        actjax.Seq2Seq(scanned, act),
        {"core": act, "head": (jnp.zeros(2), scanned)},
    ):
        assert options_for(model, "gpu") == training.gpu_compiler_options()
        assert options_for(model, "cpu") is None
    for model in (scanned, actjax.RNN(3, 4, rngs=nnx.Rngs(0)), {"w": jnp.zeros(2)}):
        assert options_for(model, "gpu") is None


def test_the_compiler_knows_them():
    options = training.gpu_compiler_options()
    assert jax.jit(lambda x: 2 * x, compiler_options=options)(1.0) == 2


def test_a_sweep_is_compiled_with_what_suits_its_model(monkeypatch):
    asked = []

    def options(model, platform):
        asked.append((model, platform))
        return {"xla_cpu_enable_fast_math": False}  # any that this compiler knows

    monkeypatch.setattr(ensemble, "options_for", options)
    optimizer = optax.sgd(0.1)
    sample = lambda key, data: jax.random.normal(key, (2,))
    step = training.make_train_step(sample, lambda w, x: (jnp.sum((w - x) ** 2), {}), optimizer)
    states = training.stack_states(lambda w: training.init_state(w, optimizer), jnp.ones((2, 2)))
    keys = jax.random.split(jax.random.key(0), 2)
    training.sweep(step, states, keys=keys, steps=2, log_every=2)
    [(model, platform)] = asked
    assert model.shape == (2, 2)
    assert platform == jax.devices()[0].platform
