"""Halting that collapses, and what helps: the cures that people report, side by side.

A time penalty that is too high for the start presses halting down to one step before the network
has learned what more steps are good for, and at one step no gradient is left to come back by.
"""

import dataclasses
import pathlib
import shlex
from typing import Any

import tyro

from actjax import training
from actjax._checks import check_positive
from experiments import run, sweep
from experiments.options import as_json, check
from experiments.record import (
    check_file,
    check_folder,
    environment,
    plain,
    print_table,
    write_results,
)
from experiments.show.style import plus_minus
from experiments.task import Task
from experiments.tasks import parity

CURES: dict[str, dict[str, Any]] = {
    "none": {},
    "halt_bias -3": {"halt_bias": -3.0},
    "warm-up of tau": {"tau_warmup": 2000},
    "at least 2 steps": {"min_steps": 2},
    "ponder budget 3.5": {"ponder_budget": 3.5},
}
COLLAPSED = 1.02  # mean N over a stretch of training


@dataclasses.dataclass(frozen=True)
class Collapse:
    """Compare what is done against halting that collapses to one step.

    ACT learns the parity of up to 16 bits at a time penalty at which, as it starts, it collapses,
    although two steps of the same network can solve the task at less than its loss then.
    """

    tau: float = 0.2
    """The time penalty; where a budget is held, the one to start from."""
    seeds: int = 3
    """Networks for each cure."""
    steps: int = 6000
    """Updates of each."""
    hidden: int = 128
    """Units of the cell."""
    cpu_devices: int = 0
    """CPU devices to spread the seeds over; 0 for one a core."""
    results: pathlib.Path | None = None
    """Also write the summary here."""
    out: pathlib.Path = pathlib.Path("runs/collapse")
    """Folder of the runs; those that are there are continued."""


def main(tasks: dict[str, Task], argv: list[str]):
    """Trains all networks, measures them, and prints a table."""
    chosen = tyro.cli(Collapse, prog="python -m experiments collapse", args=argv)
    check_file("results", chosen.results)
    check_folder("out", chosen.out)
    check_positive("seeds", chosen.seeds)
    sweep.set_cpu_devices(chosen.cpu_devices)
    members, seconds = [], 0.0
    for cure, changed in CURES.items():
        found, spent = train(tasks["parity"], chosen, cure, changed)
        members += found
        seconds += spent
    summary = {
        "experiment": "collapse",
        "command": shlex.join(["python", "-m", "experiments", "collapse", *argv]),
        "config": as_json("collapse", chosen) | {"cures": CURES},
        "wall_time_seconds": round(seconds, 1),
        **environment(),
        "members": plain(members),
    }
    training.write_json(chosen.out / "collapse.json", summary)
    write_results(chosen.results, summary)
    note = f"guessing errs in 0.5; collapsed: mean N below {COLLAPSED} at some time in training"
    print_table(f"Collapse: ACT on parity at tau {chosen.tau:g}", table(members), note)


def train(task: Task, chosen: Collapse, cure: str, changed: dict[str, Any]):
    """The networks of one cure, one program: their summaries, and the seconds of training."""
    options = dataclasses.replace(
        parity.PRESETS["demo"],
        bits=16,
        batch_size=64,
        learning_rate=1e-3,
        steps=chosen.steps,
        hidden=chosen.hidden,
        tau=chosen.tau,
        log_every=20,
        checkpoint_every=1000,
        **changed,
    )
    group = [dataclasses.replace(options, seed=seed) for seed in range(chosen.seeds)]
    for member in group:
        check(member)
    folder = chosen.out / cure.replace(" ", "-")
    begun = (folder / run.CONFIG).exists()
    grid = sweep.Grid(resume=begun)
    rows, seconds, _ = sweep.run_group(task, grid, group, folder, run.load(task, options))
    return [row | {"cure": cure} for row in rows], seconds


def table(members: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each cure, the mean over seeds."""
    rows = []
    for cure in dict.fromkeys(member["cure"] for member in members):
        here = [m for m in members if m["cure"] == cure]
        found = [m["evaluation"] for m in here]
        stuck = sum(min(m["curve"]["ponder_steps"]) < COLLAPSED for m in here)
        rows.append(
            {
                "cure": cure,
                "collapsed": f"{stuck} of {len(found)}",
                "error rate": plus_minus([e["error"] for e in found], 3),
                "mean N": plus_minus([e["ponder_steps"] for e in found], 2),
            }
        )
    return rows
