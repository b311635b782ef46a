"""Losses and metrics over batches of sequences, and the ponder cost.

Losses return one number an example, float [B], so that a caller chooses the mean over the batch
and can look at single examples; metrics return one number a batch. `mask` says where the targets
of an input step count (`Batch.mask`): what it leaves out, padding above all, never changes
anything. A mean over nothing is 0: so is the loss of a sequence without any target, and a metric
of a batch without any.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from actjax._checks import check_choice
from actjax._layers import Layers
from actjax.halting import Ponder

OVER_TIME = ("sum", "mean")


def ponder_cost(cost: Array, lengths: Array | None = None, *, over_time: str = "sum") -> Array:
    """Ponder cost of each sequence, P(x): float [B].

    Args:
      cost: rho = N + R of each input step, `Ponder.cost`: [B, T].
      lengths: int [B], input steps of each sequence; T unless given.
      over_time: "sum" over the input steps (Graves 2016, eq 11) or their "mean" (Fojo 2018,
        eq 4.13, whose N(t) before the sum stands for the number of input steps).

    Example:
      >>> ponder_cost(jnp.array([[2.5, 3.5, 9.0]]), jnp.array([2])).tolist()
      [6.0]
    """
    return _over_time(cost, _steps_mask(cost, lengths), over_time)


def sigmoid_cross_entropy(
    logits: Array, targets: Array, mask: Array, *, over_time: str = "sum"
) -> Array:
    """Binary cross-entropy of each sequence in nats: float [B].

    Args:
      logits: [B, T] or [B, T, K], one for each target.
      targets: 0 or 1, the shape of `logits`; K targets of an input step add up.
      mask: bool [B, T].
      over_time: "sum" over the input steps that count, or their "mean".
    """
    loss = optax.sigmoid_binary_cross_entropy(logits, targets)
    return _over_time(_over_targets(loss), mask, over_time)


def softmax_cross_entropy(
    logits: Array, targets: Array, mask: Array, *, over_time: str = "sum"
) -> Array:
    """Cross-entropy of each sequence in nats: float [B].

    Args:
      logits: [B, T, C] or [B, T, K, C].
      targets: int [B, T] or [B, T, K], classes below C; K targets of an input step add up.
      mask: bool [B, T].
      over_time: "sum" over the input steps that count, or their "mean".
    """
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return _over_time(_over_targets(loss), mask, over_time)


def over_layers(
    loss: Callable[[Array, Array], Array],
    layers: Layers,
    mask: Array,
    *,
    deepest: Array | None = None,
) -> Array:
    """The losses of all layers that ran, added up: float [B] (LFACT 2020, eq 6).

    Args:
      loss: `(outputs, mask) -> [B]`, the loss of one layer's outputs [B, T, features] where its
        mask [B, T] says so, say a read-out and `softmax_cross_entropy`, summed over time.
      layers: the outputs of all layers, states [B, T, L, features]; see `LFACT.layers`.
      mask: bool [B, T].
      deepest: float [B], the loss of the deepest layers where it is known, as it is in a model
        whose output they are; computed unless given.

    Example:
      >>> layers = Layers(jnp.array([[[[1.0], [2.0], [0.0]]]]), jnp.array([[2]]))
      >>> square = lambda outputs, mask: jnp.where(mask, outputs[..., 0] ** 2, 0).sum(1)
      >>> over_layers(square, layers, jnp.ones((1, 1), bool)).tolist()
      [5.0]
    """
    total = loss(layers.deepest, mask & (layers.count > 0)) if deepest is None else deepest
    for n in range(layers.states.shape[2] - 1):
        between = mask & (n < layers.count - 1)
        outputs = layers.states[:, :, n]
        add = lambda total, *arguments: total + loss(*arguments)
        # No read-out of a layer below which no input of the batch went.
        total = lax.cond(between.any(), add, lambda total, *_: total, total, outputs, between)
    return total


def bits_per_character(logits: Array, targets: Array, mask: Array) -> Array:
    """Mean cross-entropy of the characters that count, in bits: float scalar, 0 if none do.

    Example:
      >>> mask = jnp.ones((1, 2), bool)
      >>> float(bits_per_character(jnp.zeros((1, 2, 256)), jnp.zeros((1, 2), int), mask))
      8.0
    """
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return _mean_where(loss, mask) / math.log(2)


def entropy_bits(logits: Array) -> Array:
    """Entropy of the predicted distribution in bits: [..., C] to [...] (Graves 2016, figure 23)."""
    log_p = jax.nn.log_softmax(logits)
    return -(jnp.exp(log_p) * log_p).sum(-1) / math.log(2)


def accuracy(predictions: Array, targets: Array, mask: Array) -> Array:
    """Fraction of the targets that count which are met: float scalar, 0 if none do.

    Args:
      predictions: bool or int, [B, T] or [B, T, K].
      targets: the shape of `predictions`.
      mask: bool [B, T].
    """
    right = jnp.equal(predictions, targets).astype(jnp.float32)
    return _mean_where(right.mean(tuple(range(2, right.ndim))), mask)


def sequence_error_rate(predictions: Array, targets: Array, mask: Array) -> Array:
    """Fraction of the sequences with any mistake among the targets that count: float scalar.

    Graves 2016, section 3. Arguments as in `accuracy`.
    """
    return sequence_errors(predictions, targets, mask).mean()


def sequence_errors(predictions: Array, targets: Array, mask: Array) -> Array:
    """Which sequences have any mistake among the targets that count: bool [B]."""
    wrong = jnp.not_equal(predictions, targets)
    wrong = wrong.any(tuple(range(2, wrong.ndim)))
    return (wrong & mask).any(axis=1)


def confusion(predictions: Array, targets: Array, mask: Array, *, classes: int) -> Array:
    """How often each class was taken for each other: int32 [S, K, C, C].

    The axis of the targets is before that of the predictions.
    Add up the counts of several batches, or of several prediction steps, before taking `f1`.

    Args:
      predictions: int [B, S, K], classes below C, for S prediction steps and K heads.
      targets: the shape of `predictions`.
      mask: bool [B, S], where the targets count.
      classes: C.

    Example:
      >>> targets = jnp.array([0, 0, 1])[:, None, None]
      >>> predictions = jnp.array([0, 1, 1])[:, None, None]
      >>> confusion(predictions, targets, jnp.ones((3, 1), bool), classes=2)[0, 0].tolist()
      [[1, 1], [0, 1]]
    """
    if classes < 2:
        raise ValueError(f"classes must be an integer of at least 2, got {classes!r}.")
    if predictions.shape != targets.shape or mask.shape != targets.shape[:2]:
        raise ValueError(
            "predictions, targets and mask must have shapes [B, S, K], [B, S, K] and [B, S], "
            f"got {predictions.shape}, {targets.shape} and {mask.shape}."
        )
    pair = jnp.where(mask[..., None], targets * classes + predictions, -1)  # -1 is counted nowhere
    counts = jax.nn.one_hot(pair, classes**2, dtype=jnp.int32).sum(0, dtype=jnp.int32)
    return counts.reshape(*counts.shape[:-1], classes, classes)


def f1(counts: Array) -> Array:
    """Macro-F1 of confusion counts: [..., C, C] to float32 [...]; 0 where nothing was counted.

    The score of a class is F1 = 2 TP / (2 TP + FP + FN), and the macro-F1 of a head is its mean
    over the classes. The LFACT paper (2020, section 4.1) reports "F1 score", averaged over its
    heads and prediction steps, and does not say how classes are averaged; the macro-average, which
    counts rare classes as much as frequent ones, is this library's reading. A class which is
    neither among a head's targets nor among its predictions has no score and is left out of the
    head's mean; one which is predicted but never right, or there but never predicted, scores 0.

    Example:
      >>> round(float(f1(jnp.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]]))), 4)
      0.6667
    """
    right = jnp.diagonal(counts, axis1=-2, axis2=-1)
    seen = counts.sum(-1, dtype=counts.dtype) + counts.sum(-2, dtype=counts.dtype)  # 2 TP + FP + FN
    scores = 2 * right / jnp.maximum(seen, 1)
    return scores.sum(-1) / _count(seen > 0, scores, axis=-1)


def ponder_metrics(ponder: Ponder, lengths: Array | None = None) -> dict[str, Array]:
    """How long a batch was pondered, over all input steps that are not padding: float scalars.

    Args:
      ponder: the record of the batch, [B, T].
      lengths: int [B], input steps of each sequence; T unless given.

    Returns:
      "ponder" and "ponder_max", mean and maximum of N + R (Graves 2016, eq 10), and
      "ponder_steps", the mean of N ("mean repetitions" in Fojo 2018); all 0 where all is padding.
    """
    mask = _steps_mask(ponder.cost, lengths)
    return {
        "ponder": _mean_where(ponder.cost, mask),
        "ponder_max": jnp.where(mask, ponder.cost, 0.0).max(),
        "ponder_steps": _mean_where(ponder.steps.astype(ponder.cost.dtype), mask),
    }


def _over_targets(loss: Array) -> Array:
    return loss.sum(tuple(range(2, loss.ndim)))


def _over_time(values: Array, mask: Array, over_time: str) -> Array:
    check_choice("over_time", over_time, OVER_TIME)
    total = jnp.where(mask, values, 0).sum(axis=1)
    return total if over_time == "sum" else total / _count(mask, total, axis=1)


def _mean_where(values: Array, mask: Array) -> Array:
    total = jnp.where(mask, values, 0).sum()
    return total / _count(mask, total)


def _count(mask: Array, like: Array, axis: int | None = None) -> Array:
    """How many there are to take a mean over; 1 where there is nothing, whose mean is 0."""
    return jnp.maximum(mask.sum(axis=axis), 1).astype(like.dtype)


def _steps_mask(values: Array, lengths: Array | None) -> Array:
    if lengths is None:
        return jnp.ones_like(values, bool)
    lengths = jnp.asarray(lengths)
    return jnp.arange(values.shape[1], dtype=lengths.dtype)[None] < lengths[:, None]
