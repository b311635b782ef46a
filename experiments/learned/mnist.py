"""Training a 784-20-10 sigmoid network on MNIST (Andrychowicz 2016, 3.2; Sander 2017)."""

import dataclasses

from actjax.learned.problems import mlp
from experiments.learned import classifiers, images
from experiments.learned.options import LearnedOptions, parse


@dataclasses.dataclass(frozen=True)
class MNISTOptions(LearnedOptions):
    """Learn to train a small network on MNIST; the test is on images never trained on.

    Presets: demo (the shipped 4000 images, minutes), paper (give --data).
    """

    data: str = "small"
    """small (shipped), download, or a folder with the four canonical IDX files."""
    minibatch: int = 128
    """Images in a minibatch."""


DEMO = MNISTOptions(
    batch_size=1,
    columns=1000,
    steps=600,
    validate_every=50,
    validation_size=4,
    test_size=16,
    test_steps=100,
    tuning_size=8,
    learning_rate=5e-3,
    log_every=10,
    checkpoint_every=50,
)
PRESETS = {
    "demo": DEMO,
    "paper": dataclasses.replace(
        DEMO, data="download", batch_size=4, columns=4000, steps=20_000, validate_every=500
    ),
}


def main(argv: list[str]):
    """Trains an optimizer and compares it with tuned Adam on held-out minibatches."""
    options = parse("mnist", PRESETS, argv)
    classifiers.main("mnist", options, mlp(), images.mnist(options.data))


def report(options, learned, folder):
    data = images.mnist(options.data)
    return classifiers.report("mnist", options, learned, folder, mlp(), data)


def groups(options) -> tuple[int, ...]:
    """Coordinates of each group of parameters that has its own network."""
    return tuple(mlp().groups.values())
