"""Addition: running sums of decimal numbers (Graves 2016, 3.3; Fojo 2018, 6.2.2)."""

import dataclasses
import functools
import itertools
from typing import Literal

import jax
from jax import Array

from actjax import losses
from actjax.tasks import addition
from experiments import synthetic
from experiments.options import Options

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


GRAVES = Addition(
    cell="lstm",
    hidden=512,
    batch_size=32,
    max_steps=20,
    tau=1e-3,
    learning_rate=1e-4,
    steps=16_000_000,
    log_every=1000,
    checkpoint_every=10_000,
)

PRESETS = {
    "cpu": dataclasses.replace(
        GRAVES,
        hidden=96,
        batch_size=64,
        min_length=2,
        max_length=2,
        max_digits=3,
        tau=1e-2,
        over_time="mean",
        over_digits="mean",
        init="glorot",
        learning_rate=3e-3,
        steps=60_000,
        log_every=50,
        checkpoint_every=1000,
    ),
    "fojo": dataclasses.replace(
        GRAVES,
        min_length=5,
        tau=1e-2,
        over_time="mean",
        over_digits="mean",
        init="glorot",
        learning_rate=1e-3,
        steps=2_000_000,
        log_every=100,  # on which the filter that tells solved from unsolved works
    ),
    "graves": GRAVES,
    "paper": GRAVES,
}


def split(outputs: Array) -> Array:
    """Outputs [B, T, 66] as logits [B, T, 6, 11]."""
    return outputs.reshape(*outputs.shape[:-1], addition.SUM_DIGITS, addition.CLASSES)


def predict(outputs: Array) -> Array:
    return split(outputs).argmax(-1)


def sampler(options: Addition):
    def sample(key, data=()):
        return addition.sample(
            key,
            options.batch_size,
            min_length=options.min_length,
            max_length=options.max_length,
            max_digits=options.max_digits,
        )

    return sample


def levels(options: Addition):
    """Sequences of three numbers, all of one number of digits (Graves 2016, figure 14)."""
    length = min(FIGURE_LENGTH, options.max_length)
    return {
        digits: jax.jit(
            functools.partial(
                addition.sample,
                batch_size=128,
                min_length=length,
                max_length=length,
                min_digits=digits,
                max_digits=digits,
            )
        )
        for digits in range(1, options.max_digits + 1)
    }


def objective(options: Addition):
    scale = addition.SUM_DIGITS if options.over_digits == "mean" else 1

    def cross_entropy(*arguments, **over):
        return losses.softmax_cross_entropy(*arguments, **over) / scale

    return synthetic.make_objective(options, cross_entropy, split, predict)


def example(inputs: Array, predictions: Array, mask: Array, length: int) -> dict[str, list]:
    """One sequence in words: the numbers read and the sums given (Graves 2016, figure 15)."""
    digits = inputs.reshape(len(inputs), addition.DIGITS, 10)
    read = ["".join(str(d.argmax()) for d in number if d.any()) for number in digits[:length]]
    given = ["".join("*" if d == addition.END else str(d) for d in row) for row in predictions]
    pairs = zip(given, mask, strict=True)
    outputs = [g if m else "" for g, m in pairs][:length]
    return {"inputs": read, "outputs": outputs, "digits": _digits_summed(read)}


def _digits_summed(read: list[str]) -> list[int]:
    """Digits of the two numbers summed at each step: the sum so far and the number just read."""
    before = [0, *itertools.accumulate(map(int, read))]
    return [
        len(number) + (len(str(total)) if t else 0)
        for t, (number, total) in enumerate(zip(read, before, strict=False))
    ]


TASK = synthetic.Task(
    name="addition",
    presets=PRESETS,
    features=lambda options: (addition.INPUT_SIZE, addition.SUM_DIGITS * addition.CLASSES),
    sampler=sampler,
    objective=objective,
    predict=predict,
    levels=levels,
    example=example,
)

main = functools.partial(synthetic.main, TASK)
