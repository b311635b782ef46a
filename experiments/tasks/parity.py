"""Parity: how many of these bits are 1, odd or even (Graves 2016, 3.1; Fojo 2018, 6.2.1)."""

import dataclasses
from typing import Literal

from actjax import losses
from actjax.tasks import parity
from experiments.network import Network
from experiments.options import Options
from experiments.task import GRAVES, Task, bit, generated


@dataclasses.dataclass(frozen=True)
class Parity(Options):
    """Learn the parity of a vector of bits, shown all at once.

    Presets: demo (24 bits, a minute on two cores), fojo and graves (64 bits, 128 tanh units,
    at the settings of Fojo 2018 and Graves 2016); cpu is demo and paper is graves.
    """

    bits: int = 64
    """Elements of a vector; a random number of them are 1 or -1, the others 0."""
    layout: Literal["prefix", "scattered"] = "prefix"
    """Which elements are not 0: the first ones (Fojo's code) or any (Graves)."""


FOJO = {"tau": 1e-2, "over_time": "mean", "init": "glorot"}
PRESETS = {
    "demo": Parity(bits=24, max_steps=20, learning_rate=2e-3, steps=10_000, log_every=25),
    "fojo": Parity(**FOJO, steps=2_000_000, checkpoint_every=10_000),
    # the paper does not say how weights start
    "graves": Parity(**GRAVES | {"cell": "simple", "layout": "scattered"}),
}
PRESETS |= {"cpu": PRESETS["demo"], "paper": PRESETS["graves"]}


def objective(network: Network, batch, tau):
    """Binary cross-entropy and the ponder cost: (loss, metrics) (Graves 2016, eq 12)."""
    logits, ponder = network(batch.inputs)
    cross_entropy = losses.sigmoid_cross_entropy(logits[..., 0], batch.targets, batch.mask).mean()
    cost = losses.ponder_cost(ponder.cost).mean()
    return cross_entropy + tau * cost, {
        "cross_entropy": cross_entropy,
        "accuracy": losses.accuracy(bit(logits), batch.targets, batch.mask),
        **losses.ponder_metrics(ponder),
    }


TASK = Task(
    name="parity",
    what="learn the parity of a vector of bits",
    presets=PRESETS,
    features=lambda options: (options.bits, 1),
    sampler=generated(parity.sample, "bits", "layout"),
    objective=lambda options: objective,
    predict=bit,
    unit="bits",
)
