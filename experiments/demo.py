"""What pondering buys, in four parts: difficulty, a budget, text, a stream.

The settings are the demo presets of both tasks, chosen by measurement so that all of it takes
minutes on two cores: the networks of a kind train side by side, one on each core. Those that are
there already are continued, so that an interrupted demo goes on where it stopped.
"""

import dataclasses
import math
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tyro

import actjax
from actjax._checks import check_positive
from actjax.tasks import text
from experiments import evaluation, run, sweep
from experiments.members import group_name
from experiments.network import Network
from experiments.options import Options
from experiments.record import check_folder, print_table
from experiments.show import figures, fojo, graves, style
from experiments.task import Task
from experiments.tasks import parity, wikipedia

MODELS = ("rnn", "repeat", "act")
BUDGET, TEXT_TAU = 3.0, 1e-2
LINES, LONGEST, LANES = 512, 400, 64  # of the text that is streamed
Members = list[dict[str, Any]]  # a summary each, as a sweep's
PLAN = """\
Plain, Repeat and ACT networks side by side, {minutes}.
What is in {out} already is not trained again.

  1. Parity of up to {bits} bits: does ponder follow difficulty?
  2. The same with a ponder budget of {budget:g} in the place of tau: is it kept?
  3. Wikipedia, byte by byte: where does a network stop to think?
  4. A stream of its lines: what is saved where none waits for the slowest?"""


@dataclasses.dataclass(frozen=True)
class Demo:
    """Train plain, Repeat and ACT networks side by side on parity and on Wikipedia.

    Four parts, each with a table and figures: ponder that follows difficulty, a budget that is
    kept, text, and a stream that saves steps.
    """

    seeds: int = 2
    """Networks of each kind on each task, with the seeds 0, 1, ..."""
    parity_steps: int = parity.PRESETS["demo"].steps
    """Updates of each network on parity."""
    wikipedia_steps: int = wikipedia.PRESETS["demo"].steps
    """Updates of each network on Wikipedia."""
    out: pathlib.Path = pathlib.Path("runs/demo")
    """Folder of the runs and the figures."""


def main(tasks: dict[str, Task], argv: list[str]):
    """Trains all networks, prints a table for each part and draws the figures."""
    demo = tyro.cli(Demo, prog="python -m experiments demo", args=argv)
    for name in ("seeds", "parity_steps", "wikipedia_steps"):
        check_positive(name, getattr(demo, name))
    check_folder("out", demo.out)
    sweep.set_cpu_devices(0)
    bits = parity.PRESETS["demo"].bits
    words = {"minutes": how_long(demo), "out": demo.out, "bits": bits, "budget": BUDGET}
    print(PLAN.format(**words), flush=True)
    begun = time.perf_counter()
    try:
        of_parity = settings(tasks["parity"], steps=demo.parity_steps)
        members = difficulty(demo, tasks["parity"], of_parity)
        hold(demo, tasks["parity"], of_parity, members)
        of_text = settings(tasks["wikipedia"], steps=demo.wikipedia_steps, tau=TEXT_TAU)
        network, held_out = read_text(demo, tasks["wikipedia"], of_text)
        stream(network, held_out)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from there") from None
    minutes, seconds = divmod(round(time.perf_counter() - begun), 60)
    print(f"\nfigures: {demo.out}/*.png. All of it took {minutes}:{seconds:02}.")


def how_long(demo: Demo) -> str:
    """The minutes to expect, measured on two cores with the options as they are."""
    usual = {field.name: field.default for field in dataclasses.fields(Demo)}
    as_it_is = all(getattr(demo, name) == value for name, value in usual.items() if name != "out")
    return "about 2 minutes on two cores" if as_it_is else "2 minutes with the options as they were"


def settings(task: Task, **chosen) -> Options:
    return dataclasses.replace(task.presets["demo"], **chosen)


def train(demo: Demo, task: Task, options: Options, data, name: str) -> tuple[Members, Network]:
    """One kind of network with every seed, as one program: summaries, and all their weights."""
    group = [dataclasses.replace(options, seed=seed) for seed in range(demo.seeds)]
    grid = sweep.Grid(seeds=demo.seeds, resume=True)
    folder = demo.out / task.name / name
    members, seconds, networks = sweep.run_group(task, grid, group, folder, data)
    trained = f"{options.steps:,} updates of {demo.seeds} in {seconds:.0f} s"
    print(f"{task.name}, {name}: {trained}", flush=True)
    return [member | {"seconds": seconds} for member in members], networks


def difficulty(demo: Demo, task: Task, options: parity.Parity) -> Members:
    """Part 1: every model on parity, and the steps they take on easy and on hard vectors."""
    print("\n1 of 4: parity")
    data, members, rows = run.load(task, options), [], []
    for model in MODELS:
        one = dataclasses.replace(options, model=model)
        members += train(demo, task, one, data, group_name(one))[0]
    for group in style.groups(members).values():
        rows.append({"model": name_of(group[0])} | _errors(group) | _steps(group) | _by_bits(group))
    title = (
        f"Parity of up to {options.bits} bits ({options.layout} layout, {options.hidden} tanh "
        f"units, {options.steps:,} updates)"
    )
    print_table(title, rows, "guessing errs in 0.5", *repeat_or_not(members))
    draw(graves.curves, members, demo.out / "parity_curves.png")
    by_bits = lambda *found: graves.difficulty(*found, unit="bits")
    draw(by_bits, members, demo.out / "parity_difficulty.png")
    return members


def repeat_or_not(members: Members) -> list[str]:
    """What ACT has over Repeat, and what not, in words."""
    kinds = ("act", "repeat")
    found = {name: [m for m in members if m["model"].startswith(name)] for name in kinds}
    if not found["repeat"] or not found["act"]:
        return []
    (act, steps), (repeat, fixed) = (
        [_mean(found[model], key) for key in ("error", "ponder_steps")] for model in kinds
    )
    less = "less" if repeat < act else "more"
    return [
        f"Repeat, told to take {fixed:g} steps for every input, errs {less} than ACT, which found",
        f"its {steps:.1f} by itself. Fojo 2018 has the same: what counts on parity is to have more",
        "than one step at all. What ACT adds is that nobody sets their number, and that it is the",
        "input's own.",
    ]


def hold(demo: Demo, task: Task, options: parity.Parity, free: Members):
    """Part 2: the same ACT network, held to a budget by moving tau."""
    print(f"\n2 of 4: parity, held to {BUDGET:g}")
    one = dataclasses.replace(options, model="act", ponder_budget=BUDGET)
    members, _ = train(demo, task, one, run.load(task, one), f"act-budget{BUDGET:g}")
    rows = []
    for member in [*(m for m in free if m["model"] == "act"), *members]:
        found, held = member["evaluation"], member["ponder_budget"] is not None
        off = f"{found['ponder'] / BUDGET - 1:+.1%}" if held else ""
        row = {"model": name_of(member), "seed": str(member["seed"])}
        row |= {"ponder N + R": f"{found['ponder']:.2f}", "off the budget": off}
        row |= {"tau at the end": f"{member['tau_at_end']:.2g}"}
        rows.append(row | {"error rate": f"{found['error']:.3f}"})
    print_table(f"A ponder budget of {BUDGET:g}", rows)
    draw(fojo.budget, members, demo.out / "budget.png")


def read_text(
    demo: Demo, task: Task, options: wikipedia.Wikipedia
) -> tuple[Network | None, np.ndarray]:
    """Part 3: every model on Wikipedia; the last one's first network, and the held-out text."""
    print("\n3 of 4: Wikipedia")
    data, members, networks = run.load(task, options), [], None
    for model in MODELS:
        one = dataclasses.replace(options, model=model)
        found, networks = train(demo, task, one, data, group_name(one))
        members += found
    plain = _values([m for m in members if m["model"] == "rnn"], "bits_per_character")
    rows, kinds = [], []
    for group in style.groups(members).values():
        bits = _values(group, "bits_per_character")
        row = {
            "model": name_of(group[0]),
            "bits per character": "  ".join(f"{b:.3f}" for b in bits),
        }
        row["against plain"] = "" if group[0]["model"] == "rnn" else compare(bits, plain)
        rows.append(row | _steps(group))
    for member in (m for m in members if m["model"] == "act"):
        found = sorted(member["evaluation"]["by_kind"], key=lambda row: -row["ponder"])
        parts = ", ".join(f"{row['kind']} {row['ponder']:.2f}" for row in found)
        kinds.append(f"ponder of {name_of(member)}, seed {member['seed']}, after: {parts}")
        for piece in member["evaluation"].get("stretches", []):
            figures.stretch(piece, demo.out / f"ponder_{piece['name']}.png")
    print_table(
        f"Wikipedia, held-out text ({options.cell} of {options.hidden} units, "
        f"{options.steps:,} updates)",
        rows,
        "compared at the same number of updates, not at the same cost: see the time",
        "order-0 entropy of this text: 5.185 bits per character; bzip2: 2.228",
        *kinds,
    )
    draw(graves.curves, members, demo.out / "wikipedia_curves.png")
    return evaluation.member(networks, 0), data.measured.text


def stream(network: Network, held_out: np.ndarray):
    """Part 4: the same lines in whole batches and streamed, after a first time to compile."""
    print("\n4 of 4: a stream", flush=True)
    lines = read_lines(held_out)
    whole = jax.jit(lambda core, xs, lengths: core(xs, lengths=lengths)[2].steps)

    def in_batches() -> list[np.ndarray]:
        found = []
        for start in range(0, len(lines), LANES):
            batch = lines[start : start + LANES]
            xs = np.zeros((LANES, LONGEST, text.SYMBOLS), np.float32)
            lengths = np.zeros(LANES, int)
            for row, line in enumerate(batch):
                xs[row, : len(line)], lengths[row] = line, len(line)
            found.append(np.asarray(whole(network.core, xs, lengths)))
        return found

    def streamed() -> list[np.ndarray]:
        found = actjax.stream_batch(network.core, lines, lanes=LANES)
        return [result.steps for result in found]

    batches, seconds = _timed(in_batches)
    alone, less = _timed(streamed)
    needed = sum(int(steps.sum()) for steps in alone)
    taken = sum(LANES * int(steps.sum(1).max()) for steps in batches)
    characters = sum(map(len, lines))
    rows = [
        {"inference": name, "characters/s": f"{characters / spent:,.0f}", "time": f"{spent:.2f} s"}
        for name, spent in (("whole batches", seconds), ("stream", less))
    ]
    print_table(
        f"{len(lines)} lines of 1 to {max(map(len, lines))} characters, {LANES} at a time",
        rows,
        f"{1 - needed / taken:.0%} of the steps of whole batches are waits for the slowest line; "
        f"streamed they took {abs(1 - less / seconds):.0%} {'less' if less < seconds else 'more'}.",
    )


def read_lines(held_out: np.ndarray) -> list[np.ndarray]:
    """The first lines of a text that are not empty, one-hot, cut at `LONGEST` bytes."""
    lines = [line[:LONGEST] for line in held_out.tobytes().split(b"\n") if line][:LINES]
    one_hot = np.eye(text.SYMBOLS, dtype=np.float32)
    return [one_hot[np.frombuffer(line, np.uint8)] for line in lines]


def compare(bits: list[float], plain: list[float]) -> str:
    """The mean difference of runs paired by seed, and whether seeds alone could explain it.

    A difference counts where it is above twice its standard error over the seeds.
    """
    differences = [a - b for a, b in zip(bits, plain, strict=True)]
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return f"{mean:+.3f} (one seed: noise unknown)"
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    verdict = "" if abs(mean) > 2 * error else ", within noise"
    return f"{mean:+.3f} +- {error:.3f}{verdict}"


def name_of(member: dict[str, Any]) -> str:
    """A network's name in a table: "plain", "Repeat 2", "ACT, tau 0.001" or "ACT, budget 3"."""
    if member["model"] == "rnn":
        return "plain"
    if member["repeats"]:
        return f"Repeat {member['repeats']}"
    held = member["ponder_budget"]
    return f"ACT, tau {member['tau']:g}" if held is None else f"ACT, budget {held:g}"


def draw(figure: Callable[..., bool], members: Members, path: pathlib.Path):
    figure({"members": members}, path)


def _errors(group: Members) -> dict[str, str]:
    errors = "  ".join(f"{error:.3f}" for error in _values(group, "error"))
    return {"error rate of each seed": errors}


def _steps(group: Members) -> dict[str, str]:
    time = f"{group[0]['seconds']:.0f} s"
    return {"steps N": f"{_mean(group, 'ponder_steps'):.2f}", "training": time}


def _by_bits(group: Members, parts: int = 3) -> dict[str, str]:
    """Mean steps for few, middling and many bits."""
    cells = {}
    levels = [row["difficulty"] for row in group[0]["evaluation"]["by_difficulty"]]
    for part in np.array_split(np.arange(len(levels)), min(parts, len(levels))):
        rows = [m["evaluation"]["by_difficulty"][i] for m in group for i in part]
        title = f"N at {levels[part[0]]} to {levels[part[-1]]} bits"
        cells[title] = f"{statistics.mean(row['steps'] for row in rows):.2f}"
    return cells


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What a function gives, and the seconds of its second call, the first having compiled it."""
    function()
    begun = time.perf_counter()
    return function(), time.perf_counter() - begun


def _values(members: Members, name: str) -> list[float]:
    return [member["evaluation"][name] for member in members]


def _mean(members: Members, name: str) -> float:
    return statistics.mean(_values(members, name))
