"""Sort: read numbers one at a time, then name their places in order (Graves 2016, 3.4)."""

import dataclasses

from jax import Array

from actjax import losses
from actjax.tasks import sort
from experiments.options import Options
from experiments.task import GRAVES, Task, classes, generated, graded, make_objective


@dataclasses.dataclass(frozen=True)
class Sort(Options):
    """Sort a sequence of normal numbers: after the last, name their places in ascending order.

    Presets: cpu (2 to 5 numbers, an LSTM of 64 cells, minutes on two cores) and graves (2 to 15
    numbers, an LSTM of 512 cells, as in Graves 2016; named paper as well).
    """

    max_numbers: int = 15
    """Most numbers in a sequence; the fewest are 2."""


PAPER = Sort(**GRAVES, hidden=512, batch_size=16)
SIZES = {"hidden": 64, "batch_size": 32, "max_numbers": 5, "max_steps": 20}
PACE = {"learning_rate": 2e-3, "steps": 24_000, "log_every": 50, "checkpoint_every": 1000}
PRESETS = {
    "cpu": dataclasses.replace(PAPER, **SIZES, **PACE, tau=1e-4, init="glorot", halt_bias=-2.0),
    "graves": PAPER,
    "paper": PAPER,
}


def example(inputs: Array, predictions: Array, mask: Array, length: int) -> dict[str, list[str]]:
    """One sequence in words: the numbers read and the places named (Graves 2016, figure 20)."""
    read = ["" if m else f"{x:.2f}" for (x, _), m in zip(inputs, mask, strict=True)]
    given = [str(p + 1) if m else "" for p, m in zip(predictions, mask, strict=True)]
    return {"inputs": read[:length], "outputs": given[:length]}


TASK = Task(
    name="sort",
    what="sort real numbers",
    presets=PRESETS,
    features=lambda options: (sort.INPUT_SIZE, sort.CLASSES),
    sampler=generated(sort.sample, "max_numbers"),
    objective=lambda options: make_objective(
        options.over_time, losses.softmax_cross_entropy, classes
    ),
    predict=classes,
    unit="numbers",
    # sequences of one count of numbers (Graves 2016, figure 19)
    levels=lambda options: graded(sort.sample, "numbers", range(2, options.max_numbers + 1)),
    example=example,
)
