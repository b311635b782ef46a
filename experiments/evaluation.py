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


def evaluation_key(seed: int) -> Array:
    """The key of the fresh sequences on which a run is measured."""
    return jax.random.fold_in(jax.random.key(seed), EVALUATION_KEY)


def member(networks: Network, index: int) -> Network:
    """One network of an ensemble."""
    return jax.tree.map(lambda leaf: leaf[index], networks)


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
      batches, batches_per_level: number of batches of `sample`, and of each level.

    Returns:
      For each member "error", the sequence error rate (Graves 2016, section 3) with its standard
      error, "ponder" (mean of N + R), "ponder_max", "ponder_steps" (mean of N), "ponder_quantiles"
      and "by_step", the mean and quantiles at each input step that a sequence reached. Then
      "by_difficulty", "error", "ponder" and "steps" (N) with standard errors for each level, and
      "steps_slope", the slope of N in difficulty.
    """
    draw = lambda sample, key, count: _members(
        [_measure(networks, predict, sample, k) for k in jax.random.split(key, count)]
    )
    mixed = draw(sample, key, batches)
    if levels is None:
        of = lambda one, level: _level(one, level, one["difficulty"] == level)
        rows = [[of(one, level) for level in np.unique(one["difficulty"])] for one in mixed]
    else:
        count, fold = batches_per_level, jax.random.fold_in
        graded = [(n, draw(at, fold(key, n), count)) for n, at in levels.items()]
        rows = [[_level(ones[e], n) for n, ones in graded] for e in range(len(mixed))]
    result = [_summary(one) for one in mixed]
    for found, row in zip(result, rows, strict=True):
        found["by_difficulty"] = row
        found["steps_slope"] = slope(row)
    return result


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


def steps_by_step(steps: np.ndarray) -> dict[str, list[float]]:
    """Mean, maximum and 90th percentile of N_t at each input step, from N [B, T] (LFACT 2020)."""
    return {
        "mean": steps.mean(0).tolist(),
        "maximum": steps.max(0).tolist(),
        "percentile_90": np.percentile(steps, 90, axis=0).tolist(),
    }


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


def _inside(one: dict[str, np.ndarray], name: str = "ponder") -> np.ndarray:
    values = one[name]
    return values[np.arange(values.shape[1]) < one["lengths"][:, None]]


def _level(one: dict[str, np.ndarray], level: int, rows: Any = None) -> dict[str, float]:
    """Means and standard errors at one difficulty; of the first step of some rows, or of all."""
    if rows is None:
        row, values = {"difficulty": level}, {"error": one["wrong"], "ponder": _inside(one)}
        values["steps"] = _inside(one, "steps")
    else:
        row = {"difficulty": int(level), "count": int(rows.sum())}
        values = {"error": one["wrong"][rows], "ponder": one["ponder"][rows, 0]}
        values["steps"] = one["steps"][rows, 0]
    for name, value in values.items():
        row[name] = float(value.mean())
        row[f"{name}_standard_error"] = float(value.std() / np.sqrt(value.size))
    return row


def _summary(one: dict[str, np.ndarray]) -> dict[str, Any]:
    ponder, wrong = _inside(one), one["wrong"]
    by_step = []
    for t in range(one["ponder"].shape[1]):
        here = one["ponder"][one["lengths"] > t, t]
        if not here.size:  # no sequence among these was so long
            break
        by_step.append({"mean": float(here.mean()), "quantiles": _quantiles(here)})
    return {
        "sequences": len(wrong),
        "error": float(wrong.mean()),
        "error_standard_error": float(wrong.std() / np.sqrt(len(wrong))),
        "ponder": float(ponder.mean()),
        "ponder_max": float(ponder.max()),
        "ponder_steps": float(_inside(one, "steps").mean()),
        "ponder_quantiles": _quantiles(ponder),
        "by_step": by_step,
    }


def _quantiles(values: np.ndarray) -> list[float]:
    return [round(float(q), 4) for q in np.quantile(values, QUANTILES)]


def examples(
    network: Network, batch: Batch, predict: Callable[[Array], Array], words: Callable[..., dict]
) -> list[dict[str, Any]]:
    """A short, a middling and a long sequence of a batch as a network ponders them.

    Each is what `words` says of (inputs, predictions, mask, length), and "ponder" (N + R) at every
    step.
    """
    logits, ponder = jax.jit(lambda n, b: n(b.inputs, b.lengths))(network, batch)
    by_length = np.argsort(np.asarray(batch.lengths), stable=True)
    shown = []
    for row in by_length[[len(by_length) // 6, len(by_length) // 2, -1]]:
        length = int(batch.lengths[row])
        parts = (batch.inputs[row], predict(logits)[row], batch.mask[row])
        cost = np.asarray(ponder.cost[row, :length], float).round(4)
        shown.append(words(*map(np.asarray, parts), length) | {"ponder": cost.tolist()})
    return shown
