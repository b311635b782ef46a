"""Losses and metrics against plain Python, example by example."""

import jax.numpy as jnp
import numpy as np
import pytest

import actjax
from actjax import losses

B, T, K, C = 3, 4, 2, 5


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    mask = np.array([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]], bool)
    return rng, mask


def test_softmax_cross_entropy_is_the_masked_sum_of_minus_log_p(drawn):
    rng, mask = drawn
    logits = rng.normal(size=(B, T, K, C)).astype(np.float32)
    targets = rng.integers(0, C, (B, T, K))
    expected = np.zeros(B)
    for b in range(B):
        for t in range(T):
            for k in range(K):
                p = np.exp(logits[b, t, k].astype(np.float64))
                expected[b] -= mask[b, t] * np.log(p[targets[b, t, k]] / p.sum())
    total = losses.softmax_cross_entropy(logits, targets, mask)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    mean = losses.softmax_cross_entropy(logits, targets, mask, over_time="mean")
    np.testing.assert_allclose(mean, expected / np.array([2, 3, 1]), rtol=1e-5)


def test_sigmoid_cross_entropy_and_its_mask(drawn):
    rng, mask = drawn
    logits = rng.normal(size=(B, T)).astype(np.float32)
    targets = rng.integers(0, 2, (B, T)).astype(np.float32)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = -(np.log(np.where(targets == 1, p, 1 - p)) * mask).sum(1)
    np.testing.assert_allclose(
        losses.sigmoid_cross_entropy(logits, targets, mask), expected, rtol=1e-5
    )


@pytest.mark.not_in("nans", "it gives the losses a NaN to leave out")
def test_what_the_mask_leaves_out_changes_nothing(drawn):
    rng, mask = drawn
    logits = rng.normal(size=(B, T, C)).astype(np.float32)
    targets = rng.integers(0, C, (B, T))
    spoiled = np.where(mask[..., None], logits, np.nan)
    for function in (losses.softmax_cross_entropy, losses.bits_per_character):
        np.testing.assert_array_equal(
            function(spoiled, targets, mask), function(logits, targets, mask)
        )


def test_bits_per_character_is_the_cross_entropy_of_a_character_in_bits(drawn):
    rng, mask = drawn
    logits = rng.normal(size=(B, T, C)).astype(np.float32)
    targets = rng.integers(0, C, (B, T))
    nats = float(losses.softmax_cross_entropy(logits, targets, mask).sum())
    np.testing.assert_allclose(
        losses.bits_per_character(logits, targets, mask), nats / mask.sum() / np.log(2), rtol=1e-6
    )


def test_entropy_of_a_known_distribution():
    logits = jnp.log(jnp.array([0.5, 0.25, 0.125, 0.125]))
    np.testing.assert_allclose(losses.entropy_bits(logits), 1.75, rtol=1e-6)


def test_accuracy_and_sequence_errors_count_only_what_the_mask_says():
    targets = np.array([[[1, 2], [3, 4]], [[1, 2], [3, 4]], [[1, 2], [3, 4]]])
    predictions = targets.copy()
    predictions[0, 1, 0] = 0  # one of two targets wrong, in a step that counts
    predictions[1, 0] = 0  # both wrong, in a step that does not
    mask = np.array([[1, 1], [0, 1], [1, 0]], bool)
    np.testing.assert_allclose(losses.accuracy(predictions, targets, mask), 1 - 0.5 / 4)
    np.testing.assert_allclose(losses.sequence_error_rate(predictions, targets, mask), 1 / 3)


def test_ponder_cost_sums_or_averages_the_input_steps_of_each_sequence():
    cost = np.array([[2.5, 3.5, 7.0], [2.0, 100.0, 100.0]])
    lengths = np.array([3, 1])
    np.testing.assert_allclose(losses.ponder_cost(cost, lengths), [13.0, 2.0])
    np.testing.assert_allclose(
        losses.ponder_cost(cost, lengths, over_time="mean"), [13.0 / 3, 2.0], rtol=1e-6
    )


def test_an_unknown_way_to_add_up_is_refused():
    with pytest.raises(ValueError, match="over_time must be 'sum' or 'mean', got 'max'"):
        losses.ponder_cost(jnp.ones((1, 1)), over_time="max")


def test_a_mean_over_nothing_is_0():
    nothing, targets = np.zeros((B, T), bool), np.ones((B, T), int)
    ponder = actjax.Ponder(jnp.asarray(targets), jnp.ones((B, T)))
    counts = losses.confusion(targets[..., None], targets[..., None], nothing, classes=2)
    metrics = losses.ponder_metrics(ponder, np.zeros(B, int))
    metrics["bits"] = losses.bits_per_character(jnp.ones((B, T, C)), targets, nothing)
    metrics["accuracy"] = losses.accuracy(targets, targets, nothing)
    metrics["mean"] = losses.ponder_cost(ponder.cost, np.zeros(B, int), over_time="mean").sum()
    metrics["f1"] = losses.f1(counts).sum()
    assert not any(metrics.values())
