"""Parity: how many of these bits are 1, odd or even (Graves 2016, 3.1; Fojo 2018, 6.2.1)."""

import dataclasses
from typing import Literal

import optax

from actjax import losses
from actjax.tasks import parity
from experiments.network import Network
from experiments.options import Options, pick
from experiments.task import GRAVES, Task, bit, generated, graded


@dataclasses.dataclass(frozen=True)
class Parity(Options):
    """Learn the parity of a vector of bits, shown all at once.

    Presets: demo (24 bits, a minute on two cores), fojo and graves (64 bits, 128 tanh units,
    at the settings of Fojo 2018 and Graves 2016); cpu is demo and paper is graves.
    """

    model: Literal["rnn", "act", "repeat", "lfact", "pondernet"] = "act"
    """Steps of the cell for each input: one (rnn), a learned number (act), a fixed one (repeat), a
    learned number of layers (lfact), or one drawn from a learned distribution (pondernet), whose
    divergence from a geometric prior tau weighs."""
    prior: float = 0.2
    """The prior's parameter: 1 / prior steps are expected before any are learned."""
    bits: int = 64
    """Elements of a vector; a random number of them are 1 or -1, the others 0."""
    max_bits: int | None = None
    """Train on vectors of so many at most that are not 0, and measure by all numbers of them: what
    is beyond is extrapolation (Banino 2021). Default: all."""
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


def expected(network: Network, batch, tau):
    """The expected cross-entropy and the divergence from the prior (Banino 2021, eq 3)."""
    of_one = lambda read, outputs, targets: optax.sigmoid_binary_cross_entropy(
        read(outputs)[:, 0], targets
    )
    cross_entropy, divergence, _ = network.core.expected_loss(
        batch.inputs, batch.targets, of_one, network.readout
    )
    cross_entropy, divergence = cross_entropy.mean(), divergence.mean()
    logits, ponder = network(batch.inputs)
    return cross_entropy + tau * divergence, {
        "cross_entropy": cross_entropy,
        "divergence": divergence,
        "accuracy": losses.accuracy(bit(logits), batch.targets, batch.mask),
        **losses.ponder_metrics(ponder),
    }


def levels(options: Parity):
    """Every number of bits, or about 24 of them, where training sees but some."""
    if options.max_bits is None:
        return None
    numbers = range(1, options.bits + 1, max(1, options.bits // 24))
    return graded(parity.sample, "bits", numbers, **pick(options, "bits", "layout"))


TASK = Task(
    name="parity",
    what="learn the parity of a vector of bits",
    presets=PRESETS,
    features=lambda options: (options.bits, 1),
    sampler=generated(parity.sample, "bits", "max_bits", "layout"),
    objective=lambda options: expected if options.model == "pondernet" else objective,
    predict=bit,
    unit="bits",
    levels=levels,
)
