"""Examples of the tasks, drawn as the papers draw them: one figure a task, a column a step.

Graves 2016, figures 3, 7, 11 and 16; Fojo 2018, figures 6.1 to 6.3.
"""

import dataclasses
import pathlib

import jax
import matplotlib.patches
import numpy as np
import tyro

from actjax.tasks import addition, logic, parity, sort
from actjax.tasks.batch import Batch
from experiments.record import check_folder, print_table
from experiments.show.style import plt, save
from experiments.task import Task

EMPTY, GIVEN, TARGET = "0.25", "white", "#dbe9f6"
Cells = list[list[str | None]]  # rows of columns; None is a cell that holds nothing


@dataclasses.dataclass(frozen=True)
class Options:
    """Draw an example of each task as the papers do: parity, repeat, logic, addition, sort."""

    out: pathlib.Path = pathlib.Path("runs/examples")
    """Folder of the figures."""
    seed: int = 0
    """Which examples."""


def main(tasks: dict[str, Task], argv: list[str]):
    """Draws all of them and says what they show."""
    del tasks
    prog = "python -m experiments examples"
    options = tyro.cli(Options, prog=prog, description=Options.__doc__, args=argv)
    check_folder("out", options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, (number, draw) in EXAMPLES.items():
        path = options.out / f"{name}.png"
        draw(jax.random.key(options.seed), path)
        rows.append({"figure": number, "shows": name, "file": str(path)})
    print_table("Examples of the tasks", rows)


def parity_example(key: jax.Array, path: pathlib.Path):
    """Eight of the elements of a vector, and whether the count of ones is odd."""
    batch = _one(parity.sample(key, 1, bits=8))
    inputs = [[f"{x:+.0f}" if x else "0"] for x in batch.inputs[0]]
    figure, axes = plt.subplots(figsize=(3.2, 3.4))
    _grid(axes, inputs, (0, 0), "input vector", GIVEN)
    _grid(axes, [[f"{batch.targets[0]:.0f}"]], (2.6, -3.5), "target", TARGET)
    count = int((batch.inputs[0] == 1).sum())
    _finish(figure, axes, path, f"{count} ones: {'odd' if count % 2 else 'even'}")


def repeat_example(key: jax.Array, path: pathlib.Path):
    """A sequence of five inputs, and the same with each repeated and flagged where it is new."""
    numbers = np.asarray(jax.random.randint(key, (5,), 0, 10))
    times = 3
    repeated = [str(x) for x in np.repeat(numbers, times)]
    flags = ["1" if place % times == 0 else "0" for place in range(len(repeated))]
    figure, axes = plt.subplots(figsize=(8.4, 1.6))
    _grid(axes, [[str(x) for x in numbers]], (0, 0), "inputs", GIVEN)
    words = f"repeated {times} times; below, the flag of a new input"
    _grid(axes, [repeated, flags], (6.5, 0), words, TARGET)
    _finish(figure, axes, path, "")


def logic_example(key: jax.Array, path: pathlib.Path):
    """Three vectors, their bits and gates in words, and the chain that gives each target."""
    batch = _one(logic.sample(key, 1, min_length=3, max_length=3, max_gates=4))
    columns, chains, before = [], [], None
    for vector, target in zip(batch.inputs, batch.targets, strict=True):
        first = (int(vector[0]) if before is None else before, int(vector[1]))
        chosen = [int(chunk.argmax()) for chunk in vector[2:].reshape(10, 10) if chunk.any()]
        bits = list(first)
        for gate in chosen:
            bits.append(logic.TRUTH_TABLE[gate][1 - bits[-1]][1 - bits[-2]])
        assert bits[-1] == target
        names = [logic.GATES[gate] for gate in chosen]
        shown = [f"{vector[0]:.0f}", f"{vector[1]:.0f}", *names]
        columns.append([*shown, *[None] * (6 - len(shown))])
        chains.append(" ".join(map(str, bits)))
        before = int(target)
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    _grid(axes, _columns(columns), (0, 0), "inputs: two bits, then gates", GIVEN, width=2)
    words = "targets, and below the bits of each chain, the first the target before"
    _grid(axes, [[f"{t:.0f}" for t in batch.targets]], (0, -7.6), words, TARGET, width=2)
    for place, chain in enumerate(chains):
        axes.text(2 * place + 1, -9.2, chain, ha="center", style="italic", fontsize=8)
    _finish(figure, axes, path, "")


def addition_example(key: jax.Array, path: pathlib.Path):
    """The digits of each number, and those of the running sum, * where it has ended."""
    batch = _one(addition.sample(key, 1, min_length=5, max_length=5, max_digits=5))
    digits = batch.inputs.reshape(5, addition.DIGITS, 10)
    numbers = [[str(d.argmax()) if d.any() else "-" for d in number] for number in digits]
    sums = [
        [None] * addition.SUM_DIGITS
        if not counts
        else ["*" if d == addition.END else str(int(d)) for d in row]
        for row, counts in zip(batch.targets, batch.mask, strict=True)
    ]
    figure, axes = plt.subplots(figsize=(5.6, 3.2))
    _grid(axes, _columns(numbers), (0, 0), "inputs: the digits of five numbers", GIVEN)
    _grid(axes, _columns(sums), (7.5, 0), "targets: of the running sum", TARGET)
    _finish(figure, axes, path, "")


def sort_example(key: jax.Array, path: pathlib.Path):
    """The numbers and the flag of the last, and the places in order behind them."""
    batch = _one(sort.sample(key, 1, min_numbers=5, max_numbers=5))
    count = len(batch.inputs) // 2
    numbers = [f"{x:.2f}" if step < count else None for step, (x, _) in enumerate(batch.inputs)]
    flags = [f"{f:.0f}" if step < count else None for step, (_, f) in enumerate(batch.inputs)]
    places = [
        str(int(t) + 1) if m else None for t, m in zip(batch.targets, batch.mask, strict=True)
    ]
    figure, axes = plt.subplots(figsize=(7.6, 2.6))
    words = "inputs: numbers, and the flag of the last one"
    _grid(axes, [numbers, flags], (0, 0), words, GIVEN, width=1.6)
    _grid(axes, [places], (0, -4), "targets: places in ascending order", TARGET, width=1.6)
    _finish(figure, axes, path, "")


EXAMPLES = {
    "parity": ("Graves 3, Fojo 6.2", parity_example),
    "repeat": ("Fojo 6.1", repeat_example),
    "logic": ("Graves 7", logic_example),
    "addition": ("Graves 11, Fojo 6.3", addition_example),
    "sort": ("Graves 16", sort_example),
}


def _one(batch: Batch) -> Batch:
    """The first sequence of a batch, as NumPy arrays."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[0], batch)


def _columns(columns: Cells) -> Cells:
    return [list(row) for row in zip(*columns, strict=True)]


def _grid(axes, cells: Cells, corner: tuple[float, float], title: str, color: str, width=1.0):
    """Cells in rows below `corner`, whose text they show; those that hold nothing are dark."""
    left, top = corner
    for row, texts in enumerate(cells):
        for column, text in enumerate(texts):
            x, y = left + width * column, top - row - 1
            face = EMPTY if text is None else color
            box = matplotlib.patches.Rectangle((x, y), width, 1, facecolor=face, edgecolor="0.5")
            axes.add_patch(box)
            axes.text(x + width / 2, y + 0.5, text or "", ha="center", va="center", fontsize=9)
    axes.text(left, top + 0.3, title, fontsize=9)


def _finish(figure, axes, path: pathlib.Path, below: str):
    axes.set_aspect("equal")
    axes.autoscale_view()
    axes.set_axis_off()
    if below:
        figure.text(0.5, 0.02, below, ha="center", fontsize=8, style="italic")
    save(figure, path, dpi=110)
