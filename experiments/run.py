"""The runner: one recipe trains one network or many, in a folder that they can go on in."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from actjax import budget, training
from actjax.training import distributed, sharding
from experiments import evaluation, record
from experiments.network import Network, make_network
from experiments.options import (
    ADAPTIVE,
    PACE,
    Architecture,
    Options,
    Training,
    as_json,
    check,
    joined,
    label,
    parse,
    pick,
    require,
)
from experiments.show import figures
from experiments.task import Loaded, Task

SUMMARY, EVALUATION, CONFIG = "summary.json", "evaluation.json", "config.json"
FREE = "steps", "loop"  # what a run may go on with otherwise: its numbers stay, but for rounding
STUCK_ROWS = 10  # of metrics, after which halting that does not adapt is no passing state


def main(task: Task, argv: list[str]):
    """Trains a network, measures it, draws its figures and prints a table."""
    options = parse(task.name, task.presets, argv, check)
    with joined(options):
        summary, folder = train(task, options)
        advice = [summary["advice"]] if summary.get("advice") else []
        notes = [*advice, f"metrics, checkpoints and figures: {folder}"]
        found = summary["evaluation"]
        row = {"model": summary["model"], "updates": f"{summary['steps']:,}", **error_cell(found)}
        row |= {"ponder N + R": f"{found['ponder']:.2f}", "largest": f"{found['ponder_max']:.1f}"}
        row |= {"time": f"{summary['wall_time_seconds']:.0f} s"}
        record.print_table(task.title or task.name.capitalize(), [row], *notes)


def train(task: Task, options: Options) -> tuple[dict[str, Any], pathlib.Path]:
    """One run from start to figures: its summary and its folder."""
    record.check_folder("out", options.out)
    data = load(task, options)
    network, folder = fit(task, options, data)
    alone = jax.tree.map(lambda leaf: leaf[None], network)
    (found,) = measure(task, options, alone, data.measured)
    for name, records in look(task, options, network, data.measured).items():
        training.write_json(folder / f"{name}.json", records)
    training.write_json(folder / EVALUATION, found)
    last = training.read_metrics(folder / "metrics.jsonl")[-1]
    summary = {
        "experiment": task.name,
        "model": label(options),
        "seed": options.seed,
        "steps": last["step"],
        "train": {name: last[name] for name in last if name not in ("step", "seconds")},
        "evaluation": {name: x for name, x in found.items() if not isinstance(x, list)},
        "wall_time_seconds": last["seconds"],
        "config": as_json(task.name, options),
        "command": record.command(),
        **record.environment(),
    }
    if options.model in ADAPTIVE:
        summary["advice"] = halting_advice(options, last["ponder_steps"])
    training.write_json(folder / SUMMARY, summary)
    figures.draw(folder)
    return summary, folder


def load(task: Task, options: Options) -> Loaded:
    """The task's data; options that the task cannot be drawn with are refused here, unrun."""
    data = task.load(options) if task.load else Loaded()
    jax.eval_shape(task.sampler(options), jax.random.key(0), data.train)
    return data


def fit(task: Task, options: Options, data: Loaded) -> tuple[Network, pathlib.Path]:
    """Trains one network, on one device or many, and returns it with the folder of its run."""
    place = f"{label(options)}-seed{options.seed}"
    folder = options.out or pathlib.Path("runs") / task.name / place
    mesh = make_mesh(options.devices)
    train_step, make_state = make_member(task, options, mesh=mesh)
    state, key = make_state(options.seed, options.tau), jax.random.key(options.seed)
    config = as_json(task.name, options) | {"data_sha256": data.sha256}
    distributed.check_alike("the options and the data", config)
    distributed.on_first(lambda: claim(folder, config, options, free=(*FREE, "devices")))
    train_on = data.train
    if mesh is not None:
        state, key, train_on = sharding.replicate((state, key, train_on), mesh)
    with interruptible(folder):
        state = training.fit(
            train_step,
            state,
            key=key,
            data=train_on,
            directory=folder,
            **pick(options, *PACE),
            on_row=adviser(options),
            description=f"{task.name} {label(options)}",
        )
    distributed.leave_to_first()
    network = state.model if task.score(options) is None else state.extra.model
    return (network if mesh is None else sharding.one_copy(network)), folder


def train_many(
    train_step, make_state, settings: Training, seeds: list[int], *columns, **rest: Any
) -> training.Sweep:
    """Trains a network for each of `seeds`, all as one program: `make_state` of the seeds and
    further `columns`, one entry a network, is where they start; see `training.sweep`."""
    seeds, columns = jnp.array(seeds), map(jnp.array, columns)
    states, keys = (
        training.stack_states(make_state, seeds, *columns),
        jax.vmap(jax.random.key)(seeds),
    )
    return training.sweep(train_step, states, keys=keys, **pick(settings, *PACE), **rest)


def make_member(task: Task, options: Options, *, mesh: jax.sharding.Mesh | None = None):
    """One network's `train_step`, and `make_state(seed, tau) -> TrainState`, to be mapped over."""
    parts = task.sampler(options), task.objective(options)
    controller, score = make_controller(options, options.tau), task.score(options)
    train_step, start = recipe(options, *parts, controller=controller, score=score, mesh=mesh)

    def make_state(seed, tau):
        network = make_network(options, seed, *task.features(options))
        return start(network, make_controller(options, tau).init())

    return train_step, make_state


def recipe(
    settings: Training,
    sample: training.step.Sample,
    objective: Callable[..., Any],
    *,
    controller: budget.TauController | None = None,
    tau: float = 0.0,
    score: Callable[..., jax.Array] | None = None,
    mesh: jax.sharding.Mesh | None = None,
):
    """How every network here is trained: Adam on an objective, the best weights kept if scored.

    Args:
      settings: rate and rows.
      sample: `(key, data) -> Batch`.
      objective: `(network, batch, tau) -> (loss, metrics)`, metrics with "ponder" among them.
      controller: moves tau, its state being what the training state carries besides.
      tau: the penalty where nothing moves it.
      score: `(network, data) -> float`, looked at with every row of metrics.
      mesh: the devices that share each batch.

    Returns:
      `train_step`, and `start(network, extra) -> TrainState`.
    """
    optimizer = optax.adam(settings.learning_rate)

    def controlled(network, batch, state):
        loss, metrics = objective(network, batch, state.tau)
        return loss, {**metrics, "tau": state.tau}

    if controller is None:
        loss_fn, control = (lambda network, batch: objective(network, batch, tau)), None
    else:
        loss_fn = controlled
        control = lambda state, metrics: controller.update(state, metrics["ponder"])
    step = training.make_train_step(sample, loss_fn, optimizer, control=control, mesh=mesh)
    if score is not None:
        step = training.keep_best(step, score, every=settings.log_every)

    def start(network, extra=()):
        state = training.init_state(network, optimizer, extra)
        return state if score is None else training.with_best(state)

    return step, start


def make_controller(architecture: Architecture, tau: float | jax.Array) -> budget.TauController:
    """What becomes of tau: fixed, risen to, or moved to hold a ponder budget."""
    if architecture.model not in ADAPTIVE:
        return budget.fixed(0.0)
    if architecture.ponder_budget is not None:
        return budget.hold(architecture.ponder_budget, tau=tau)
    if architecture.tau_warmup:
        return budget.warm_up(tau, architecture.tau_warmup)
    return budget.fixed(tau)


def make_mesh(devices: int) -> jax.sharding.Mesh | None:
    """The devices that share each batch, so many of each process, or None for one in all."""
    count = jax.local_device_count()
    require(devices <= count, "devices", f"at most {count}, as many as there are", devices)
    shared = [d for n in range(jax.process_count()) for d in jax.local_devices(n)[:devices]]
    return None if len(shared) == 1 else sharding.make_mesh(shared)


def claim(
    folder: pathlib.Path,
    config: dict[str, Any],
    options: Any,
    *,
    free: tuple[str, ...] = FREE,
):
    """`training.claim_folder` for a run of these `options`, refused before anything is written.

    An option that was added since the run in `folder` was begun has its default there.
    """
    record.check_folder("out", folder)
    check_resumed(folder, options.resume)
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    before = {}
    with contextlib.suppress(OSError, ValueError):  # which `claim_folder` puts into words
        before = dict(record.read_json(folder / CONFIG))
    added = [name for name in config if name not in before and config[name] == defaults.get(name)]
    training.claim_folder(folder, config, resume=options.resume, free=(*free, *added))


def check_resumed(folder: pathlib.Path, resume: bool):
    """Refuses to resume what is not there."""
    there = not resume or any(folder.glob(CONFIG)) or any(folder.glob(f"*/{CONFIG}"))
    require(there, "out", "the folder of a run for --resume", str(folder))


@contextlib.contextmanager
def interruptible(folder: pathlib.Path) -> Iterator[None]:
    """Says of an interrupted run in `folder` how it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        saved = any((folder / "checkpoints").glob("[0-9]*"))
        place = "from the last checkpoint" if saved else "from the start: no checkpoint was written"
        raise KeyboardInterrupt(f"add --resume to continue {place}") from None


def measure(
    task: Task, options: Options, networks: Network, measured: Any, *, batches: int = 32
) -> list[dict[str, Any]]:
    """What each member of an ensemble does, all of them on the same data."""
    if task.measure:
        return task.measure(options, networks, measured)
    levels = task.levels(options) if task.levels else None
    sample = jax.jit(task.sampler(options))
    key = evaluation.evaluation_key(options.seed)
    return evaluation.evaluate(
        networks, task.predict, sample, levels=levels, key=key, batches=batches
    )


def look(task: Task, options: Options, network: Network, measured: Any) -> dict[str, Any]:
    """Single inputs as a network ponders them, where the task has a way to show them."""
    if task.look:
        return task.look(network, measured)
    if not task.example:
        return {}
    key, sample = evaluation.evaluation_key(options.seed), jax.jit(task.sampler(options))
    return {"examples": evaluation.examples(network, sample(key), task.predict, task.example)}


def halting_advice(architecture: Architecture, steps: float) -> str | None:
    """One sentence where a network's halting is stuck, else None; see `budget.halting_advice`."""
    if architecture.model not in ADAPTIVE:
        return None
    held = architecture.ponder_budget is not None
    return budget.halting_advice(steps, max_steps=architecture.max_steps, held=held)


def adviser(architecture: Architecture) -> Callable[[dict[str, Any]], None]:
    """Looks at rows of metrics, of one network or of many, and warns once on the standard error:
    where one's halting has been stuck for `STUCK_ROWS` rows on end, while that can still be helped.
    """
    stuck, told = {}, False

    def look(row: dict[str, Any]):
        nonlocal told
        for network, steps in enumerate(np.atleast_1d(np.array(row["ponder_steps"], float))):
            found = halting_advice(architecture, steps)
            stuck[network] = stuck.get(network, 0) + 1 if found else 0
            if stuck[network] == STUCK_ROWS and not told and jax.process_index() == 0:
                told = True
                print(f"warning, at update {row['step']:,}: {found}", file=sys.stderr)

    return look


def error_cell(found: dict[str, Any]) -> dict[str, str]:
    """A task's error as a cell of a run's table."""
    if "bits_per_character" not in found:
        return {"sequence error rate": f"{found['error']:.4f}"}
    error = f" +- {found['bits_per_character_standard_error']:.4f}"
    return {"bits per character": f"{found['bits_per_character']:.4f}{error}"}
