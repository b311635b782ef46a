"""Macro-averaged F1 of classifiers with several heads, from counts kept on the device.

    predictions, targets [B, S, K] --confusion--> counts [S, K, C, C], added up over batches
    counts --f1--> [S, K], one score for each prediction step and head

The score of a class is F1 = 2 TP / (2 TP + FP + FN), and the macro-F1 of a head is its mean over
the classes. The LFACT paper (2020, section 4.1) reports "F1 score", averaged over its heads and
prediction steps, and does not say how classes are averaged; the macro-average, which counts rare
classes as much as frequent ones, is this library's reading. A class which is neither among a head's
targets nor among its predictions has no score and is left out of the head's mean; one which is
predicted but never right, or there but never predicted, scores 0.
"""

import jax.numpy as jnp
from jax import Array


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
        raise ValueError(f"classes is {classes}; it must be at least 2")
    if predictions.shape != targets.shape or mask.shape != targets.shape[:2]:
        raise ValueError(
            f"predictions, targets and mask must be [B, S, K] twice and [B, S], got shapes "
            f"{predictions.shape}, {targets.shape} and {mask.shape}"
        )
    pair = jnp.where(mask[..., None], targets * classes + predictions, -1)  # -1 is counted nowhere
    counts = (pair[..., None] == jnp.arange(classes**2)).sum(0, dtype=jnp.int32)
    return counts.reshape(*counts.shape[:-1], classes, classes)


def f1(counts: Array) -> Array:
    """Macro-F1 of confusion counts: [..., C, C] to float32 [...]; NaN where nothing was counted.

    Example:
      >>> round(float(f1(jnp.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]]))), 4)
      0.6667
    """
    right = jnp.diagonal(counts, axis1=-2, axis2=-1)
    seen = counts.sum(-1) + counts.sum(-2)  # 2 TP + FP + FN
    scores = jnp.where(seen > 0, 2 * right / jnp.maximum(seen, 1), 0.0)
    return scores.sum(-1) / (seen > 0).sum(-1)
