"""A task as its runs, sweeps, figures and the report see it: the record that its file defines."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
from jax import Array

from actjax import losses
from actjax.tasks.batch import Batch
from experiments.network import Network
from experiments.options import pick

# What Graves 2016 says of its tasks with an LSTM: 1M iterations of 16 asynchronous workers.
GRAVES = {"cell": "lstm", "tau": 1e-3, "learning_rate": 1e-4, "steps": 16_000_000}
GRAVES |= {"log_every": 1000, "checkpoint_every": 10_000}


class Loaded(NamedTuple):
    """What a task that is not generated trains on and is measured on; nothing for the others.

    Attributes:
      train: pytree of arrays, handed to the sampler.
      measured: handed to `Task.measure` and `Task.look`.
      sha256: of the data itself; a resumed run must have the same.
      of_many: in the place of `measured` for each member of a sweep.
    """

    train: Any = ()
    measured: Any = ()
    sha256: str | None = None
    of_many: Any = ()


@dataclasses.dataclass(frozen=True)
class Task:
    """One file of `experiments/tasks/`, which calls it TASK, is known to every command by it.

    A task of sequences with targets needs the first seven; the others are for what is its own.

    Attributes:
      name: of the command.
      what: it does, in a few words, for the list of commands.
      presets: name -> options, a dataclass that extends `experiments.options.Options`.
      features: `options -> (in_features, out_features)`.
      sampler: `options -> (key, data) -> Batch`; see `generated`.
      objective: `options -> (network, batch, tau) -> (loss, metrics)`; see `make_objective`. The
        metrics hold "ponder", and "accuracy" or "bits_per_character".
      predict: logits to predictions, comparable with the targets.
      unit: what its difficulty counts, for the figures.
      title: of a run's table; the name unless given.
      levels: `options -> {difficulty: key -> Batch}` or None; see `evaluation.evaluate`.
      example: a batch's row and its predictions in words, for the figures of single sequences.
      load: `options -> Loaded` for a task that is not generated.
      score: `options -> (network, data) -> float` where the weights that score best on validation
        data are measured, or None where the last are.
      measure: `(options, networks, measured) -> ` a dict a member, in place of
        `evaluation.evaluate`; its "bits_per_character" is then the task's error.
      look: `(network, measured) -> ` records by name, to look at single inputs by.
      main: `argv -> None`, for a task that does not train as the others do.
      figures: `(members, folder) -> ` figures drawn, where they compare the members of all
        summaries.
      section: `(paths and summaries) -> ` the report's section in HTML, likewise.
    """

    name: str
    what: str
    presets: dict[str, Any]
    features: Callable[[Any], tuple[int, int]] | None = None
    sampler: Callable[[Any], Callable[..., Batch]] | None = None
    objective: Callable[[Any], Callable[..., tuple[Array, dict[str, Array]]]] | None = None
    predict: Callable[[Array], Array] | None = None
    unit: str = "difficulty"
    title: str | None = None
    levels: Callable[[Any], dict[int, Callable[[Array], Batch]]] | None = None
    example: Callable[..., dict[str, list]] | None = None
    load: Callable[[Any], Loaded] | None = None
    score: Callable[[Any], Callable[..., Array] | None] = lambda options: None
    measure: Callable[[Any, Network, Any], list[dict[str, Any]]] | None = None
    look: Callable[[Network, Any], dict[str, Any]] | None = None
    main: Callable[[list[str]], None] | None = None
    figures: Callable[..., list[tuple]] | None = None
    section: Callable[..., str] | None = None


def asked_for(
    command: str, tasks: dict[str, Task], argv: list[str]
) -> tuple[Task | None, list[str]]:
    """The task that a command line begins with, and the words after it; none for --help."""
    if argv[:1] in (["-h"], ["--help"]):
        return None, ["--help"]
    if not argv or argv[0] not in tasks:
        given = repr(argv[0]) if argv else "none"
        raise ValueError(f"{command} must name one of {', '.join(tasks)}, got {given}.")
    return tasks[argv[0]], argv[1:]


def generated(sample: Callable[..., Batch], *names: str):
    """`Task.sampler` of a task that is drawn from nothing: `sample` with the options so named."""

    def sampler(options):
        chosen = pick(options, *names)
        return lambda key, data=(): sample(key, options.batch_size, **chosen)

    return sampler


def graded(sample: Callable[..., Batch], name: str, values: Iterable[int], **fixed):
    """`Task.levels` as ranges of `sample`: batches of which all have one number of `name`."""
    limits = {value: {f"min_{name}": value, f"max_{name}": value} for value in values}
    draw = lambda limit: jax.jit(functools.partial(sample, batch_size=128, **fixed, **limit))
    return {value: draw(limit) for value, limit in limits.items()}


def classes(logits: Array) -> Array:
    """`Task.predict` for classes: the likeliest."""
    return logits.argmax(-1)


def bit(logits: Array) -> Array:
    """`Task.predict` for one bit: [..., 1] to 0 or 1 [...]."""
    return (logits[..., 0] > 0).astype(logits.dtype)


def make_objective(
    over_time: str,
    cross_entropy: Callable[..., Array],
    predict: Callable[[Array], Array],
    split: Callable[[Array], Array] = lambda logits: logits,
):
    """The loss of Graves 2016, eq 12, summed or averaged over a sequence as `over_time` says.

    Args:
      cross_entropy: `losses.sigmoid_cross_entropy` or `losses.softmax_cross_entropy`.
      predict: the network's logits [B, T, out_features] to predictions.
      split: logits as `cross_entropy` takes them.
    """

    def objective(network: Network, batch: Batch, tau: Array):
        logits, ponder = network(batch.inputs, batch.lengths)
        found = split(logits), batch.targets, batch.mask
        entropy = cross_entropy(*found, over_time=over_time)
        cost = losses.ponder_cost(ponder.cost, batch.lengths, over_time=over_time)
        predictions = predict(logits), batch.targets, batch.mask
        return (entropy + tau * cost).mean(), {
            "cross_entropy": entropy.mean(),
            "accuracy": 1 - losses.sequence_error_rate(*predictions),
            "target_accuracy": losses.accuracy(*predictions),
            **losses.ponder_metrics(ponder, batch.lengths),
        }

    return objective


def make_layered_objective(
    mu: float, over_time: str, measure: Callable[[Array, Batch], dict[str, Array]]
):
    """Cross-entropy and ponder cost, with `mu` that of every layer that ran (LFACT 2020, eq 6).

    With `mu` 0, or where there are no layers, it is eq 4, or Graves 2016, eq 12. What a step has
    several targets of adds up. `measure` gives metrics of (logits, batch).
    """

    def objective(network: Network, batch: Batch, tau: Array):
        logits, ponder, layers = network.with_layers(batch.inputs)
        total = losses.softmax_cross_entropy(logits, batch.targets, batch.mask)
        if mu and layers is not None:
            of_layer = lambda outputs, mask: losses.softmax_cross_entropy(
                network.read(outputs), batch.targets, mask
            )
            total += mu * losses.over_layers(of_layer, layers, batch.mask, deepest=total)
        count = batch.mask.sum(1, dtype=total.dtype)
        cross_entropy = (total if over_time == "sum" else total / count).mean()
        loss = cross_entropy + tau * losses.ponder_cost(ponder.cost, over_time=over_time).mean()
        right = losses.accuracy(logits.argmax(-1), batch.targets, batch.mask)
        return loss, {**measure(logits, batch), "accuracy": right, **losses.ponder_metrics(ponder)}

    return objective
