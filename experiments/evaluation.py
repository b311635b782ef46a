"""What trained networks do: errors and ponder, overall, by difficulty and by input step.

Works on an ensemble, one network a member, so that a sweep and a single run measure alike.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from actjax import losses
from actjax.tasks.batch import Batch
from experiments.network import Network

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
EVALUATION_KEY = 2**32 - 1  # folded into the seed's key; training folds 0 to steps - 1


def evaluate(
    networks: Network,
    predict: Callable[[Array], Array],
    sample: Callable[[Array], Batch],
    *,
    levels: dict[int, Callable[[Array], Batch]] | None = None,
    key: Array,
    batches: int = 32,
    batches_per_level: int = 8,
) -> list[dict[str, Any]]:
    """Measures every member of an ensemble on the same fresh sequences.

    Args:
      networks: a network whose leaves lead with the member axis E.
      predict: logits to predictions, comparable with `Batch.targets`.
      sample: `key -> Batch`, sequences as in training.
      levels: difficulty -> `key -> Batch`, sequences of that difficulty throughout; where None the
        sequences of `sample` are told apart by their own difficulty: for tasks of one step.
      key: PRNG key.
      batches: number of batches of `sample`.
      batches_per_level: number of batches of each level.

    Returns:
      For each member "error", the sequence error rate (Graves 2016, section 3) with its standard
      error, "ponder" (mean of N + R), "ponder_max", "ponder_steps" (mean of N), "ponder_quantiles"
      and "by_step", the mean and quantiles at each input step that a sequence reached. Then
      "by_difficulty", "error", "ponder" and "steps" (N) with standard errors for each level, and
      "steps_slope", the slope of N in difficulty.
    """
    draw = jax.random.split(key, batches)
    mixed = [_measure(networks, predict, sample, k) for k in draw]
    result = [_summary(member) for member in _members(mixed)]
    if levels is None:
        graded = _members(mixed)
        rows = [
            by_difficulty(
                m["difficulty"], error=m["wrong"], ponder=m["ponder"][:, 0], steps=m["steps"][:, 0]
            )
            for m in graded
        ]
    else:
        rows = [[] for _ in result]
        for level, sample_level in levels.items():
            keys = jax.random.split(jax.random.fold_in(key, level), batches_per_level)
            graded = _members([_measure(networks, predict, sample_level, k) for k in keys])
            for row, m in zip(rows, graded, strict=True):
                flat = {"error": m["wrong"], "ponder": _inside(m), "steps": _inside(m, "steps")}
                row.append({"difficulty": level} | _means(flat))
    for member, row in zip(result, rows, strict=True):
        member["by_difficulty"] = row
        member["steps_slope"] = slope(row)
    return result


def by_difficulty(difficulty: np.ndarray, **values: np.ndarray) -> list[dict[str, float]]:
    """Mean and standard error of each of `values` at each difficulty."""
    return [
        {"difficulty": int(level), "count": int((difficulty == level).sum())}
        | _means({name: value[difficulty == level] for name, value in values.items()})
        for level in np.unique(difficulty)
    ]


def slope(rows: list[dict[str, float]]) -> dict[str, float] | None:
    """Least-squares slope of steps N against difficulty, and its standard error.

    The error is that of the fit; two difficulties leave it no residual, and it is then that of the
    two means.
    """
    x = np.array([row["difficulty"] for row in rows], float)
    y = np.array([row["steps"] for row in rows])
    if len(x) < 2:
        return None
    centred = x - x.mean()
    value = (centred * y).sum() / (centred**2).sum()
    if len(x) == 2:
        error = np.hypot(*(row["steps_standard_error"] for row in rows)) / (x[1] - x[0])
    else:
        residual = y - y.mean() - value * centred
        error = np.sqrt((residual**2).sum() / (len(x) - 2) / (centred**2).sum())
    return {"value": float(value), "standard_error": float(error)}


@functools.partial(jax.jit, static_argnames="predict")
def _apply(networks, batch, predict):
    def one(network):
        logits, ponder = network(batch.inputs, batch.lengths)
        wrong = losses.sequence_errors(predict(logits), batch.targets, batch.mask)
        return {"wrong": wrong, "ponder": ponder.cost, "steps": ponder.steps}

    return jax.lax.map(one, networks)


def _measure(networks, predict, sample, key) -> dict[str, np.ndarray]:
    batch = sample(key)
    record = jax.tree.map(np.asarray, _apply(networks, batch, predict))
    size = len(record["wrong"])
    shared = {"lengths": batch.lengths, "difficulty": batch.difficulty.max(axis=1)}
    return record | {name: np.stack([np.asarray(value)] * size) for name, value in shared.items()}


def _members(measured: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Measurements of many batches, [E, B, ...] each, as one record a member, [all B, ...]."""
    joined = {name: np.concatenate([m[name] for m in measured], axis=1) for name in measured[0]}
    return [{name: value[e] for name, value in joined.items()} for e in range(len(joined["wrong"]))]


def _inside(member: dict[str, np.ndarray], name: str = "ponder") -> np.ndarray:
    values = member[name]
    return values[np.arange(values.shape[1]) < member["lengths"][:, None]]


def _summary(member: dict[str, np.ndarray]) -> dict[str, Any]:
    ponder, wrong = _inside(member), member["wrong"]
    by_step = []
    for t in range(member["ponder"].shape[1]):
        here = member["ponder"][member["lengths"] > t, t]
        if not here.size:  # no sequence among these was so long
            break
        by_step.append({"mean": float(here.mean()), "quantiles": _quantiles(here)})
    return {
        "sequences": len(wrong),
        "error": float(wrong.mean()),
        "error_standard_error": float(wrong.std() / np.sqrt(len(wrong))),
        "ponder": float(ponder.mean()),
        "ponder_max": float(ponder.max()),
        "ponder_steps": float(_inside(member, "steps").mean()),
        "ponder_quantiles": _quantiles(ponder),
        "by_step": by_step,
    }


def _quantiles(values: np.ndarray) -> list[float]:
    return [round(float(q), 4) for q in np.quantile(values, QUANTILES)]


def _means(values: dict[str, np.ndarray]) -> dict[str, float]:
    row = {}
    for name, value in values.items():
        row[name] = float(value.mean())
        row[f"{name}_standard_error"] = float(value.std() / np.sqrt(value.size))
    return row
