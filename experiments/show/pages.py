"""Tables of docs/experiments.md and docs/optimizers.md, from results that are not sweeps."""

import json

from experiments import collapse
from experiments.show import extrapolation, puzzles
from experiments.show.papers import RESULTS


def measured(kind: str) -> str:
    """A table of docs/experiments.md: what runs that are not sweeps found."""
    kinds = {name: (f"{name}/*", puzzles.table) for name in ("sudoku", "mazes")}
    kinds["collapse"] = "collapse/*", collapse.table
    kinds["extrapolation"] = "parity/pondernet_*", extrapolation.table
    names, table = kinds[kind]
    members = []
    for path in sorted(RESULTS.glob(f"{names}.json")):
        summary = json.loads(path.read_text())
        members += [member | {"config": summary["config"]} for member in summary["members"]]
    rows = table(members)
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])] if rows else []
    return "\n".join([*lines, *("| " + " | ".join(row.values()) + " |" for row in rows)])


def held_out(results: dict) -> str:
    """A shipped optimizer beside Adam, on problems that it has not learned on."""
    steps, longer = results["steps"], results["longer"]
    lines = [
        f"| problem | sum of {steps} losses | Adam's, at its best rate | difference ± s.e. | lower "
        f"on | mean of the last 10 | sum of {longer} |",
        "|" + "---|" * 7,
    ]
    for row in results["problems"].values():
        later = row["longer"]
        lines.append(
            f"| {row['what']} | {row['learned_sum']:.2f} | {row['adam_sum']:.2f} at "
            f"{row['adam_rate']:.3g} | {row['difference']:+.2f} ± {row['standard_error']:.2f} | "
            f"{row['lower_on']} of {row['seeds']} seeds | {row['learned_last']:.3f}, Adam "
            f"{row['adam_last']:.3f} | {later['learned_sum']:.1f}, Adam {later['adam_sum']:.1f} at "
            f"{later['adam_rate']:.3g} |"
        )
    return "\n" + "\n".join(lines)


def card(results: dict) -> str:
    """How a shipped optimizer was made, and what it does on problems of its kind."""
    tested, lines = results.get("tested", {}), ["| | |", "|---|---|"]
    for stage in results["stages"]:
        config = stage["config"]
        what = "halting head" if config["optimizer"] == "act" else "network"
        lines.append(
            f"| {what}: {config['experiment']}, preset {config['preset']} | "
            f"{_of(stage)} meta-updates in {stage['seconds'] / 60:.0f} minutes of a loaded core "
            f"(commit {stage['commit']}) |"
        )
    lines.append(f"| command | `{results['command']}` |")
    for who in ("learned", "adam") if tested else ():
        row = tested[who]
        steps = [step for step in ("10", "30", "100") if step in row]
        means = " / ".join(f"{row[step]['mean']:.4g}" for step in steps)
        name = "this" if who == "learned" else f"Adam at its best rate, {tested['adam_rate']:.3g}"
        lines.append(
            f"| mean loss after {' / '.join(steps)} steps; summed: {name} | {means}; "
            f"{row['sum']:.4g} |"
        )
    if "steps" in tested:
        at, cost = tested["steps"], tested["cost"]
        lines += [
            f"| stops after | {at['mean']:.1f} steps, sd {at['sd']:.1f}, {at['min']} to "
            f"{at['max']}; rank correlation with the condition number "
            f"{tested['spearman_difficulty']:.2f} |",
            f"| loss plus {tested['price']:.5f} for every step taken | {cost['learned']:.4f}; at "
            f"the best constant step, {tested['best_constant_step']}, {cost['best_constant']:.4f}; "
            f"in hindsight {cost['oracle']:.4f} |",
            f"| rule | mass above {results['threshold']:g}, chosen on validation problems |",
        ]
    return "\n" + "\n".join(lines)


def _of(stage: dict) -> str:
    """Meta-updates taken, of those planned where it was stopped before."""
    taken, planned = stage["meta_updates"], stage["planned"]
    return f"{taken:,}" if taken == planned else f"{taken:,} of {planned:,}"


def optimizers(kind: str) -> str:
    """A table of docs/optimizers.md."""
    if kind == "held-out":
        return held_out(json.loads((RESULTS / "learned/held_out.json").read_text()))
    return card(json.loads((RESULTS / f"weights/{kind}.json").read_text()))
