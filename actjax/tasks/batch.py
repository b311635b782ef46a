"""What samplers share: the record they return, and the checks of what is drawn."""

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


def check_range(noun: str, low: int, high: int, *, least: int = 1, most: int | None = None):
    """Raises ValueError unless `least <= min_{noun} = low <= max_{noun} = high <= most`."""
    if low < least:
        raise ValueError(f"min_{noun} is {low}; it must be at least {least}")
    if high < low:
        raise ValueError(f"max_{noun} is {high}; it must be at least min_{noun} = {low}")
    if most is not None and high > most:
        raise ValueError(f"max_{noun} is {high}; it must be at most {most}")


def check_batch_size(batch_size: int):
    """Raises ValueError for an empty batch."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
