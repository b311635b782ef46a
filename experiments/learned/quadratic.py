"""Quadratic functions in 10 parameters (Sander 2017, section 5.1)."""

import dataclasses
from typing import Literal

from actjax.learned.problems import quadratic
from experiments.learned import problems
from experiments.learned.options import LearnedOptions, parse

YLABEL = "mean of ||W theta - y||^2"


@dataclasses.dataclass(frozen=True)
class QuadraticOptions(LearnedOptions):
    """Learn to minimise quadratic functions in 10 parameters.

    Presets: demo (minutes on two cores), paper (120 epochs of 10,000 functions).
    """

    draw: Literal["uniform", "gaussian", "mixed"] = "uniform"
    """Entries of W and y: uniform, Gaussian, or W of mixed condition numbers up to 10."""
    dim: int = 10
    """Parameters of a function."""


PRESETS = {
    "demo": QuadraticOptions(),
    "paper": QuadraticOptions(
        steps=120 * 80 * 5,  # epochs x batches of 125 x windows
        learning_rate=1e-3,
        validate_every=10 * 80 * 5,
        validation_size=15_000,
        log_every=400,
        checkpoint_every=4000,
    ),
}


def main(argv: list[str]):
    """Trains an optimizer and tests it beside the tuned baselines."""
    options = parse("quadratic", PRESETS, argv)
    problems.main("quadratic", options, family_of(options), options.draw, YLABEL)


def report(options, learned, folder):
    return problems.report("quadratic", options, learned, folder, family_of(options), YLABEL)


def family_of(options: QuadraticOptions):
    return lambda data: quadratic(options.dim, options.draw)
