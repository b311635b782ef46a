"""Noise in a cell: whose it is, the same numbers everywhere, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import actjax
from tests.test_cells import NETWORKS, XS, Around, B, D, H, T, make

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Dropping(Around):
    def __init__(self, in_features, hidden_features, *, rngs):
        super().__init__(in_features, hidden_features, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, carry, inputs):
        return self.inner(self.drop(carry), inputs)


class Walk(nnx.Module):
    """Adds a normal number at every step."""

    def __init__(self, in_features, hidden_features, *, rngs):
        self.noise = rngs.noise.fork()
        self.features = hidden_features

    def initialize_carry(self, shape, rngs):
        return jnp.zeros((shape[0], self.features))

    def __call__(self, carry, inputs):
        carry = carry + self.noise.normal(carry.shape)
        return carry, carry


def test_every_sequence_input_and_ponder_step_has_a_draw_of_its_own():
    """As it is documented: a key is folded with the sequence, the input, the step, the stream."""
    fold, key = jax.random.fold_in, jax.random.key(3)
    model = actjax.Repeat(D, H, cell=Walk, repeats=2, rngs=nnx.Rngs(0))
    run = jax.jit(lambda rngs: model(XS, rngs=rngs)[1])
    found = run(key)
    draws = np.zeros((B, T, 2, H))
    for b, t, n in np.ndindex(B, T, 2):
        stream = fold(fold(fold(fold(key, b), t), n + 1), 0)
        draws[b, t, n] = jax.random.normal(fold(stream, 0), (1, H))[0]
    np.testing.assert_allclose(found, draws.sum(2).cumsum(1), atol=1e-5)

    own = jnp.stack([fold(key, b) for b in range(B)])
    np.testing.assert_array_equal(run(own), found)
    np.testing.assert_array_equal(run(own[::-1]), found[::-1])
    np.testing.assert_array_equal(model(XS[1:2], rngs=own[1:2])[1], found[1:2])
    for rngs in ({"noise": key}, {"default": key, "other": own}, {"single": key}):
        np.testing.assert_array_equal(run(rngs), found)
    rngs = nnx.Rngs(noise=0)
    assert np.abs(model(XS, rngs=rngs)[1] - model(XS, rngs=rngs)[1]).min() > 0


@pytest.mark.parametrize("network", ["act", "lfact"])
def test_noise_is_the_same_in_both_loops_with_its_gradient(network):
    model, key = make(network, Dropping), jax.random.key(1)
    graph, params, others = nnx.split(model, nnx.Param, ...)

    @partial(jax.jit, static_argnums=0)
    def run(loop, params, xs, rngs):
        def loss(params, xs):
            model = nnx.merge(graph, params, others)
            model.loop, model.lanes = loop, 2
            _, outputs, ponder = model(xs, rngs=rngs, lengths=jnp.array([4, 2, 3]))
            return (outputs**2).sum() + ponder.cost.sum(), (outputs, ponder)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, xs)

    found, reference = run("while", params, XS, key), run("scan", params, XS, key)
    (_, (_, ponder)), _ = reference
    assert len(np.unique(ponder.steps)) > 1
    for a, b in zip(*map(jax.tree.leaves, (found, reference)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(abs(b).max())))


def test_encoder_and_decoder_draw_apart_and_free_running_draws_at_every_step():
    rnn = lambda seed: actjax.RNN(D, H, cell=Walk, rngs=nnx.Rngs(seed))
    model = actjax.Seq2Seq(rnn(0), rnn(0))
    key = jax.random.key(0)
    decoded = model(XS, steps=T, rngs=key)
    own = jax.random.split(key, B)
    there, back = (model(XS, steps=T, rngs=keys).outputs for keys in (own, own[::-1]))
    np.testing.assert_allclose(there, back[::-1], atol=1e-6)
    encoded = model.encoder(XS, rngs=jax.random.fold_in(key, 0))[1]
    walked = np.diff(decoded.outputs, axis=1)
    assert np.abs(walked - np.diff(encoded, axis=1)).min() > 0
    _, freely = model.generate(XS, lambda y, key: y[:, :D], steps=T, rngs=nnx.Rngs(0))
    steps = np.diff(freely.outputs, axis=1)
    assert np.abs(steps[:, 1:] - steps[:, :-1]).min() > 0


def test_noise_without_keys_is_refused_and_switched_off_by_eval():
    for network in NETWORKS:
        model = make(network, Dropping)
        with pytest.raises(ValueError, match=r"rngs must be nnx\.Rngs or a PRNG key for a model"):
            model(XS)
        with pytest.raises(ValueError, match=r"rngs must be nnx\.Rngs or a PRNG key for a model"):
            actjax.stream_batch(model, [np.ones((2, D))])
        model.eval()
        assert jax.eval_shape(model, XS)[1].shape == (B, T, H)


def test_keys_that_do_not_fit_are_refused():
    model, outside, dropping = make("rnn", Walk), nnx.Rngs(0), make("rnn", Dropping)
    keys = jax.random.split(jax.random.key(0), 2)
    for rngs, sentence in (
        (3, "rngs must be nnx.Rngs, a PRNG key or keys by the names of streams, got 3"),
        (keys, "one for each of the 3 sequences, got keys of shape .2,"),
        ({"a": keys[0], "b": keys[1]}, r"rngs must have the stream 'default', got \['a', 'b'\]"),
    ):
        with pytest.raises(ValueError, match=sentence):
            model(XS, rngs=rngs)
    with pytest.raises(ValueError, match="rngs must have the stream 'dropout' or 'default', got"):
        dropping(XS, rngs={"a": keys[0], "b": keys[1]})
    jax.eval_shape(lambda: dropping(XS, rngs=nnx.Rngs(params=0, dropout=1)))
    with pytest.raises(ValueError, match="rngs must be made in, or given to, the function"):
        jax.jit(lambda: model(XS, rngs=outside))()
