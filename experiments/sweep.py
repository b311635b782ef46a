"""Sweeps: a grid over models, time penalties and seeds, the members of a model trained together."""

import dataclasses
import math
import os
import pathlib
import shlex
from typing import Any, get_args, get_type_hints

import jax
import numpy as np
import tyro

from actjax import training
from actjax._checks import check_choice, check_positive
from experiments import evaluation, run
from experiments.members import advice, group_name, looked_at, member_summary, table
from experiments.network import Network
from experiments.options import (
    ADAPTIVE,
    BUDGETED,
    Flag,
    Options,
    as_json,
    check,
    check_one_process,
    parse,
    require,
)
from experiments.record import (
    check_file,
    check_folder,
    environment,
    plain,
    print_table,
    write_results,
)
from experiments.smoothing import solved_at
from experiments.task import Loaded, Task, asked_for

SUMMARY = "sweep.json"


@dataclasses.dataclass(frozen=True)
class Grid:
    """A grid of runs. Options of the task itself follow as in `python -m experiments TASK`."""

    models: str = "act"
    """Which models of the task, separated by commas: rnn, act, repeat, lfact."""
    tau: str | None = None
    """Time penalties of act and lfact, weights of pondernet's prior, the preset's unless given:
    numbers separated by commas; 1e-4:1:log for i x 10^-j, the grid of Graves 2016; or 1e-4:1e-1:12
    for 12 equal ratios."""
    repeats: str = "2"
    """Numbers of repeats of repeat, separated by commas."""
    seeds: int = 4
    """Networks for each model and penalty, with seeds counted from 0."""
    solved: float = 0.98
    """A member has solved its task once its smoothed accuracy is this high."""
    retire: Flag = False
    """End a member's training once it has solved its task."""
    batching: str | None = None
    """How a device works on its members: vmap, at once, or map, in turn, the default on a CPU."""
    cpu_devices: int = 0
    """CPU devices to spread members over; 0 for one a core."""
    results: pathlib.Path | None = None
    """Also write the summary here, a file of a few hundred kilobytes."""
    out: pathlib.Path | None = None
    """Folder of the sweep. Default: runs/sweep-TASK."""
    resume: Flag = False
    """Continue the sweep in that folder."""


def main(tasks: dict[str, Task], argv: list[str]):
    """Trains the grid, measures every member and writes the summary its figures are drawn from."""
    task, grid, options = read(tasks, argv)
    check_file("results", grid.results)
    check_folder("out", grid.out)
    set_cpu_devices(grid.cpu_devices)
    folder = grid.out or pathlib.Path("runs") / f"sweep-{task.name}"
    groups = plan(grid, options)
    data = run.load(task, options)
    refuse(task, groups, data)
    run.check_resumed(folder, grid.resume)
    members, seconds = [], 0.0
    for group in groups:
        rows, spent, _ = run_group(task, grid, group, folder / group_name(group[0]), data)
        members += rows
        seconds += spent
    words = [word for word in argv if word != "--resume"]  # which changes no number
    summary = {
        "experiment": task.name,
        "command": shlex.join(["python", "-m", "experiments", "sweep", *words]),
        "config": as_json(task.name, options),
        "solved": grid.solved,
        "retire": grid.retire,
        "wall_time_seconds": round(seconds, 1),
        **({"data_sha256": data.sha256} if data.sha256 else {}),
        **environment(),
        "members": plain(members),
    }
    training.write_json(folder / SUMMARY, summary)
    write_results(grid.results, summary)
    place = f"metrics, checkpoints and summary: {folder}"
    print_table(f"Sweep: {task.name}", table(members), *advice(members), place)


def read(tasks: dict[str, Task], argv: list[str]) -> tuple[Task, Grid, Options]:
    """The command line: the task's name, options of the grid and options of the task."""
    tasks = {name: task for name, task in tasks.items() if task.sampler}
    task, words = asked_for("sweep", tasks, argv)
    about = f"{Grid.__doc__} TASK is one of {', '.join(tasks)}."
    prog = {"prog": "python -m experiments sweep TASK", "description": about}
    grid, rest = tyro.cli(Grid, **prog, args=words, return_unknown_args=True)
    instead = {"--model": "--models", "--devices": "--cpu-devices, or none for all there are"}
    for word in rest:
        if (name := word.split("=")[0]) in instead:
            raise ValueError(
                f"a sweep's option must be {instead[name]}, got {name}, which is a single run's."
            )
    options = parse(task.name, task.presets, rest, check)
    check_one_process("sweep", options)
    if grid.batching is not None:
        check_choice("batching", grid.batching, ("vmap", "map"))
    check_positive("seeds", grid.seeds)
    require(0 < grid.solved <= 1, "solved", "above 0 and at most 1", grid.solved)
    return task, grid, options


def plan(grid: Grid, options: Options) -> list[list[Options]]:
    """The runs of the grid, in groups that one program trains: those that differ in tau and seed.

    Raises:
      ValueError: for an unknown model or a grid that cannot be read.
    """
    groups, known = [], get_args(get_type_hints(type(options))["model"])
    for model in grid.models.split(","):
        if model not in known:
            raise ValueError(f"models must each be one of {', '.join(known)}, got {model!r}.")
        one = dataclasses.replace(options, model=model)
        if model not in BUDGETED:
            one = dataclasses.replace(one, ponder_budget=None)
        if model != "act":
            one = dataclasses.replace(one, min_steps=1)
        match model:
            case "rnn":
                kinds = [[one]]
            case "repeat":
                counts = _numbers("repeats", grid.repeats, int)
                kinds = [[dataclasses.replace(one, repeats=count)] for count in counts]
            case _:
                penalties = [one.tau] if grid.tau is None else taus(grid.tau)
                kinds = [[dataclasses.replace(one, tau=tau) for tau in penalties]]
        for kind in kinds:
            seeds = range(options.seed, options.seed + grid.seeds)
            groups.append([dataclasses.replace(o, seed=seed) for o in kind for seed in seeds])
    return groups


def refuse(task: Task, groups: list[list[Options]], data: Loaded):
    """Refuses what cannot be trained before the first folder is made."""
    names = [group_name(group[0]) for group in groups]
    twice = sorted({name for name in names if names.count(name) > 1})
    require(not twice, "models and repeats", "named once each", ", ".join(twice))
    for member in (member for group in groups for member in group):
        check(member)
        run.make_controller(member, member.tau)
    for group in groups:
        jax.eval_shape(task.sampler(group[0]), jax.random.key(0), data.train)
        jax.eval_shape(run.make_member(task, group[0])[1], 0, group[0].tau)


def taus(text: str) -> list[float]:
    """The time penalties that `text` names, ascending.

    Example:
      >>> taus("1e-2:1e-1:log")
      [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1]
      >>> taus("1e-4:1e-2:3")
      [0.0001, 0.001, 0.01]
    """
    if ":" not in text:
        return sorted(set(_numbers("tau", text, float)))
    try:
        low, high, count = text.split(":")
        low, high = float(low), float(high)
        count = count if count == "log" else int(count)
        holds = 0 < low < high and (count == "log" or count > 1)
    except ValueError:
        holds = False
    allowed = "low:high:log or low:high:count with 0 < low < high and a count of at least 2"
    require(holds, "tau", allowed, text)
    if count == "log":
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        grid = [float(f"{i}e{j}") for j in decades for i in range(1, 10)]
        return [tau for tau in grid if low * 0.999 <= tau <= high * 1.001]
    return [float(f"{tau:.4g}") for tau in np.geomspace(low, high, count)]


def run_group(
    task: Task, grid: Grid, group: list[Options], folder: pathlib.Path, data: Loaded
) -> tuple[list[dict[str, Any]], float, Network]:
    """Trains and measures one group.

    Returns:
      A summary for each member, the seconds of training, and the networks, stacked.
    """
    options = group[0]
    config = as_json(task.name, options) | {
        "taus": [member.tau for member in group],
        "seeds": [member.seed for member in group],
        "retire": grid.solved if grid.retire else None,
        **({"data_sha256": data.sha256} if data.sha256 else {}),
    }
    begun = grid.resume and (folder / run.CONFIG).exists()
    run.claim(folder, config, dataclasses.replace(options, resume=begun))
    with run.interruptible(folder):
        result = train_group(task, grid, group, folder, data)
    states = result.states
    networks = states.model if task.score(options) is None else states.extra.model
    networks = jax.device_put(networks, jax.devices()[0])  # all of them, to be measured there
    graded = task.levels and task.levels(options)
    batches = 32 if graded else 500  # about 1,000 vectors for each number of bits
    measured = data.of_many or data.measured
    found = run.measure(task, options, networks, measured, batches=batches)
    if options.model in ADAPTIVE:
        index = looked_at(found)
        network = evaluation.member(networks, index)
        found[index] |= run.look(task, options, network, measured)
    rows = [
        member_summary(grid.solved, member, result, index, found[index])
        for index, member in enumerate(group)
    ]
    return rows, float(result.history["seconds"][-1]), networks


def train_group(
    task: Task, grid: Grid, group: list[Options], folder: pathlib.Path, data: Loaded
) -> training.Sweep:
    """The members of a group, as one program."""
    options = group[0]
    train_step, make_state = run.make_member(task, options)

    def retire(history):
        solved = [solved_at(history["step"], a, grid.solved) for a in history["accuracy"].T]
        return np.array([update is not None for update in solved])

    rows = options.checkpoint_every // options.log_every
    return run.train_many(
        train_step,
        make_state,
        options,
        [member.seed for member in group],
        [member.tau for member in group],
        data=data.train,
        directory=folder,
        rows_per_dispatch=max(n for n in range(1, 11) if rows % n == 0),  # whole dispatches
        retire=retire if grid.retire else None,
        batching=grid.batching,
        on_row=run.adviser(options),
        description=f"{task.name} {group_name(options)} x {len(group)}",
    )


def set_cpu_devices(count: int):
    """Asks for `count` CPU devices, or one a core, if no computation has run yet.

    Each then works on one thread: members side by side use the cores better than one member's small
    matrix products cut up between them.
    """
    require(count >= 0, "cpu_devices", "at least 0", count)
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" in flags:  # the caller has asked already
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        jax.config.update("jax_num_cpu_devices", count or cores)
    except RuntimeError:  # the devices are there already, with a program that called this one
        return
    if (count or cores) > 1:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


def _numbers(name: str, text: str, kind) -> list:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} must be numbers separated by commas, got {text!r}.") from None
