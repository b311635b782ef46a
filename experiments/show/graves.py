"""The figures of Graves 2016: errors, learning curves, difficulty and single sequences."""

import pathlib
from typing import Any

import matplotlib.patches
import numpy as np

from experiments.show import figures
from experiments.show.style import (
    PLAIN,
    THOUSANDS,
    colors,
    groups,
    mean_and_error,
    mean_curve,
    name,
    plt,
    save,
)


def errors(summary: dict[str, Any], path: pathlib.Path) -> bool:
    """Bars: the mean error at the end of training, with its standard error over seeds (fig. 4)."""
    found = groups(_fixed(summary))
    if len(found) < 2:
        return False
    tones = colors(found)
    figure, axes = plt.subplots(figsize=(max(5, 0.42 * len(found) + 2), 3.6))
    for place, (label, members) in enumerate(found.items()):
        mean, error = mean_and_error([_error(m) for m in members])
        axes.bar(place, mean, yerr=error, color=tones[label], capsize=3, width=0.75)
    axes.set_xticks(range(len(found)), list(found), rotation=60, ha="right", fontsize=8)
    axes.set_ylabel(_metric(summary))
    axes.set_ylim(bottom=0)
    return save(figure, path)


def curves(summary: dict[str, Any], path: pathlib.Path) -> bool:
    """Learning curves, and error against ponder for every network (fig. 5)."""
    found = groups(_fixed(summary))
    if not found:
        return False
    tones = colors(found)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4))
    for label, members in found.items():
        for member in members:
            curve = member["curve"]
            left.plot(curve["step"], _curve(summary, curve), color=tones[label], alpha=0.2, lw=0.8)
        key = "bits_per_character" if _text(summary) else "accuracy"
        steps, mean = mean_curve(members, key)
        left.plot(steps, mean if _text(summary) else 1 - mean, color=tones[label], label=label)
        ponders = [m["evaluation"]["ponder_steps"] for m in members]
        ends = [_error(m) for m in members]
        if label == "without ACT":
            right.axhline(np.mean(ends), color=PLAIN, linestyle=":", label=label)
            continue
        right.scatter(ponders, ends, s=10, color=tones[label], alpha=0.5)
        (x, width), (y, height) = mean_and_error(ponders), mean_and_error(ends)
        right.scatter([x], [y], s=60, color=[tones[label]], label=label, zorder=3)
        ellipse = matplotlib.patches.Ellipse((x, y), 2 * width, 2 * height, color=tones[label])
        ellipse.set_alpha(0.3)
        right.add_patch(ellipse)
    left.xaxis.set_major_formatter(THOUSANDS)
    left.set_xlabel("updates")
    left.set_ylabel(_metric(summary))
    right.set_xlabel("ponder steps N for each input")
    right.set_ylabel(_metric(summary))
    right.set_xscale("log")
    ticks = [tick for tick in (1, 2, 3, 5, 10, 20, 50, 100) if tick <= 1.5 * right.get_xlim()[1]]
    right.set_xticks(ticks, ticks)
    right.minorticks_off()
    (left if len(found) < 14 else right).legend(fontsize=7, ncols=1 + len(found) // 9)
    return save(figure, path)


def difficulty(summary: dict[str, Any], path: pathlib.Path, *, unit: str) -> bool:
    """Steps and error against difficulty: members faint, means over seeds bold (fig. 6)."""
    graded = [m for m in _fixed(summary) if m["evaluation"].get("by_difficulty")]
    found = groups(graded)
    if not found:
        return False
    tones = colors(found)
    figure, panels = plt.subplots(1, 2, figsize=(10.5, 4))
    for label, members in found.items():
        levels = [row["difficulty"] for row in members[0]["evaluation"]["by_difficulty"]]
        for axes, key in zip(panels, ("steps", "error"), strict=True):
            lines = [[row[key] for row in m["evaluation"]["by_difficulty"]] for m in members]
            for line in lines:
                axes.plot(levels, line, color=tones[label], alpha=0.2, lw=0.8)
            axes.plot(levels, np.mean(lines, axis=0), color=tones[label], label=label)
    for axes in panels:
        axes.set_xlabel(unit if unit == "difficulty" else f"difficulty: {unit}")
    panels[0].set_ylabel("ponder steps N")
    panels[1].set_ylabel("sequence error rate")
    panels[1].set_ylim(bottom=0)
    panels[0].legend(fontsize=7, ncols=1 + len(found) // 9)
    return save(figure, path)


def sequences(summary: dict[str, Any], path: pathlib.Path) -> bool:
    """Ponder at every step of single sequences, inputs below and outputs above (figs. 15, 20)."""
    member, examples = _looked_at(summary, "examples")
    if not examples:
        return False
    widths = [2 + len(example["ponder"]) for example in examples]
    figure, panels = plt.subplots(
        1, len(examples), figsize=(12, 3.4), width_ratios=widths, sharey=True
    )
    for axes, example in zip(np.atleast_1d(panels), examples, strict=True):
        places = np.arange(len(example["ponder"]))
        axes.step(places, example["ponder"], where="mid", color="black")
        if "digits" in example:
            axes.step(places, example["digits"], where="mid", color="0.65")
        axes.set_xticks(places, example["inputs"], rotation=60, fontsize=7)
        top = axes.secondary_xaxis("top")
        top.set_xticks(places, example["outputs"], rotation=60, fontsize=7)
        axes.set_xlabel("input")
    first = np.atleast_1d(panels)[0]
    first.set_ylim(bottom=0)  # shared, and after all is drawn: it also fixes the top
    first.set_ylabel("ponder N + R")
    figure.suptitle(f"{name(member)}, seed {member['seed']}", fontsize=9)
    return save(figure, path)


def stretches(summary: dict[str, Any], path: pathlib.Path) -> bool:
    """Ponder, loss and entropy along stretches of text (figs. 23, 24)."""
    _, pieces = _looked_at(summary, "stretches")
    for index, piece in enumerate(pieces):
        target = path if index == 0 else path.with_name(f"{path.stem}_{index + 1}.png")
        figures.stretch(piece, target)
    return bool(pieces)


def _looked_at(summary, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The first member that shows single inputs, and those; in older summaries beside the rest."""
    for member in summary["members"]:
        found = member["evaluation"].get(name) or member.get(name)
        if found:
            return member, found
    return {}, []


def _fixed(summary):
    return [m for m in summary["members"] if m["ponder_budget"] is None]


def _text(summary) -> bool:
    return any("bits_per_character" in m["evaluation"] for m in summary["members"])


def _metric(summary) -> str:
    return "bits per character" if _text(summary) else "sequence error rate"


def _error(member) -> float:
    found = member["evaluation"]
    return found["bits_per_character"] if "bits_per_character" in found else found["error"]


def _curve(summary, curve):
    return curve["bits_per_character"] if _text(summary) else 1 - np.asarray(curve["accuracy"])
