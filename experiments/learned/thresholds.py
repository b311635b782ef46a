"""Stopping rules compared at thresholds that validation problems picked, all rules alike.

Every rule has a grid of settings. The one whose loss with the price of the steps is least on
validation problems is measured on the test problems, beside the constant step picked the same way.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from actjax.learned import stopping
from actjax.learned.heads import HaltState
from actjax.learned.stopping import at_step, first_step, halting_states, oracle_steps

SETTINGS = 99


class Recorded(NamedTuple):
    """What is known of each problem at each step, all [problems, H]."""

    losses: jax.Array
    norms: jax.Array  # of the gradients before the step
    states: HaltState  # of the halting head


class Rule(NamedTuple):
    """A way to stop.

    Attributes:
      settings: `Recorded -> ` thresholds to choose from.
      steps: `(Recorded, threshold) -> ` the step at which each problem stops, int [problems].
    """

    settings: Callable[[Recorded], np.ndarray]
    steps: Callable[[Recorded, float], jax.Array]


def _quantiles(values: jax.Array) -> np.ndarray:
    values = np.asarray(values)
    return np.unique(np.quantile(values[np.isfinite(values)], np.linspace(0, 1, SETTINGS)))


RULES = {
    "mass": Rule(
        lambda found: np.linspace(0.01, 0.99, SETTINGS),
        lambda found, level: first_step(found.states.mass > level),
    ),
    "price": Rule(
        lambda found: _quantiles(found.states.gain),
        lambda found, level: first_step(found.states.gain < level),
    ),
    "gradient_norm": Rule(
        lambda found: _quantiles(found.norms),
        lambda found, level: first_step(found.norms < level),
    ),
    "plateau": Rule(
        lambda found: np.geomspace(1e-6, 1.0, SETTINGS),
        lambda found, level: stopping.plateau_steps(found.losses, level),
    ),
    "constant": Rule(
        lambda found: np.arange(1, found.losses.shape[1] + 1),
        lambda found, step: jnp.full(len(found.losses), step, jnp.int32),
    ),
}


def recorded(belief: Any, curves: dict[str, np.ndarray], horizon: int) -> Recorded:
    """Curves of `evaluate.test_curves` with the states that the posterior goes through on them."""
    losses, norms, scores = (jnp.asarray(curves[k][:, :horizon]) for k in _CURVES)
    return Recorded(losses, norms, halting_states(belief, scores))


_CURVES = ("losses", "norms", "scores")


def choose(name: str, validation: Recorded, price: float) -> tuple[float, float]:
    """The threshold of a rule that costs least on `validation`, and what it costs there."""
    rule = RULES[name]
    levels = rule.settings(validation)
    costs = [_cost(validation, rule.steps(validation, level), price).mean() for level in levels]
    best = int(np.argmin(costs))
    return float(levels[best]), float(costs[best])


def compare(validation: Recorded, test: Recorded, price: float) -> dict[str, dict[str, float]]:
    """Each rule's cost, loss + price * steps, on `test` at its best threshold on `validation`.

    Returns:
      rule -> "threshold"; "steps", "loss", "cost" with its "standard_error"; and what it costs
      more than the constant step on the same problems, "over_constant" with its standard error.
      "oracle" is the best step of each test problem in hindsight.
    """
    found = {name: choose(name, validation, price)[0] for name in RULES}
    steps = {name: RULES[name].steps(test, level) for name, level in found.items()}
    steps["oracle"] = oracle_steps(test.losses, price)
    costs = {name: _cost(test, taken, price) for name, taken in steps.items()}
    rows = {}
    for name, cost in costs.items():
        mean, error = _spread(cost)
        over, over_error = _spread(cost - costs["constant"])
        rows[name] = {
            "threshold": found.get(name),
            "steps": float(steps[name].mean()),
            "loss": float(at_step(test.losses, steps[name]).mean()),
            "cost": mean,
            "standard_error": error,
            "over_constant": over,
            "over_constant_standard_error": over_error,
        }
    return rows


def _cost(found: Recorded, steps: jax.Array, price: float) -> np.ndarray:
    return np.asarray(at_step(found.losses, steps) + price * steps, np.float64)


def _spread(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
