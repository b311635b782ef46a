"""Puzzles, solved by networks that refine an answer and stop when they are done (HRM, TRM; 2025).

What Sudoku and mazes share: the options, a run from the puzzles to the figures, and its restoring.
What a task has for its own is a `Puzzle`.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
import optax
from flax import nnx

from actjax import training
from actjax._checks import check_positive
from actjax.tasks.batch import Batch
from actjax.tasks.puzzles import Puzzles
from actjax.training import sharding
from experiments import record, run, stopping
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
    Board,
    CellCore,
    Mixer,
    RecursiveCore,
    TransformerCore,
    make_pondered,
    supervised,
)
from experiments.show import puzzles as show
from experiments.sweep import set_cpu_devices
from experiments.task import Task

RULES = {"recursive": "threshold", "transformer": "threshold", "act": "graves"}
RULES |= {"pondernet": "pondernet"}
PARTS = "train", "validation", "test"  # of the puzzles


@dataclasses.dataclass(frozen=True)
class Options(Place, Training, Preset):
    """What every puzzle has; a task's own options follow."""

    model: Literal["recursive", "transformer", "act", "pondernet"] = "recursive"
    """What a step is: a supervised step of TRM's (recursive), a block of a Universal Transformer
    (transformer), or of a GRU that is shown the board (act, pondernet)."""
    rule: Literal["default", "threshold", "graves", "pondernet"] = "default"
    """How it learns to stop: from every step's answer by recycled lanes (threshold, for recursive
    and transformer), by a time penalty (graves, for act) or a prior (pondernet)."""
    test_size: int = 2000
    """Most boards held out to choose the level by, and most to test on."""

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
    """Updates at the end over which it falls to 0; a shorter run begins on the way down."""
    weight_decay: float = 0.1
    """Of AdamW."""
    average: float = 0.995
    """Decay of the moving average of the weights, which are what is measured."""

    results: pathlib.Path | None = None
    """Also write here what its `figures` and the report draw from, a file of some kilobytes."""


@dataclasses.dataclass(frozen=True)
class Puzzle:
    """What a task of puzzles has for its own.

    Attributes:
      name: of the command.
      what: it does, in a few words, for the list of commands.
      presets: name -> options, a dataclass that extends `Options`.
      board: `size -> Board`, for the networks.
      sample: `(key, batch_size, puzzles=...) -> Batch`, each puzzle under a random symmetry.
      load: `options -> ` the puzzles to train on ("train"), to choose the level by ("validation")
        and to test on ("test"), no two alike by symmetry; see `parts` and `split_alike`.
      difficulty: `puzzles -> int [P]`.
      look: of its figures.
      mixer: `options -> ` what the network of recursive is a stack of.
      suffix: `options -> ` what the name of a network ends in by options of its own.
      check: refuses options of its own that are out of range.
    """

    name: str
    what: str
    presets: dict[str, Any]
    board: Callable[[int], Board]
    sample: Callable[..., Batch]
    load: Callable[[Any], dict[str, Puzzles]]
    difficulty: Callable[[Puzzles], Any]
    look: show.Look
    mixer: Callable[[Any], Callable[..., nnx.Module]] = lambda options: Mixer
    suffix: Callable[[Any], str] = lambda options: ""
    check: Callable[[Any], None] = lambda options: None


def as_task(puzzle: Puzzle) -> Task:
    """What the commands know a puzzle by."""
    return Task(
        **{name: getattr(puzzle, name) for name in ("name", "what", "presets")},
        main=functools.partial(main, puzzle),
        figures=functools.partial(show.compare, puzzle.look),
        section=functools.partial(show.section, puzzle.look),
    )


def main(puzzle: Puzzle, argv: list[str]):
    """Trains a network, measures it, draws its figures and prints a table."""
    options = parse(puzzle.name, puzzle.presets, argv, functools.partial(check, puzzle))
    if options.devices > 1:
        set_cpu_devices(options.devices)
    summary, folder = train(puzzle, options)
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
    record.print_table(f"{puzzle.name.capitalize()}, {found['boards']:,} test boards", [row], place)


def check(puzzle: Puzzle, options: Options):
    """Refuses options out of range, with one sentence."""
    check_schedule(options)
    names = ("hidden", "layers", "expand", "latent_steps", "cycles", "heads", "max_steps")
    for name in (*names, "batch_size", "warmup", "test_size"):
        check_positive(name, getattr(options, name))
    rule = rule_of(options)
    shared = rule == "threshold" or options.devices == 1
    require(shared, "devices", f"1 under rule = {rule!r}", options.devices)
    divides = options.devices > 0 and options.batch_size % options.devices == 0
    require(divides, "devices", f"a divisor of batch_size = {options.batch_size}", options.devices)
    require(options.learning_rate > 0, "learning_rate", "above 0", options.learning_rate)
    for name in ("cooldown", "weight", "weight_decay"):
        require(getattr(options, name) >= 0, name, "at least 0", getattr(options, name))
    require(0 < options.average < 1, "average", "above 0 and below 1", options.average)
    require(0 <= options.explore <= 1, "explore", "a share from 0 to 1", options.explore)
    if options.lanes is not None:
        check_positive("lanes", options.lanes)
    divides = options.model != "transformer" or options.hidden % options.heads == 0
    require(divides, "heads", f"a divisor of hidden = {options.hidden}", options.heads)
    puzzle.check(options)


def rule_of(options: Options) -> str:
    """The halting rule: the model's own unless another is given."""
    return RULES[options.model] if options.rule == "default" else options.rule


def label(puzzle: Puzzle, options: Options) -> str:
    """A short name of the model: "recursive", or "recursive-graves" with a rule not its own."""
    rule = rule_of(options)
    name = options.model if rule == RULES[options.model] else f"{options.model}-{rule}"
    return name + puzzle.suffix(options)


def train(puzzle: Puzzle, options: Options) -> tuple[dict[str, Any], pathlib.Path]:
    """One run from the puzzles to the figures: its summary and its folder."""
    record.check_file("results", options.results)
    record.check_folder("out", options.out)
    parts = load(puzzle, options)
    size, name = parts["train"].size, label(puzzle, options)
    place = f"{size}x{size}-{name}-seed{options.seed}"
    folder = options.out or pathlib.Path("runs") / puzzle.name / place
    config = as_json(puzzle.name, options) | {"data_sha256": sha256(parts)}
    free = ("devices",) if options.cooldown else ("devices", "steps")
    run.claim(folder, config, options, free=free)
    with run.interruptible(folder):
        model = fit(puzzle, options, parts["train"], folder)
    traced = pick(options, "max_steps") | {"rule": rule_of(options)}
    validation, test = (
        stopping.trace(model, parts[part], **traced) for part in ("validation", "test")
    )
    found = stopping.evaluate(validation, test, np.asarray(puzzle.difficulty(parts["test"])))
    last = training.read_metrics(folder / "metrics.jsonl")[-1]
    summary = {
        "experiment": puzzle.name,
        "model": name,
        "seed": options.seed,
        "steps": last["step"],
        "planned_steps": puzzle.presets[options.preset].steps,
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
    show.draw(puzzle.look, folder)
    shared = ("experiment", "command", "config", "wall_time_seconds", "device", "versions")
    whole = {name: summary[name] for name in shared} | {"members": [show.member(folder)]}
    record.write_results(options.results, whole)
    return summary, folder


def load(puzzle: Puzzle, options: Options) -> dict[str, Puzzles]:
    """The parts of `Puzzle.load`, where a network of its `board` can show and answer all cells."""
    parts = puzzle.load(options)
    require(set(parts) == set(PARTS), "load", f"a function to parts {PARTS}", tuple(parts))
    board = puzzle.board(parts["train"].size)
    ranges = Puzzles(boards=(0, board.symbols - 1), solutions=(1, board.classes))
    for part in parts.values():
        for name, cells, (low, high) in zip(Puzzles._fields, part, ranges, strict=True):
            least, most = int(cells.min()), int(cells.max())
            inside = low <= least and most <= high
            require(inside, name, f"from {low} to {high}", least if least < low else most)
    return parts


def parts(train: Puzzles, held_out: Puzzles, most: int) -> dict[str, Puzzles]:
    """The parts of `Puzzle.load`: of those held out `most` each to choose the level and to test."""
    every_other = lambda first: Puzzles(*(leaf[first : 2 * most : 2] for leaf in held_out))
    return {"train": train, "validation": every_other(0), "test": every_other(1)}


def sha256(parts: dict[str, Puzzles]) -> str:
    """Of all puzzles, as they are parted."""
    return hashlib.sha256(b"".join(x.tobytes() for p in parts.values() for x in p)).hexdigest()


def fit(
    puzzle: Puzzle, options: Options, puzzles: Puzzles, folder: pathlib.Path | None
) -> nnx.Module:
    """Trains a network, or goes on with that in `folder`: the network of averaged weights."""
    mesh = run.make_mesh(options.devices)
    train_step, state = make_member(puzzle, options, puzzles, mesh)
    state = training.fit(
        train_step,
        state,
        key=jax.random.key(options.seed),
        data=jax.tree.map(jax.numpy.asarray, puzzles),
        directory=folder,
        **pick(options, *PACE),
        description=f"{puzzle.name} {label(puzzle, options)}",
    )
    model = training.averaged_model(state, options.average)
    return model if mesh is None else sharding.one_copy(model)


def restore(puzzle: Puzzle, folder: pathlib.Path) -> tuple[Any, nnx.Module, dict[str, Puzzles]]:
    """The options, the network and the puzzles of a run that is done."""
    require((folder / run.SUMMARY).exists(), "run", "the folder of a run that is done", str(folder))
    config = record.read_json(folder / run.CONFIG)
    kind = type(next(iter(puzzle.presets.values())))
    known = {field.name for field in dataclasses.fields(kind)}
    options = kind(**{name: value for name, value in config.items() if name in known})
    options = dataclasses.replace(options, devices=1)  # of which this machine may have no more
    parts = load(puzzle, options)
    here = sha256(parts)
    require(here == config["data_sha256"], "data", "the puzzles of the run", here)
    model = fit(puzzle, options, parts["train"], folder)  # there is nothing left to train
    return options, model, parts


def make_member(
    puzzle: Puzzle, options: Options, puzzles: Puzzles, mesh: jax.sharding.Mesh | None = None
):
    """The training step of a rule, and the state that it starts from; lanes shared by `mesh`."""
    warm = optax.warmup_constant_schedule(0.0, options.learning_rate, options.warmup)
    left = lambda n: 1.0 if not options.cooldown else (options.steps - n) / options.cooldown
    rate = lambda n: warm(n) * jax.numpy.minimum(1.0, left(n))
    adam = optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=options.weight_decay)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam)
    sample = lambda key, puzzles: puzzle.sample(key, options.batch_size, puzzles=puzzles)
    model, rule = make_model(puzzle, options, puzzles.size), rule_of(options)
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


def make_model(puzzle: Puzzle, options: Options, size: int) -> nnx.Module:
    """The network that `options` describe; its weights are a function of the seed."""
    rngs = nnx.Rngs(jax.random.key(options.seed))
    board, bias = puzzle.board(size), HALT_BIAS[rule_of(options)]
    match options.model:
        case "recursive":
            sizes = pick(options, "layers", "expand", "latent_steps", "cycles")
            sizes |= {"mixer": puzzle.mixer(options), "bias": bias}
            return RecursiveCore(board, options.hidden, rngs=rngs, **sizes)
        case "transformer":
            return TransformerCore(board, options.hidden, options.heads, bias, rngs=rngs)
        case _:
            return CellCore(board, options.hidden, bias, rngs=rngs)
