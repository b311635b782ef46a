"""Parity of more bits than training has seen (Banino 2021, 4.1), as a table."""

from typing import Any

import numpy as np

from experiments.show.style import plus_minus


def table(members: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each size, layout and model: the error at numbers of bits trained on, and beyond.

    Args:
      members: of sweeps with `max_bits`, each with the "config" of its sweep.
    """
    rows, groups = [], {}
    for member in members:
        config = member["config"]
        place = config["bits"], config["max_bits"], config["layout"], member["model"], member["tau"]
        groups.setdefault(place, []).append(member)
    for (bits, seen, layout, model, tau), runs in sorted(groups.items()):
        rows.append(
            {
                "trained on": f"1 to {seen} of {bits} bits, {layout}",
                "model": f"{model}, tau {tau:g}",
                "seeds": str(len(runs)),
                "error there": _over(runs, "error", range(1, seen + 1)),
                "beyond": _over(runs, "error", range(seen + 1, bits + 1)),
                "mean N": _over(runs, "steps", range(1, seen + 1)),
            }
        )
    return rows


def _over(runs: list[dict[str, Any]], name: str, numbers: range) -> str:
    levels = [run["evaluation"]["by_difficulty"] for run in runs]
    mean = lambda rows: np.mean([row[name] for row in rows if row["difficulty"] in numbers])
    return plus_minus(list(map(mean, levels)), 3)
