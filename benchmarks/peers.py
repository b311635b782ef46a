"""ACT in PyTorch beside this package: the time of a training step, and whose numbers are right.

    python benchmarks/peers.py [--part parity addition conformance] [--out FILE] [--quick]

A file that is there already keeps its other parts.

Needs PyTorch (the extra `bench`) and the package pytorch-adaptive-computation-time, whose own
requirements exclude every PyTorch since 2.0: install it with pip's `--no-deps`. Contenders:

  actjax          `actjax.ACT`, jitted, with the default and one other number of lanes. A dispatch
                  does many updates, as in training, or one, where the row says "a dispatch each"
  torch, masked   ACT as one writes it: the whole batch steps on until its last row has halted
  torch, compact  rows leave the batch as they halt
  PyPI package    its `AdaptiveCellWrapper` around torch's `RNNCell`, or around an LSTM

A training step is forward, backward and Adam (fused in PyTorch) with the same float32 weights and
inputs, on as many threads as there are cores; the rate of 1e-9 keeps the ponders as they are. Times
are the least of rounds in which the contenders take turns; "matrix products alone" is the floor of
`ponder.py`. What a PyTorch network has inside of its loop is "eager" or "compiled"; the loop itself
cannot be, since its end depends on the data.

The last table has the largest differences to the NumPy float64 reference (`conformance.py`). The
PyPI package tells no R, for which the last weight stands here, and its cost is meant for its
gradient alone.
"""

import argparse
import functools
import json
import pathlib
import shlex
import sys
import time
from importlib import metadata

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
import ponder
from conformance import CASES, STEPS, as_weights, conformance, set_halting
from timing import machine, new_file, save, seconds_each

from experiments.record import environment, print_table

PACKAGE = "pytorch-adaptive-computation-time"
EPSILON = ponder.EPSILON
FLOOR = "matrix products alone"
CELLS = {1: "rnn", 4: "lstm"}  # by the gates of `ponder.Setting`
# The other number of lanes, the rounds of timing and, by the mean N, the bias of the halting unit
# and a factor on its kernel, as in `ponder.LEVELS`.
SETTINGS = {
    "parity": (64, 12, {"2": (1.0, 1.0), "5": (-0.5, 2.0)}),
    "addition": (32, 4, {"2": (1.0, 1.0), "5": (-1.0, 2.0)}),
}
NEEDS = (
    "benchmarks/peers.py compares with PyTorch: it needs `pip install 'torch>=2.5'` and "
    "`pip install --no-deps pytorch-adaptive-computation-time` ({} is missing)."
)


def import_torch():
    """Returns the modules `torch` and `torch_peers`."""
    try:
        import pytorch_adaptive_computation_time  # noqa: F401
        import torch
        import torch_peers
    except ModuleNotFoundError as error:
        sys.exit(NEEDS.format(error.name))
    torch.set_num_threads(machine()["cores"])
    return torch, torch_peers


# --- Speed ---------------------------------------------------------------------------------------


def facts(steps) -> dict:
    return {"mean_ponder": float(np.mean(steps)), "max_ponder": int(np.max(steps))}


def ours(setting, model, lanes: int | None) -> dict:
    """`actjax.ACT` with so many lanes, ``{how: (call, facts)}``."""

    def apply(model, xs):
        _, outputs, record = model(xs)
        return outputs, record

    xs, model.lanes = setting.inputs(), lanes
    carry = ponder.own((model, ponder.OPTIMIZER.init(model), jnp.float32(0)))
    program = ponder.Program(ponder.make_training(apply), carry, xs).compiled
    once, told = jnp.int32(1), facts(jax.jit(apply)(model, xs)[1].steps)

    def many(updates):
        nonlocal carry
        carry = program(carry, xs, jnp.int32(updates))
        return carry

    def each(updates):
        nonlocal carry
        for _ in range(updates):
            carry = program(carry, xs, once)
        return carry

    name = f"actjax, {f'{lanes} lanes' if lanes else 'default lanes'}"
    return {name: (many, told), f"{name}, a dispatch each": (each, told)}


def theirs(torch, network, xs):
    """A PyTorch network: ``(call, facts)``."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-9, fused=True)

    def call(updates):
        for _ in range(updates):
            answer = network(xs)
            loss = (answer.outputs**2).mean() + 1e-3 * answer.cost
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return call, facts(network(xs).steps.detach().numpy())


def measure(name, setting, torch, torch_peers, *, quick: bool) -> list[dict]:
    """The rows of one setting."""
    other, rounds, levels = SETTINGS[name]
    compiled, rounds = not quick, 1 if quick else rounds
    timing = {"target": 0.005} if quick else {}
    xs, rows = torch.tensor(np.asarray(setting.inputs())), []
    options = {"cell": CELLS[setting.gates], "max_steps": setting.max_steps, "epsilon": EPSILON}
    for level, halting in levels.items():
        model = set_halting(setting.model("2"), *halting)
        weights = {k: np.asarray(v) for k, v in as_weights(model).items()}
        networks = torch_peers.contenders(weights, compiled=compiled, **options)
        networks["PyPI package"] = torch_peers.Package(weights, **options)
        contenders = ours(setting, model, None) | ours(setting, model, min(other, setting.batch))
        contenders |= {who: theirs(torch, network, xs) for who, network in networks.items()}
        # They take turns, so that a slow moment of the machine is not one contender's.
        times = {who: [] for who in contenders}
        for _ in range(rounds):
            for who, (call, _) in contenders.items():
                times[who].append(1e3 * seconds_each(call, repeats=1, **timing))
        for who, (_, told) in contenders.items():
            row = {"setting": name, "level": level, "contender": who, **told}
            rows.append(row | {"train_ms": min(times[who]), "rounds_ms": times[who]})
            print(f"{name}, {level}, {who}: {min(times[who]):.3f} ms", file=sys.stderr)
        _, told = next(iter(contenders.values()))
        total = round(told["mean_ponder"] * setting.batch * setting.time)
        floor = 1e3 * ponder.measure_floor(setting, setting.batch, total, **timing)
        row = {"setting": name, "level": level, "contender": FLOOR, **told}
        rows.append(row | {"train_ms": floor})
    if compiled:
        network = torch.compile(networks["torch, masked, eager"], fullgraph=True)
        row = {"setting": name, "contender": "torch, masked, compiled in one graph"}
        rows.append(row | {"error": first_line(network, xs)})
    return rows


def first_line(call, *arguments) -> str | None:
    """The first line of the error that a call ends with, if it does."""
    try:
        call(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None


def ratios(rows: list[dict]) -> list[dict]:
    """How much faster than the fastest correct PyTorch this package is, at each setting."""
    found, timed = [], [row for row in rows if "train_ms" in row]
    for setting, level in dict.fromkeys((row["setting"], row["level"]) for row in timed):
        here = [row for row in timed if (row["setting"], row["level"]) == (setting, level)]
        here.sort(key=lambda row: row["train_ms"])
        torch_row = next(row for row in here if row["contender"].startswith("torch"))
        own = [row for row in here if row["contender"].startswith("actjax")]
        each = [row for row in own if row["contender"].endswith("a dispatch each")]
        for kind, row in {"": own[0], ", a dispatch each": each[0]}.items():
            value = torch_row["train_ms"] / row["train_ms"]
            found.append(
                {
                    "figure": f"{setting}, N {row['mean_ponder']:.1f}: torch / actjax{kind}",
                    "setting": setting,
                    "level": level,
                    "fastest": [torch_row["contender"], row["contender"]],
                    "value": value,
                    "bound": ">= 3",
                    "met": value >= 3,
                }
            )
    return found


# --- Report --------------------------------------------------------------------------------------


def report(result: dict):
    speed = [
        {
            "": f"{row['setting']}, {row['contender']}",
            "mean N": f"{row['mean_ponder']:.2f}",
            "max N": str(row["max_ponder"]),
            "train ms": f"{row['train_ms']:.3f}",
        }
        for row in result["rows"]
        if "train_ms" in row
    ]
    if speed:
        print_table("A training step", speed)
    for row in result["rows"]:
        if row.get("error"):
            print(f"{row['setting']}, {row['contender']}: {row['error']}")
    figures = [
        {
            "": figure["figure"],
            "value": f"{figure['value']:.2f}",
            "bound": figure["bound"],
            "met": "yes" if figure["met"] else "no",
            "fastest": " / ".join(figure["fastest"]),
        }
        for figure in result["ratios"]
    ]
    if figures:
        print_table("Figures asked", figures)
    if rows := [readable(row) for row in result["conformance"]]:
        print_table("Largest differences to the reference", rows)


def readable(row: dict) -> dict[str, str]:
    form = lambda value, spec: "-" if value is None else format(value, spec)
    cells = {"": f"{row['cell']}, {row['case']}, {row['contender']}"}
    for key in ("steps", "remainder", "weights", "outputs", "cost"):
        cells[key] = form(row[key], ".1e")
    for key in ("cosine_ponder", "cosine_task"):
        cells[key.replace("_", " ")] = form(row[key], ".6f")
    largest = f"{row['steps_max']}, {row['weights_max']}"
    return cells | {"largest N told, taken": largest, "sum p": f"{row['weights_sum']:.6f}"}


def run(parts: list[str], torch, torch_peers, *, quick: bool) -> dict:
    """The results of some parts, with where and how long they ran."""
    result = {"rows": [], "conformance": [], "parts": {}}
    command = shlex.join(["python", "benchmarks/peers.py", *sys.argv[1:]])
    for part in parts:
        began = time.perf_counter()
        if part == "conformance":
            peers = functools.partial(torch_peers.conformants, compiled=not quick)
            cases = {"bias -1": CASES["bias -1"]} if quick else CASES
            result[part] = [row for cell in STEPS for row in conformance(cell, cases, peers)]
        else:
            setting = ponder.SETTINGS[part]
            setting = ponder.quick(setting) if quick else setting
            result["rows"] += measure(part, setting, torch, torch_peers, quick=quick)
        wall_s = time.perf_counter() - began
        result["parts"][part] = {**machine(), "command": command, "wall_s": wall_s}
    return result


def merge(old: dict, new: dict) -> dict:
    """The parts of `new` beside those that only `old` has."""
    rows = [row for row in old.get("rows", []) if row["setting"] not in new["parts"]]
    rows = sorted(rows + new["rows"], key=lambda row: list(SETTINGS).index(row["setting"]))
    return {
        "rows": rows,
        "ratios": ratios(rows),
        "conformance": new["conformance"] or old.get("conformance", []),
        "parts": old.get("parts", {}) | new["parts"],
    }


def main(arguments=None):
    described = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=described)
    parts = [*SETTINGS, "conformance"]
    parser.add_argument("--part", nargs="+", choices=parts, default=parts, metavar="PART")
    parser.add_argument("--out", type=new_file, help="JSON file")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, nothing compiled by torch"
    )
    options = parser.parse_args(arguments)
    torch, torch_peers = import_torch()

    new = run(list(dict.fromkeys(options.part)), torch, torch_peers, quick=options.quick)
    old = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    result = {**environment(), **machine(), "command": "python benchmarks/peers.py"}
    result["versions"] |= {name: metadata.version(name) for name in ("torch", PACKAGE)}
    result["threads"] = torch.get_num_threads()
    result |= merge(old, new)
    report(result)
    save(options.out, result)


if __name__ == "__main__":
    main()
