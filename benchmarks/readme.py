"""Writes the tables of `benchmarks/results/*.json` into the README, between its markers."""

import json
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
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
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for name in results["settings"]:
        rows = [row for row in results["rows"] if row["setting"] == name]
        plain = next(row for row in rows if row["contender"] == "plain")
        for level in dict.fromkeys(row["level"] for row in rows if row["contender"] != "plain"):
            at = {row["contender"]: row for row in rows if row["level"] == level}
            loops = {who: row for who, row in at.items() if who.startswith("while")}
            best = min(loops, key=lambda who: loops[who]["train_ms"])
            every = ", ".join(f"{loops[who]['train_ms']:.3g}" for who in loops)
            lanes = "/".join(re.search(r"\d+", who)[0] for who in loops)
            row = loops[best]
            others = [at[who]["train_ms"] for who in ("scan", "scan+cond", "nested while")]
            cells = [name, f"{row['mean_ponder']:.2f}"]
            cells += [f"**{row['train_ms']:.3g}** ({every} at {lanes})"]
            cells += [f"{value:.3g}" for value in others]
            cells += [f"{row['mean_ponder'] * plain['train_ms']:.3g}", f"{row['floor_ms']:.3g}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n" + "\n".join(lines)


def lfact(results: dict) -> str:
    lines = ["| mean N | L | ACT | LFACT | with mu | LFACT / ACT |", "|" + "---|" * 6]
    rows = results["rows"]
    for place, row in enumerate(rows):
        if row["model"] == "act":
            bare, with_mu = rows[place + 1 : place + 3]
            cells = f"{row['ponder_steps']:.2f}", str(row["limit"]), f"{row['ms']:.0f}"
            cells += f"{bare['ms']:.0f}", f"{with_mu['ms']:.0f}", f"{bare['over_act']:.2f}"
            lines.append("| " + " | ".join(cells) + " |")
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
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for figure in results["ratios"][::2]:  # every other is that of "a dispatch each"
        place = figure["setting"], figure["level"]
        here = [row for row in results["rows"] if (row["setting"], row.get("level")) == place]
        at = {row["contender"]: row for row in here}
        own = [row for who, row in at.items() if who.startswith("actjax")]
        each = [row for row in own if row["contender"].endswith("each")]
        package = at["PyPI package"]
        cells = [place[0], f"{own[0]['mean_ponder']:.2f}"]
        cells += [f"{min(row['train_ms'] for row in rows):.3g}" for rows in (own, each)]
        cells += [f"{at[form]['train_ms']:.3g}" for form in forms]
        cells += [f"{package['train_ms']:.3g} ({package['mean_ponder']:.2f})"]
        cells += [f"{at['matrix products alone']['train_ms']:.3g}", f"**{figure['value']:.2f}**"]
        lines.append("| " + " | ".join(cells) + " |")
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
        lines.append(f"| {who} | " + " | ".join(cells) + " |")
    return lines


TABLES = {
    "ponder": (
        ponder,
        "A training step in ms (forward, backward, Adam; the floor is the matrix products alone)",
    ),
    "lfact": (lfact, "A training step in ms on windows of text (B 64, T 50, GRU 128, softmax 256)"),
    "memory": (memory, "Memory that a gradient needs, as the compiler plans it"),
    "peers": (peers, "ACT in PyTorch beside this package: a training step in ms"),
    "stream": (stream, "Inference on lines of Wikipedia, streamed and in whole batches"),
    "sweep": (sweep, "Small ACT networks trained as one program and one by one"),
}


def main() -> None:
    readme, parts = ROOT / "README.md", []
    for kind, (table, title) in TABLES.items():
        for path in sorted((ROOT / "benchmarks/results").glob(f"{kind}-*.json")):
            results = json.loads(path.read_text())
            known = results["versions"]
            versions = ", ".join(f"{k} {known[k]}" for k in LIBRARIES if k in known)
            machine = (
                f"{results['cores']} cores of {results['cpu']}"
                if "cpu" in results
                else (results["device"])
            )
            parts.append(
                f"{title}, on {machine}, {versions}: `{results['command']}`, "
                f"[{path.name}](benchmarks/results/{path.name}).\n" + table(results)
            )
    text = re.sub(
        r"<!-- benchmark -->.*<!-- /benchmark -->",
        lambda _: "<!-- benchmark -->\n" + "\n\n".join(parts) + "\n<!-- /benchmark -->",
        readme.read_text(),
        flags=re.DOTALL,
    )
    readme.write_text(text)


if __name__ == "__main__":
    main()
