"""What logic, addition and sort share: one run from its options to its summary and figures."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from actjax import losses
from actjax.tasks.batch import Batch
from experiments import evaluation, run
from experiments.network import Network, make_network
from experiments.options import Options, joined, parse
from experiments.show import figures


class Loaded(NamedTuple):
    """What a task that is not generated trains on and is measured on; nothing for the others.

    Attributes:
      train: pytree of arrays, handed to the sampler.
      measured: handed to `Task.measure`.
      sha256: of the data itself; a resumed run must have the same.
    """

    train: Any = ()
    measured: Any = ()
    sha256: str | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """A synthetic task as its experiment, its sweep and its evaluation see it.

    Attributes:
      name: of the command.
      presets: name -> options.
      features: `options -> (in_features, out_features)`.
      sampler: `options -> (key, data) -> Batch`.
      objective: `options -> (network, batch, tau) -> (loss, metrics)`.
      predict: logits to predictions, comparable with the targets.
      levels: `options -> {difficulty: key -> Batch}` or None; see `evaluation.evaluate`.
      load: `options -> Loaded` for a task that is not generated.
      score: `options -> (network, data) -> float` where the weights that score best on validation
        data are measured, or None where the last are.
      measure: `(options, networks, data) -> ` a dict a member, in place of `evaluation.evaluate`;
        its "bits_per_character", where there is one, is the task's error.
      example: a batch's row and its predictions in words, for the figures of single sequences.
    """

    name: str
    presets: dict[str, Options]
    features: Callable[[Options], tuple[int, int]]
    sampler: Callable[[Options], Callable[..., Batch]]
    objective: Callable[[Options], Callable[..., tuple[Array, dict[str, Array]]]]
    predict: Callable[[Array], Array]
    levels: Callable[[Options], dict[int, Callable[[Array], Batch]]] | None = None
    load: Callable[[Options], Loaded] = lambda options: Loaded()
    score: Callable[[Options], Callable[..., Array] | None] = lambda options: None
    measure: Callable[..., list[dict[str, Any]]] | None = None
    example: Callable[..., dict[str, list[str]]] | None = None


def main(task: Task, argv: list[str]):
    """Trains a network, evaluates it, draws its figures and prints a table."""
    options = parse(task.name, task.presets, argv)
    with joined(options):
        summary, folder = train(task, options)
        found = summary["evaluation"]
        run.show(
            task.name.capitalize(),
            [
                {
                    "model": summary["model"],
                    "updates": f"{summary['steps']:,}",
                    "sequence error rate": f"{found['error']:.4f}",
                    "ponder N + R": f"{found['ponder']:.2f}",
                    "largest": f"{found['ponder_max']:.1f}",
                    "time": f"{summary['wall_time_seconds']:.0f} s",
                }
            ],
            *run.notes(summary, folder),
        )


def train(task: Task, options: Options) -> tuple[dict[str, Any], pathlib.Path]:
    """One run from start to figures: its summary and its folder."""
    sample = task.sampler(options)
    run.input_size(sample)
    network = make_network(options, *task.features(options))
    network, folder = run.train(task.name, options, network, sample, task.objective(options))
    networks = jax.tree.map(lambda leaf: leaf[None], network)
    summary = run.finish(task.name, options, folder, evaluate(task, options, networks)[0])
    figures.draw(folder)
    return summary, folder


def evaluate(task: Task, options: Options, networks: Network, **counts) -> list[dict[str, Any]]:
    """`evaluation.evaluate` for networks trained on `task` with `options`, one row a member."""
    key = jax.random.fold_in(jax.random.key(options.seed), evaluation.EVALUATION_KEY)
    levels = task.levels(options) if task.levels else None
    sample = jax.jit(task.sampler(options))
    return evaluation.evaluate(networks, task.predict, sample, levels=levels, key=key, **counts)


def examples(task: Task, options: Options, networks: Network, index: int) -> list[dict[str, Any]]:
    """A short, a middling and a long sequence as member `index` of an ensemble ponders them.

    Each is the task's own words for inputs and outputs, and "ponder" (N + R) at every step.
    """
    network = jax.tree.map(lambda leaf: leaf[index], networks)
    key = jax.random.fold_in(jax.random.key(options.seed), evaluation.EVALUATION_KEY)
    batch = jax.jit(task.sampler(options))(key)
    outputs, ponder = jax.jit(lambda n, b: n(b.inputs, b.lengths))(network, batch)
    by_length = np.argsort(np.asarray(batch.lengths), stable=True)
    shown = []
    for row in by_length[[len(by_length) // 6, len(by_length) // 2, -1]]:
        length = int(batch.lengths[row])
        parts = (batch.inputs[row], task.predict(outputs)[row], batch.mask[row])
        words = task.example(*map(np.asarray, parts), length)
        cost = np.asarray(ponder.cost[row, :length], float).round(4)
        shown.append(words | {"ponder": cost.tolist()})
    return shown


def make_objective(
    options: Options,
    cross_entropy: Callable[..., Array],
    split: Callable[[Array], Array],
    predict: Callable[[Array], Array],
):
    """The loss of eq 12, summed or averaged over a sequence as `options.over_time` says.

    Args:
      cross_entropy: `losses.sigmoid_cross_entropy` or `losses.softmax_cross_entropy`.
      split: the network's outputs [B, T, out_features] to logits as `cross_entropy` takes them.
      predict: outputs to predictions.
    """

    def objective(network: Network, batch: Batch, tau: Array):
        outputs, ponder = network(batch.inputs, batch.lengths)
        over_time = options.over_time
        entropy = cross_entropy(split(outputs), batch.targets, batch.mask, over_time=over_time)
        cost = losses.ponder_cost(ponder.cost, batch.lengths, over_time=over_time)
        predictions = predict(outputs)
        wrong = losses.sequence_error_rate(predictions, batch.targets, batch.mask)
        return (entropy + tau * cost).mean(), {
            "cross_entropy": entropy.mean(),
            "accuracy": 1 - wrong,
            "target_accuracy": losses.accuracy(predictions, batch.targets, batch.mask),
            **losses.ponder_metrics(ponder, batch.lengths),
        }

    return objective
