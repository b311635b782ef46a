"""What pondering buys: plain, Repeat and ACT networks side by side, on parity and on Wikipedia.

The settings are the demo presets of both experiments, chosen by measurement so that all of it
takes minutes on two cores. Runs that are there already are continued, so that an interrupted demo
goes on where it stopped.
"""

import dataclasses
import math
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

import tyro

from actjax import training
from experiments import run, synthetic
from experiments.options import Options, label
from experiments.show import figures
from experiments.tasks import parity, wikipedia

MODELS = ("rnn", "repeat", "act")
Run = tuple[dict[str, Any], pathlib.Path]  # a summary and its folder


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


def main(argv: list[str]):
    """Trains all networks, prints a table for each task and draws the figures."""
    demo = tyro.cli(Demo, prog="python -m experiments demo", args=argv)
    for name in ("seeds", "parity_steps", "wikipedia_steps"):
        if getattr(demo, name) < 1:
            raise ValueError(f"{name} is {getattr(demo, name)}; it must be at least 1")
    folder = demo.out

    settings = dataclasses.replace(parity.PRESETS["demo"], steps=demo.parity_steps)
    runs = train_all(demo, settings, "parity", lambda o: synthetic.train(parity.TASK, o))
    show_parity(settings, runs)
    figures.curves(_rows(runs), folder / "parity_curves.png")
    levels = {name: [_evaluation(f)["by_difficulty"] for _, f in r] for name, r in runs.items()}
    figures.difficulty(levels, folder / "parity_difficulty.png")

    settings = dataclasses.replace(wikipedia.PRESETS["demo"], steps=demo.wikipedia_steps)
    runs = train_all(demo, settings, "wikipedia", wikipedia.train)
    show_wikipedia(settings, runs)
    figures.curves(_rows(runs), folder / "wikipedia_curves.png")

    act_folder = list(runs.values())[-1][0][1]
    run.show_notes(
        f"figures: {folder / 'parity_curves.png'}, parity_difficulty.png, wikipedia_curves.png,",
        f"ponder along held-out text: {act_folder / 'stretch_prose.png'}, stretch_markup.png",
    )


def train_all(
    demo: Demo, settings: Options, experiment: str, train: Callable[[Options], Run]
) -> dict[str, list[Run]]:
    """The runs of every model and seed: label -> one (summary, folder) a seed."""
    runs = {}
    for model in MODELS:
        for seed in range(demo.seeds):
            options = dataclasses.replace(settings, model=model, seed=seed, resume=True)
            name = label(options)
            options = dataclasses.replace(options, out=demo.out / experiment / f"{name}-seed{seed}")
            runs.setdefault(name, []).append(train(options))
            summary = runs[name][-1][0]
            print(
                f"{experiment} {name}, seed {seed}: {summary['steps']:,} updates "
                f"in {summary['wall_time_seconds']:.0f} s",
                flush=True,
            )
    return runs


def show_parity(settings: parity.Parity, runs: dict[str, list[Run]]):
    """The table of the runs on parity."""
    rows = [
        {
            "model": name,
            "error rate of each seed": "  ".join(f"{e:.3f}" for e in _values(seeds, "error")),
            "steps of the cell": _mean(seeds, "ponder_steps", ".2f"),
            "ponder N + R": _mean(seeds, "ponder", ".2f"),
            "largest": f"{max(_values(seeds, 'ponder_max')):.1f}",
            "time a run": _time(seeds),
        }
        for name, seeds in runs.items()
    ]
    run.show(
        f"Parity of up to {settings.bits} bits ({settings.layout} layout, {settings.hidden} tanh "
        f"units, {settings.steps:,} updates)",
        rows,
        "guessing errs in 0.5",
    )


def show_wikipedia(settings: wikipedia.Wikipedia, runs: dict[str, list[Run]]):
    """The table of the runs on Wikipedia, each model against the plain one of the same seed."""
    plain = _values(runs["rnn"], "bits_per_character")
    rows = []
    for name, seeds in runs.items():
        bits = _values(seeds, "bits_per_character")
        rows.append(
            {
                "model": name,
                "bits per character": "  ".join(f"{b:.3f}" for b in bits),
                "against plain": "" if name == "rnn" else compare(bits, plain),
                "steps of the cell": _mean(seeds, "ponder_steps", ".2f"),
                "ponder N + R": _mean(seeds, "ponder", ".2f"),
                "time a run": _time(seeds),
            }
        )
    run.show(
        f"Wikipedia, held-out text ({settings.cell} of {settings.hidden} units, "
        f"{settings.steps:,} updates)",
        rows,
        "compared at the same number of updates, not at the same cost: see the time a run",
        "order-0 entropy of this text: 5.185 bits per character; bzip2: 2.228",
        *_kinds(runs),
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


def _kinds(runs: dict[str, list[Run]]) -> list[str]:
    """How long ACT ponders each kind of byte, in a sentence for each seed."""
    name, seeds = list(runs.items())[-1]
    sentences = []
    for seed, (_, folder) in enumerate(seeds):
        kinds = sorted(_evaluation(folder)["by_kind"], key=lambda row: -row["ponder"])
        parts = ", ".join(f"{row['kind']} {row['ponder']:.2f}" for row in kinds)
        sentences.append(f"mean ponder of {name}, seed {seed}, after: {parts}")
    return sentences


def _values(seeds: list[Run], name: str) -> list[float]:
    return [summary["evaluation"][name] for summary, _ in seeds]


def _mean(seeds: list[Run], name: str, form: str) -> str:
    return f"{statistics.mean(_values(seeds, name)):{form}}"


def _time(seeds: list[Run]) -> str:
    return f"{statistics.mean(summary['wall_time_seconds'] for summary, _ in seeds):.0f} s"


def _rows(runs: dict[str, list[Run]]) -> dict[str, list[list[dict[str, Any]]]]:
    return {
        name: [training.read_metrics(folder / "metrics.jsonl") for _, folder in seeds]
        for name, seeds in runs.items()
    }


def _evaluation(folder: pathlib.Path) -> dict[str, Any]:
    return run.read_json(folder / run.EVALUATION)
