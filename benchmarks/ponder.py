"""What adaptive computation costs: the loops against each other, the plain RNN and the floor.

    python benchmarks/ponder.py [--setting NAME ...] [--out FILE] [--quick]

Every row is one way to run the same ACT network on the same inputs of unit variance:

  while, n lanes  `actjax.unroll`, the default loop
  scan            every input takes all M steps, masked
  scan+cond       the same, but steps are skipped once every example has halted
  nested while    a scan over time with `actjax.ponder` at every input
  plain           `actjax.RNN`: the cell once for each input

`forward` is the loss alone, `train` the loss, its gradient and Adam. One dispatch does many updates
with a rate of 1e-9, which keeps the ponders as they are; times are the least of the repeats.
`floor` is the time of the products that no implementation avoids: h W and dz W^T for sum(N) / lanes
iterations and one weight gradient of sum(N) rows. `iterations` are those of the lanes' schedule,
over sum(N) / lanes. `memory` is what the compiled training program needs besides its arguments.
`first call` is tracing, compilation and one update.

A full run takes about 6 minutes on two quiet cores.
"""

import argparse
import dataclasses
import heapq
import math
import pathlib
import sys
import time
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from loops import EPSILON, contenders
from timing import ROOT, machine, new_file, save, seconds_each

import actjax
from experiments.record import environment, print_table

OPTIMIZER = optax.adam(1e-9)
# Initial bias of the halting unit and a factor on its kernel: mean ponders near 2, 4, 9, and M.
LEVELS = {"2": (1.0, 1.0), "4": (-1.0, 2.0), "9": (-2.0, 2.0), "M": (-20.0, 1.0)}


@dataclasses.dataclass(frozen=True)
class Setting:
    """One network and the shape of its inputs."""

    batch: int
    time: int
    features: int
    hidden: int
    cell: Callable
    gates: int
    max_steps: int
    levels: tuple[str, ...]
    parts: tuple[int, ...] = (1, 2, 4)  # lanes are batch // part

    def model(self, level: str) -> actjax.ACT:
        model = actjax.ACT(
            self.features,
            self.hidden,
            cell=self.cell,
            max_steps=self.max_steps,
            epsilon=EPSILON,
            rngs=nnx.Rngs(0),
        )
        bias, factor = LEVELS[level]
        model.halt.bias[...] = jnp.full_like(model.halt.bias[...], bias)
        model.halt.kernel[...] = factor * model.halt.kernel[...]
        return model

    def plain(self) -> actjax.RNN:
        return actjax.RNN(self.features, self.hidden, cell=self.cell, rngs=nnx.Rngs(0))

    @property
    def lane_counts(self) -> list[int]:
        return [self.batch // part for part in self.parts]

    def inputs(self) -> jax.Array:
        return jax.random.normal(jax.random.key(0), (self.batch, self.time, self.features))


SETTINGS = {
    "parity": Setting(128, 1, 64, 128, nnx.SimpleCell, 1, 100, ("2", "4", "9", "M")),
    "addition": Setting(32, 5, 50, 512, nnx.OptimizedLSTMCell, 4, 20, ("2", "4", "M")),
    "text": Setting(64, 50, 256, 128, nnx.GRUCell, 3, 20, ("2", "4", "9")),
    "text-lstm": Setting(16, 100, 256, 512, nnx.OptimizedLSTMCell, 4, 20, ("2", "4")),
}


# --- Programs: run(carry, xs, updates) does so many updates in one dispatch ----------------------


def make_training(apply):
    def loss(model, xs):
        outputs, ponder = apply(model, xs)
        return jnp.mean(outputs**2) + 1e-3 * jnp.mean(ponder.cost)

    def update(carry, xs):
        model, opt_state, _ = carry
        value, gradient = jax.value_and_grad(loss)(model, xs)
        updates, opt_state = OPTIMIZER.update(gradient, opt_state, model)
        return optax.apply_updates(model, updates), opt_state, value

    def run(carry, xs, updates):
        return lax.fori_loop(0, updates, lambda _, carry: update(carry, xs), carry)

    return run


def make_forward(apply):
    def one(carry, model):
        xs, _, _ = carry
        outputs, ponder = apply(model, xs)
        value = jnp.mean(outputs**2)
        # An input that depends on the last result: nothing can be taken out of the loop.
        xs = xs.at[0, 0, 0].add(1e-9 * value)
        return xs, value, ponder.steps

    def run(carry, model, updates):
        return lax.fori_loop(0, updates, lambda _, carry: one(carry, model), carry)

    return run


def adam_run(carry, gradient, updates):
    """The optimizer alone, which every training step of the network has."""

    def update(_, carry):
        model, opt_state = carry
        updates, opt_state = OPTIMIZER.update(gradient, opt_state, model)
        return optax.apply_updates(model, updates), opt_state

    return lax.fori_loop(0, updates, update, carry)


def floor_run(carry, arguments, updates):
    """The matrix products of a training step, one after another as the recurrence has them."""
    weights, dz, iterations = arguments

    def both(_, h):
        return lax.dot_general(h @ weights, weights, (((1,), (1,)), ((), ())))

    def update(_, carry):
        h, rows, _ = carry
        h = lax.fori_loop(0, iterations, both, h)
        rows = rows.at[0].set(h[0])
        return h, rows, lax.dot_general(rows, dz, (((0,), (0,)), ((), ())))

    return lax.fori_loop(0, updates, update, carry)


class Program:
    """A compiled program, whose carry is donated."""

    def __init__(self, run, carry, argument):
        began = time.perf_counter()
        carry = own(carry)
        jitted = jax.jit(run, donate_argnums=0)
        self.compiled = jitted.lower(carry, argument, jnp.int32(1)).compile()
        self.seconds = time.perf_counter() - began

    def time(self, carry, argument, **options):
        """Seconds of an update, and the last carry."""
        carry = own(carry)

        def call(updates):
            nonlocal carry
            carry = self.compiled(carry, argument, jnp.int32(updates))
            return carry

        return seconds_each(call, **options), carry


def own(tree):
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)


# --- Measurement ---------------------------------------------------------------------------------


def schedule(steps: np.ndarray, lanes: int) -> int:
    """Iterations in which the lanes do all sequences: each takes the next as it comes free."""
    loads = [0] * lanes
    for load in steps.sum(axis=1):
        heapq.heappush(loads, heapq.heappop(loads) + int(load))
    return max(loads)


def measure_floor(setting: Setting, lanes: int, total: int, **options) -> float:
    hidden, wide = setting.hidden, setting.gates * setting.hidden
    key = jax.random.key(1)
    # W W^T has no eigenvalue above 1, so that h stays finite.
    scale = 1 / (math.sqrt(hidden) + math.sqrt(wide))
    weights = scale * jax.random.normal(key, (hidden, wide))
    rows, dz = (jax.random.normal(key, (total, n)) for n in (hidden, wide))
    carry = jnp.ones((lanes, hidden)), rows, jnp.zeros((hidden, wide))
    argument = weights, dz, jnp.int32(math.ceil(total / lanes))
    return Program(floor_run, carry, argument).time(carry, argument, **options)[0]


def measure(name: str, setting: Setting, **options) -> list[dict]:
    """All rows of one setting. A contender is compiled once for all levels."""
    xs, rows = setting.inputs(), []
    for contender, apply in contenders(setting.lane_counts).items():
        is_plain = contender == "plain"
        levels = ("1",) if is_plain else setting.levels
        models = {n: setting.plain() if is_plain else setting.model(n) for n in levels}
        states = {n: (m, OPTIMIZER.init(m), jnp.float32(0)) for n, m in models.items()}
        start = xs, jnp.float32(0), jnp.zeros(xs.shape[:2], jnp.int32)
        first = levels[0]
        training = Program(make_training(apply), states[first], xs)
        forward = Program(make_forward(apply), start, models[first])
        for level in levels:
            train, (_, _, loss) = training.time(states[level], xs, **options)
            evaluate, (_, _, steps) = forward.time(start, models[level], **options)
            row = {
                "setting": name,
                "level": level,
                "contender": contender,
                "loss": float(loss),
                "mean_ponder": float(np.mean(steps)),
                "max_ponder": int(np.max(steps)),
                "forward_ms": 1e3 * evaluate,
                "train_ms": 1e3 * train,
                "memory_mb": training.compiled.memory_analysis().temp_size_in_bytes / 1e6,
                "first_call_s": training.seconds + train,
                "first_forward_call_s": forward.seconds + evaluate,
            }
            if is_plain:
                carry = states[level][:2]
                adam = Program(adam_run, carry, carry[0])
                row["adam_ms"] = 1e3 * adam.time(carry, carry[0], **options)[0]
            else:
                per_step = row["mean_ponder"] * rows[0]["train_ms"]
                row["train_over_plain_steps"] = row["train_ms"] / per_step
            if contender.startswith("while"):
                lanes, total = int(contender.split()[1]), int(np.sum(steps))
                row["iterations"] = schedule(np.asarray(steps), lanes)
                row["iterations_over_floor"] = row["iterations"] * lanes / total
                row["floor_ms"] = 1e3 * measure_floor(setting, lanes, total, **options)
                row["train_over_floor"] = row["train_ms"] / row["floor_ms"]
            rows.append(row)
            print(f"{name}, {level}, {contender}: {row['train_ms']:.3f} ms", file=sys.stderr)
    return rows


def ratios(rows: list[dict], settings: dict[str, Setting]) -> list[dict]:
    """The figures asked of the package, each beside its bound."""
    cell = {(r["setting"], r["level"], r["contender"]): r for r in rows}
    found = []

    def add(figure, value, low=None, high=None):
        met = value >= low if low is not None else value <= high
        bound = f">= {low:g}" if low is not None else f"<= {high:g}"
        found.append({"figure": figure, "value": value, "bound": bound, "met": bool(met)})

    for name, setting in settings.items():
        for level in setting.levels:
            at = f"{name}, N {cell[name, level, 'scan']['mean_ponder']:.1f}"
            full, scan = (
                cell[name, level, key] for key in (f"while, {setting.batch} lanes", "scan")
            )
            for kind in ("train", "forward"):
                gain = scan[f"{kind}_ms"] / full[f"{kind}_ms"]
                if level == "2" and name in ("parity", "addition"):
                    add(f"{at}: scan / while, {kind}", gain, low=12 if name == "parity" else 8)
                if level == "M":
                    add(f"{at} = M: while / scan, {kind}", 1 / gain, high=1)
            losses = [r["loss"] for r in rows if (r["setting"], r["level"]) == (name, level)]
            add(f"{at}: losses apart, relative", max(losses) / min(losses) - 1, high=1e-3)
            if setting.gates == 4:
                add(f"{at}: train / floor", full["train_over_floor"], high=2)
                add(f"{at}: train / (N x plain)", full["train_over_plain_steps"], high=1.2)
            lanes = {"text": setting.batch, "parity": min(setting.lane_counts)}.get(name)
            if lanes is not None and level != "M":
                row = cell[name, level, f"while, {lanes} lanes"]
                figure = f"{at}: iterations / floor, {lanes} lanes"
                add(figure, row["iterations_over_floor"], high=1.5)
        calls = [r for r in rows if r["setting"] == name and r["contender"].startswith("while")]
        add(f"{name}: first training call, s", max(r["first_call_s"] for r in calls), high=5)
    return found


COLUMNS = {
    "forward ms": ("forward_ms", ".3f"),
    "train ms": ("train_ms", ".3f"),
    "floor ms": ("floor_ms", ".3f"),
    "/ floor": ("train_over_floor", ".2f"),
    "/ (N plain)": ("train_over_plain_steps", ".2f"),
    "iterations": ("iterations_over_floor", ".2f"),
    "memory MB": ("memory_mb", ".1f"),
    "first call s": ("first_call_s", ".1f"),
}


def report(result: dict):
    def cells(row):
        yield "", f"{row['setting']}, N {row['mean_ponder']:.2f}, {row['contender']}"
        for title, (key, form) in COLUMNS.items():
            yield title, format(row[key], form) if key in row else ""

    by_level = sorted(result["rows"], key=lambda r: (r["setting"], r["mean_ponder"]))
    print_table("Adaptive computation", [dict(cells(row)) for row in by_level])
    figures = [
        {
            "": figure["figure"],
            "value": f"{figure['value']:.3g}",
            "bound": figure["bound"],
            "met": "yes" if figure["met"] else "no",
        }
        for figure in result["ratios"]
    ]
    print_table("Figures asked", figures)


def quick(setting: Setting) -> Setting:
    smaller = {"batch": 8, "time": min(setting.time, 3), "features": 4, "hidden": 8}
    ends = setting.levels[0], setting.levels[-1]
    return dataclasses.replace(setting, **smaller, max_steps=10, levels=ends, parts=(1,))


def main(arguments=None):
    described = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=described)
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    default = ROOT / "benchmarks" / "results" / "ponder-cpu.json"
    parser.add_argument("--out", type=new_file, help=f"JSON file (by default {default.name})")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; writes only with --out")
    options = parser.parse_args(arguments)

    settings = {n: quick(s) if options.quick else s for n, s in SETTINGS.items()}
    settings = {n: settings[n] for n in dict.fromkeys(options.setting)}
    timing = {"target": 0.005, "repeats": 2} if options.quick else {}
    result = {**environment(), **machine(), "command": " ".join(["python", *sys.argv])}
    result["settings"] = {
        n: {**dataclasses.asdict(s), "cell": s.cell.__name__} for n, s in settings.items()
    }
    began = time.perf_counter()
    result["rows"] = [row for n, s in settings.items() for row in measure(n, s, **timing)]
    result["ratios"] = ratios(result["rows"], settings)
    result["wall_s"] = time.perf_counter() - began
    report(result)
    out = options.out or (None if options.quick else default)
    save(out, result)


if __name__ == "__main__":
    main()
