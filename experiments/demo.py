"""What pondering buys: plain, Repeat and ACT networks side by side, on parity and on Wikipedia.

The settings are the demo presets of both experiments, chosen by measurement so that all of it
takes minutes on two cores. Runs that are there already are continued, so that an interrupted demo
goes on where it stopped.
"""

import dataclasses
import math
import pathlib
import statistics
from typing import Any

import tyro

from actjax import training
from actjax._checks import check_positive
from experiments import run
from experiments.options import Options, label
from experiments.record import check_folder, print_table, read_json
from experiments.show import figures
from experiments.task import Task
from experiments.tasks import parity, wikipedia

MODELS = ("rnn", "repeat", "act")
Run = tuple[dict[str, Any], pathlib.Path]  # a summary and its folder
Runs = dict[str, list[Run]]  # label -> one a seed


@dataclasses.dataclass(frozen=True)
class Demo:
    """Train plain, Repeat and ACT networks side by side on parity and on Wikipedia.

    Ends with a table of what pondering buys on each, and figures.
    """

    seeds: int = 2
    """Networks of each kind on each task, with the seeds 0, 1, ..."""
    parity_steps: int = parity.PRESETS["demo"].steps
    """Updates of each network on parity."""
    wikipedia_steps: int = wikipedia.PRESETS["demo"].steps
    """Updates of each network on Wikipedia."""
    out: pathlib.Path = pathlib.Path("runs/demo")
    """Folder of the runs and the figures."""


def main(tasks: dict[str, Task], argv: list[str]):
    """Trains all networks, prints a table for each task and draws the figures."""
    demo = tyro.cli(Demo, prog="python -m experiments demo", args=argv)
    for name in ("seeds", "parity_steps", "wikipedia_steps"):
        check_positive(name, getattr(demo, name))
    check_folder("out", demo.out)
    try:
        runs, settings = train_all(demo, tasks["parity"], demo.parity_steps)
        show_parity(settings, runs)
        draw_curves(demo, "parity", runs)
        levels = {
            name: [read_json(folder / run.EVALUATION)["by_difficulty"] for _, folder in seeds]
            for name, seeds in runs.items()
        }
        figures.difficulty(levels, demo.out / "parity_difficulty.png")
        runs, settings = train_all(demo, tasks["wikipedia"], demo.wikipedia_steps)
        show_wikipedia(settings, runs)
        draw_curves(demo, "wikipedia", runs)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from there") from None
    folder = list(runs.values())[-1][0][1]
    curves = demo.out / "parity_curves.png"
    print(f"figures: {curves}, parity_difficulty.png, wikipedia_curves.png,")
    print(f"ponder along held-out text: {folder / 'stretch_prose.png'}, stretch_markup.png")


def train_all(demo: Demo, task: Task, steps: int) -> tuple[Runs, Options]:
    """The runs of every model and seed, and their settings."""
    settings, runs = dataclasses.replace(task.presets["demo"], steps=steps), {}
    for model in MODELS:
        for seed in range(demo.seeds):
            options = dataclasses.replace(settings, model=model, seed=seed)
            name = label(options)
            folder = demo.out / task.name / f"{name}-seed{seed}"
            begun = (folder / run.CONFIG).exists()
            options = dataclasses.replace(options, out=folder, resume=begun)
            summary, folder = run.train(task, options)
            runs.setdefault(name, []).append((summary, folder))
            time = f"{summary['steps']:,} updates in {summary['wall_time_seconds']:.0f} s"
            print(f"{task.name} {name}, seed {seed}: {time}", flush=True)
    return runs, settings


def show_parity(settings: parity.Parity, runs: Runs):
    """The table of the runs on parity."""
    rows = []
    for name, seeds in runs.items():
        errors = "  ".join(f"{error:.3f}" for error in _values(seeds, "error"))
        largest = f"{max(_values(seeds, 'ponder_max')):.1f}"
        cells = _cells(seeds) | {"largest": largest, "time a run": _time(seeds)}
        rows.append({"model": name, "error rate of each seed": errors} | cells)
    title = (
        f"Parity of up to {settings.bits} bits ({settings.layout} layout, {settings.hidden} tanh "
        f"units, {settings.steps:,} updates)"
    )
    print_table(title, rows, "guessing errs in 0.5")


def show_wikipedia(settings: wikipedia.Wikipedia, runs: Runs):
    """The table of the runs on Wikipedia, each model against the plain one of the same seed."""
    plain, rows = _values(runs["rnn"], "bits_per_character"), []
    for name, seeds in runs.items():
        bits = _values(seeds, "bits_per_character")
        row = {"model": name, "bits per character": "  ".join(f"{b:.3f}" for b in bits)}
        row["against plain"] = "" if name == "rnn" else compare(bits, plain)
        rows.append(row | _cells(seeds) | {"time a run": _time(seeds)})
    name, seeds = list(runs.items())[-1]
    kinds = []
    for seed, (_, folder) in enumerate(seeds):
        found = read_json(folder / run.EVALUATION)["by_kind"]
        found = sorted(found, key=lambda row: -row["ponder"])
        parts = ", ".join(f"{row['kind']} {row['ponder']:.2f}" for row in found)
        kinds.append(f"mean ponder of {name}, seed {seed}, after: {parts}")
    print_table(
        f"Wikipedia, held-out text ({settings.cell} of {settings.hidden} units, "
        f"{settings.steps:,} updates)",
        rows,
        "compared at the same number of updates, not at the same cost: see the time a run",
        "order-0 entropy of this text: 5.185 bits per character; bzip2: 2.228",
        *kinds,
    )


def compare(bits: list[float], plain: list[float]) -> str:
    """The mean difference of runs paired by seed, and whether seeds alone could explain it.

    A difference counts where it is above twice its standard error over the seeds.
    """
    differences = [a - b for a, b in zip(bits, plain, strict=True)]
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return f"{mean:+.3f} (one seed: noise unknown)"
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    verdict = "" if abs(mean) > 2 * error else ", within noise"
    return f"{mean:+.3f} +- {error:.3f}{verdict}"


def draw_curves(demo: Demo, name: str, runs: Runs):
    rows = {
        model: [training.read_metrics(folder / "metrics.jsonl") for _, folder in seeds]
        for model, seeds in runs.items()
    }
    figures.curves(rows, demo.out / f"{name}_curves.png")


def _cells(seeds: list[Run]) -> dict[str, str]:
    titles = {"steps of the cell": "ponder_steps", "ponder N + R": "ponder"}
    return {title: f"{statistics.mean(_values(seeds, key)):.2f}" for title, key in titles.items()}


def _values(seeds: list[Run], name: str) -> list[float]:
    return [summary["evaluation"][name] for summary, _ in seeds]


def _time(seeds: list[Run]) -> str:
    return f"{statistics.mean(summary['wall_time_seconds'] for summary, _ in seeds):.0f} s"
