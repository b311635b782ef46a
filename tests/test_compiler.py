"""What the compiler is told of programs that ponder."""

import jax
import jax.numpy as jnp
from flax import nnx

import actjax
from actjax import training
from actjax.training.compiler import options_for


def test_adaptive_loops_alone_have_options_of_their_own_on_a_gpu():
    act = actjax.ACT(3, 4, max_steps=3, rngs=nnx.Rngs(0))
    scanned = actjax.ACT(3, 4, max_steps=3, loop="scan", rngs=nnx.Rngs(0))
    for model in (act, actjax.Seq2Seq(scanned, act)):
        assert options_for(model, "gpu") == training.gpu_compiler_options()
        assert options_for(model, "cpu") is None
    for model in (scanned, actjax.RNN(3, 4, rngs=nnx.Rngs(0)), {"w": jnp.zeros(2)}):
        assert options_for(model, "gpu") is None


def test_the_compiler_knows_them():
    options = training.gpu_compiler_options()
    assert jax.jit(lambda x: 2 * x, compiler_options=options)(1.0) == 2
