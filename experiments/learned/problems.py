"""The problems that an optimizer learns on: the options of each, its presets, and how it is drawn.

Quadratic functions and linear regression (Sander 2017, sections 5.1 and 5.2), and the training of
small networks on MNIST and CIFAR-10 (Andrychowicz 2016, sections 3.2 and 3.3).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from actjax.learned.problems import (
    classifier,
    convolutional,
    convolutions,
    mlp,
    networks,
    quadratic,
    regression,
    together,
)
from actjax.learned.problems.classifier import Model
from actjax.learned.problems.family import Family
from actjax.learned.training import MakeFamily
from experiments.learned import images
from experiments.learned.options import LearnedOptions
from experiments.options import pick


@dataclasses.dataclass(frozen=True)
class Problem:
    """An experiment's problems.

    Attributes:
      presets: name -> options.
      make_family: `options -> (data -> Family)`.
      kind: `options -> ` the variant, for the run's folder.
      ylabel: what the loss is.
      load: `options -> ` the data.
      model: the network that is trained, where the problem is to classify images.
    """

    presets: dict[str, LearnedOptions]
    make_family: Callable[[Any], MakeFamily]
    kind: Callable[[Any], str]
    ylabel: str = "loss on held-out minibatches, nats"
    load: Callable[[Any], Any] = lambda options: ()
    model: Model | None = None

    @property
    def groups(self) -> tuple[int, ...]:
        """Coordinates of each group of parameters that has its own network."""
        return tuple(self.model.groups.values()) if self.model else ()


@dataclasses.dataclass(frozen=True)
class QuadraticOptions(LearnedOptions):
    """Learn to minimise quadratic functions in 10 parameters.

    Presets: demo (minutes on two cores), paper (120 epochs of 10,000 functions), weights (what the
    library's `quadratic` was trained with).
    """

    draw: Literal["uniform", "gaussian", "mixed"] = "uniform"
    """Entries of W and y: uniform, Gaussian, or W of mixed condition numbers up to 10."""
    dim: int = 10
    """Parameters of a function."""


@dataclasses.dataclass(frozen=True)
class RegressionOptions(LearnedOptions):
    """Learn to fit linear functions, and when to stop: problems of mixed condition numbers.

    Presets: demo (minutes on two cores), two (2 parameters), paper (10 parameters, inputs from a
    standard normal, 120 epochs), head (the halting head of the library's `regression`, which needs
    --network-from).
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


@dataclasses.dataclass(frozen=True)
class MNISTOptions(LearnedOptions):
    """Learn to train a small network on MNIST; the test is on images never trained on.

    Presets: demo (the shipped 4000 images, minutes), paper (give --data).
    """

    data: str = "small"
    """small (shipped), download, or a folder with the four canonical IDX files."""
    minibatch: int = 128
    """Images in a minibatch."""


@dataclasses.dataclass(frozen=True)
class CIFAR10Options(LearnedOptions):
    """Learn to train a convolutional network; its convolutions and dense layer have their own LSTM.

    Presets: demo (minutes), paper.
    """

    data: str = "download"
    """download, or a folder with CIFAR-10's batches (binary, or PNG with labels)."""
    minibatch: int = 128
    """Images in a minibatch."""


@dataclasses.dataclass(frozen=True)
class NetworksOptions(LearnedOptions):
    """Learn to train small networks of many kinds at once, on data made here.

    Widths, depths, activations, first weights, losses, batch sizes and data differ; one problem is
    a network of each shape. The optimizer is a change of Adam's update.

    Presets: demo (minutes), weights (what the library's `mlp` was trained with).
    """


def mixture() -> Family:
    """Networks of 300 to 2,100 parameters, of which each problem has one of each shape."""
    return together(
        networks((12, 16, 5), batch_size=16),
        networks((64, 20, 20, 8), batch_size=32, pixels=True),
        networks((8, 24, 24, 1), batch_size=64, targets="values"),
        networks((200, 10, 10), batch_size=64, targets="classes", pixels=True),
        convolutions(batch_size=64),
    )


def _images(options: type, load, model: Model, demo: dict, paper: dict) -> Problem:
    """A problem of classifying images."""
    shared = {"batch_size": 1, "validate_every": 50, "test_steps": 100, "log_every": 10}
    demo = options(**shared, **demo, checkpoint_every=50)
    longer = {"batch_size": 4, "steps": 20_000, "validate_every": 500, **paper}

    def make_family(options):
        return lambda data: classifier(model, *data, batch_size=options.minibatch)

    return Problem(
        presets={"demo": demo, "paper": dataclasses.replace(demo, **longer)},
        make_family=make_family,
        kind=lambda options: "small" if options.data == "small" else "full",
        load=lambda options: load(options.data),
        model=model,
    )


PACE = {"validation_size": 15_000, "log_every": 400, "checkpoint_every": 4000}
EPOCHS = {"steps": 120 * 80 * 5, "learning_rate": 1e-3, **PACE}  # x batches of 125 x windows
HEAD = {"steps": 400, "learning_rate": 1e-2, "batch_size": 64, "validate_every": 100}
HEAD |= {"validation_size": 500, "log_every": 50, "checkpoint_every": 200, "gap_weight": 1.0}
SHORT = {"test_size": 4000, "test_steps": 100}
MNIST = {"columns": 1000, "steps": 600, "validation_size": 4, "test_size": 16}
CIFAR10 = {"steps": 400, "validation_size": 2, "test_size": 8, "tuning_size": 16}
NETWORKS = NetworksOptions(
    hidden=16,
    layers=1,
    preprocess="adam",
    see_scale=True,
    output_scale=0.02,
    batch_size=4,
    columns=4000,
    steps=1000,
    validate_every=250,
    validation_size=12,
    test_size=24,
    test_steps=100,
    tuning_size=24,
    log_every=50,
    checkpoint_every=250,
)
PROBLEMS = {
    "quadratic": Problem(
        presets={
            "demo": QuadraticOptions(),
            "paper": QuadraticOptions(**EPOCHS, validate_every=10 * 80 * 5),
            "weights": QuadraticOptions(steps=2500),
        },
        make_family=lambda options: lambda data: quadratic(options.dim, options.draw),
        kind=lambda options: options.draw,
        ylabel="mean of ||W theta - y||^2",
    ),
    "regression": Problem(
        presets={
            "demo": RegressionOptions(steps=3000, **SHORT),
            "two": RegressionOptions(dim=2, steps=2000, **SHORT),
            "paper": RegressionOptions(
                max_condition=1.0, observations=100, validate_every=4000, **EPOCHS
            ),
            "head": RegressionOptions(optimizer="act", train_network=False, **HEAD, **SHORT),
        },
        make_family=lambda options: (
            lambda data: regression(
                options.dim, **pick(options, "observations", "alpha", "beta", "max_condition")
            )
        ),
        kind=lambda options: f"{options.dim}d-condition{options.max_condition:g}",
        ylabel="mean NLL per observation, nats",
    ),
    "networks": Problem(
        presets={
            "demo": NETWORKS,
            "weights": dataclasses.replace(NETWORKS, steps=4000, validate_every=500),
        },
        make_family=lambda options: lambda data: mixture(),
        kind=lambda options: "mixture",
        ylabel="loss, in units of the first",
    ),
    "mnist": _images(
        MNISTOptions,
        images.mnist,
        mlp(),
        {**MNIST, "tuning_size": 64, "learning_rate": 5e-3},
        {"data": "download", "columns": 4000},
    ),
    "cifar10": _images(
        CIFAR10Options,
        images.cifar10,
        convolutional(),
        {**CIFAR10, "learning_rate": 1e-2},
        {"learning_rate": 3e-3},
    ),
}
