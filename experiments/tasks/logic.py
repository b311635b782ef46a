"""Logic: apply a chain of binary gates to each vector, results carried on (Graves 2016, 3.2)."""

import dataclasses
import functools

import jax
from jax import Array

from actjax import losses
from actjax.tasks import logic
from experiments import synthetic
from experiments.options import Options

FIGURE_LENGTH = 5  # of the sequences in Graves 2016, figure 10


@dataclasses.dataclass(frozen=True)
class Logic(Options):
    """Apply up to ten binary gates to each vector of a sequence; each result enters the next.

    Presets: cpu (up to 6 gates and 3 vectors, minutes on two cores) and graves (10 gates and 10
    vectors, an LSTM of 128 cells, as in Graves 2016; named paper as well).
    """

    max_length: int = 10
    """Most vectors in a sequence."""
    max_gates: int = 10
    """Most gates in a vector."""


GRAVES = Logic(
    cell="lstm",
    hidden=128,
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
        max_length=3,
        max_gates=6,
        max_steps=10,
        init="glorot",
        learning_rate=5e-3,
        steps=24_000,
        log_every=50,
        checkpoint_every=1000,
    ),
    "graves": GRAVES,
    "paper": GRAVES,
}


def predict(outputs: Array) -> Array:
    return (outputs[..., 0] > 0).astype(outputs.dtype)


def sampler(options: Logic):
    def sample(key, data=()):
        return logic.sample(
            key, options.batch_size, max_length=options.max_length, max_gates=options.max_gates
        )

    return sample


def levels(options: Logic):
    """Sequences of five vectors, all of one number of gates (Graves 2016, figure 10)."""
    length = min(FIGURE_LENGTH, options.max_length)
    return {
        gates: jax.jit(
            functools.partial(
                logic.sample,
                batch_size=128,
                min_length=length,
                max_length=length,
                min_gates=gates,
                max_gates=gates,
            )
        )
        for gates in range(1, options.max_gates + 1)
    }


TASK = synthetic.Task(
    name="logic",
    presets=PRESETS,
    features=lambda options: (logic.INPUT_SIZE, 1),
    sampler=sampler,
    objective=lambda options: synthetic.make_objective(
        options, losses.sigmoid_cross_entropy, lambda outputs: outputs[..., 0], predict
    ),
    predict=predict,
    levels=levels,
)

main = functools.partial(synthetic.main, TASK)
