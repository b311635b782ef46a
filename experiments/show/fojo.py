"""The figures of Fojo 2018: accuracy and ponder over training, and ponder along the sequence."""

import pathlib
from typing import Any

import numpy as np

from experiments.show.style import THOUSANDS, colors, groups, mean_curve, name, plt, save


def act(summary: dict[str, Any], path: pathlib.Path) -> bool:
    """Accuracy and ponder against updates, a colour for each tau (figs. 6.4, 6.6)."""
    fixed = [m for m in summary["members"] if m["ponder_budget"] is None]
    wanted = [m for m in fixed if m["model"] in ("rnn", "act")]
    return _has(wanted, "act") and _training(wanted, ("accuracy", "ponder"), path)


def repeat(summary: dict[str, Any], path: pathlib.Path) -> bool:
    """Accuracy against updates for the plain network and each number of repeats (6.5, 6.7)."""
    wanted = [m for m in summary["members"] if m["model"] == "rnn" or m["repeats"]]
    return _has(wanted, "repeat") and _training(wanted, ("accuracy",), path)


def by_step(summary: dict[str, Any], path: pathlib.Path) -> bool:
    """Box plots of ponder at each input step, for the ACT network with the least error (6.8)."""
    wanted = [m for m in summary["members"] if m["model"] == "act"]
    if not wanted or "by_step" not in wanted[0]["evaluation"]:
        return False
    member = min(wanted, key=lambda m: (m["evaluation"]["error"], m["evaluation"]["ponder"]))
    boxes = []
    for t, step in enumerate(member["evaluation"]["by_step"], 1):
        low, first, median, third, high = step["quantiles"]
        box = {"whislo": low, "q1": first, "med": median, "q3": third, "whishi": high}
        boxes.append(box | {"mean": step["mean"], "label": str(t), "fliers": []})
    figure, axes = plt.subplots(figsize=(5, 3.6))
    axes.bxp(boxes, showmeans=True, showfliers=False)
    axes.set_xlabel("input step (boxes: quartiles; whiskers: 5 % and 95 %)")
    axes.set_ylabel("ponder N + R")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{name(member)}, seed {member['seed']}", fontsize=9)
    return save(figure, path)


def budget(summary: dict[str, Any], path: pathlib.Path) -> bool:
    """Ponder and tau against updates where tau is moved to hold a ponder budget."""
    held = [m for m in summary["members"] if m["ponder_budget"] is not None]
    if not held:
        return False
    return _training(held, ("accuracy", "ponder", "tau"), path, target=held[0]["ponder_budget"])


def _has(members, model: str) -> bool:
    return any(m["model"].startswith(model) for m in members)


def _training(members, keys, path: pathlib.Path, *, target: float | None = None) -> bool:
    """Curves after the paper's Savitzky-Golay filter, the rows themselves faint below them."""
    found = groups(members)
    tones = colors(found)
    figure, panels = plt.subplots(len(keys), 1, figsize=(7, 1 + 2.4 * len(keys)), sharex=True)
    panels = np.atleast_1d(panels)
    for label, group in found.items():
        for axes, key in zip(panels, keys, strict=True):
            for member in group:
                curve = member["curve"]
                axes.plot(curve["step"], curve[key], color=tones[label], alpha=0.3, lw=0.8)
            smoothed = key if key == "tau" else f"smoothed_{key}"
            axes.plot(*mean_curve(group, smoothed), color=tones[label], label=label)
    for axes, key in zip(panels, keys, strict=True):
        axes.set_ylabel({"ponder": "ponder N + R", "tau": "tau"}.get(key, key))
        if key == "tau":
            axes.set_yscale("log")
        if key == "ponder" and target:
            axes.axhspan(0.9 * target, 1.1 * target, color="0.88", zorder=0)
            axes.axhline(target, color="0.5", lw=0.8, zorder=0)
    panels[0].legend(fontsize=8, ncols=1 + len(found) // 7)
    panels[-1].xaxis.set_major_formatter(THOUSANDS)
    panels[-1].set_xlabel("updates")
    return save(figure, path)
