"""How Fojo 2018 smooths a curve, and when a task counts as solved (section 6.4)."""

import numpy as np
import scipy.signal

WINDOW = 71  # rows
ORDER = 3


def smooth(values: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Savitzky-Golay over 71 rows with a cubic, or over as many rows as there are."""
    window = min(window, len(values) - (len(values) + 1) % 2)
    if window <= ORDER:
        return values
    return scipy.signal.savgol_filter(values, window, ORDER)


def solved_at(step: np.ndarray, accuracy: np.ndarray, threshold: float = 0.98) -> int | None:
    """The update at which smoothed accuracy first reaches `threshold`, or None.

    Only rows with a full window around them count: nearer to the ends the filter extrapolates, and
    a curve on its way up would pass for one that has arrived.

    Example:
      >>> solved_at(np.arange(200), np.linspace(0, 1, 200), 0.5)
      100
    """
    known = np.isfinite(accuracy)
    step, accuracy = step[known], accuracy[known]
    if len(accuracy) < WINDOW:
        return None
    half = WINDOW // 2
    reached = np.flatnonzero(smooth(accuracy)[half:-half] >= threshold)
    return int(step[half + reached[0]]) if len(reached) else None
