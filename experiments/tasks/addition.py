"""Addition: running sums of decimal numbers (Graves 2016, 3.3; Fojo 2018, 6.2.2)."""

import dataclasses
import itertools
from typing import Literal

from jax import Array

from actjax import losses
from actjax.tasks import addition
from experiments.options import Options
from experiments.task import GRAVES, Task, generated, graded, make_objective

FIGURE_LENGTH = 3  # of the sequences in Graves 2016, figure 14


@dataclasses.dataclass(frozen=True)
class Addition(Options):
    """Add up a sequence of decimal numbers, six digits of the running sum after each.

    Presets: cpu (two numbers of up to three digits, an LSTM of 96 cells, minutes on two cores),
    fojo and graves (five numbers of up to five digits, an LSTM of 512 cells, at the settings of
    Fojo 2018 and Graves 2016; graves is named paper as well).
    """

    min_length: int = 1
    """Fewest numbers in a sequence: 1 in Graves 2016, always 5 in Fojo 2018."""
    max_length: int = 5
    """Most numbers in a sequence."""
    max_digits: int = 5
    """Most digits of a number."""
    over_digits: Literal["sum", "mean"] = "sum"
    """Whether the loss of a step is the sum over its six digits (both papers' text) or their mean
    (the code of Fojo 2018, and so the scale of its time penalties)."""


PAPER = Addition(**GRAVES, hidden=512, batch_size=32, max_steps=20)
FOJO = {"tau": 1e-2, "over_time": "mean", "over_digits": "mean", "init": "glorot"}
SIZES = {"hidden": 96, "batch_size": 64, "min_length": 2, "max_length": 2, "max_digits": 3}
PACE = {"learning_rate": 3e-3, "steps": 60_000, "log_every": 50, "checkpoint_every": 1000}
# log_every 100, on which the filter that tells solved from unsolved works
FOJO_PACE = {"min_length": 5, "learning_rate": 1e-3, "steps": 2_000_000, "log_every": 100}
PRESETS = {
    "cpu": dataclasses.replace(PAPER, **FOJO, **SIZES, **PACE),
    "fojo": dataclasses.replace(PAPER, **FOJO, **FOJO_PACE),
    "graves": PAPER,
    "paper": PAPER,
}


def split(logits: Array) -> Array:
    """Logits [B, T, 66] as [B, T, 6, 11]."""
    return logits.reshape(*logits.shape[:-1], addition.SUM_DIGITS, addition.CLASSES)


def predict(logits: Array) -> Array:
    return split(logits).argmax(-1)


def levels(options: Addition):
    """Sequences of three numbers, all of one number of digits (Graves 2016, figure 14)."""
    length = min(FIGURE_LENGTH, options.max_length)
    lengths = {"min_length": length, "max_length": length}
    return graded(addition.sample, "digits", range(1, options.max_digits + 1), **lengths)


def objective(options: Addition):
    scale = addition.SUM_DIGITS if options.over_digits == "mean" else 1
    cross_entropy = lambda *found, **over: losses.softmax_cross_entropy(*found, **over) / scale
    return make_objective(options.over_time, cross_entropy, predict, split)


def example(inputs: Array, predictions: Array, mask: Array, length: int) -> dict[str, list]:
    """One sequence in words: the numbers read and the sums given (Graves 2016, figure 15)."""
    digits = inputs.reshape(len(inputs), addition.DIGITS, 10)
    read = ["".join(str(d.argmax()) for d in number if d.any()) for number in digits[:length]]
    given = ["".join("*" if d == addition.END else str(d) for d in row) for row in predictions]
    outputs = [word if counts else "" for word, counts in zip(given, mask, strict=True)]
    return {"inputs": read, "outputs": outputs[:length], "digits": _digits_summed(read)}


def _digits_summed(read: list[str]) -> list[int]:
    """Digits of the two numbers summed at each step: the sum so far and the number just read."""
    before = [0, *itertools.accumulate(map(int, read))]
    return [
        len(number) + (len(str(total)) if t else 0)
        for t, (number, total) in enumerate(zip(read, before, strict=False))
    ]


TASK = Task(
    name="addition",
    what="add up decimal numbers",
    presets=PRESETS,
    features=lambda options: (addition.INPUT_SIZE, addition.SUM_DIGITS * addition.CLASSES),
    sampler=generated(addition.sample, "min_length", "max_length", "max_digits"),
    objective=objective,
    predict=predict,
    unit="digits",
    levels=levels,
    example=example,
)
