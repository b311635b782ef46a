"""Forecasts of price classes that nothing was trained for: what a network has to beat.

usual      each instrument's most frequent class of the training period, whatever the input
repeat     the class of the last row read
opposite   the class as far on the other side of the middle
knowing    of the made series: the likeliest class, knowing regime and volatility
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from actjax import losses
from experiments.data import intraday
from experiments.tasks import forecast, prices
from experiments.tasks.prices import Instance, Prices, Series, Split

PERIODS = ("train", "validation", "test")
NAMES = ("usual", "repeat", "opposite")


def members(
    found: Prices,
    split: Split,
    instance: Instance,
    thresholds: tuple[float, ...],
    known: intraday.Intraday | None = None,
    **windows: Any,
) -> list[dict[str, Any]]:
    """A summary of each forecast on one instance, as a network's: its F1 in all periods.

    Args:
      found, split, instance: the prices, and a part of them as `prices.prepare` made it.
      thresholds: between classes.
      known: the made series, where the prices are that.
      windows: as of `prices.windows`.
    """
    classes = len(thresholds) + 1
    counts = np.stack([(instance.train.classes == c).sum(0) for c in range(classes)])
    usual = jnp.asarray(counts.argmax(0))
    borders = instance.mean + np.array(thresholds)[:, None] * instance.deviation
    best = None if known is None else intraday.forecast(known, borders)
    rows = []
    for name in (*NAMES, *(() if known is None else ("knowing",))):
        scores = {}
        for period in PERIODS:
            series = getattr(instance, period)
            last = getattr(split, period).stop
            picked = _picked(series, **windows)
            batch = prices.windows(series, picked, **windows)
            if name == "knowing":
                own = Series(series.inputs, jnp.asarray(best[last - len(series.classes) : last]))
                predictions = prices.windows(own, picked, **windows).targets
            else:
                predictions = _forecast(name, series, picked, usual, classes, **windows)
            scores[period] = _scores(predictions, batch.targets, batch.mask, classes)
        rows.append({"model": name, "evaluation": scores})
    return rows


def _picked(series: Series, **windows: Any) -> Array:
    """First rows of the windows that measure a period, those of `forecast.measure`."""
    size = len(series.classes) - sum(prices.steps(**windows)) + 1
    count = min(size, forecast.MOST_WINDOWS)
    return jnp.asarray(np.unique(np.linspace(0, size - 1, count).round().astype(int)))


def _forecast(
    name: str, series: Series, start: Array, usual: Array, classes: int, **windows: Any
) -> Array:
    """Classes [B, S, K]."""
    lead, count = prices.steps(**windows)
    read = lead - 1 + (jnp.arange(count) if windows["mode"] == "rnn" else jnp.zeros(count, int))
    last = jnp.asarray(series.classes)[start[:, None] + read[None]]
    chosen = {"usual": jnp.broadcast_to(usual, last.shape), "repeat": last}
    return chosen.get(name, classes - 1 - last)


def _scores(predictions: Array, targets: Array, mask: Array, classes: int) -> dict[str, Any]:
    counts = losses.confusion(predictions, targets, mask, classes=classes)
    found = losses.f1(counts)  # [S, K]
    return jax.tree.map(
        lambda value: np.asarray(value).tolist(),
        {
            "windows": len(targets),
            "f1": found.mean(),
            "f1_by_step": found.mean(1),
            "f1_by_instrument": found.mean(0),
            "accuracy": losses.accuracy(predictions, targets, mask),
        },
    )
