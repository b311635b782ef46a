"""Sweeps: a grid over models, time penalties and seeds, the members of a model trained together."""

import dataclasses
import math
import pathlib
import shlex
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax import Array

from actjax import training
from actjax.tasks import text
from actjax.training.metrics import write_atomically
from actjax.training.ensemble import BATCHING, stack_states, sweep
from experiments import run, synthetic
from experiments.ensemble import compact, plain, set_cpu_devices
from experiments.members import advice, group_name, member_summary, table
from experiments.network import make_network
from experiments.options import ADAPTIVE, Options, as_json, check_one_process, parse
from experiments.options import check as check_options
from experiments.smoothing import solved_at
from experiments.tasks import addition, logic, parity, sort, wikipedia

TASKS = {module.TASK.name: module.TASK for module in (parity, logic, addition, sort)}
TASKS["wikipedia"] = synthetic.Task(
    name="wikipedia",
    presets=wikipedia.PRESETS,
    features=lambda options: (text.SYMBOLS, text.SYMBOLS),
    sampler=wikipedia.sampler,
    objective=wikipedia.make_objective,
    predict=lambda logits: logits.argmax(-1),
    load=wikipedia.load,
    score=wikipedia.validation,
    measure=lambda *arguments: _measure_text(*arguments),
)
HELD_OUT_BYTES = 100_000  # that measure a member of a sweep on text
SUMMARY = "sweep.json"


@dataclasses.dataclass(frozen=True)
class Grid:
    """A grid of runs. Options of the task itself follow as in `python -m experiments TASK`."""

    models: str = "act"
    """Which models, separated by commas: rnn, act, repeat, lfact."""
    tau: str | None = None
    """Time penalties of act and lfact, the preset's unless given: numbers separated by commas;
    1e-4:1:log for i x 10^-j, the grid of Graves 2016; or 1e-4:1e-1:12 for 12 equal ratios."""
    repeats: str = "2"
    """Numbers of repeats of repeat, separated by commas."""
    seeds: int = 4
    """Networks for each model and penalty, with seeds counted from 0."""
    solved: float = 0.98
    """A member has solved its task once its smoothed accuracy is this high."""
    retire: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """End a member's training once it has solved its task."""
    batching: str | None = None
    """How a device works on its members: vmap, at once, or map, in turn, the default on a CPU."""
    cpu_devices: int = 0
    """CPU devices to spread members over; 0 for one a core."""
    results: pathlib.Path | None = None
    """Also write the summary here, a file of a few hundred kilobytes."""
    out: pathlib.Path | None = None
    """Folder of the sweep. Default: runs/sweep-TASK."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue the sweep in that folder."""


def main(argv: list[str]):
    """Trains the grid, measures every member and writes the summary its figures are drawn from."""
    task, grid, options = read(argv)
    set_cpu_devices(grid.cpu_devices)
    folder = grid.out or pathlib.Path("runs") / f"sweep-{task.name}"
    groups = plan(grid, options)
    data = task.load(options)
    check(task, groups, data)
    members, seconds = [], 0.0
    for group in groups:
        rows, spent = run_group(task, grid, group, folder / group_name(group[0]), data)
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
        **run.environment(),
        "members": plain(members),
    }
    training.write_json(folder / SUMMARY, summary)
    if grid.results is not None:
        grid.results.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(grid.results, compact(summary))
    place = f"metrics, checkpoints and summary: {folder}"
    run.show(f"Sweep: {task.name}", table(members), *advice(members), place)


def read(argv: list[str]) -> tuple[synthetic.Task, Grid, Options]:
    """The command line: the task's name, options of the grid and options of the task."""
    names = ", ".join(TASKS)
    if not argv or argv[0] not in TASKS | {"-h": 0, "--help": 0}:
        raise ValueError(f"a sweep needs a task, one of {names}, as in: sweep parity --tau 1e-3")
    task = TASKS.get(argv[0])
    grid, rest = tyro.cli(
        Grid,
        prog="python -m experiments sweep TASK",
        description=f"{Grid.__doc__} TASK is one of {names}.",
        args=argv[1:] if task else ["--help"],
        return_unknown_args=True,
    )
    instead = {"--model": "--models", "--devices": "--cpu-devices, or takes all there are"}
    for word in rest:
        if (name := word.split("=")[0]) in instead:
            raise ValueError(f"{name} is for a single run; a sweep has {instead[name]}")
    options = parse(task.name, task.presets, rest)
    check_one_process("sweep", options)
    if grid.batching not in (None, *BATCHING):
        raise ValueError(f"batching is {grid.batching!r}; it must be one of {', '.join(BATCHING)}")
    if grid.seeds < 1:
        raise ValueError(f"seeds is {grid.seeds}; it must be at least 1")
    if not 0 < grid.solved <= 1:
        raise ValueError(f"solved is {grid.solved}; it must be above 0 and at most 1")
    return task, grid, options


def plan(grid: Grid, options: Options) -> list[list[Options]]:
    """The runs of the grid, in groups that one program trains: those that differ in tau and seed.

    Raises:
      ValueError: for an unknown model or a grid that cannot be read.
    """
    groups = []
    for model in grid.models.split(","):
        one = dataclasses.replace(options, model=model)
        if model not in ADAPTIVE:
            one = dataclasses.replace(one, ponder_budget=None)
        match model:
            case "rnn":
                kinds = [[one]]
            case "repeat":
                counts = _numbers("repeats", grid.repeats, int)
                kinds = [[dataclasses.replace(one, repeats=count)] for count in counts]
            case "act" | "lfact":
                penalties = [one.tau] if grid.tau is None else taus(grid.tau)
                kinds = [[dataclasses.replace(one, tau=tau) for tau in penalties]]
            case _:
                raise ValueError(
                    f"models holds {model!r}; each must be one of rnn, act, repeat, lfact"
                )
        for kind in kinds:
            seeds = range(options.seed, options.seed + grid.seeds)
            groups.append([dataclasses.replace(o, seed=seed) for o in kind for seed in seeds])
    return groups


def check(task: synthetic.Task, groups: list[list[Options]], data: synthetic.Loaded):
    """Refuses what cannot be trained before the first folder is made."""
    names = [group_name(group[0]) for group in groups]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"models and repeats name {', '.join(sorted(twice))} twice")
    for member in (member for group in groups for member in group):
        check_options(member)
        run.make_controller(member)
    for group in groups:
        run.input_size(task.sampler(group[0]), data.train)
        jax.eval_shape(make_member(task, group[0])[1], 0, group[0].tau)


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
    except ValueError:
        raise ValueError(f"tau is {text!r}; a range reads low:high:log or low:high:count") from None
    if not 0 < low < high or (count != "log" and count < 2):
        raise ValueError(f"tau is {text!r}; a range needs 0 < low < high and a count of at least 2")
    if count == "log":
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        grid = [float(f"{i}e{j}") for j in decades for i in range(1, 10)]
        return [tau for tau in grid if low * 0.999 <= tau <= high * 1.001]
    return [float(f"{tau:.4g}") for tau in np.geomspace(low, high, count)]


def run_group(
    task: synthetic.Task,
    grid: Grid,
    group: list[Options],
    folder: pathlib.Path,
    data: synthetic.Loaded,
) -> tuple[list[dict[str, Any]], float]:
    """Trains and measures one group: a summary for each member, and the seconds of training."""
    options = group[0]
    config = as_json(task.name, options) | {
        "taus": [member.tau for member in group],
        "seeds": [member.seed for member in group],
        "retire": grid.solved if grid.retire else None,
        **({"data_sha256": data.sha256} if data.sha256 else {}),
    }
    training.claim_folder(folder, config, resume=grid.resume)
    train_step, make_state = make_member(task, options)

    def retire(history):
        return np.array(
            [
                solved_at(history["step"], column, grid.solved) is not None
                for column in history["accuracy"].T
            ]
        )

    seeds = jnp.array([member.seed for member in group])
    result = sweep(
        train_step,
        stack_states(make_state, seeds, jnp.array([member.tau for member in group])),
        keys=jax.vmap(jax.random.key)(seeds),
        steps=options.steps,
        data=data.train,
        directory=folder,
        log_every=options.log_every,
        rows_per_dispatch=_rows_per_dispatch(options),
        checkpoint_every=options.checkpoint_every,
        retire=retire if grid.retire else None,
        batching=grid.batching,
        on_row=run.adviser(options),
        description=f"{task.name} {group_name(options)} x {len(group)}",
    )
    kept = task.score(options) is not None
    networks = result.states.extra.model if kept else result.states.model
    networks = jax.device_put(networks, jax.devices()[0])  # all of them, to be measured there
    if task.measure:
        found = task.measure(options, networks, data.measured)
    else:
        batches = 32 if task.levels else 500  # about 1,000 vectors for each number of bits
        found = synthetic.evaluate(task, options, networks, batches=batches)
    seconds = float(result.history["seconds"][-1])
    rows = [
        member_summary(grid.solved, member, result, index, found[index])
        for index, member in enumerate(group)
    ]
    if task.example and options.model == "act":
        errors = [(row["evaluation"]["error"], row["evaluation"]["ponder"]) for row in rows]
        best = errors.index(min(errors))
        rows[best]["examples"] = synthetic.examples(task, options, networks, best)
    return rows, seconds


def make_member(task: synthetic.Task, options: Options):
    """One member's `train_step`, and `make_state(seed, tau) -> TrainState`, to be mapped over."""
    optimizer = optax.adam(options.learning_rate)
    controller = run.make_controller(options)
    objective = task.objective(options)

    def loss_fn(network, batch, tau_state):
        loss, metrics = objective(network, batch, tau_state.tau)
        return loss, {**metrics, "tau": tau_state.tau}

    train_step = training.make_train_step(
        task.sampler(options),
        loss_fn,
        optimizer,
        control=lambda tau_state, metrics: controller.update(tau_state, metrics["ponder"]),
    )

    score = task.score(options)
    if score is not None:
        train_step = training.keep_best(train_step, score, every=options.log_every)

    def make_state(seed: Array, tau: Array) -> training.TrainState:
        member = dataclasses.replace(options, seed=seed, tau=tau)
        network = make_network(member, *task.features(options))
        state = training.init_state(network, optimizer, run.make_controller(member).init())
        return state if score is None else training.with_best(state)

    return train_step, make_state


def _measure_text(options: wikipedia.Wikipedia, networks, test: wikipedia.Test):
    """Every member on the start of the held-out text, the best with stretches of it to look at."""
    start = jax.tree.map(lambda leaf: leaf[: HELD_OUT_BYTES // options.window], test.batch)
    test = test._replace(batch=start)
    found = []
    for index in range(len(jax.tree.leaves(networks)[0])):
        network = jax.tree.map(lambda leaf, i=index: leaf[i], networks)
        found.append(wikipedia.measure(network, test, options))
    if options.model in ADAPTIVE:
        best = min(range(len(found)), key=lambda index: found[index]["bits_per_character"])
        network = jax.tree.map(lambda leaf: leaf[best], networks)
        found[best]["stretches"] = wikipedia.stretches(network, test.text)
    return found


def _rows_per_dispatch(options: Options) -> int:
    """As many as ten, in a whole number of dispatches between checkpoints."""
    rows = options.checkpoint_every // options.log_every
    return max(count for count in range(1, 11) if rows % count == 0)


def _numbers(name: str, text: str, kind) -> list:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} is {text!r}; it must be numbers separated by commas") from None
