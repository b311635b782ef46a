"""Puzzles in two parts, to train on and to test on, of which none are alike by symmetry."""

import numpy as np

from actjax.tasks.puzzles import Puzzles


def split_alike(puzzles: Puzzles, kinds: np.ndarray, held_out: float) -> tuple[Puzzles, Puzzles]:
    """Splits puzzles in two: (to train on, to test on), no two alike across or within.

    Args:
      kinds: a number for each puzzle, uint64 ``[P]``, equal for those that are alike.
      held_out: about which part of them is for the test, above 0 and below 1.

    Raises:
      ValueError: where either part would be empty.
    """
    kinds, first = np.unique(kinds, return_index=True)
    for_test = kinds < np.uint64(int(held_out * 2**64))
    parts = [Puzzles(*(leaf[first[rows]] for leaf in puzzles)) for rows in (~for_test, for_test)]
    if any(not len(part.boards) for part in parts):
        raise ValueError(
            f"puzzles must be enough for a part to train on and one to test on, got {len(first)} "
            "that differ by more than symmetry."
        )
    return parts[0], parts[1]
