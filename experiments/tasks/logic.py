"""Logic: apply a chain of binary gates to each vector, results carried on (Graves 2016, 3.2)."""

import dataclasses

from actjax import losses
from actjax.tasks import logic
from experiments.options import Options
from experiments.task import GRAVES, Task, bit, generated, graded, make_objective

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


PAPER = Logic(**GRAVES, hidden=128, batch_size=16)
SIZES = {"hidden": 64, "batch_size": 32, "max_length": 3, "max_gates": 6, "max_steps": 10}
PACE = {"learning_rate": 5e-3, "steps": 24_000, "log_every": 50, "checkpoint_every": 1000}
PRESETS = {
    "cpu": dataclasses.replace(PAPER, **SIZES, **PACE, init="glorot"),
    "graves": PAPER,
    "paper": PAPER,
}


def levels(options: Logic):
    """Sequences of five vectors, all of one number of gates (Graves 2016, figure 10)."""
    length = min(FIGURE_LENGTH, options.max_length)
    lengths = {"min_length": length, "max_length": length}
    return graded(logic.sample, "gates", range(1, options.max_gates + 1), **lengths)


TASK = Task(
    name="logic",
    what="apply chains of binary gates",
    presets=PRESETS,
    features=lambda options: (logic.INPUT_SIZE, 1),
    sampler=generated(logic.sample, "max_length", "max_gates"),
    objective=lambda options: make_objective(
        options.over_time, losses.sigmoid_cross_entropy, bit, lambda logits: logits[..., 0]
    ),
    predict=bit,
    unit="gates",
    levels=levels,
)
