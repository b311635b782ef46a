"""Training a small convolutional network on CIFAR-10 (Andrychowicz 2016, 3.3; Sander 2017)."""

import dataclasses

from actjax.learned.problems import convolutional
from experiments.learned import classifiers, images
from experiments.learned.options import LearnedOptions, parse


@dataclasses.dataclass(frozen=True)
class CIFAR10Options(LearnedOptions):
    """Learn to train a convolutional network; its convolutions and dense layer have their own LSTM.

    Presets: demo (minutes), paper.
    """

    data: str = "download"
    """download, or a folder with CIFAR-10's batches (binary, or PNG with labels)."""
    minibatch: int = 128
    """Images in a minibatch."""


DEMO = CIFAR10Options(
    batch_size=1,
    steps=400,
    validate_every=50,
    validation_size=2,
    test_size=8,
    test_steps=100,
    tuning_size=4,
    learning_rate=1e-2,
    log_every=10,
    checkpoint_every=50,
)
PRESETS = {
    "demo": DEMO,
    "paper": dataclasses.replace(
        DEMO, batch_size=4, steps=20_000, validate_every=500, learning_rate=3e-3
    ),
}


def main(argv: list[str]):
    """Trains an optimizer and compares it with tuned Adam on held-out minibatches."""
    options = parse("cifar10", PRESETS, argv)
    classifiers.main("cifar10", options, convolutional(), images.cifar10(options.data))


def report(options, learned, folder):
    data = images.cifar10(options.data)
    return classifiers.report("cifar10", options, learned, folder, convolutional(), data)


def groups(options) -> tuple[int, ...]:
    """Coordinates of each group of parameters that has its own network."""
    return tuple(convolutional().groups.values())
