"""Writes the tables of `benchmarks/results/*.json` into the pages that show them.

    python benchmarks/tables.py            docs/benchmarks.md, the one table of README.md and, from
                                           experiments/results, docs/experiments.md, optimizers.md
    python benchmarks/tables.py --check    changes nothing; fails where a page is not what JSON says

A page holds `<!-- table: KIND -->` and `<!-- /table -->`; what stands between them is written here.
"""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.card_tables import accelerator, kernel, launches  # noqa: E402
from benchmarks.table_parts import head, line, short  # noqa: E402
from experiments.show import pages  # noqa: E402

LIBRARIES = "jax", "flax", "torch"
HOW = "eager", "compiled"
COLUMNS = (
    "setting",
    "mean N",
    "while: best (by lanes)",
    "masked scan",
    "scan + cond",
    "nested while",
    "plain RNN × N",
    "floor",
)


def ponder(results: dict) -> str:
    lines = head(COLUMNS)
    for name in results["settings"]:
        rows = [row for row in results["rows"] if row["setting"] == name]
        plain = next(row for row in rows if row["contender"] == "plain")
        for level in dict.fromkeys(row["level"] for row in rows if row["contender"] != "plain"):
            at = {row["contender"]: row for row in rows if row["level"] == level}
            loops = {who: row for who, row in at.items() if who.startswith("while")}
            best = min(loops, key=lambda who: loops[who]["train_ms"])
            every = ", ".join(short(loops[who]["train_ms"]) for who in loops)
            lanes = "/".join(re.search(r"\d+", who)[0] for who in loops)
            row = loops[best]
            others = [at[who]["train_ms"] for who in ("scan", "scan+cond", "nested while")]
            cells = [name, f"{row['mean_ponder']:.2f}"]
            cells += [f"**{short(row['train_ms'])}** ({every} at {lanes})"]
            cells += [short(value) for value in others]
            cells += [short(row["mean_ponder"] * plain["train_ms"]), short(row["floor_ms"])]
            lines.append(line(cells))
    return "\n" + "\n".join(lines)


def lfact(results: dict) -> str:
    lines = ["| mean N | L | ACT | LFACT | with mu | LFACT / ACT |", "|" + "---|" * 6]
    rows = results["rows"]
    for place, row in enumerate(rows):
        if row["model"] == "act":
            bare, with_mu = rows[place + 1 : place + 3]
            cells = f"{row['ponder_steps']:.2f}", str(row["limit"]), f"{row['ms']:.0f}"
            cells += f"{bare['ms']:.0f}", f"{with_mu['ms']:.0f}", f"{bare['over_act']:.2f}"
            lines.append(line(cells))
    return "\n" + "\n".join(lines)


def stream(results: dict) -> str:
    first = results["rows"][0]
    lines = [
        f"\n{first['characters']} characters in lines of {first['length_mean']:.0f} on average and "
        f"{first['length_max']} at most; cell steps are those of all lanes, idle ones too.\n",
        "| network | mean N | | characters a second | gain | cell steps | saved |",
        "|" + "---|" * 7,
    ]
    for row in results["rows"]:
        ponder = f"{row['ponder_steps']:.2f}" if "ponder_steps" in row else ""
        lines.append(
            f"| {row['model'].upper() if ponder else ''} | {ponder} | {row['name']} | "
            f"{row['characters_per_second']:,.0f} | {row['gain']:.2f} | {row['cell_steps']:,} | "
            f"{row['saved']:.0%} |"
        )
    found = ", ".join(f"{row['over_floor']:.3f} ({row['lanes']})" for row in results["iterations"])
    lines.append(
        f"\nIterations of ACT over sum(N) / lanes, 64 windows of 500 characters (lanes): {found}."
    )
    return "\n".join(lines)


def sweep(results: dict) -> str:
    lines = ["\n| | ms an update and member | gain |", "|---|---|---|"]
    alone = results["rows"][0]["ms"]
    for row in results["rows"]:
        lines.append(f"| {row['name']} | {row['ms']:.3f} | {alone / row['ms']:.2f} |")
    return "\n".join(lines)


def memory(results: dict) -> str:
    given = results["arguments"]
    lines = [
        f"\nLSTM {given['hidden']}, T {given['time']}, B {given['batch_size']}, "
        f"M {given['max_steps']}.\n",
        "| | MB |",
        "|---|---|",
    ]
    names = {"while": "adaptive loop", "scan": "masked scan"}
    lines += [f"| {names[row['loop']]} | {row['memory_mb']:,.0f} |" for row in results["rows"]]
    return "\n".join(lines)


def peers(results: dict) -> str:
    titles = "setting", "mean N", "actjax", "a dispatch each"
    forms = [f"torch, {form}, {how}" for form in ("masked", "compact") for how in HOW]
    titles += *forms, "PyPI package (its N)", "floor", "fastest torch / actjax"
    lines = head(titles)
    for figure in results["ratios"][::2]:  # every other is that of "a dispatch each"
        place = figure["setting"], figure["level"]
        here = [row for row in results["rows"] if (row["setting"], row.get("level")) == place]
        at = {row["contender"]: row for row in here}
        own = [row for who, row in at.items() if who.startswith("actjax")]
        each = [row for row in own if row["contender"].endswith("each")]
        package = at["PyPI package"]
        cells = [place[0], f"{own[0]['mean_ponder']:.2f}"]
        cells += [short(min(row["train_ms"] for row in rows)) for rows in (own, each)]
        cells += [short(at[form]["train_ms"]) for form in forms]
        cells += [f"{short(package['train_ms'])} ({package['mean_ponder']:.2f})"]
        cells += [short(at["matrix products alone"]["train_ms"]), f"**{figure['value']:.2f}**"]
        lines.append(line(cells))
    return "\n" + "\n".join([*lines, "", *conformance(results["conformance"])])


def conformance(rows: list[dict]) -> list[str]:
    lines = [
        "Beside the NumPy float64 reference, RNN and LSTM, halting biases 10, 1, -1, -3 and -10: "
        "largest differences, least cosines of the gradients of ponder cost and task, and at the "
        "limit of 30 the steps told and taken. (The package's cost is meant for its gradient.)",
        "",
        "| | N | R | p | outputs | ponder cost | cosine, ponder | cosine, task | at M |",
        "|" + "---|" * 9,
    ]
    for who in dict.fromkeys(row["contender"] for row in rows):
        own = [row for row in rows if row["contender"] == who]
        least = {
            key: min(row[key] for row in own if row[key] is not None)
            for key in ("cosine_ponder", "cosine_task")
        }
        limit = next(row for row in own if row["case"] == "at M")
        cells = [f"{max(row['steps'] for row in own):.0f}"]
        for key in ("remainder", "weights", "outputs", "cost"):
            cells.append(f"{max(row[key] for row in own):.1g}")
        cells += [f"{value:.4f}" for value in least.values()]
        cells.append(f"{limit['steps_max']}, {limit['weights_max']}")
        lines.append(line((who, *cells)))
    return lines


def processes(results: dict) -> str:
    """Sequences a second of one process, of two that train together, and of two apart."""
    lines = ["\n| setting | | ms an update | sequences a second | over one |", "|" + "---|" * 5]
    for row in results["rows"]:
        rate = f"{row['sequences_per_second']:,.0f}" if "sequences_per_second" in row else ""
        over = f"{row['over_one']:.2f}" if "over_one" in row else ""
        cells = row["setting"], row["name"], short(row["ms"]), rate, over
        lines.append(line(cells))
    return "\n".join(lines)


def learned(results: dict) -> str:
    """A meta-update, a step of the learned optimizer beside Adam's, and the bound."""
    update = results["meta_update"]
    lines = [
        f"\nA meta-update takes {update['actjax']['min_ms']:.1f} ms "
        f"({update['sharded']['min_ms']:.1f} on {update['sharded']['devices']} devices), "
        f"{update['plain']['min_ms']:.1f} as the plain scan.\n",
        "| parameters | a step of the LSTM optimizer, ms | of Adam, ms |",
        "|" + "---|" * 3,
    ]
    for row in results["optimizer_step"]:
        times = short(row["lstm"]["min_ms"]), short(row["adam"]["min_ms"])
        lines.append(f"| {row['parameters']:,} | {times[0]} | {times[1]} |")
    lines += ["\n| horizon of the bound | O(H), ms | the double sum, ms |", "|" + "---|" * 3]
    for row in results["elbo"]:
        double = short(row["double_sum"]["min_ms"]) if "double_sum" in row else ""
        lines.append(f"| {row['horizon']:,} | {short(row['linear']['min_ms'])} | {double} |")
    return "\n".join(lines)


def recursive(results: dict) -> str:
    """Boards a second of a recursive network by how it stops, and an update of its training."""
    network = results["network"]
    lines = [
        f"\n{results['arguments']['boards']:,} boards of {network['size']} x {network['size']}, "
        f"{network['hidden']} features, {network['max_steps']} steps at most, stopped at q > "
        f"{results['level']:g}.\n",
        "| | boards a second, by batch size or lanes | best | mean steps | solved | same answers |",
        "|" + "---|" * 6,
    ]
    ways = dict.fromkeys(row["way"] for row in results["rows"])
    for way in ways:
        rows = [row for row in results["rows"] if row["way"] == way]
        best = max(rows, key=lambda row: row["puzzles_per_second"])
        by_size = ", ".join(
            f"{row['size'] or 'default'}: {row['puzzles_per_second']:,.0f}" for row in rows
        )
        same = min(row["same_answers"] for row in rows)
        cells = way, by_size, f"**{best['puzzles_per_second']:,.0f}**", f"{best['mean_steps']:.2f}"
        cells += f"{best['solved']:.2%}", f"{same:.2%}"
        lines.append(line(cells))
    found = ", ".join(f"{name}: {ratio:.2f}" for name, ratio in results["ratios"].items())
    speed = {(row["way"], row["size"]): row["puzzles_per_second"] for row in results["rows"]}
    gains = ", ".join(
        f"{row['size']}: {speed['lanes', row['size']] / row['puzzles_per_second']:.2f} of "
        f"{row['wait']:.2f}"
        for row in results["rows"]
        if "wait" in row
    )
    lines.append(
        f"\nEach at its best size, {found}. Lanes over batches of as many, of the steps of a "
        f"batch's slowest board over the mean, which is all there is to gain: {gains}."
    )
    lines += ["\n| an update of deep supervision | ms | over actjax's fastest |", "|" + "---|" * 3]
    for row in results["training"]:
        cells = row["contender"], short(row["ms"]), f"{row['over_actjax']:.2f}"
        lines.append(line(cells))
    return "\n".join(lines)


def front(results: dict) -> str:
    """The one table of the README: what an adaptive step costs beside the other ways."""
    titles = "a training step, ms", "mean N", "actjax", "masked scan", "scan + cond"
    titles += ("N × the plain RNN",)
    lines = head(titles)
    for name, level, words in FRONT:
        rows = [row for row in results["rows"] if row["setting"] == name]
        plain = next(row for row in rows if row["contender"] == "plain")
        at = {row["contender"]: row for row in rows if row["level"] == level}
        best = min(
            (row for who, row in at.items() if who.startswith("while")),
            key=lambda row: row["train_ms"],
        )
        times = [at[who]["train_ms"] for who in ("scan", "scan+cond")]
        times.append(best["mean_ponder"] * plain["train_ms"])
        cells = [words, f"{best['mean_ponder']:.2f}", f"**{short(best['train_ms'])}**"]
        cells += [short(value) for value in times]
        lines.append(line(cells))
    return "\n".join(lines)


FRONT = (
    ("parity", "2", "parity: RNN 128, B 128, M 100"),
    ("parity", "4", "the same, at more steps"),
    ("addition", "4", "addition: LSTM 512, B 32, T 5, M 20"),
    ("text", "4", "text: GRU 128, B 64, T 50, M 20"),
    ("text-lstm", "2", "text: LSTM 512, B 16, T 100, M 20"),
)
TABLES = {
    "ponder": (
        ponder,
        "A training step in ms (forward, backward, Adam; the floor is the matrix products alone)",
    ),
    "lfact": (lfact, "A training step in ms on windows of text (B 64, T 50, GRU 128, softmax 256)"),
    "memory": (memory, "Memory that a gradient needs, as the compiler plans it"),
    "peers": (peers, "ACT in PyTorch beside this package: a training step in ms"),
    "recursive": (recursive, "Sudoku by a recursive network that is trained"),
    "stream": (stream, "Inference on lines of Wikipedia, streamed and in whole batches"),
    "sweep": (sweep, "Small ACT networks trained as one program and one by one"),
    "processes": (processes, "Training in one process and in two that train together"),
    "learned": (learned, "Learned optimizers"),
    "accelerator": (accelerator, "Training steps"),
    "launches": (launches, "A training step at a mean of two ponder steps, compiled for an H200"),
    "kernel-check": (kernel, "The adaptive loop as one kernel each way"),
}


def captioned(kind: str) -> str:
    """The tables of all machines for one kind of benchmark, each with what it was run on."""
    table, title = TABLES[kind]
    parts = []
    for path in sorted((ROOT / "benchmarks/results").glob(f"{kind}-*.json")):
        results = json.loads(path.read_text())
        known, machine = results["versions"], results | results.get("machine", {})
        versions = ", ".join(f"{k} {known[k]}" for k in LIBRARIES if k in known)
        on_cpu = "cpu" in machine and machine.get("platform", "cpu") == "cpu"
        where = f"{machine['cores']} cores of {machine['cpu']}" if on_cpu else None
        parts.append(
            f"{title}, on {where or machine['device']}, {versions}: `{results['command']}`, "
            f"[{path.name}](../benchmarks/results/{path.name}).\n" + table(results)
        )
    return "\n\n".join(parts)


PAGES: dict[str, Callable[[str], str]] = {
    "docs/benchmarks.md": captioned,
    "docs/experiments.md": pages.measured,
    "docs/optimizers.md": pages.optimizers,
    "README.md": lambda kind: front(
        json.loads((ROOT / f"benchmarks/results/{kind}-cpu.json").read_text())
    ),
}


def rewritten(page: str) -> str:
    """The text of a page with its tables as the results have them now."""
    return re.sub(
        r"(<!-- table: (\S+) -->\n).*?(<!-- /table -->)",
        lambda found: f"{found[1]}{PAGES[page](found[2]).strip()}\n{found[3]}",
        (ROOT / page).read_text(),
        flags=re.DOTALL,
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail on a difference")
    check = parser.parse_args(argv).check
    for page in PAGES:
        text = rewritten(page)
        if text == (ROOT / page).read_text():
            continue
        if check:
            sys.exit(f"{page} is not what the results say: run python benchmarks/tables.py")
        (ROOT / page).write_text(text)


if __name__ == "__main__":
    main()
