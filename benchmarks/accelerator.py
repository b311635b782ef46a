"""Everything on one card: what adaptive training costs there, and where the time goes.

    python benchmarks/accelerator.py [--budget 330] [--only PART ...] [--out FILE] [--quick]

The parts of `PARTS` are measured in their order, the cheap and decisive first, until the seconds of
the budget are spent. Each has a share of what is left when it begins, and compiles nothing more
after that; what it leaves goes to those after it, and what it does not reach is told. ``--only
torch grid`` is those parts alone, with the whole budget. The record is written after every row, so
that it holds what was reached.

A training step is forward, backward and Adam, many in one dispatch; times are the least of the
repeats.

  / (N plain)    the time over mean N times the plain RNN's
  kernels, busy  of one step from the profile: launches, and the share of the time in which one runs
  an iteration   launches and products of both passes over the lanes' iterations
  of the rate    the recurrent products' rate over the measured rate of large products

`command buffers` compiles the same program with predicates of loops that stay on the card. The grid
of Graves 2016 is some updates of its 800 networks, extrapolated to 10,000. PyTorch and cuDNN are
there where `torch` is installed.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import re
import time
from collections.abc import Callable, Iterator

import accelerator_rows as make
import card
import jax
import numpy as np
from accelerator_rows import LEVELS, SETTINGS, Row
from hlo import loops
from timing import ROOT

import actjax

GRID_UPDATES = 10_000
ALL = ("plain", "while", "kernel", "while, command buffers")
TOGETHER = 12  # programs compiled side by side


def training(names, ways=ALL) -> Callable[[bool], Iterator[Row]]:
    return lambda small: make.training_rows(small, names, ways, "training")


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows that are measured together.

    Attributes:
      share: of the budget, beside those of the other parts.
      rows: what is compiled and timed; None for what has a function in `OTHERS`.
    """

    share: int
    rows: Callable[[bool], Iterator[Row]] | None


PARTS = {
    "small": Part(60, training(("parity", "text"))),
    "lstm": Part(
        60, training(("text-lstm", "addition"), ("plain", "while", "while, command buffers"))
    ),
    "torch": Part(60, None),
    "optimizer": Part(20, make.optimizer_rows),
    "sweeps": Part(40, make.sweep_rows),
    "large": Part(
        50, training(("wiki bf16 1536", "wiki bf16", "big", "big bf16"), ("plain", "while"))
    ),
    "halves": Part(15, training(("text bf16", "text-lstm 256"), ("plain", "while", "kernel"))),
    "lfact": Part(15, make.lfact_rows),
    "stream": Part(10, None),
    "others": Part(20, training(("parity", "addition", "text"), ("scan", "nested while"))),
    "shapes": Part(30, make.shape_rows),
    "buffers": Part(15, training(("big bf16", "wiki bf16 1536"), ("while, command buffers",))),
    "grid": Part(40, make.grid_rows),
}


class Run:
    """The record, its file, and the time that is left."""

    def __init__(self, out: pathlib.Path | None, budget: float, quick: bool):
        self.out, self.quick, self.began = out, quick, time.perf_counter()
        self.end = self.deadline = self.began + budget
        self.record = {**card.facts(), "seconds": budget, "ceilings": {}, "parts": [], "rows": []}
        self.plain: dict[str, float] = {}

    @property
    def spent(self) -> bool:
        """Whether the part at work has had its time."""
        return time.perf_counter() > self.deadline

    @property
    def over(self) -> bool:
        """Whether the budget is spent."""
        return time.perf_counter() > self.end

    def begin(self, name: str, shares: int) -> None:
        """Gives a part its share of what is left, of `shares` with those that come after it."""
        left = max(0.0, self.end - time.perf_counter())
        given = left * PARTS[name].share / shares
        self.deadline = time.perf_counter() + given
        self.record["parts"].append({"part": name, "given_s": given, "left_out": []})
        print(f"--- {name}: {given:.0f} of the {left:.0f} s that are left", flush=True)

    def finish(self) -> None:
        part = self.record["parts"][-1]
        part["wall_s"] = part["given_s"] - (self.deadline - time.perf_counter())
        left_out = f"; not reached: {', '.join(part['left_out'])}" if part["left_out"] else ""
        print(f"--- {part['part']}: took {part['wall_s']:.0f} s{left_out}", flush=True)
        self.write()

    def leave_out(self, *names: str) -> None:
        self.record["parts"][-1]["left_out"].extend(names)

    def add(self, row: dict) -> None:
        self.record["rows"].append(row)
        self.record["wall_s"] = time.perf_counter() - self.began
        print(line(row), flush=True)
        self.write()

    def write(self) -> None:
        if self.out:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(json.dumps(self.record, indent=1) + "\n")


# --- Rows of programs ----------------------------------------------------------------------------


def measure_ceilings(run: Run) -> None:
    size, copied = (64, 1000) if run.quick else (8192, 1 << 28)
    programs = card.ceilings(size, copied)
    card.compile_all(programs)
    for program in programs:
        if program.error:
            run.add({"group": "ceilings", "name": program.name, "error": program.error})
            continue
        rate = card.rate(program, card.milliseconds(program, **timing(run)), size, copied)
        run.record["ceilings"][program.name] = rate
        run.add({"group": "ceilings", "name": program.name, **rate})


def timing(run: Run) -> dict:
    return {"target": 0.001, "repeats": 1} if run.quick else {}


def measure_rows(run: Run, rows: Iterator[Row]) -> None:
    """Makes and compiles rows side by side, then measures them one after another.

    What is compiled is measured, be the part's time spent or not: only the budget ends that.
    """
    while not run.spent:
        together = list(itertools.islice(rows, TOGETHER))
        card.compile_all([row.program for row in together])
        # The least ponders first: of all ways before more of any.
        for level in dict.fromkeys(level for row in together for level in row.carries):
            for row in together:
                if level in row.carries and run.over:
                    run.leave_out(" ".join(filter(None, (row.program.name, level))))
                elif level in row.carries:
                    run.add(measured(run, row, level))
        for row in together:
            row.program.compiled = row.carries = None  # and their buffers
        if len(together) < TOGETHER:
            return
    run.leave_out("all that was not compiled")


def measured(run: Run, row: Row, level: str) -> dict:
    found = {"group": row.group, "name": row.name, "way": row.way, "level": level, **row.facts}
    found["compile_s"] = row.program.compile_s
    try:
        if row.program.error:
            raise RuntimeError(row.program.error)
        last = None
        call = row.program.call(row.carries[level])

        def counted(updates):
            nonlocal last
            last = call(updates)
            return last

        limits = {"target": 0.06, "repeats": 2} | timing(run)
        found["ms"] = 1e3 * card.seconds_each(counted, **limits) / row.per
        found |= row.read(last)
        if row.profiled and level == next(iter(row.carries)):
            found |= card.profile(lambda: counted(1))
            if not found.get("kernels"):
                text = row.program.compiled.as_text()
                found["launches_in_loops"] = [loop.launches for loop in loops(text)]
    except Exception as error:
        return found | {"error": card.in_short(error)}
    return found | derived(run, row, found)


def derived(run: Run, row: Row, found: dict) -> dict:
    """What the figures say together."""
    more = {}
    if row.way == "plain":
        run.plain[row.name] = found["ms"]
    elif row.setting is not None and row.name in run.plain:
        more["over_plain"] = found["ms"] / (found["mean_ponder"] * run.plain[row.name])
    if found.get("kernels") and found.get("iterations"):
        for name in ("kernels", "products"):
            more[f"{name}_an_iteration"] = found[name] / found["iterations"]
    if row.setting is not None:
        steps = found["mean_ponder"] * row.setting.batch * row.setting.time
        rate = row.setting.flops(steps) / found["ms"] / 1e9
        kind = "bfloat16" if row.setting.dtype is not None else "float32"
        known = [r for n, r in run.record["ceilings"].items() if n.startswith(kind)]
        more["TFLOP_per_s"] = rate
        if known:
            more["of_the_rate"] = rate / known[0]["TFLOP_per_s"]
    if "bytes" in found and "copy" in run.record["ceilings"]:
        least = found["bytes"] / run.record["ceilings"]["copy"]["TB_per_s"] / 1e9
        more["over_bytes"] = found["ms"] / least
        more["bytes_a_parameter"] = found["bytes"] / found["parameters"]
    if row.group == "grid":
        more["grid_minutes"] = found["ms"] * found["members"] * GRID_UPDATES / 6e4
    return more


# --- Others --------------------------------------------------------------------------------------


def measure_stream(run: Run) -> None:
    """Characters a second of `stream_batch` over lines of mixed lengths."""
    ways = {f"{lanes} lanes, chunk 64": lanes for lanes in (64, 256)}
    if run.spent:
        run.leave_out(*ways)
        return
    lines, longest, hidden = (8, 6, 8) if run.quick else (1024, 400, 128)
    lengths = np.random.default_rng(0).integers(1, longest, lines)
    xs = [np.ones((length, 64), np.float32) * 0.1 for length in lengths]
    model = SETTINGS["text"].small() if run.quick else SETTINGS["text"]
    model = actjax.ACT(64, hidden, max_steps=model.max_steps, rngs=make.nnx.Rngs(0))
    for way, lanes in ways.items():
        if run.spent:
            run.leave_out(way)
            continue
        times = []
        for _ in range(3):
            began = time.perf_counter()
            actjax.stream_batch(model, xs, lanes=min(lanes, lines), chunk=64)
            times.append(time.perf_counter() - began)
        rate = float(lengths.sum() / min(times[1:]))
        found = {"group": "stream", "name": "gru 128", "way": way, "first_call_s": times[0]}
        run.add(found | {"characters_per_s": rate})


def measure_torch(run: Run) -> None:
    """PyTorch beside: the masked form, eager and compiled, and cuDNN's LSTM."""
    try:
        import torch
        import torch_card
    except ImportError as error:
        run.add({"group": "torch", "name": "not installed", "error": card.in_short(error)})
        return
    if not torch.cuda.is_available():
        run.add({"group": "torch", "name": "no GPU", "error": "torch sees no GPU"})
        return
    calls = [
        (name, level, f"masked, {how}", lambda s, v, h=how: torch_card.masked(s, v, h != "eager"))
        for how in ("eager", "compiled")
        for name, level in (("parity", "2"), ("addition", "2"), ("text-lstm", "2"), ("parity", "7"))
    ]
    cudnn = [
        (name, "", "cuDNN, N = 1", lambda s, v: torch_card.cudnn(s))
        for name in ("addition", "text-lstm", "big")
    ]
    for name, level, way, call in calls[:3] + cudnn + calls[3:]:
        if run.spent:
            run.leave_out(f"{name}, {way} {level}".strip())
            continue
        found = {"group": "torch", "name": name, "way": way, "level": level}
        try:
            found |= call(SETTINGS[name], LEVELS.get(level))
            ours = [
                row["ms"] for row in run.record["rows"]
                if (row["name"], row.get("level")) == (name, level)
                and row["group"] == "training" and row["way"] != "plain" and "ms" in row
            ]  # fmt: skip
            if ours:
                found["over_ours"] = found["ms"] / min(ours)
        except Exception as error:
            found["error"] = card.in_short(error)
        run.add(found)


OTHERS = {"torch": measure_torch, "stream": measure_stream}

FORMS = {
    "ms": "{:.4g} ms",
    "mean_ponder": "N {:.2f}",
    "over_plain": "{:.2f} / (N plain)",
    "TFLOP_per_s": "{:.3g} TFLOP/s",
    "of_the_rate": "{:.1%} of the rate",
    "TB_per_s": "{:.3g} TB/s",
    "kernels": "{} kernels",
    "kernels_an_iteration": "{:.1f} an iteration",
    "products_an_iteration": "{:.1f} of them products",
    "busy": "busy {:.0%}",
    "over_bytes": "{:.2f} x its bytes",
    "over_ours": "{:.1f} x ours",
    "grid_minutes": "grid {:.1f} min (extrapolated)",
    "characters_per_s": "{:.3g} characters/s",
    "compile_s": "compiled in {:.1f} s",
    "error": "{}",
}


def line(row: dict) -> str:
    """A row in words and figures."""
    title = [row["group"], row["name"], row.get("way", ""), row.get("level", "")]
    cells = [form.format(row[key]) for key, form in FORMS.items() if row.get(key) is not None]
    return f"{' | '.join(filter(None, title)):56} {', '.join(cells)}"


def main(arguments=None):
    described = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=described)
    parser.add_argument(
        "--budget", "--seconds", type=float, default=330, help="seconds for all of it"
    )
    parts = {"nargs": "+", "choices": PARTS, "metavar": "PART", "default": list(PARTS)}
    parser.add_argument("--only", **parts, help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; writes only with --out")
    options = parser.parse_args(arguments)
    kind = re.sub(r"[^a-z0-9]+", "-", jax.devices()[0].device_kind.lower()).strip("-")
    default = ROOT / "benchmarks" / "results" / f"accelerator-{kind}.json"
    run = Run(options.out or (None if options.quick else default), options.budget, options.quick)
    print(run.record["device"], run.record["driver"], run.record["versions"], flush=True)
    measure_ceilings(run)
    names = list(dict.fromkeys(options.only))
    for i, name in enumerate(names):
        run.begin(name, sum(PARTS[later].share for later in names[i:]))
        if name in OTHERS:
            OTHERS[name](run)
        else:
            measure_rows(run, PARTS[name].rows(options.quick))
        run.finish()
    run.record["wall_s"] = time.perf_counter() - run.began
    run.write()
    print(f"{run.record['wall_s']:.0f} s of {options.budget:.0f}: {run.out or 'not written'}")


if __name__ == "__main__":
    main()
