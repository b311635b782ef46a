"""What a sweep found, a line for each of its settings."""

from typing import Any

import numpy as np

from experiments.show.style import groups, mean_and_error, plus_minus


def rows(summary: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each model and setting of a sweep, mean ± standard error over its seeds."""
    found = []
    for label, every in groups(summary["members"]).items():
        members = [m for m in every if not m["diverged"]]
        lost = f", {len(every) - len(members)} diverged" if len(members) < len(every) else ""
        row = {"model": label, "seeds": f"{len(members)}{lost}"}
        found.append(row)
        if not members:
            continue
        evaluations = [m["evaluation"] for m in members]
        slopes = [e["steps_slope"] for e in evaluations if e.get("steps_slope")]
        row |= {
            "updates": _span([m["updates"] for m in members]),
            "solved": f"{sum(m['solved_at'] is not None for m in members)} of {len(members)}",
        }
        if "bits_per_character" in evaluations[0]:
            del row["solved"]
            bits = [e["bits_per_character"] for e in evaluations]
            row["bits per character"] = plus_minus(bits, 3)
        else:
            row["sequence error rate"] = plus_minus([e["error"] for e in evaluations], 4)
        row["ponder N + R"] = plus_minus([e["ponder"] for e in evaluations], 2)
        row["steps N"] = plus_minus([e["ponder_steps"] for e in evaluations], 2)
        row["slope of N in difficulty"] = _slope(slopes)
        stuck = [m["advice"].split(" (")[0] for m in members if m["advice"]]
        if stuck:
            row["halting"] = f"{stuck[0]} ({len(stuck)} of {len(members)})"
    return found


def _slope(slopes: list[dict[str, float]]) -> str:
    """The mean slope over seeds; its standard error has that over seeds and those of the fits."""
    if not slopes:
        return ""
    mean, over_seeds = mean_and_error([slope["value"] for slope in slopes])
    fits = np.array([slope["standard_error"] for slope in slopes])
    of_fits = np.sqrt((fits**2).sum()) / len(fits)
    return f"{mean:.4f} ± {np.hypot(np.nan_to_num(over_seeds), of_fits):.4f}"


def _span(values: list[int]) -> str:
    low, high = int(np.min(values)), int(np.max(values))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
