"""Parity of more bits than training has seen (Banino 2021, 4.1), as a table."""

from typing import Any

import numpy as np

from experiments.show.style import plus_minus


def table(members: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each layout and model: the error at numbers of bits trained on, and beyond.

    Args:
      members: of sweeps with `max_bits`, each with the "config" of its sweep.
    """
    rows, groups = [], {}
    for member in members:
        place = member["config"]["layout"], member["model"], member["tau"]
        groups.setdefault(place, []).append(member)
    for (layout, model, tau), runs in groups.items():
        seen, bits = (runs[0]["config"][name] for name in ("max_bits", "bits"))
        rows.append(
            {
                "layout": layout,
                "model": f"{model}, tau {tau:g}",
                "seeds": str(len(runs)),
                f"error, 1 to {seen} bits": _over(runs, "error", range(1, seen + 1)),
                f"error, {seen + 1} to {bits}": _over(runs, "error", range(seen + 1, bits + 1)),
                "mean N": _over(runs, "steps", range(1, seen + 1)),
            }
        )
    return rows


def _over(runs: list[dict[str, Any]], name: str, numbers: range) -> str:
    levels = [run["evaluation"]["by_difficulty"] for run in runs]
    mean = lambda rows: np.mean([row[name] for row in rows if row["difficulty"] in numbers])
    return plus_minus(list(map(mean, levels)), 3)
