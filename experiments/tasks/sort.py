"""Sort: read numbers one at a time, then name their places in order (Graves 2016, 3.4)."""

import dataclasses
import functools

import jax
from jax import Array

from actjax import losses
from actjax.tasks import sort
from experiments import synthetic
from experiments.options import Options


@dataclasses.dataclass(frozen=True)
class Sort(Options):
    """Sort a sequence of normal numbers: after the last, name their places in ascending order.

    Presets: cpu (2 to 5 numbers, an LSTM of 64 cells, minutes on two cores) and graves (2 to 15
    numbers, an LSTM of 512 cells, as in Graves 2016; named paper as well).
    """

    max_numbers: int = 15
    """Most numbers in a sequence; the fewest are 2."""


GRAVES = Sort(
    cell="lstm",
    hidden=512,
    batch_size=16,
    tau=1e-3,
    learning_rate=1e-4,
    steps=16_000_000,
    log_every=1000,
    checkpoint_every=10_000,
)

PRESETS = {
    "cpu": dataclasses.replace(
        GRAVES,
        hidden=64,
        batch_size=32,
        max_numbers=5,
        max_steps=20,
        tau=1e-4,
        init="glorot",
        halt_bias=-2.0,
        learning_rate=2e-3,
        steps=24_000,
        log_every=50,
        checkpoint_every=1000,
    ),
    "graves": GRAVES,
    "paper": GRAVES,
}


def predict(outputs: Array) -> Array:
    return outputs.argmax(-1)


def sampler(options: Sort):
    def sample(key, data=()):
        return sort.sample(key, options.batch_size, max_numbers=options.max_numbers)

    return sample


def levels(options: Sort):
    """Sequences of one count of numbers (Graves 2016, figure 19)."""
    return {
        numbers: jax.jit(
            functools.partial(sort.sample, batch_size=128, min_numbers=numbers, max_numbers=numbers)
        )
        for numbers in range(2, options.max_numbers + 1)
    }


def example(inputs: Array, predictions: Array, mask: Array, length: int) -> dict[str, list[str]]:
    """One sequence in words: the numbers read and the places named (Graves 2016, figure 20)."""
    read = ["" if m else f"{x:.2f}" for (x, _), m in zip(inputs, mask, strict=True)]
    given = [str(p + 1) if m else "" for p, m in zip(predictions, mask, strict=True)]
    return {"inputs": read[:length], "outputs": given[:length]}


TASK = synthetic.Task(
    name="sort",
    presets=PRESETS,
    features=lambda options: (sort.INPUT_SIZE, sort.CLASSES),
    sampler=sampler,
    objective=lambda options: synthetic.make_objective(
        options, losses.softmax_cross_entropy, lambda outputs: outputs, predict
    ),
    predict=predict,
    levels=levels,
    example=example,
)

main = functools.partial(synthetic.main, TASK)
