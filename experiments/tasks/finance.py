"""Classes of price changes of many instruments (LFACT 2020, section 4.1)."""

import dataclasses
import hashlib
import pathlib
import time
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from actjax import Seq2Seq, training
from actjax._checks import check_choice, check_positive
from actjax.training.metrics import plain
from experiments import data, options, record, run
from experiments.data import intraday
from experiments.evaluation import member as member_of
from experiments.network import make_core
from experiments.options import ADAPTIVE, Options, as_json, check_one_process, pick, require
from experiments.show import finance as show
from experiments.sweep import set_cpu_devices
from experiments.task import Task, make_layered_objective
from experiments.tasks import floors, forecast, prices
from experiments.tasks.forecast import Forecaster
from experiments.tasks.prices import THRESHOLDS

SUMMARY = "sweep.json"
PERIODS = floors.PERIODS


@dataclasses.dataclass(frozen=True)
class Finance(Options):
    """Forecast classes of price changes, 22 instruments at once.

    Networks of several seeds and instances train as one program; each is tested with the weights
    of its best validation F1. Presets: demo (one network, a minute), cpu (three instances and three
    seeds, minutes on one core), intraday (three seeds on the made five-minute series) and paper
    (50 weeks of 5-minute data given with --prices).
    """

    model: Literal["rnn", "act", "lfact", "floors"] = "lfact"
    """Steps of the cell for each input: one (rnn), a learned number (act), or a learned number of
    layers (lfact). Or floors: no network but what one must beat, such as the last class again."""
    mode: Literal["rnn", "seq2seq"] = "rnn"
    """Predict the next row at every input (rnn), or the rows behind a window of them (seq2seq)."""
    horizon: int = 10
    """Rows to predict in mode seq2seq; the paper has 5 and 10."""
    window: int = 20
    """Rows of input."""
    mu: float = 0.1
    """Weight of the losses of lfact's intermediate layers, in mode rnn (seq2seq has none)."""

    prices: str = "etf"
    """etf (daily closes of 22 ETFs, in this repository), intraday (a made series of five-minute
    prices, of the paper's size) or the path of a CSV file, .gz or not: dates first, then a column
    an instrument."""
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


# what section 4.1 says
PAPER = {"cell": "gru", "hidden": 128, "max_steps": 5, "tau": 1e-3, "learning_rate": 5e-4}
WEEKS = {"unit": "weeks", "train": 50, "validation": 1, "test": 1}
ROWS = {"batch_size": 32, "log_every": 50}
MADE = {"prices": "intraday", "train": 38_000, "validation": 3900, "test": 4900, "instances": 1}
MADE |= {"batch_size": 32, "log_every": 200, "steps": 1200, "checkpoint_every": 400, "seeds": 3}
PRESETS = {
    "demo": Finance(**PAPER, **ROWS, steps=300, checkpoint_every=100, instance="2"),
    "cpu": Finance(**PAPER, **ROWS, steps=1200, checkpoint_every=200, seeds=3),
    "intraday": Finance(**PAPER, **MADE),
    "paper": Finance(**PAPER, **WEEKS, batch_size=128, steps=20_000, log_every=200),
}


class Member(NamedTuple):
    instance: int
    seed: int


def main(argv: list[str]):
    """Trains the networks, measures the best weights of each, and prints a table."""
    chosen = options.parse("finance", PRESETS, argv, check)
    summary, folder = train(chosen, record.command(["finance", *argv]))
    title = f"Finance: {task_name(chosen)}, test period"
    place = f"metrics, checkpoints and figures: {folder}"
    record.print_table(title, table(summary["members"]), place)


def load_prices(source: str) -> prices.Prices:
    """Daily closes of the 22 ETFs shipped ("etf"), the made series ("intraday"), or a file as
    `prices.read` wants it."""
    if source == "intraday":
        made = intraday.draw()
        return prices.Prices(made.dates, intraday.NAMES, made.values)
    return prices.read(data.DAILY_CLOSES if source == "etf" else source)


def train(chosen: Finance, command: str) -> tuple[dict[str, Any], pathlib.Path]:
    """From the prices to the figures: the summary, which names `command`, and its folder."""
    record.check_file("results", chosen.results)
    record.check_folder("out", chosen.out)
    found = load_prices(chosen.prices)
    splits = prices.walk_forward(found, **pick(chosen, "unit", "instances", *PERIODS))
    wanted = range(len(splits)) if chosen.instance == "all" else [int(chosen.instance)]
    ready = {place: prepare(chosen, found, splits[place]) for place in wanted}
    set_cpu_devices(chosen.cpu_devices)
    if chosen.model == "floors":
        return measure_floors(chosen, command, found, splits, ready)
    folder = chosen.out or pathlib.Path("runs") / "finance" / name(chosen)
    config = as_json("finance", chosen)
    sha256 = hashlib.sha256(found.values.tobytes()).hexdigest()
    run.claim(folder, config | {"data_sha256": sha256}, chosen)
    seeds = range(chosen.seed, chosen.seed + chosen.seeds)
    rows, seconds = [], 0.0
    for group in same_shape(ready):
        members = [Member(instance, seed) for instance in group for seed in seeds]
        part = folder if len(group) == len(ready) else folder / f"instance-{group[0]}"
        with run.interruptible(part):
            result = fit(chosen, {place: ready[place] for place in group}, members, part)
        seconds += float(result.history["seconds"][-1])
        for index, member in enumerate(members):
            split = splits[member.instance]
            periods = {part: dates(found, getattr(split, part)) for part in PERIODS}
            summary = member_summary(chosen, ready[member.instance], member, result, index)
            rows.append(summary | {"periods": periods})
    summary = {
        "experiment": "finance",
        "command": command,
        "config": config,
        "instruments": list(found.names),
        "wall_time_seconds": round(seconds, 1),
        **record.environment(),
        "members": rows,
    }
    training.write_json(folder / SUMMARY, summary)
    show.draw(rows, folder)
    record.write_results(chosen.results, summary)
    return summary, folder


def measure_floors(
    chosen: Finance,
    command: str,
    found: prices.Prices,
    splits: list[prices.Split],
    ready: dict[int, prices.Instance],
) -> tuple[dict[str, Any], pathlib.Path]:
    """The summary of forecasts that nothing is trained for, and its folder."""
    folder = chosen.out or pathlib.Path("runs") / "finance" / name(chosen)
    began, rows = time.perf_counter(), []
    known = intraday.draw() if chosen.prices == "intraday" else None
    for place, instance in ready.items():
        parts = found, splits[place], instance, chosen.thresholds, known
        for row in floors.members(*parts, **window_options(chosen)):
            own = {"task": task_name(chosen), "instance": place, "seed": chosen.seed}
            fixed = {"tau": None, "mu": None, "train_on": None, "diverged": False}
            fixed["training_rows"] = len(instance.train.classes)
            rows.append(row | own | fixed)
    summary = {
        "experiment": "finance",
        "command": command,
        "config": as_json("finance", chosen),
        "instruments": list(found.names),
        "wall_time_seconds": round(time.perf_counter() - began, 1),
        **record.environment(),
        "members": rows,
    }
    folder.mkdir(parents=True, exist_ok=True)
    training.write_json(folder / SUMMARY, summary)
    record.write_results(chosen.results, summary)
    return summary, folder


def check(chosen: Finance):
    """Refuses options out of range, with one sentence."""
    options.check(chosen)
    check_positive("seeds", chosen.seeds)
    check_positive("instances", chosen.instances)
    allowed = f"at least log_every = {chosen.log_every}, after which comes the first validation"
    require(chosen.steps >= chosen.log_every, "steps", allowed, chosen.steps)
    require(chosen.mu >= 0, "mu", "at least 0", chosen.mu)
    held = chosen.ponder_budget
    require(held is None, "ponder_budget", "None for finance, whose tau is fixed", held)
    check_one_process("finance", chosen)
    allowed = "1 for finance, which spreads whole networks over all devices"
    require(chosen.devices == 1, "devices", allowed, chosen.devices)
    places = [str(place) for place in range(chosen.instances)]
    check_choice("instance", chosen.instance, ("all", *places))


def prepare(chosen: Finance, found: prices.Prices, split: prices.Split) -> prices.Instance:
    windows = window_options(chosen)
    instance = prices.prepare(found, split, **windows, thresholds=chosen.thresholds)
    if chosen.train_on is None:
        return instance
    least, most = sum(prices.steps(**windows)), len(instance.train.classes)
    allowed = f"{least} to {most} rows"
    require(least <= chosen.train_on <= most, "train_on", allowed, chosen.train_on)
    last = jax.tree.map(lambda leaf: leaf[-chosen.train_on :], instance.train)
    return instance._replace(train=last)


def window_options(chosen: Finance) -> dict[str, Any]:
    return pick(chosen, "window", "mode", "horizon")


def same_shape(ready: dict[int, prices.Instance]) -> list[list[int]]:
    """Instances whose periods are equally long, which one program can train: often all of them.

    Weeks may differ by a holiday.
    """
    groups = {}
    for place, instance in ready.items():
        groups.setdefault(tuple(len(series.classes) for series in instance[:3]), []).append(place)
    return list(groups.values())


def fit(
    chosen: Finance, ready: dict[int, prices.Instance], members: list[Member], folder: pathlib.Path
) -> training.Sweep:
    """Trains all `members`, each on its own instance, and keeps the best weights of each."""
    places = list(ready)
    stack = lambda *leaves: jnp.stack(leaves)
    series = jax.tree.map(stack, *((i.train, i.validation) for i in ready.values()))
    instruments = series[0].inputs.shape[-1]
    train_step, start = make_member(chosen)
    make_state = lambda seed, place: start(make_network(chosen, seed, instruments), place)
    return run.train_many(
        train_step,
        make_state,
        chosen,
        [member.seed for member in members],
        [places.index(member.instance) for member in members],
        data=series,
        directory=folder,
        rows_per_dispatch=max(1, chosen.checkpoint_every // chosen.log_every),
        batching="map",  # under vmap every update would pay for a validation
        description=f"finance {name(chosen)} x {len(members)}",
    )


def make_network(chosen: Finance, seed: int | jax.Array, instruments: int) -> Forecaster:
    """The network that the options describe; its weights are a function of the seed."""
    rngs = nnx.Rngs(jax.random.key(seed))
    core = make_core(chosen, instruments, rngs=rngs)
    if chosen.mode == "seq2seq":
        core = Seq2Seq(core, make_core(chosen, instruments, rngs=rngs))
    classes = len(chosen.thresholds) + 1
    return Forecaster(core, instruments, classes, horizon=chosen.horizon, rngs=rngs)


def make_member(chosen: Finance):
    """One member's update, with a validation every `log_every` updates, and `start` of its state.

    Its data are `(train, validation)`, the series of all instances stacked; which of them is the
    member's is what its state carries besides.
    """
    windows = window_options(chosen)
    step, start = run.recipe(
        chosen,
        lambda key, own: prices.sample(key, chosen.batch_size, series=own[0], **windows),
        make_layered_objective(layer_weight(chosen), chosen.over_time, lambda *_: {}),
        tau=0.0 if chosen.model == "rnn" else chosen.tau,
        score=lambda network, own: forecast.mean_f1(network, prices.windows(own[1], **windows)),
    )

    def train_step(state: training.TrainState, key: jax.Array, series: Any):
        instance = state.extra.extra
        return step(state, key, jax.tree.map(lambda leaf: leaf[instance], series))

    return train_step, start


def layer_weight(chosen: Finance) -> float:
    """mu as it is used: only layers have intermediate losses, and seq2seq is trained with eq 4."""
    return chosen.mu if chosen.model == "lfact" and chosen.mode == "rnn" else 0.0


def member_summary(
    chosen: Finance, instance: prices.Instance, member: Member, result: training.Sweep, index: int
) -> dict[str, Any]:
    """What figures and tables need of one member: its best weights in all three periods."""
    best, history = member_of(result.states.extra, index), result.history
    classes = range(len(chosen.thresholds) + 1)
    counts = np.stack([(instance.train.classes == c).sum(0) for c in classes])
    usual, windows = jnp.asarray(counts.argmax(0)), window_options(chosen)
    measure = lambda series: forecast.measure(best.model, prices.windows(series, **windows), usual)
    curve = {name: plain(history[name][:, index]) for name in ("loss", "accuracy", "ponder_steps")}
    curve["validation_f1_max"] = plain(history["validation_max"][:, index])
    return {
        "model": chosen.model,
        "task": task_name(chosen),
        "instance": member.instance,
        "seed": member.seed,
        "tau": None if chosen.model == "rnn" else chosen.tau,
        "mu": layer_weight(chosen) if chosen.model == "lfact" else None,
        "train_on": chosen.train_on,
        "training_rows": len(instance.train.classes),
        "updates": int(history["step"][-1]),
        "diverged": bool(result.diverged[index]),
        "best_update": int(best.step),
        "validation_f1": float(best.score),
        "curve": {"step": history["step"].astype(int).tolist(), **curve},
        "evaluation": {part: measure(getattr(instance, part)) for part in PERIODS},
    }


def dates(found: prices.Prices, rows: range) -> list[str]:
    """First and last date of a period's returns."""
    return [str(found.dates[row + 1])[:10] for row in (rows.start, rows.stop - 1)]


def task_name(chosen: Finance) -> str:
    """ "rnn", "seq2seq-5" or "seq2seq-10"."""
    return chosen.mode if chosen.mode == "rnn" else f"seq2seq-{chosen.horizon}"


def name(chosen: Finance) -> str:
    """A short name of model and task, with what differs from the preset's usual comparison."""
    words = [chosen.model, task_name(chosen)]
    words += [f"tau{chosen.tau:g}"] if chosen.model in ADAPTIVE else []
    words += [f"mu{chosen.mu:g}"] if layer_weight(chosen) else []
    words += [f"train_on{chosen.train_on}"] if chosen.train_on is not None else []
    return "-".join(words)


def table(members: list[dict[str, Any]]) -> list[dict[str, str]]:
    """One printed row a member."""
    rows = []
    for member in members:
        test = member["evaluation"]["test"]
        row = {name: str(member[name]) for name in ("model", "instance", "seed")}
        if "best_update" not in member:  # no network
            rows.append(row | {"test F1": f"{test['f1']:.4f}"})
            continue
        best = f"{member['best_update']:,}"
        row |= {"best of updates": f"{best} of {member['updates']:,}"}
        row |= {"validation F1": f"{member['validation_f1']:.4f}", "test F1": f"{test['f1']:.4f}"}
        row |= {"usual class": f"{test['usual_f1']:.4f}", "mean N": f"{test['ponder_steps']:.2f}"}
        rows.append(row)
    return rows


TASK = Task(
    name="finance",
    what="forecast classes of price changes",
    presets=PRESETS,
    main=main,
    figures=show.draw,
    section=show.section,
)
