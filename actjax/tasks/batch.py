"""The record every task's sampler returns."""

from typing import NamedTuple

from jax import Array


class Batch(NamedTuple):
    """A batch of sequences, batch-major, padded to a common number of input steps T.

    Attributes:
      inputs: [B, T, D] float, or [B, T] integer where a task hands out symbols.
      targets: [B, T] or [B, T, K]: float 0 or 1 for binary targets, int32 classes otherwise; K
        where an input step has several targets.
      mask: bool [B, T]: where the targets of an input step count.
      lengths: int32 [B]: input steps of each sequence, 1 to T; what lies behind is padding.
      difficulty: int32 [B, T]: the task's own measure of how hard an input step is (the number
        of bits, gates or digits); 0 for padding and where a task has no such measure.
    """

    inputs: Array
    targets: Array
    mask: Array
    lengths: Array
    difficulty: Array
