"""What the experiments share: train a network in its folder, and write down what came out."""

import json
import pathlib
import platform
import shlex
import sys
from collections.abc import Callable
from typing import Any

import flax
import jax
import numpy as np
import optax

import actjax
from actjax import budget, training
from actjax.training import distributed, sharding
from actjax.training.step import Sample
from experiments.network import Network
from experiments.options import ADAPTIVE, Options, as_json, label, run_folder

SUMMARY = "summary.json"
EVALUATION = "evaluation.json"
STUCK_ROWS = 10  # of metrics, after which halting that does not adapt is no passing state


def train(
    experiment: str,
    options: Options,
    network: Network,
    sample: Sample,
    objective: Any,
    *,
    data: Any = (),
    data_id: str | None = None,
    score: Any = None,
) -> tuple[Network, pathlib.Path]:
    """Trains `network` and returns it with the folder of the run.

    Args:
      sample: `(key, data) -> Batch`.
      objective: `(network, batch, tau) -> (loss, metrics)`, metrics with "ponder" among them.
      data: arrays handed to `sample`.
      data_id: what tells this data from any other; a resumed run must have the same.
      score: `(network, data) -> float`, if the weights that score best are to be kept; looked at
        with every row of metrics.
    """
    input_size(sample, data)
    controller = make_controller(options)
    folder = run_folder(experiment, options)
    config = as_json(experiment, options) | {"data_sha256": data_id}
    mesh = make_mesh(options.devices)
    claim_folder(folder, config, options)
    optimizer = optax.adam(options.learning_rate)

    def loss_fn(network, batch, tau_state):
        loss, metrics = objective(network, batch, tau_state.tau)
        return loss, {**metrics, "tau": tau_state.tau}

    step = training.make_train_step(
        sample,
        loss_fn,
        optimizer,
        control=lambda tau_state, metrics: controller.update(tau_state, metrics["ponder"]),
        mesh=mesh,
    )
    state = training.init_state(network, optimizer, extra=controller.init())
    if score is not None:
        step = training.keep_best(step, score, every=options.log_every)
        state = training.with_best(state)
    key = jax.random.key(options.seed)
    if mesh is not None:
        state, key, data = sharding.replicate((state, key, data), mesh)
    state = training.fit(
        step,
        state,
        key=key,
        steps=options.steps,
        data=data,
        directory=folder,
        log_every=options.log_every,
        checkpoint_every=options.checkpoint_every,
        on_row=adviser(options),
        description=f"{experiment} {label(options)}",
    )
    distributed.leave_to_first()
    network = state.model if score is None else state.extra.model
    return (network if mesh is None else sharding.one_copy(network)), folder


def claim_folder(folder: pathlib.Path, config: dict[str, Any], options: Options):
    """`training.claim_folder` for all processes of a run, and on whatever devices it goes on."""
    free = ("steps", "devices")
    distributed.check_alike("the options and the data", config)
    distributed.on_first(
        lambda: training.claim_folder(folder, config, resume=options.resume, free=free)
    )


def make_mesh(devices: int) -> jax.sharding.Mesh | None:
    """The devices that share each batch, so many of each process, or None for one in all."""
    if devices > jax.local_device_count():
        raise ValueError(f"devices is {devices}; there are {jax.local_device_count()}")
    shared = [
        device
        for process in range(jax.process_count())
        for device in jax.local_devices(process)[:devices]
    ]
    return None if len(shared) == 1 else sharding.make_mesh(shared)


def input_size(sample: Sample, data: Any = ()) -> int:
    """D of the inputs that `sample` draws; wrong options of a task are refused here, unrun."""
    return jax.eval_shape(sample, jax.random.key(0), data).inputs.shape[-1]


def steps_by_step(steps: np.ndarray) -> dict[str, list[float]]:
    """Mean, maximum and 90th percentile of N_t at each input step, from N [B, T] (LFACT 2020)."""
    return {
        "mean": steps.mean(0).round(4).tolist(),
        "maximum": steps.max(0).tolist(),
        "percentile_90": np.percentile(steps, 90, axis=0).tolist(),
    }


def make_controller(options: Options) -> budget.TauController:
    """Tau as the options want it: fixed, or moved to hold a ponder budget."""
    if options.model not in ADAPTIVE:
        return budget.fixed(0.0)
    if options.ponder_budget is None:
        return budget.fixed(options.tau)
    return budget.hold(options.ponder_budget, tau=options.tau)


def advice(options: Options, steps: float) -> str | None:
    """One sentence where a network's halting is stuck, else None; see `budget.halting_advice`."""
    if options.model not in ADAPTIVE:
        return None
    held = options.ponder_budget is not None
    return budget.halting_advice(steps, max_steps=options.max_steps, held=held)


def adviser(options: Options) -> Callable[[dict[str, Any]], None]:
    """Looks at rows of metrics, of one network or of many, and warns once on the standard error:
    where one's halting has been stuck for `STUCK_ROWS` rows on end, while that can still be helped.
    """
    stuck, told = {}, False

    def look(row: dict[str, Any]):
        nonlocal told
        for network, steps in enumerate(np.atleast_1d(np.array(row["ponder_steps"], float))):
            found = advice(options, steps)
            stuck[network] = stuck.get(network, 0) + 1 if found else 0
            if stuck[network] == STUCK_ROWS and not told and jax.process_index() == 0:
                told = True
                print(f"warning, at update {row['step']:,}: {found}", file=sys.stderr)

    return look


def finish(
    experiment: str, options: Options, folder: pathlib.Path, evaluation: dict[str, Any]
) -> dict[str, Any]:
    """Writes evaluation.json and summary.json, and returns the summary.

    Args:
      evaluation: figures of the trained network; scalars among them enter the summary.
    """
    training.write_json(folder / EVALUATION, evaluation)
    last = training.read_metrics(folder / "metrics.jsonl")[-1]
    scalars = {name: value for name, value in evaluation.items() if not isinstance(value, list)}
    summary = {
        "experiment": experiment,
        "model": label(options),
        "seed": options.seed,
        "steps": last["step"],
        "train": {name: last[name] for name in last if name not in ("step", "seconds")},
        "evaluation": scalars,
        "wall_time_seconds": last["seconds"],
        "config": as_json(experiment, options),
        "command": command(sys.argv[1:]),
        **environment(),
    }
    if options.model in ADAPTIVE:
        summary["advice"] = advice(options, last["ponder_steps"])
    training.write_json(folder / SUMMARY, summary)
    return summary


def command(argv: list[str]) -> str:
    """The command line that gives a run again: without the place where this one was kept, and
    without the processes that shared it."""
    places = ("--out", "--coordinator", "--process-id", "--num-processes")
    words, rest = [], iter(argv)
    for word in rest:
        if word in places:
            next(rest, None)
        elif word != "--resume" and not word.startswith(tuple(f"{place}=" for place in places)):
            words.append(word)
    return shlex.join(["python", "-m", "experiments", *words])


def read_json(path: pathlib.Path) -> Any:
    """What `training.write_json` wrote."""
    return json.loads(path.read_text())


def environment() -> dict[str, Any]:
    """The device and the versions a result came from."""
    device = jax.devices()[0]
    return {
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "flax": flax.__version__,
            "optax": optax.__version__,
            "numpy": np.__version__,
            "actjax": getattr(actjax, "__version__", "source"),
        },
    }


def show(title: str, rows: list[dict[str, str]], *notes: str):
    """Prints a table of rows, each a dict from a column's title to its cell, then notes."""
    names = list(rows[0])
    width = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}

    def line(cells: dict[str, str]) -> str:
        first, *rest = names  # words to the left, figures to the right
        padded = [f"{cells[first]:<{width[first]}}", *(f"{cells[n]:>{width[n]}}" for n in rest)]
        return "  ".join(padded).rstrip()

    rule = "-" * (sum(width.values()) + 2 * len(names) - 2)
    print("", title, rule, line(dict(zip(names, names, strict=True))), rule, sep="\n")
    print(*(line(row) for row in rows), rule, sep="\n")
    show_notes(*notes)


def show_notes(*notes: str):
    """Prints notes, one a line."""
    for note in notes:
        print(note)


def notes(summary: dict[str, Any], folder: pathlib.Path) -> list[str]:
    """What to say below a run's table: advice on its halting, and where it is kept."""
    found = [summary["advice"]] if summary.get("advice") else []
    return [*found, f"metrics, checkpoints and figures: {folder}"]
