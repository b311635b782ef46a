"""Parity: how many of these bits are 1, odd or even (Graves 2016, 3.1; Fojo 2018, 6.2.1)."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from actjax import losses
from actjax.tasks import parity
from experiments import figures, run
from experiments.network import Network, make_network
from experiments.options import Options, parse


@dataclasses.dataclass(frozen=True)
class Parity(Options):
    """Learn the parity of a vector of bits, shown all at once.

    Presets: demo (16 bits, about a minute on two cores), fojo and graves (64 bits, 128 tanh units,
    at the settings of Fojo 2018 and Graves 2016).
    """

    bits: int = 64
    """Elements of a vector; a random number of them are 1 or -1, the others 0."""
    layout: Literal["prefix", "scattered"] = "prefix"
    """Which elements are not 0: the first ones (Fojo's code) or any (Graves)."""


PRESETS = {
    "demo": Parity(bits=16, hidden=128, tau=1e-3, init="glorot", max_steps=20, steps=10_000),
    "fojo": Parity(
        tau=1e-2,
        over_time="mean",
        init="glorot",
        steps=2_000_000,
        log_every=1000,
        checkpoint_every=10_000,
    ),
    "graves": Parity(
        layout="scattered",
        tau=1e-3,
        learning_rate=1e-4,
        init="glorot",
        steps=16_000_000,
        log_every=1000,
        checkpoint_every=10_000,
    ),
}


def main(argv: list[str]):
    """Trains a network, evaluates it, draws its figures and prints a table."""
    options = parse("parity", PRESETS, argv)
    summary, folder = train(options)
    found = summary["evaluation"]
    run.show(
        "Parity",
        [
            {
                "model": summary["model"],
                "updates": f"{summary['steps']:,}",
                "error rate": f"{found['error']:.4f}",
                "ponder N + R": f"{found['ponder']:.2f}",
                "largest": f"{found['ponder_max']:.1f}",
                "time": f"{summary['wall_time_seconds']:.0f} s",
            }
        ],
        *run.notes(summary, folder),
    )


def train(options: Parity) -> tuple[dict[str, Any], Any]:
    """One run from start to figures: its summary and its folder."""
    sample = sampler(options)
    network = make_network(options, run.input_size(sample), 1)
    network, folder = run.train("parity", options, network, sample, objective)
    evaluation = evaluate(network, options)
    summary = run.finish("parity", options, folder, evaluation)
    figures.draw(folder)
    return summary, folder


def sampler(options: Parity):
    """`(key, data) -> Batch` of the run's batch size."""

    def sample(key, data=()):
        return parity.sample(key, options.batch_size, bits=options.bits, layout=options.layout)

    return sample


def objective(network: Network, batch, tau):
    """Binary cross-entropy and the ponder cost: (loss, metrics) (Graves 2016, eq 12)."""
    logits, ponder = network(batch.inputs)
    logits = logits[..., 0]
    cross_entropy = losses.sigmoid_cross_entropy(logits, batch.targets, batch.mask).mean()
    cost = losses.ponder_cost(ponder.cost).mean()
    return cross_entropy + tau * cost, {
        "cross_entropy": cross_entropy,
        "accuracy": losses.accuracy(logits > 0, batch.targets > 0, batch.mask),
        **losses.ponder_metrics(ponder),
    }


def evaluate(network: Network, options: Parity, *, vectors: int = 1000) -> dict[str, Any]:
    """Error rate and ponder by difficulty, over about `vectors` fresh vectors for each.

    Difficulty is "the number of bits whose parity must be determined" (Graves 2016, figure 6).
    """
    sample = sampler(options)

    @functools.partial(jax.jit, static_argnums=2)
    def run_batches(network, key, count):
        def one(_, key):
            batch = sample(key)
            logits, ponder = network(batch.inputs)
            wrong = (logits[..., 0] > 0) != (batch.targets > 0)
            return None, (
                batch.difficulty[:, 0],
                wrong[:, 0],
                ponder.cost[:, 0],
                ponder.steps[:, 0],
            )

        _, records = jax.lax.scan(one, None, jax.random.split(key, count))
        return jax.tree.map(jnp.ravel, records)

    # a key of its own: training folds the numbers 0 to steps - 1 into the key of the run
    key = jax.random.fold_in(jax.random.key(options.seed), 2**32 - 1)
    count = -(-vectors * options.bits // options.batch_size)
    difficulty, wrong, cost, steps = map(np.asarray, run_batches(network, key, count))
    return {
        "error": float(wrong.mean()),
        "error_standard_error": float(wrong.std() / np.sqrt(wrong.size)),
        "ponder": float(cost.mean()),
        "ponder_max": float(cost.max()),
        "ponder_steps": float(steps.mean()),
        "by_difficulty": by_difficulty(difficulty, error=wrong, ponder=cost),
    }


def by_difficulty(difficulty: np.ndarray, **values: np.ndarray) -> list[dict[str, float]]:
    """Mean and standard error of each of `values` at each difficulty."""
    rows = []
    for level in np.unique(difficulty):
        here = difficulty == level
        row = {"difficulty": int(level), "count": int(here.sum())}
        for name, value in values.items():
            row[name] = float(value[here].mean())
            row[f"{name}_standard_error"] = float(value[here].std() / np.sqrt(here.sum()))
        rows.append(row)
    return rows
