"""Puzzles a second of a recursive network that is trained: always M steps, or stopped when done.

    python benchmarks/recursive.py [--run FOLDER] [--boards N] [--sizes N ...] [--out FILE]

FOLDER is that of a run of `python -m experiments sudoku`; without one its demo is trained first,
for five minutes. All ways solve the same test boards, with the level that validation boards chose:

  always          M steps for every board, as HRM's and TRM's own evaluation does
  until all are done  a batch goes on until its last board is done, then the next batch starts
  lanes           a lane whose board is done takes the next (`actjax.ponder`)

each in batches, or on lanes, of several sizes, of which the fastest counts. The answers of the two
that stop are compared, board by board, with those of a plain loop over the steps. A last row of
lanes has the number that the library chooses.

Then an update of the training, deep supervision with recycled lanes; on a CPU beside the same in
PyTorch, where that is installed (the extra `bench`): the same network, sizes, optimizer and
threads, in updates a second. The first loss of all has to be the same number. Ours is made by one
device, which cuts its operations up for all cores, and by a device a core, each with lanes of its
own, whose gradients meet once an update.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import importlib.util
import itertools
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from timing import machine, new_file, seconds_each, write

import actjax
from actjax import training
from actjax.halting import Threshold
from actjax.tasks.sudoku import Puzzles
from experiments import stopping
from experiments.options import as_json
from experiments.reasoners import supervised
from experiments.record import environment, print_table, read_json
from experiments.tasks import sudoku

SIZES = (4, 8, 16, 32, 64, 256)
ALWAYS, WHOLE, LANES = "always", "until all are done", "lanes"


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=pathlib.Path, help="folder of a run of experiments sudoku")
    parser.add_argument("--boards", type=int, default=1024, help="the test boards, repeated")
    sizes = {"nargs": "+", "default": SIZES, "metavar": "N"}
    parser.add_argument("--sizes", type=int, **sizes, help="of batches and numbers of lanes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=new_file, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="see that it runs: no timing")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.run or _trained(pathlib.Path(scratch) / "run", arguments.quick)
        options, model, parts = sudoku.restore(folder)
        level = read_json(folder / "evaluation.json")["level"]
    boards, sizes, repeats = arguments.boards, arguments.sizes, arguments.repeats
    if arguments.quick:
        boards, sizes, repeats = 24, (8, 24), 1
    small = {} if not arguments.quick else {"target": 1e-3, "repeats": 1}
    updates = measure_training(options, parts["train"], compiled=not arguments.quick, **small)
    puzzles = Puzzles(*(np.resize(x, (boards, x.shape[1])) for x in parts["test"]))
    rows = measure(model, puzzles, level, options, [n for n in sizes if n <= boards], repeats)
    best = {way: max(_of(rows, way), key=lambda r: r["puzzles_per_second"]) for way in WAYS}
    speed = {way: row["puzzles_per_second"] for way, row in best.items()}
    ratios = {f"{LANES} / {way}": speed[LANES] / speed[way] for way in (ALWAYS, WHOLE)}
    print_table(
        f"{boards:,} boards, level {level:g}",
        [_cells(row, best) for row in rows],
        *(f"{name}, each at its best size: {ratio:.2f}" for name, ratio in ratios.items()),
    )
    print_table("An update of deep supervision", [_update_cells(row) for row in updates])
    given = {name: _text(value) for name, value in vars(arguments).items()}
    config = as_json("sudoku", options)
    versions = environment()["versions"]
    if importlib.util.find_spec("torch"):
        versions["torch"] = importlib.metadata.version("torch")
    found = {
        "versions": versions,
        "level": level,
        "rows": rows,
        "ratios": ratios,
        "training": updates,
    }
    write(arguments.out, given, network=config, **found)


def _trained(folder: pathlib.Path, quick: bool) -> pathlib.Path:
    options = dataclasses.replace(sudoku.PRESETS["demo"], out=folder)
    if quick:
        small = {"steps": 2, "log_every": 1, "checkpoint_every": 1, "test_size": 16}
        small |= {"hidden": 8, "batch_size": 8, "max_steps": 4, "puzzles": 32}
        options = dataclasses.replace(options, **small)
    return sudoku.train(options)[1]


# --- The ways: (model, boards [P, cells], size, level, max_steps) -> answers, steps --------------


def always(model, boards, size, level, max_steps):
    """Every board is given all steps."""
    del level

    def some(boards):
        state = model.start(boards)
        one = lambda _, state: model.advance(state, boards)[0]
        state = lax.fori_loop(0, max_steps, one, state)
        return _answers(model, state), jnp.full(len(boards), max_steps)

    return _in_batches(some, boards, size)


def until_all_are_done(model, boards, size, level, max_steps):
    """Batch by batch, each until its last board is done; one that is done keeps its answer."""
    some = functools.partial(_pondered, model, level=level, max_steps=max_steps, lanes=size)
    return _in_batches(some, boards, size)


def on_lanes(model, boards, size, level, max_steps):
    """All boards as one queue, for so many lanes."""
    return _pondered(model, boards, level=level, max_steps=max_steps, lanes=size)


WAYS = {ALWAYS: always, WHOLE: until_all_are_done, LANES: on_lanes}


def _pondered(model, boards, *, level, max_steps, lanes):
    def step(model, state, boards, first):
        state, q = model.advance(state, boards)
        return state, (q > level).astype(q.dtype)

    state, ponder = actjax.ponder(
        step,
        model,
        model.start(boards),
        boards,
        max_steps=max_steps,
        rule=Threshold(),
        lanes=lanes,
    )
    return _answers(model, state), ponder.steps


def _answers(model, state):
    return model.read(state).argmax(-1) + 1


def _in_batches(some, boards, size):
    whole = len(boards) // size * size
    found = lax.map(some, boards[:whole].reshape(-1, size, boards.shape[1]))
    found = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), found)
    if whole == len(boards):
        return found
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), found, some(boards[whole:]))


# --- Measurement ----------------------------------------------------------------------------------


def measure(model: nnx.Module, puzzles: Puzzles, level, options, sizes, repeats) -> list[dict]:
    """A row for every way and size. Each is timed once a round, so that all meet the same machine;
    the least time counts."""
    boards = jnp.asarray(puzzles.boards, jnp.int32)
    limits = {"max_steps": options.max_steps}
    traced = stopping.trace(model, puzzles, rule="threshold", **limits)
    steps = stopping.stops(traced, level)
    plain = traced.answers[steps - 1, np.arange(len(steps))]
    calls, rows = [], []
    for size, (name, way) in [*itertools.product(sizes, WAYS.items()), (None, (LANES, on_lanes))]:
        run = jax.jit(functools.partial(way, size=size, level=level, **limits))
        calls.append(lambda run=run: jax.block_until_ready(run(model, boards)))
        seconds, found = _timed(calls[-1])
        answers, taken = map(np.asarray, found)
        expected = (traced.answers[-1], options.max_steps) if name == ALWAYS else (plain, steps)
        rows.append(
            {
                "way": name,
                "size": size,
                "first_call_s": seconds,
                "solved": float((answers == puzzles.solutions).all(1).mean()),
                "mean_steps": float(taken.mean()),
                "same_answers": float((answers == expected[0]).all(1).mean()),
                "same_steps": float((taken == expected[1]).mean()),
            }
            | ({"wait": wait(steps, size)} if name == WHOLE else {})
        )
    rounds = [[_timed(call)[0] for call in calls] for _ in range(repeats)]
    for row, least in zip(rows, np.min(rounds, axis=0), strict=True):
        row["puzzles_per_second"] = len(boards) / float(least)
    return rows


def wait(steps: np.ndarray, size: int) -> float:
    """Steps of the slowest board of a batch over those of a board, both in the mean: what lanes can
    gain over whole batches, if a row of either costs the same."""
    whole = len(steps) // size * size
    return float(steps[:whole].reshape(-1, size).max(1).mean() / steps.mean())


def measure_training(options, puzzles: Puzzles, *, compiled: bool, rounds=4, **timing) -> list:
    """A row for every way to make an update, timed in turns; the least time counts."""
    losses, calls = {}, {}
    for name, mesh in _meshes(options.batch_size).items():
        train_step, state = sudoku.make_member(options, puzzles, mesh)
        losses[name], calls[name] = float(_first_loss(state)), _ours(train_step, state, puzzles)
    if jax.default_backend() == "cpu" and importlib.util.find_spec("torch"):
        losses_there, calls_there = _torch_updates(options, puzzles, state, compiled)
        losses, calls = losses | losses_there, calls | calls_there
    times = {name: [] for name in calls}
    for _ in range(rounds if compiled else 1):
        for name, call in calls.items():
            times[name].append(1e3 * seconds_each(call, **timing))
    return [
        {
            "contender": name,
            "ms": min(times[name]),
            "rounds_ms": times[name],
            "over_actjax": min(times[name]) / min(min(times[n]) for n in times if "actjax" in n),
            "first_loss": losses[name],
        }
        for name in calls
    ]


def _meshes(lanes: int) -> dict[str, jax.sharding.Mesh | None]:
    """One device, and all of them, if they can share the lanes: on a CPU one a core."""
    count = jax.device_count()
    shared = {f"actjax, {count} devices": training.make_mesh()}
    return {"actjax": None} | (shared if count > 1 and lanes % count == 0 else {})


def _ours(train_step, state, puzzles: Puzzles):
    data, key = jax.tree.map(jnp.asarray, puzzles), jax.random.key(0)
    chunk = functools.lru_cache(lambda updates: training.make_chunk(train_step, updates))
    held = [jax.tree.map(jnp.copy, state)]

    def run(updates):
        held[0], _, metrics = chunk(updates)(held[0], key, data)
        return metrics

    return run


def _first_loss(state):
    lanes = state.extra.extra
    return supervised(state.model, lanes.batch, lanes.carried)[0]


def _torch_updates(options, puzzles: Puzzles, state, compiled: bool):
    """Updates in PyTorch from the same weights, and the loss of the same boards."""
    import torch
    import torch_recursive as peer

    torch.set_num_threads(machine()["cores"])
    weights, losses, calls = peer.weights_of(state.model), {}, {}
    lanes = state.extra.extra
    boards, targets = (torch.tensor(np.array(x)).long() for x in lanes.batch[:2])
    for how in ("eager", "compiled") if compiled else ("eager",):
        model = peer.Recursive(weights, puzzles.size, options)
        trainer = peer.Trainer(model, puzzles, options, compiled=how == "compiled")
        name = f"torch, {how}"
        losses[name] = float(trainer.step(boards, targets, *model.start(boards))[0].detach())

        def call(updates, trainer=trainer):
            for _ in range(updates):
                trainer.update()

        calls[name] = call
    return losses, calls


def _timed(call):
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def _of(rows: list[dict], way: str) -> list[dict]:
    return [row for row in rows if row["way"] == way]


def _cells(row: dict, best: dict) -> dict[str, str]:
    return {
        "way": f"{row['way']}, {row['size'] or 'default'}"
        + (" *" if best[row["way"]] is row else ""),
        "puzzles/s": f"{row['puzzles_per_second']:,.0f}",
        "steps": f"{row['mean_steps']:.2f}",
        "solved": f"{row['solved']:.2%}",
        "same answers": f"{row['same_answers']:.2%}",
        "same steps": f"{row['same_steps']:.2%}",
    }


def _update_cells(row: dict) -> dict[str, str]:
    return {
        "": row["contender"],
        "ms": f"{row['ms']:.2f}",
        "over actjax": f"{row['over_actjax']:.2f}",
        "first loss": f"{row['first_loss']:.5f}",
    }


def _text(value):
    return str(value) if isinstance(value, pathlib.Path) else value


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", machine()["cores"])
    main()
