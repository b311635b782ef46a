"""Made prices at five-minute intervals, on which models of price changes can be told apart.

The data of LFACT 2020 (section 4.1) are not public. This series has their size and what makes such
prices hard, and hidden states that make them partly predictable:

    regime     a Markov chain of four, 50 rows on average: momentum, reversal, rise, fall
    mean       m_t = a f_{t-1}, -a f_{t-1}, b or -b, in units of the volatility
    market     f_t = m_t + e_t, and of instrument k: sigma_t (beta_k f_t + w_k noise)
    volatility log sigma_t = phi log sigma_{t-1} + eta (|e_{t-1}| - E|e|): large moves come together

Nothing of it is told to a network. `forecast` is the likeliest class for one who sees the regime
and the volatility themselves: how well a perfect filter could do at most.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

NAMES = tuple(f"S{number:02d}" for number in range(1, 23))
ROWS = 46_800  # returns: 600 days of 78 five-minute bars, as 50 weeks and two are in the paper
BARS = 78
STAY, MOMENTUM, DRIFT = 0.98, 0.85, 1.0
PERSISTENCE, CLUSTERING = 0.98, 0.08
SCALE = 1e-3  # of a return


class Intraday(NamedTuple):
    """A drawn series.

    Attributes:
      dates: datetime64[s] [n + 1].
      values: float64 [n + 1, K], prices.
      mean: float64 [n, K], of each return given regime, volatility and the return before.
      deviation: float64 [n, K], likewise.
    """

    dates: np.ndarray
    values: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray


def draw(rows: int = ROWS, *, seed: int = 0) -> Intraday:
    """Draws a series of `rows` returns of 22 instruments, the same for the same seed.

    Example:
      >>> draw(100).values.shape
      (101, 22)
    """
    rng = np.random.default_rng(seed)
    beta, own = rng.uniform(0.8, 1.2, len(NAMES)), rng.uniform(0.3, 0.6, len(NAMES))
    regime, before, shock, level = rng.integers(4), 0.0, 0.0, 0.0
    expected, volatility, market = np.empty(rows), np.empty(rows), np.empty(rows)
    for row in range(rows):
        if rng.random() > STAY:
            regime = (regime + rng.integers(1, 4)) % 4
        level = PERSISTENCE * level + CLUSTERING * (abs(shock) - np.sqrt(2 / np.pi))
        shock = rng.normal()
        expected[row] = (MOMENTUM * before, -MOMENTUM * before, DRIFT, -DRIFT)[regime]
        volatility[row] = np.exp(level)
        before = market[row] = expected[row] + shock
    noise = rng.normal(size=(rows, len(NAMES))) * own
    sigma = SCALE * volatility[:, None]
    returns = sigma * (market[:, None] * beta + noise)
    values = 100 * np.exp(np.concatenate([np.zeros((1, len(NAMES))), returns.cumsum(0)]))
    return Intraday(
        _dates(rows + 1),
        values,
        sigma * expected[:, None] * beta,
        sigma * np.sqrt(beta**2 + own**2),
    )


def forecast(series: Intraday, borders: np.ndarray) -> np.ndarray:
    """The likeliest class of each return, int [n, K], knowing all but the noise.

    Args:
      series: from `draw`.
      borders: float [C - 1, K], returns that divide the classes of each instrument.
    """
    below = stats.norm.cdf((borders[:, None] - series.mean) / series.deviation)
    edges = np.concatenate([np.zeros_like(below[:1]), below, np.ones_like(below[:1])])
    return np.diff(edges, axis=0).argmax(0)


def _dates(count: int) -> np.ndarray:
    """Five-minute bars from 9:30 to 16:00 on working days."""
    day, bar = np.divmod(np.arange(count), BARS)
    open_ = np.busday_offset("2018-01-01", day, roll="forward").astype("datetime64[s]")
    return open_ + (np.timedelta64(9 * 60 + 35, "m") + bar * np.timedelta64(5, "m"))
