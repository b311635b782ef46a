"""Streamed inference: the numbers of each sequence alone, whatever shares the lanes with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import actjax

pytestmark = pytest.mark.usefixtures("quick_compilation")
D, H = 3, 6


class Normed(nnx.GRUCell):
    """A user's cell in one place: a GRU with its output normalized."""

    input_layers = ("dense_i",)

    def __init__(self, in_features, hidden_features, *, rngs):
        super().__init__(in_features, hidden_features, rngs=rngs)
        self.norm = nnx.LayerNorm(hidden_features, rngs=rngs)

    def __call__(self, carry, inputs):
        carry, y = super().__call__(carry, inputs)
        return carry, self.norm(y)


LENGTHS = [7, 1, 12, 4, 3, 9, 1, 5]
RNG = np.random.default_rng(0)
SEQUENCES = [RNG.standard_normal((length, D)).astype(np.float32) for length in LENGTHS]
MODELS = {
    "act": actjax.ACT(D, H, max_steps=5, halt_bias=-0.5, rngs=nnx.Rngs(1)),
    "act-lstm": actjax.ACT(D, H, cell=nnx.OptimizedLSTMCell, max_steps=4, rngs=nnx.Rngs(2)),
    "repeat": actjax.Repeat(D, H, repeats=3, rngs=nnx.Rngs(3)),
    "rnn": actjax.RNN(D, H, rngs=nnx.Rngs(4)),
    "lfact": actjax.LFACT(D, H, cell=Normed, max_layers=4, halt_bias=-0.5, rngs=nnx.Rngs(5)),
}


def alone(model):
    """Every sequence, from one padded run of the whole batch."""
    padded = np.zeros((len(LENGTHS), max(LENGTHS), D), np.float32)
    for row, sequence in zip(padded, SEQUENCES, strict=True):
        row[: len(sequence)] = sequence
    return model(padded, lengths=np.array(LENGTHS))


@pytest.mark.parametrize("kind", MODELS)
def test_results_are_those_of_each_sequence_alone(kind):
    state, outputs, ponder = alone(MODELS[kind])
    assert kind == "rnn" or (ponder.steps > 1).any()
    results = actjax.stream_batch(MODELS[kind], SEQUENCES, lanes=3, chunk=4, refill=2)
    assert [result.index for result in results] == list(range(len(LENGTHS)))
    for result, length in zip(results, LENGTHS, strict=True):
        row = result.index
        np.testing.assert_allclose(result.outputs, outputs[row, :length], atol=1e-5)
        np.testing.assert_array_equal(result.steps, ponder.steps[row, :length])
        np.testing.assert_allclose(result.remainder, ponder.remainder[row, :length], atol=1e-5)
        for found, leaf in zip(*map(jax.tree.leaves, (result.state, state)), strict=True):
            np.testing.assert_allclose(found, leaf[row], atol=1e-5)


def test_results_come_as_they_are_done_and_nothing_is_read_ahead():
    """An endless source: short sequences behind one long, no more of them read than lanes need."""
    read = []

    def source():
        while True:
            length = 1 if read else 40
            read.append(length)
            yield np.ones((length, D), np.float32)

    running = actjax.stream(MODELS["act"], source(), lanes=2, chunk=4, refill=1)
    first = [next(running).index for _ in range(3)]
    assert 0 not in first and len(read) <= 6


def test_a_pure_step_over_trees_of_tokens_is_streamed():
    def step(table, state, x, first):
        h = jnp.tanh(state["h"] + table[x["token"]] + x["shift"])
        return {"h": h}, jax.nn.sigmoid(h[:, 0])

    table = jnp.asarray(RNG.standard_normal((5, H)), jnp.float32)
    model = actjax.StepModel(step, table, {"h": jnp.zeros(H)}, max_steps=4)
    texts = [
        {"token": RNG.integers(0, 5, n), "shift": RNG.standard_normal((n, 1))} for n in LENGTHS[:4]
    ]
    for text, result in zip(
        texts, actjax.stream_batch(model, texts, lanes=2, chunk=3), strict=True
    ):
        xs = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], text)
        state = {"h": jnp.zeros((1, H))}
        final, outputs, ponder = actjax.unroll(step, table, state, xs, max_steps=4)
        np.testing.assert_allclose(result.outputs["h"], outputs["h"][0], atol=1e-5)
        np.testing.assert_allclose(result.state["h"], final["h"][0], atol=1e-5)
        np.testing.assert_array_equal(result.steps, ponder.steps[0])


def test_what_cannot_be_streamed_is_refused():
    with pytest.raises(ValueError, match=r"model must have the method for_stream, .* got Linear"):
        actjax.stream(nnx.Linear(D, H, rngs=nnx.Rngs(0)), SEQUENCES)
    with pytest.raises(ValueError, match="lanes must be an integer of at least 1, got 0"):
        actjax.stream(MODELS["act"], SEQUENCES, lanes=0)
    with pytest.raises(ValueError, match=r"shape \[batch, time, 3\].*got \(64, 32, 4\)"):
        actjax.stream_batch(MODELS["act"], [np.ones((2, 4))])
    with pytest.raises(ValueError, match=r"shape \[time, 3\].*got \(2, 4\) at place 1"):
        actjax.stream_batch(MODELS["act"], [SEQUENCES[0], np.ones((2, 4))])
    with (
        jax.numpy_dtype_promotion("standard"),  # a network of floats takes integers
        pytest.raises(ValueError, match="dtype of the first, int32, got float32 at place 1"),
    ):
        actjax.stream_batch(MODELS["act"], [np.ones((2, 3), np.int32), SEQUENCES[0]])
    with pytest.raises(ValueError, match=r"at least one input, got \(0, 3\) at place 1"):
        actjax.stream_batch(MODELS["act"], [SEQUENCES[0], np.ones((0, 3))], lanes=2, chunk=4)


def test_a_model_that_prepares_nothing_is_refused():
    class Empty(nnx.Module):
        def for_stream(self, xs):
            return 3

    with pytest.raises(ValueError, match="model must return a Prepared record from for_stream"):
        list(actjax.stream(Empty(), [np.ones((2, 3), np.float32)]))
