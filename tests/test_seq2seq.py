"""Encoder and decoder: what is fed, where the decoder starts, and that padding changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import actjax
from actjax import losses

pytestmark = pytest.mark.usefixtures("quick_compilation")
B, T, D, H, S = 3, 5, 4, 6, 3
XS = np.random.default_rng(0).standard_normal((B, T, D)).astype(np.float32)


def make(kind, seed=0):
    shared = {"cell": nnx.GRUCell, "rngs": nnx.Rngs(seed)}
    return {
        "rnn": lambda: actjax.RNN(D, H, **shared),
        "repeat": lambda: actjax.Repeat(D, H, repeats=2, **shared),
        "act": lambda: actjax.ACT(D, H, max_steps=4, halt_bias=-0.5, **shared),
        "lfact": lambda: actjax.LFACT(D, H, max_layers=4, halt_bias=-0.5, **shared),
    }[kind]()


@pytest.mark.parametrize("kind", ["rnn", "repeat", "act", "lfact"])
def test_the_decoder_goes_on_from_the_encoder_with_the_last_truth(kind):
    encoder, decoder = make(kind, 0), make(kind, 1)
    model = actjax.Seq2Seq(encoder, decoder)
    decoded = model(XS, steps=S)
    state, _, read = encoder(XS)
    for s in range(S):
        state, output, written = decoder(XS[:, -1:], initial_state=state)
        np.testing.assert_allclose(decoded.outputs[:, s], output[:, 0], atol=1e-5)
        np.testing.assert_array_equal(decoded.decoder.steps[:, s], written.steps[:, 0])
    np.testing.assert_array_equal(decoded.encoder.steps, read.steps)
    assert decoded.ponder.steps.shape == (B, T + S)
    assert (decoded.layers is None) == (kind != "lfact")


@pytest.mark.parametrize("kind", ["act", "lfact"])
def test_padding_changes_nothing(kind):
    model = actjax.Seq2Seq(make(kind, 0), make(kind, 1))
    lengths = [5, 1, 3]
    decoded = model(XS, steps=S, lengths=jnp.array(lengths))
    for b, length in enumerate(lengths):
        alone = model(XS[b : b + 1, :length], steps=S)
        np.testing.assert_allclose(decoded.outputs[b], alone.outputs[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["act", "lfact"])
def test_free_running_feeds_the_predictions(kind):
    model = actjax.Seq2Seq(make(kind, 0), make(kind, 1))
    feed = lambda outputs, key: jnp.cos(outputs[:, :D])
    predictions, decoded = jax.jit(lambda m: m.generate(XS, feed, steps=S))(model)
    eager, _ = model.generate(XS, feed, steps=S)
    np.testing.assert_allclose(eager, predictions, atol=1e-5)
    state, _, _ = model.encoder(XS)
    fed = jnp.asarray(XS[:, -1])
    for s in range(S):
        state, output, _ = model.decoder(fed[:, None], initial_state=state)
        fed = feed(output[:, 0], None)
        np.testing.assert_allclose(decoded.outputs[:, s], output[:, 0], atol=1e-5)
        np.testing.assert_allclose(predictions[:, s], fed, atol=1e-5)


def test_a_gradient_reaches_the_encoder_through_layers():
    def loss(model):
        decoded = model(XS, steps=S)
        return (decoded.outputs**2).sum() + decoded.ponder.cost.sum()

    model = actjax.Seq2Seq(make("lfact", 0), make("lfact", 1))
    fast = jax.jit(jax.grad(loss))(model)
    model.encoder.loop = model.decoder.loop = "scan"
    slow = jax.jit(jax.grad(loss))(model)
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(slow), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert float(jnp.abs(fast.encoder.cell.dense_i.kernel[...]).max()) > 1e-4


def test_the_losses_of_layers_that_ran_add_up():
    rng = np.random.default_rng(0)
    states = rng.standard_normal((B, T, 3, H)).astype(np.float32)
    count, mask = rng.integers(0, 4, (B, T)), rng.random((B, T)) < 0.7
    targets, kernel = rng.integers(0, 5, (B, T)), rng.standard_normal((H, 5)).astype(np.float32)

    def one_layer(outputs, mask):
        return losses.softmax_cross_entropy(outputs @ kernel, targets, mask)

    found = losses.over_layers(one_layer, actjax.Layers(states, jnp.asarray(count)), mask)
    expected = np.zeros(B)
    for b, t in zip(*np.nonzero(mask), strict=True):
        for n in range(count[b, t]):
            logits = states[b, t, n] @ kernel
            expected[b] += np.log(np.exp(logits).sum()) - logits[targets[b, t]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)

    layers = actjax.Layers(states, jnp.asarray(count))
    deepest = one_layer(layers.deepest, mask & (count > 0))
    known = losses.over_layers(one_layer, layers, mask, deepest=deepest)
    np.testing.assert_allclose(known, expected, rtol=1e-5)


def test_halves_and_lengths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="decoder must read and carry on what the encoder does"):
        actjax.Seq2Seq(make("act"), make("lfact"))
    model = actjax.Seq2Seq(make("act"), make("act"))
    with pytest.raises(ValueError, match="lengths must be at least 1 to decode from, got 0"):
        model(XS, steps=S, lengths=jnp.array([2, 0, 5]))
    with pytest.raises(ValueError, match="steps must be an integer of at least 1, got 0"):
        model(XS, steps=0)


def test_halves_that_share_variables_are_refused():
    """`jax.grad` and an optimizer would train two copies of what was one."""
    encoder, decoder, model = make("act"), make("act"), make("act")
    decoder.cell.dense_h = encoder.cell.dense_h
    for pair in ((model, model), (encoder, decoder)):
        with pytest.raises(ValueError, match="model must hold each variable once"):
            actjax.Seq2Seq(*pair)
    later = actjax.Seq2Seq(make("act"), make("act"))
    later.decoder = later.encoder
    with pytest.raises(ValueError, match="model must hold each variable once"):
        later(XS, steps=S)
