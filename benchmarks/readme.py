"""Writes the table of `benchmarks/results/ponder-*.json` into the README, between its markers."""

import json
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
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


def table(results: dict) -> str:
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


def main() -> None:
    readme, parts = ROOT / "README.md", []
    for path in sorted((ROOT / "benchmarks/results").glob("ponder-*.json")):
        results = json.loads(path.read_text())
        versions = ", ".join(f"{k} {results['versions'][k]}" for k in ("jax", "flax"))
        parts.append(
            f"Milliseconds of a training step (forward, backward, Adam; the floor is the matrix "
            f"products alone) on {results['cores']} cores of {results['cpu']}, {versions}: "
            f"`{results['command']}`, [{path.name}](benchmarks/results/{path.name}).\n"
            + table(results)
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
