"""Linear regression scored by its likelihood (Sander 2017, section 5.2), where to stop matters."""

import dataclasses

from actjax.learned.problems import regression
from experiments.learned import problems
from experiments.learned.options import LearnedOptions, parse

YLABEL = "mean NLL per observation, nats"


@dataclasses.dataclass(frozen=True)
class RegressionOptions(LearnedOptions):
    """Learn to fit linear functions, and when to stop: problems of mixed condition numbers.

    Presets: demo (minutes on two cores), two (2 parameters), paper (10 parameters, inputs from a
    standard normal, 120 epochs).
    """

    dim: int = 10
    """Parameters of a function."""
    observations: int = 50
    """Observations of a function (N)."""
    alpha: float = 1.0
    """Precision of the true parameters."""
    beta: float = 2.0
    """Precision of the noise."""
    max_condition: float = 10.0
    """Largest condition number of the inputs; 1 draws them from a standard normal."""


PRESETS = {
    "demo": RegressionOptions(steps=3000, test_size=4000, test_steps=100),
    "two": RegressionOptions(dim=2, steps=2000, test_size=4000, test_steps=100),
    "paper": RegressionOptions(
        max_condition=1.0,
        observations=100,
        steps=120 * 80 * 5,
        learning_rate=1e-3,
        validate_every=4000,
        validation_size=15_000,
        log_every=400,
        checkpoint_every=4000,
    ),
}


def main(argv: list[str]):
    """Trains an optimizer and tests it beside the tuned baselines."""
    options = parse("regression", PRESETS, argv)
    problems.main("regression", options, family_of(options), kind_of(options), YLABEL)


def report(options, learned, folder):
    return problems.report("regression", options, learned, folder, family_of(options), YLABEL)


def kind_of(options: RegressionOptions) -> str:
    return f"{options.dim}d-condition{options.max_condition:g}"


def family_of(options: RegressionOptions):
    return lambda data: regression(
        options.dim,
        observations=options.observations,
        alpha=options.alpha,
        beta=options.beta,
        max_condition=options.max_condition,
    )
