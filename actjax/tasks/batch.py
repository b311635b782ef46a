"""What samplers share: the record they return, and the check of a range to draw from."""

from typing import NamedTuple

from jax import Array

from actjax._checks import check_positive


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


def check_range(noun: str, low: int, high: int, *, most: int | None = None):
    """Raises ValueError unless ``1 <= min_{noun} = low <= max_{noun} = high <= most``."""
    check_positive(f"min_{noun}", low)
    check_positive(f"max_{noun}", high)
    if high < low:
        raise ValueError(f"max_{noun} must be at least min_{noun} = {low}, got {high!r}.")
    if most is not None and high > most:
        raise ValueError(f"max_{noun} must be at most {most}, got {high!r}.")
