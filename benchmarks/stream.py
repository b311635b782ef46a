"""Streamed inference beside whole batches, on lines of Wikipedia of mixed lengths.

    python benchmarks/stream.py [--train 300] [--out benchmarks/results/stream-cpu.json]

An ACT network (GRU 128), and an LFACT one, is trained on the text for a while, then reads lines of
the held-out part in the order of the text: `stream` with lanes kept full, and whole batches, which
wait for whichever line takes longest. Cell steps are those of all lanes, idle ones too. Beside
them, of ACT on windows of 500 characters, the iterations that the lanes take over sum(N) / lanes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from ponder import schedule
from timing import first_and_least, make_parser, write

import actjax
from actjax import _stream as streaming
from actjax import training
from actjax.tasks import text
from experiments import run
from experiments.data import load_text
from experiments.network import make_network
from experiments.tasks import wikipedia

CHUNKS = (32, 64, 128)


def main():
    counts = {"train": 300, "lines": 512, "longest": 400, "lanes": 64, "repeats": 3}
    arguments = make_parser(__doc__, **counts).parse_args()
    begin, held_out = text.split(load_text("wikipedia"))
    rows, iterations = [], []
    for model in ("act", "lfact"):
        core = trained(model, arguments.train, begin)
        rows += measure(model, core, held_out, arguments)
        if model == "act":
            iterations = count_iterations(core, held_out)
    for row in rows:
        print(
            f"{row['model']:6} {row['name']:20} {row['characters_per_second']:10.0f} characters/s "
            f"{row['gain']:5.2f} x {row['cell_steps']:8} cell steps, {row['saved']:5.1%} saved"
        )
    for row in iterations:
        print(f"{row['lanes']:3} lanes: iterations / floor {row['over_floor']:.3f}")
    write(arguments.out, vars(arguments), rows=rows, iterations=iterations)


def measure(model: str, core, held_out: np.ndarray, arguments) -> list[dict]:
    """Time and cell steps, of idle lanes too, for the same lines in whole batches and streamed."""
    lines = read_lines(held_out, arguments.lines, arguments.longest)
    lengths = np.array([len(line) for line in lines])
    lanes = arguments.lanes
    whole = jax.jit(lambda core, xs, lengths: core(xs, lengths=lengths)[1:])

    def in_batches():
        cell_steps = 0
        for start in range(0, len(lines), lanes):
            batch = lines[start : start + lanes]
            batch += [np.zeros((0, text.SYMBOLS), np.float32)] * (lanes - len(batch))
            xs = np.zeros((lanes, arguments.longest, text.SYMBOLS), np.float32)
            for row, line in zip(xs, batch, strict=True):
                row[: len(line)] = line
            _, ponder = jax.device_get(whole(core, xs, np.array([len(line) for line in batch])))
            cell_steps += lanes * int(ponder.steps.sum(1).max())  # all wait for the slowest
        return cell_steps

    def streamed(chunk):
        return lambda: (
            lanes * count_turns(lambda: actjax.stream_batch(core, lines, lanes=lanes, chunk=chunk))
        )

    contenders = {"whole batches": in_batches}
    contenders |= {f"stream, chunk {chunk}": streamed(chunk) for chunk in CHUNKS}
    rows = []
    for name, function in contenders.items():
        first, least, cell_steps = first_and_least(function, arguments.repeats)
        row = {"model": model, "name": name, "seconds": least, "first_call_s": first}
        rows.append(row | {"cell_steps": cell_steps})
    for row in rows:
        row["characters_per_second"] = lengths.sum() / row["seconds"]
        row["gain"] = rows[0]["seconds"] / row["seconds"]
        row["saved"] = 1 - row["cell_steps"] / rows[0]["cell_steps"]
    found = actjax.stream_batch(core, lines, lanes=lanes)
    steps = np.concatenate([result.steps for result in found])
    rows[0] |= {
        "characters": int(lengths.sum()),
        "length_mean": lengths.mean(),
        "length_max": int(lengths.max()),
        "ponder_steps": float(steps.mean()),
        "cell_steps_needed": int(steps.sum()),
    }
    return rows


def count_turns(run) -> int:
    """Iterations of the loops of all turns of a stream."""
    turn, counts = streaming._turn, []

    def counted(*arguments):
        state, *rest = turn(*arguments)
        counts.append(state.iterations + 0)  # the state itself is given away
        return state, *rest

    streaming._turn = counted
    try:
        run()
    finally:
        streaming._turn = turn
    return int(sum(map(int, counts)))


def count_iterations(core: actjax.ACT, held_out: np.ndarray) -> list[dict]:
    """Of 64 windows of 500 characters, by lanes."""
    batch, window = 64, 500
    xs = jax.nn.one_hot(held_out[: batch * window].reshape(batch, window), text.SYMBOLS)
    steps = np.asarray(jax.jit(lambda core, xs: core(xs)[2].steps)(core, xs))
    rows = []
    for lanes in (64, 32, 16):
        over_floor = schedule(steps, lanes) * lanes / int(steps.sum())
        rows.append({"lanes": lanes, "ponder_steps": float(steps.mean()), "over_floor": over_floor})
    return rows


def trained(model: str, updates: int, corpus: np.ndarray) -> actjax.ACT | actjax.LFACT:
    options = dataclasses.replace(wikipedia.PRESETS["demo"], model=model)
    parts = wikipedia.sampler(options), wikipedia.objective(options)
    step, start = run.recipe(options, *parts, tau=options.tau)
    data = wikipedia.Data(jnp.asarray(corpus), None)
    state = start(make_network(options, options.seed, text.SYMBOLS, text.SYMBOLS))
    if updates:
        state, _, _ = training.make_chunk(step, updates)(state, jax.random.key(0), data)
    return state.model.core


def read_lines(held_out: np.ndarray, count: int, longest: int) -> list[np.ndarray]:
    """The first lines that are not empty, one-hot, cut at `longest` bytes."""
    lines = [line[:longest] for line in held_out.tobytes().split(b"\n") if line][:count]
    one_hot = np.eye(text.SYMBOLS, dtype=np.float32)
    return [one_hot[np.frombuffer(line, np.uint8)] for line in lines]


if __name__ == "__main__":
    main()
