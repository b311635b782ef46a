"""Classes of price changes of many instruments (LFACT 2020, section 4.1)."""

import dataclasses
import hashlib
import pathlib
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from actjax import Seq2Seq, training
from actjax.training.metrics import plain, write_atomically
from actjax.training.ensemble import Sweep, stack_states, sweep
from experiments import run
from experiments.data import load_prices
from experiments.ensemble import compact, set_cpu_devices
from experiments.network import make_core
from experiments.options import Options, as_json, check_one_process, parse
from experiments.show.plots import lfact
from experiments.tasks import forecast, prices
from experiments.tasks.forecast import Forecaster
from experiments.tasks.prices import THRESHOLDS

SUMMARY = "sweep.json"
PERIODS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Finance(Options):
    """Forecast classes of price changes, 22 instruments at once.

    Networks of several seeds and instances train as one program; each is tested with the weights
    of its best validation F1. Presets: demo (one network, a minute), cpu (three instances and three
    seeds, minutes on one core) and paper (50 weeks of 5-minute data given with --prices).
    """

    model: Literal["rnn", "act", "lfact"] = "lfact"
    """Steps of the cell for each input: one (rnn), a learned number (act), or a learned number of
    layers (lfact)."""
    mode: Literal["rnn", "seq2seq"] = "rnn"
    """Predict the next row at every input (rnn), or the rows behind a window of them (seq2seq)."""
    horizon: int = 10
    """Rows to predict in mode seq2seq; the paper has 5 and 10."""
    window: int = 20
    """Rows of input."""
    mu: float = 0.1
    """Weight of the losses of lfact's intermediate layers, in mode rnn (seq2seq has none)."""

    prices: str = "etf"
    """etf (daily closes of 22 ETFs, in this repository) or the path of a CSV file, .gz or not:
    dates first, then a column an instrument."""
    train: int = 1000
    """Length of the training period."""
    validation: int = 125
    """Length of the validation period, right after it."""
    test: int = 125
    """Length of the test period, right after that; each instance begins this much later."""
    train_on: int | None = None
    """Train on only that many rows, the last of the training period, all of which still sets the
    borders of the classes. Default: on all."""
    unit: Literal["rows", "weeks"] = "rows"
    """What the lengths of the periods count."""
    thresholds: tuple[float, ...] = THRESHOLDS
    """Borders between classes, in standard deviations of the training period."""
    instances: int = 3
    """Instances of the walk forward, the last of which ends with the file."""
    instance: str = "all"
    """Which of them: a number from 0, or all."""
    seeds: int = 1
    """Networks for each instance, with seeds counted from --seed."""

    cpu_devices: int = 0
    """CPU devices to spread the networks over; 0 for one a core."""
    results: pathlib.Path | None = None
    """Also write the summary here, for the figures and the report."""


PAPER = {  # what section 4.1 says
    "cell": "gru",
    "hidden": 128,
    "max_steps": 5,
    "tau": 1e-3,
    "learning_rate": 5e-4,
}
WEEKS = {"unit": "weeks", "train": 50, "validation": 1, "test": 1}
PRESETS = {
    "demo": Finance(
        **PAPER, batch_size=32, steps=300, log_every=50, checkpoint_every=100, instance="2"
    ),
    "cpu": Finance(**PAPER, batch_size=32, steps=1200, log_every=50, checkpoint_every=200, seeds=3),
    "paper": Finance(**PAPER, **WEEKS, batch_size=128, steps=20_000, log_every=200),
}


class Member(NamedTuple):
    instance: int
    seed: int


def main(argv: list[str]):
    """Trains the networks, measures the best weights of each, and prints a table."""
    options = parse("finance", PRESETS, argv)
    summary, folder = train(options, run.command(["finance", *argv]))
    run.show(
        f"Finance: {task_name(options)}, test period",
        table(summary["members"]),
        f"metrics, checkpoints and figures: {folder}",
    )


def train(options: Finance, command: str) -> tuple[dict[str, Any], pathlib.Path]:
    """From the prices to the figures: the summary, which names `command`, and its folder."""
    check(options)
    found = load_prices(options.prices)
    splits = make_splits(options, found)
    wanted = range(len(splits)) if options.instance == "all" else [int(options.instance)]
    ready = {place: prepare(options, found, splits[place]) for place in wanted}
    set_cpu_devices(options.cpu_devices)
    folder = options.out or pathlib.Path("runs") / "finance" / name(options)
    config = settings(options) | {"data_sha256": hashlib.sha256(found.values.tobytes()).hexdigest()}
    training.claim_folder(folder, config, resume=options.resume)
    seeds = range(options.seed, options.seed + options.seeds)
    rows, seconds = [], 0.0
    for group in same_shape(ready):
        members = [Member(instance, seed) for instance in group for seed in seeds]
        part = folder if len(group) == len(ready) else folder / f"instance-{group[0]}"
        result = fit(options, {place: ready[place] for place in group}, members, part)
        seconds += float(result.history["seconds"][-1])
        rows += [
            member_summary(options, found, splits, ready[member.instance], member, result, index)
            for index, member in enumerate(members)
        ]
    summary = {
        "experiment": "finance",
        "command": command,
        "config": settings(options),
        "instruments": list(found.names),
        "wall_time_seconds": round(seconds, 1),
        **run.environment(),
        "members": rows,
    }
    training.write_json(folder / SUMMARY, summary)
    lfact.draw(rows, folder)
    if options.results is not None:
        options.results.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.results, compact(summary))
    return summary, folder


def check(options: Finance):
    """Refuses what `options.check` does not know of, with one sentence."""
    for field in ("seeds", "instances"):
        if getattr(options, field) < 1:
            raise ValueError(f"{field} is {getattr(options, field)}; it must be at least 1")
    if options.steps < options.log_every:
        raise ValueError(
            f"steps is {options.steps}; it must be at least log_every = {options.log_every}, "
            "after which comes the first validation"
        )
    if options.mu < 0:
        raise ValueError(f"mu is {options.mu}; it must not be negative")
    if options.ponder_budget is not None:
        raise ValueError(f"ponder_budget is {options.ponder_budget}; finance has a fixed tau only")
    check_one_process("finance", options)
    if options.devices != 1:
        raise ValueError(
            f"devices is {options.devices}; finance spreads whole networks over all devices"
        )
    places = [str(place) for place in range(options.instances)]
    if options.instance not in ("all", *places):
        raise ValueError(
            f"instance is {options.instance!r}; it must be all or one of {', '.join(places)}"
        )


def make_splits(options: Finance, found: prices.Prices) -> list[prices.Split]:
    return prices.walk_forward(
        found,
        train=options.train,
        validation=options.validation,
        test=options.test,
        instances=options.instances,
        unit=options.unit,
    )


def prepare(options: Finance, found: prices.Prices, split: prices.Split) -> prices.Instance:
    windows = window_options(options)
    instance = prices.prepare(found, split, **windows, thresholds=options.thresholds)
    if options.train_on is None:
        return instance
    least, most = sum(prices.steps(**windows)), len(instance.train.classes)
    if not least <= options.train_on <= most:
        raise ValueError(f"train_on is {options.train_on}; it must be {least} to {most} rows")
    last = jax.tree.map(lambda leaf: leaf[-options.train_on :], instance.train)
    return instance._replace(train=last)


def window_options(options: Finance) -> dict[str, Any]:
    return {"window": options.window, "mode": options.mode, "horizon": options.horizon}


def same_shape(ready: dict[int, prices.Instance]) -> list[list[int]]:
    """Instances whose periods are equally long, which one program can train: often all of them.

    Weeks may differ by a holiday.
    """
    groups = {}
    for place, instance in ready.items():
        groups.setdefault(tuple(len(series.classes) for series in instance[:3]), []).append(place)
    return list(groups.values())


def fit(
    options: Finance,
    ready: dict[int, prices.Instance],
    members: list[Member],
    folder: pathlib.Path,
) -> Sweep:
    """Trains all `members`, each on its own instance."""
    places = list(ready)
    stack = lambda *leaves: jnp.stack(leaves)
    data = jax.tree.map(stack, *((i.train, i.validation) for i in ready.values()))
    instruments = data[0].inputs.shape[-1]
    optimizer = optax.adam(options.learning_rate)

    def make_state(seed: Array, place: Array) -> training.TrainState:
        network = make_network(dataclasses.replace(options, seed=seed), instruments)
        return training.with_best(training.init_state(network, optimizer, extra=place))

    seeds = jnp.array([member.seed for member in members])
    return sweep(
        make_train_step(options, optimizer),
        stack_states(make_state, seeds, jnp.array([places.index(m.instance) for m in members])),
        keys=jax.vmap(jax.random.key)(seeds),
        steps=options.steps,
        data=data,
        directory=folder,
        log_every=options.log_every,
        rows_per_dispatch=max(1, options.checkpoint_every // options.log_every),
        checkpoint_every=options.checkpoint_every,
        batching="map",  # under vmap every update would pay for a validation
        description=f"finance {name(options)} x {len(members)}",
    )


def make_network(options: Finance, instruments: int) -> Forecaster:
    """The network that `options` describes; its weights are a function of the seed."""
    rngs = nnx.Rngs(jax.random.key(options.seed))
    core = make_core(options, instruments, rngs=rngs)
    if options.mode == "seq2seq":
        core = Seq2Seq(core, make_core(options, instruments, rngs=rngs))
    classes = len(options.thresholds) + 1
    return Forecaster(core, instruments, classes, horizon=options.horizon, rngs=rngs)


def make_train_step(options: Finance, optimizer) -> training.step.TrainStep:
    """One member's update, with a validation every `log_every` updates that keeps the best weights.

    Its data are `(train, validation)`, the series of all instances stacked; which of them is the
    member's is what its state carries besides.
    """
    windows = window_options(options)

    def sample(key, data):
        return prices.sample(key, options.batch_size, series=data[0], **windows)

    def score(network, data):
        return forecast.mean_f1(network, prices.windows(data[1], **windows))

    tau = 0.0 if options.model == "rnn" else options.tau
    loss_fn = forecast.make_loss(tau, layer_weight(options), options.over_time)
    update = training.make_train_step(sample, loss_fn, optimizer)
    step = training.keep_best(update, score, every=options.log_every)

    def train_step(state: training.TrainState, key: Array, data: Any):
        instance = state.extra.extra
        return step(state, key, jax.tree.map(lambda leaf: leaf[instance], data))

    return train_step


def layer_weight(options: Finance) -> float:
    """mu as it is used: only layers have intermediate losses, and seq2seq is trained with eq 4."""
    return options.mu if options.model == "lfact" and options.mode == "rnn" else 0.0


def member_summary(
    options: Finance,
    found: prices.Prices,
    splits: list[prices.Split],
    instance: prices.Instance,
    member: Member,
    result: Sweep,
    index: int,
) -> dict[str, Any]:
    """What figures and tables need of one member: its best weights in all three periods."""
    best = jax.tree.map(lambda leaf: leaf[index], result.states.extra)
    classes = range(len(options.thresholds) + 1)
    counts = np.stack([(instance.train.classes == c).sum(0) for c in classes])
    usual = jnp.asarray(counts.argmax(0))
    split = splits[member.instance]
    return {
        "model": options.model,
        "task": task_name(options),
        "instance": member.instance,
        "seed": member.seed,
        "tau": None if options.model == "rnn" else options.tau,
        "mu": layer_weight(options) if options.model == "lfact" else None,
        "train_on": options.train_on,
        "training_rows": len(instance.train.classes),
        "periods": {part: dates(found, getattr(split, part)) for part in PERIODS},
        "updates": int(result.history["step"][-1]),
        "diverged": bool(result.diverged[index]),
        "best_update": int(best.step),
        "validation_f1": float(best.score),
        "curve": {
            "step": result.history["step"].astype(int).tolist(),
            **{
                key: plain(result.history[key][:, index])
                for key in ("loss", "accuracy", "ponder_steps")
            },
            "validation_f1_max": plain(result.history["validation_max"][:, index]),
        },
        "evaluation": {
            part: forecast.measure(
                best.model,
                prices.windows(getattr(instance, part), **window_options(options)),
                usual,
            )
            for part in PERIODS
        },
    }


def dates(found: prices.Prices, rows: range) -> list[str]:
    """First and last date of a period's returns."""
    return [str(found.dates[row + 1])[:10] for row in (rows.start, rows.stop - 1)]


def settings(options: Finance) -> dict[str, Any]:
    """The options as JSON can hold them: without where and on what the run was made."""
    values = as_json("finance", options)
    for field in ("results", "cpu_devices"):
        del values[field]
    return values


def task_name(options: Finance) -> str:
    """ "rnn", "seq2seq-5" or "seq2seq-10"."""
    return options.mode if options.mode == "rnn" else f"seq2seq-{options.horizon}"


def name(options: Finance) -> str:
    """A short name of model and task, with what differs from the preset's usual comparison."""
    words = [options.model, task_name(options)]
    if options.model != "rnn":
        words.append(f"tau{options.tau:g}")
    if layer_weight(options):
        words.append(f"mu{options.mu:g}")
    if options.train_on is not None:
        words.append(f"train_on{options.train_on}")
    return "-".join(words)


def table(members: list[dict[str, Any]]) -> list[dict[str, str]]:
    """One printed row a member."""
    return [
        {
            "model": member["model"],
            "instance": str(member["instance"]),
            "seed": str(member["seed"]),
            "best of updates": f"{member['best_update']:,} of {member['updates']:,}",
            "validation F1": f"{member['validation_f1']:.4f}",
            "test F1": f"{member['evaluation']['test']['f1']:.4f}",
            "usual class": f"{member['evaluation']['test']['usual_f1']:.4f}",
            "mean N": f"{member['evaluation']['test']['ponder_steps']:.2f}",
        }
        for member in members
    ]
