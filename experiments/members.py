"""What a sweep says of each of its members: the summary that figures and tables are drawn from."""

from typing import Any

import numpy as np

from actjax import training
from experiments.options import ADAPTIVE, Architecture, label
from experiments.run import halting_advice
from experiments.smoothing import best, smooth, solved_at

PONDERS = 1.5  # steps an input on average, from which a network's halting has something to show
CURVE_POINTS = 120  # of a learning curve in the summary
CURVES = (
    *("accuracy", "smoothed_accuracy", "ponder", "smoothed_ponder", "ponder_steps", "ponder_max"),
    *("bits_per_character", "loss", "tau", "validation_max"),
)


def member_summary(
    solved: float, options: Any, result: training.Sweep, index: int, found: dict[str, Any]
) -> dict[str, Any]:
    """What the figures and tables need of one member."""
    finite = [np.isfinite(result.history[k][:, index]) for k in ("loss", "gradient_norm")]
    ran = np.logical_and.accumulate(np.all(finite, axis=0))  # until it retired or diverged
    history = {
        name: values[ran] if values.ndim == 1 else values[ran, index]
        for name, values in result.history.items()
    }
    adaptive, diverged = options.model in ADAPTIVE, bool(result.diverged[index])
    kept = result.states.extra
    steps = float(history["ponder_steps"][-1]) if ran.any() else None
    return {
        "model": group_name(options),
        "tau": options.tau if adaptive else None,
        "ponder_budget": options.ponder_budget if adaptive else None,
        "repeats": options.repeats if options.model == "repeat" else None,
        "seed": options.seed,
        "updates": int(result.states.step[index]),
        "solved_at": solved_at(history["step"], history["accuracy"], solved),
        "diverged": diverged,
        "smoothed_accuracy": best(history["accuracy"]),
        "mean_ponder_steps": float(history["ponder_steps"].mean()) if ran.any() else None,
        "tau_at_end": float(history["tau"][-1]) if ran.any() else None,
        "advice": None if diverged else halting_advice(options, steps),
        "curve": curve(history),
        "best_update": int(kept.step[index]) if isinstance(kept, training.Best) else None,
        "evaluation": found,
    }


def curve(history: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """A learning curve thinned to `CURVE_POINTS`, each the mean of the rows it stands for.

    Accuracy and ponder come a second time, as "smoothed_", filtered over all rows before thinning.
    """
    rows = len(history["step"])
    if not rows:
        return {"step": []}
    parts = np.array_split(np.arange(rows), min(rows, CURVE_POINTS))
    thinned = {"step": [int(history["step"][part[-1]]) for part in parts]}
    smoothed = {f"smoothed_{name}": smooth(history[name]) for name in ("accuracy", "ponder")}
    for name, values in (history | smoothed).items():
        if name in CURVES:
            thinned[name] = [float(f"{values[part].mean():.5g}") for part in parts]
    return thinned


def error(found: dict[str, Any]) -> float:
    """A member's error: bits per character where there are any, or the sequence error rate."""
    return found["bits_per_character"] if "bits_per_character" in found else found["error"]


def looked_at(found: list[dict[str, Any]]) -> int:
    """Which network single inputs are shown of: of those that ponder the one that errs least.

    Where none does it is one of all; of two that err alike the one that takes fewer steps.
    """
    idle = lambda one: one["ponder_steps"] < PONDERS
    order = lambda index: (idle(found[index]), error(found[index]), found[index]["ponder"])
    return min(range(len(found)), key=order)


def table(members: list[dict[str, Any]]) -> list[dict[str, str]]:
    """One printed row a member."""
    rows = []
    for member in members:
        found = member["evaluation"]
        name = "bits per character" if "bits_per_character" in found else "error rate"
        solved = "-" if member["solved_at"] is None else f"{member['solved_at']:,}"
        tau = "" if member["tau"] is None else f"{member['tau']:g}"
        row = {"model": member["model"], "tau": tau, "seed": str(member["seed"])}
        row |= {"updates": f"{member['updates']:,}"}
        row |= {"solved at": "diverged" if member["diverged"] else solved}
        row |= {name: f"{error(found):.4f}", "ponder N + R": f"{found['ponder']:.2f}"}
        rows.append(row | {"mean N": f"{found['ponder_steps']:.2f}"})
    return rows


def advice(members: list[dict[str, Any]]) -> list[str]:
    """What to say of members whose halting is stuck, one sentence for each tau."""
    stuck = {m["tau"]: m["advice"] for m in reversed(members) if m["advice"]}
    return [f"tau {tau:g}: {stuck[tau]}" for tau in sorted(stuck)]


def group_name(architecture: Architecture) -> str:
    """The name of those that one program trains: tau and seed may differ in it."""
    return architecture.model if architecture.model in ADAPTIVE else label(architecture)
