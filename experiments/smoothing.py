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
    reached = np.flatnonzero(_inside(accuracy[known]) >= threshold)
    return int(step[known][WINDOW // 2 + reached[0]]) if len(reached) else None


def best(accuracy: np.ndarray) -> float | None:
    """The highest smoothed accuracy, of the same rows; None where there are too few."""
    inside = _inside(accuracy[np.isfinite(accuracy)])
    return round(min(1.0, float(inside.max())), 4) if len(inside) else None


def _inside(values: np.ndarray) -> np.ndarray:
    """The smoothed values that have a full window around them."""
    return smooth(values)[WINDOW // 2 : -(WINDOW // 2)] if len(values) >= WINDOW else values[:0]
