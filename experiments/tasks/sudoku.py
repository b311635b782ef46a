"""Sudoku by networks that refine their answer and stop when they are done (HRM, TRM; 2025)."""

import dataclasses
import hashlib
import pathlib
from typing import Any, Literal

import jax
import numpy as np
import optax
from flax import nnx

from actjax import training
from actjax._checks import check_positive
from actjax.tasks import sudoku
from actjax.tasks.sudoku import Puzzles
from actjax.training import sharding
from experiments import data, record, run, stopping
from experiments.data import sudoku as files
from experiments.options import (
    PACE,
    Place,
    Preset,
    Training,
    as_json,
    check_schedule,
    parse,
    pick,
    require,
)
from experiments.reasoners import (
    HALT_BIAS,
    CellCore,
    RecursiveCore,
    TransformerCore,
    make_pondered,
    supervised,
)
from experiments.show import sudoku as show
from experiments.sweep import set_cpu_devices
from experiments.task import Task

RULES = {"recursive": "threshold", "transformer": "threshold", "act": "graves"}
RULES |= {"pondernet": "pondernet"}
SHIPPED = {size: pathlib.Path(data.__file__).with_name(f"sudoku{size}.csv.gz") for size in (6, 9)}


@dataclasses.dataclass(frozen=True)
class Sudoku(Place, Training, Preset):
    """Solve Sudoku by steps that refine an answer, and stop when it is right.

    Boards that are tested are alike to none that are trained on, by no symmetry. Presets: demo (6 x
    6, five minutes on two cores), cpu (9 x 9, two hours) and paper (9 x 9, the sizes of TRM and
    1,000 puzzles, for an accelerator).
    """

    model: Literal["recursive", "transformer", "act", "pondernet"] = "recursive"
    """What a step is: a supervised step of TRM's (recursive), a block of a Universal Transformer
    (transformer), or of a GRU that is shown the board (act, pondernet)."""
    rule: Literal["default", "threshold", "graves", "pondernet"] = "default"
    """How it learns to stop: from every step's answer by recycled lanes (threshold, for recursive
    and transformer), by a time penalty (graves, for act) or a prior (pondernet)."""
    size: Literal[6, 9] = 6
    """Lines of a board, of the puzzles in this repository."""
    data: pathlib.Path | None = None
    """A CSV file of quizzes and solutions, .gz or not, in the place of those."""
    puzzles: int = 0
    """Train on only so many, each under all symmetries. 0: all."""
    held_out: float = 0.2
    """About which part of the puzzles is held out: half to choose the level, half to test."""
    test_size: int = 2000
    """Most boards in either half."""

    hidden: int = 64
    """Features of a cell of the board, or units of the GRU."""
    layers: int = 1
    """Mixers in the network of recursive."""
    expand: int = 1
    """Their inner width over the outer one."""
    latent_steps: int = 2
    """Updates of its latent in a cycle (n)."""
    cycles: int = 2
    """Its cycles in a step (T)."""
    heads: int = 4
    """Attention heads of transformer."""
    max_steps: int = 16
    """The limit on steps (N_sup, M)."""
    explore: float = 0.1
    """Share of boards that may not stop before a random number of steps (threshold)."""
    weight: float = 1e-2
    """Of the ponder cost (graves) or of the divergence from the prior (pondernet)."""
    lanes: int | None = None
    """Boards computed side by side (graves, pondernet). Default: a part of the batch."""

    warmup: int = 200
    """Updates over which the learning rate rises."""
    cooldown: int = 0
    """Updates at the end over which it falls to 0."""
    weight_decay: float = 0.1
    """Of AdamW."""
    average: float = 0.995
    """Decay of the moving average of the weights, which are what is measured."""

    results: pathlib.Path | None = None
    """Also write here what `figures sudoku` and the report draw from, a file of some kilobytes."""


DEMO = Sudoku(batch_size=64, learning_rate=2e-3, steps=8000, cooldown=2000, checkpoint_every=2000)
LONG = {"size": 9, "puzzles": 1000, "cooldown": 0, "average": 0.999}
PAPER = LONG | {"hidden": 512, "layers": 2, "latent_steps": 6, "cycles": 3}
PAPER |= {"expand": 3, "weight_decay": 1.0, "warmup": 2000, "learning_rate": 1e-4}
PRESETS = {
    "demo": DEMO,
    "cpu": dataclasses.replace(DEMO, **LONG, hidden=96, learning_rate=1e-3, steps=60_000),
    # 60,000 epochs of 1,000 puzzles
    "paper": dataclasses.replace(DEMO, **PAPER, batch_size=768, steps=78_000),
}


def main(argv: list[str]):
    """Trains a network, measures it, draws its figures and prints a table."""
    options = parse("sudoku", PRESETS, argv, check)
    if options.devices > 1:
        set_cpu_devices(options.devices)
    summary, folder = train(options)
    found, most = summary["evaluation"], options.max_steps
    row = {
        "model": summary["model"],
        "updates": f"{summary['steps']:,}",
        f"solved in {most} steps": f"{found['accuracy_always']:.2%}",
        "stopped early": f"{found['accuracy']:.2%}",
        "at level": f"{found['level']:g}",
        "steps": f"{found['steps']:.2f}",
        "time": f"{summary['wall_time_seconds']:.0f} s",
    }
    place = f"metrics, checkpoints and figures: {folder}"
    record.print_table(f"Sudoku, {found['boards']:,} test boards", [row], place)


def check(options: Sudoku):
    """Refuses options out of range, with one sentence."""
    check_schedule(options)
    names = (
        "hidden",
        "layers",
        "expand",
        "latent_steps",
        "cycles",
        "heads",
        "max_steps",
        "batch_size",
    )
    for name in (*names, "warmup", "test_size"):
        check_positive(name, getattr(options, name))
    for name in ("puzzles", "cooldown"):
        require(getattr(options, name) >= 0, name, "at least 0", getattr(options, name))
    shared = rule_of(options) == "threshold"
    require(shared or options.devices == 1, "devices", "1 under this rule", options.devices)
    divides = options.devices > 0 and options.batch_size % options.devices == 0
    require(divides, "devices", f"a divisor of batch_size = {options.batch_size}", options.devices)
    require(options.learning_rate > 0, "learning_rate", "above 0", options.learning_rate)
    for name in ("weight", "weight_decay"):
        require(getattr(options, name) >= 0, name, "at least 0", getattr(options, name))
    for name in ("held_out", "average"):
        value = getattr(options, name)
        require(0 < value < 1, name, "above 0 and below 1", value)
    require(0 <= options.explore <= 1, "explore", "a share from 0 to 1", options.explore)
    if options.lanes is not None:
        check_positive("lanes", options.lanes)
    divides = options.model != "transformer" or options.hidden % options.heads == 0
    require(divides, "heads", f"a divisor of hidden = {options.hidden}", options.heads)


def rule_of(options: Sudoku) -> str:
    """The halting rule: the model's own unless another is given."""
    return RULES[options.model] if options.rule == "default" else options.rule


def label(options: Sudoku) -> str:
    """A short name of the model: "recursive", or "recursive-graves" with a rule not its own."""
    rule = rule_of(options)
    return options.model if rule == RULES[options.model] else f"{options.model}-{rule}"


def train(options: Sudoku) -> tuple[dict[str, Any], pathlib.Path]:
    """One run from the puzzles to the figures: its summary and its folder."""
    record.check_file("results", options.results)
    record.check_folder("out", options.out)
    parts = load(options)
    place = f"{parts['train'].size}x{parts['train'].size}-{label(options)}-seed{options.seed}"
    folder = options.out or pathlib.Path("runs") / "sudoku" / place
    config = as_json("sudoku", options) | {"data_sha256": sha256(parts)}
    run.claim(
        folder, config, options, free=("devices",) if options.cooldown else ("devices", "steps")
    )
    with run.interruptible(folder):
        model = fit(options, parts["train"], folder)
    traced = pick(options, "max_steps") | {"rule": rule_of(options)}
    validation, test = (
        stopping.trace(model, parts[part], **traced) for part in ("validation", "test")
    )
    found = stopping.evaluate(validation, test, (parts["test"].boards == 0).sum(1))
    last = training.read_metrics(folder / "metrics.jsonl")[-1]
    summary = {
        "experiment": "sudoku",
        "model": label(options),
        "seed": options.seed,
        "steps": last["step"],
        "planned_steps": PRESETS[options.preset].steps,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))),
        "train": {name: last[name] for name in last if name not in ("step", "seconds")},
        "evaluation": {name: x for name, x in found.items() if not isinstance(x, list)},
        "wall_time_seconds": last["seconds"],
        "config": config,
        "command": record.command(),
        **record.environment(),
    }
    training.write_json(folder / "evaluation.json", found)
    example = stopping.example(parts["test"], test, found["level"])
    training.write_json(folder / "example.json", example)
    training.write_json(folder / run.SUMMARY, summary)
    show.draw(folder)
    shared = ("experiment", "command", "config", "wall_time_seconds", "device", "versions")
    whole = {name: summary[name] for name in shared} | {"members": [show.member(folder)]}
    record.write_results(options.results, whole)
    return summary, folder


def load(options: Sudoku) -> dict[str, Puzzles]:
    """The puzzles to train on, to choose the level by ("validation") and to test on."""
    source = SHIPPED[options.size] if options.data is None else options.data
    train, held = files.split(files.read(source), options.held_out)
    enough = len(held.boards) > 1
    require(enough, "held_out", "a part of at least two puzzles", options.held_out)
    some = lambda puzzles, rows: Puzzles(*(leaf[rows] for leaf in puzzles))
    order = np.random.default_rng(0).permutation(len(train.boards))  # the same for every seed
    return {
        "train": some(train, order[: options.puzzles or None]),
        "validation": some(held, slice(0, 2 * options.test_size, 2)),
        "test": some(held, slice(1, 2 * options.test_size, 2)),
    }


def sha256(parts: dict[str, Puzzles]) -> str:
    """Of all puzzles, as they are parted."""
    return hashlib.sha256(b"".join(x.tobytes() for p in parts.values() for x in p)).hexdigest()


def fit(options: Sudoku, puzzles: Puzzles, folder: pathlib.Path | None) -> nnx.Module:
    """Trains a network, or goes on with that in `folder`: the network of averaged weights."""
    mesh = run.make_mesh(options.devices)
    train_step, state = make_member(options, puzzles, mesh)
    state = training.fit(
        train_step,
        state,
        key=jax.random.key(options.seed),
        data=jax.tree.map(jax.numpy.asarray, puzzles),
        directory=folder,
        **pick(options, *PACE),
        description=f"sudoku {label(options)}",
    )
    model = training.averaged_model(state, options.average)
    return model if mesh is None else sharding.one_copy(model)


def restore(folder: pathlib.Path) -> tuple[Sudoku, nnx.Module, dict[str, Puzzles]]:
    """The options, the network and the puzzles of a run that is done."""
    require((folder / run.SUMMARY).exists(), "run", "the folder of a run that is done", str(folder))
    config = record.read_json(folder / run.CONFIG)
    known = {field.name for field in dataclasses.fields(Sudoku)}
    options = Sudoku(**{name: value for name, value in config.items() if name in known})
    options = dataclasses.replace(options, devices=1)  # of which this machine may have no more
    parts = load(options)
    here = sha256(parts)
    require(here == config["data_sha256"], "data", "the puzzles of the run", here)
    return options, fit(options, parts["train"], folder), parts  # there is nothing left to train


def make_member(options: Sudoku, puzzles: Puzzles, mesh: jax.sharding.Mesh | None = None):
    """The training step of a rule, and the state that it starts from; lanes shared by `mesh`."""
    warm = optax.warmup_constant_schedule(0.0, options.learning_rate, options.warmup)
    left = lambda n: 1.0 if not options.cooldown else (options.steps - n) / options.cooldown
    rate = lambda n: warm(n) * jax.numpy.minimum(1.0, left(n))
    adam = optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=options.weight_decay)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam)
    sample = lambda key, puzzles: sudoku.sample(key, options.batch_size, puzzles=puzzles)
    model, rule = make_model(options, puzzles.size), rule_of(options)
    if rule == "threshold":
        start = lambda model, batch: model.start(batch.inputs)
        limits = pick(options, "max_steps", "explore") | {"mesh": mesh}
        step = training.make_recycled_step(sample, supervised, optimizer, start=start, **limits)
        key = run.evaluation.evaluation_key(options.seed)
        state = training.init_recycled(model, optimizer, sample, start, key, puzzles, mesh=mesh)
    else:
        loss_fn = make_pondered(rule, **pick(options, "max_steps", "weight", "lanes"))
        step = training.make_train_step(sample, loss_fn, optimizer)
        state = training.init_state(model, optimizer)
    return training.keep_average(step, options.average), training.with_average(state)


def make_model(options: Sudoku, size: int) -> nnx.Module:
    """The network that `options` describe; its weights are a function of the seed."""
    rngs = nnx.Rngs(jax.random.key(options.seed))
    bias = HALT_BIAS[rule_of(options)]
    match options.model:
        case "recursive":
            sizes = pick(options, "layers", "expand", "latent_steps", "cycles")
            return RecursiveCore(size, options.hidden, bias=bias, rngs=rngs, **sizes)
        case "transformer":
            return TransformerCore(size, options.hidden, options.heads, bias, rngs=rngs)
        case _:
            return CellCore(size, options.hidden, bias, rngs=rngs)


TASK = Task(
    name="sudoku",
    what="solve Sudoku by steps that refine an answer, and stop",
    presets=PRESETS,
    main=main,
    figures=show.compare,
    section=show.section,
)
