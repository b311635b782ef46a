"""The figures of Fojo 2018: accuracy and ponder over training, and ponder along the sequence."""

import pathlib
from typing import Any

import numpy as np

from experiments.show.style import THOUSANDS, colors, groups, legend, mean_curve, name, plt, save

MOST_PANELS = 4


def act(summary: dict[str, Any], path: pathlib.Path) -> bool:
    """Accuracy and steps against updates, a colour for each tau (figs. 6.4, 6.6).

    Steps are N, so that the plain network and one that halts after one step both take 1.
    """
    fixed = [m for m in summary["members"] if m["ponder_budget"] is None]
    wanted = [m for m in fixed if m["model"] in ("rnn", "act")]
    return _has(wanted, "act") and _training(wanted, ("accuracy", "ponder_steps"), path)


def repeat(summary: dict[str, Any], path: pathlib.Path) -> bool:
    """Accuracy against updates for the plain network and each number of repeats (6.5, 6.7)."""
    wanted = [m for m in summary["members"] if m["model"] == "rnn" or m["repeats"]]
    return _has(wanted, "repeat") and _training(wanted, ("accuracy",), path)


def by_step(summary: dict[str, Any], path: pathlib.Path) -> bool:
    """Box plots of ponder at each input step (6.8), for each setting its network of least error."""
    found = groups([m for m in summary["members"] if m["model"] == "act"])
    if not found or "by_step" not in next(iter(found.values()))[0]["evaluation"]:
        return False
    order = lambda m: (m["evaluation"]["error"], m["evaluation"]["ponder"])
    best = [min(members, key=order) for members in found.values()]
    picked = np.unique(np.linspace(0, len(best) - 1, min(MOST_PANELS, len(best))).astype(int))
    steps = len(best[0]["evaluation"]["by_step"])
    width = 1 + len(picked) * max(2, 0.45 * steps)
    figure, panels = plt.subplots(
        1, len(picked), figsize=(width, 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, index in zip(panels[0], picked, strict=True):
        boxes = []
        for t, step in enumerate(best[index]["evaluation"]["by_step"], 1):
            low, first, median, third, high = step["quantiles"]
            box = {"whislo": low, "q1": first, "med": median, "q3": third, "whishi": high}
            boxes.append(box | {"mean": step["mean"], "label": str(t), "fliers": []})
        box, dot = {"facecolor": "#cfe0f1"}, {"marker": "D", "markersize": 4}
        style = {"widths": 0.6, "boxprops": box, "meanprops": dot | {"markerfacecolor": "k"}}
        axes.bxp(boxes, showmeans=True, showfliers=False, patch_artist=True, **style)
        axes.set_title(f"{name(best[index])}\nseed {best[index]['seed']}", fontsize=8)
    panels[0, 0].set_ylim(bottom=0)  # shared, and after all is drawn: it also fixes the top
    panels[0, 0].set_ylabel("ponder N + R")
    words = "input of the sequence" + ("" if width < 4 else " (boxes: quartiles, 5 % and 95 %)")
    figure.supxlabel(words, fontsize=9)
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
    shape = {"figsize": (8, 1 + 2.4 * len(keys)), "sharex": True, "layout": "constrained"}
    figure, panels = plt.subplots(len(keys), 1, **shape)
    panels = np.atleast_1d(panels)
    for label, group in found.items():
        for axes, key in zip(panels, keys, strict=True):
            for member in group:
                curve = member["curve"]
                axes.plot(curve["step"], curve[key], color=tones[label], alpha=0.25, lw=0.8)
            smoothed = f"smoothed_{key}" if f"smoothed_{key}" in group[0]["curve"] else key
            steps, mean = mean_curve(group, smoothed)
            if key == "accuracy":  # the filter overshoots where a curve arrives at 1
                mean = np.minimum(mean, 1)
            axes.plot(steps, mean, color=tones[label], label=label)
    names = {"ponder": "ponder N + R", "ponder_steps": "steps N", "tau": "τ"}
    for axes, key in zip(panels, keys, strict=True):
        axes.set_ylabel(names.get(key, key))
        if key == "tau":
            axes.set_yscale("log")
        if key == "ponder" and target:
            axes.axhspan(0.9 * target, 1.1 * target, color="0.88", zorder=0)
            axes.axhline(target, color="0.5", lw=0.8, zorder=0)
    legend(figure, panels[0], found)
    panels[-1].xaxis.set_major_formatter(THOUSANDS)
    panels[-1].set_xlabel("updates")
    return save(figure, path)
