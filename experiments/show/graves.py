"""The figures of Graves 2016: errors, learning curves, difficulty and single sequences."""

import pathlib
from typing import Any

import matplotlib.patches
import matplotlib.ticker
import numpy as np

from experiments.members import PONDERS
from experiments.show import figures
from experiments.show.style import (
    PLAIN,
    THOUSANDS,
    colors,
    groups,
    legend,
    mean_and_error,
    mean_curve,
    name,
    plt,
    save,
    whiskers,
)

FEW = 6  # levels of difficulty that are shown as dots


def errors(summary: dict[str, Any], path: pathlib.Path) -> bool:
    """Bars: the mean error at the end of training, with its standard error over seeds (fig. 4)."""
    found = groups(_fixed(summary))
    if len(found) < 2:
        return False
    tones = colors(found)
    figure, axes = plt.subplots(figsize=(max(5, 0.42 * len(found) + 2), 3.6))
    for place, (label, members) in enumerate(found.items()):
        mean, error = mean_and_error([_error(m) for m in members])
        axes.bar(place, mean, color=tones[label], width=0.75, **whiskers(error))
    axes.set_xticks(range(len(found)), list(found), rotation=40, ha="right", fontsize=8)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(_metric(summary))
    axes.set_ylim(bottom=0)
    return save(figure, path)


def curves(summary: dict[str, Any], path: pathlib.Path) -> bool:
    """Learning curves, and error against ponder for every network (fig. 5)."""
    found = groups(_fixed(summary))
    if not found:
        return False
    tones = colors(found)
    compared = len(found) > 1  # else the second panel would have one dot
    shape = {"figsize": (10.5 if compared else 6, 4), "layout": "constrained", "squeeze": False}
    figure, panels = plt.subplots(1, 1 + compared, **shape)
    left = panels[0, 0]
    key = "bits_per_character" if _text(summary) else "accuracy"
    for label, members in found.items():
        for member in members:
            curve = member["curve"]
            left.plot(curve["step"], _curve(summary, curve), color=tones[label], alpha=0.2, lw=0.8)
        steps, mean = mean_curve(members, key)
        left.plot(steps, mean if _text(summary) else 1 - mean, color=tones[label], label=label)
    left.xaxis.set_major_formatter(THOUSANDS)
    left.set_xlabel("updates")
    left.set_ylabel(_metric(summary))
    if compared:
        _against_ponder(panels[0, 1], found, tones)
        panels[0, 1].set_ylabel(_metric(summary))
    legend(figure, left, found)
    return save(figure, path)


def _against_ponder(axes, found, tones):
    """Error against steps: networks small, means over seeds with their errors large."""
    widest = 1.0
    for label, members in found.items():
        ponders = [m["evaluation"]["ponder_steps"] for m in members]
        ends = [_error(m) for m in members]
        if label == "without ACT":
            axes.axhline(np.mean(ends), color=PLAIN, linestyle=":", label=label)
            continue
        widest = max(widest, *ponders)
        axes.scatter(ponders, ends, s=10, color=tones[label], alpha=0.5)
        (x, width), (y, height) = mean_and_error(ponders), mean_and_error(ends)
        axes.scatter([x], [y], s=60, color=[tones[label]], zorder=3)
        if np.isfinite(width):
            ellipse = matplotlib.patches.Ellipse((x, y), 2 * width, 2 * height, color=tones[label])
            ellipse.set_alpha(0.3)
            axes.add_patch(ellipse)
    dotted = " (dotted: without ACT)" if "without ACT" in found else ""
    axes.set_xlabel(f"steps N for each input{dotted}")
    axes.set_xscale("log")
    axes.set_xlim(0.93, max(1.5, 1.15 * widest))
    ticks = (1, 1.25, 1.5) if widest < 1.5 else (1, 1.5, 2, 3, 5, 7, 10, 20, 50, 100)
    ticks = [tick for tick in ticks if tick <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def difficulty(summary: dict[str, Any], path: pathlib.Path, *, unit: str) -> bool:
    """Steps and error against difficulty: members faint, means over seeds bold (fig. 6)."""
    graded = [m for m in _fixed(summary) if m["evaluation"].get("by_difficulty")]
    found = groups(graded)
    if not found:
        return False
    tones = colors(found)
    figure, panels = plt.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
    for label, members in found.items():
        levels = [row["difficulty"] for row in members[0]["evaluation"]["by_difficulty"]]
        marker = {"marker": "o", "markersize": 5} if len(levels) < FEW else {}
        for axes, key in zip(panels, ("steps", "error"), strict=True):
            lines = [[row[key] for row in m["evaluation"]["by_difficulty"]] for m in members]
            for line in lines:
                axes.plot(levels, line, color=tones[label], alpha=0.2, lw=0.8)
            axes.plot(levels, np.mean(lines, axis=0), color=tones[label], label=label, **marker)
    for axes in panels:
        axes.set_xlabel(unit if unit == "difficulty" else f"difficulty: {unit}")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        if len(levels) < FEW:
            axes.set_xticks(levels)
            axes.set_xlim(levels[0] - 0.3, levels[-1] + 0.3)
    panels[0].set_ylabel("steps N")
    panels[1].set_ylabel("sequence error rate")
    legend(figure, panels[0], found)
    return save(figure, path)


def sequences(summary: dict[str, Any], path: pathlib.Path) -> bool:
    """Ponder at every step of single sequences, inputs below and outputs above (figs. 15, 20)."""
    member, examples = _looked_at(summary, "examples")
    if not examples:
        return False
    widths = [1 + len(example["ponder"]) for example in examples]
    size = min(12, 1.5 + 0.85 * sum(widths)), 3.2
    figure, panels = plt.subplots(
        1,
        len(examples),
        figsize=size,
        width_ratios=widths,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, example in zip(panels[0], examples, strict=True):
        places = np.arange(len(example["ponder"]))
        bars = axes.bar(places, example["ponder"], color="#9db9d6", width=0.8)
        turn = 0 if len(places) < FEW else 90
        axes.bar_label(bars, example["outputs"], rotation=turn, fontsize=8, padding=3)
        if "digits" in example:
            marks = {"marker": "_", "s": 260, "color": "k", "label": "digits summed"}
            axes.scatter(places, example["digits"], **marks)
        axes.set_xticks(places, example["inputs"], rotation=90, fontsize=8)
        axes.set_xlim(-0.7, places[-1] + 0.7)
        axes.tick_params(axis="x", length=0)
    highest = max(max(example["ponder"]) for example in examples)
    panels[0, 0].set_ylim(0, 1.45 * highest)  # room for the outputs
    panels[0, 0].set_ylabel("ponder N + R")
    if "digits" in examples[0]:
        panels[0, -1].legend(fontsize=7, loc="upper right", borderpad=0.2, markerscale=0.4)
    figure.supxlabel("input below, output above each bar", fontsize=9)
    figure.suptitle(_who(summary, member), fontsize=9)
    return save(figure, path)


def stretches(summary: dict[str, Any], path: pathlib.Path) -> bool:
    """Ponder, loss and entropy along stretches of text, if the network ponders (figs. 23, 24)."""
    member, pieces = _looked_at(summary, "stretches")
    if not pieces or _idle(member):
        return False
    for index, piece in enumerate(pieces):
        target = path if index == 0 else path.with_name(f"{path.stem}_{index + 1}.png")
        figures.stretch(piece, target, title=_who(summary, member))
    return True


def kinds(summary: dict[str, Any], path: pathlib.Path) -> bool:
    """Mean ponder after each kind of byte, if any network ponders (section 3.5, in words)."""
    wanted = [m for m in summary["members"] if "by_kind" in m["evaluation"] and m["tau"]]
    found = groups(wanted)
    if all(map(_idle, wanted)):
        return False
    tones = colors(found)
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    width = 0.8 / len(found)
    for number, (label, members) in enumerate(found.items()):
        rows = [m["evaluation"]["by_kind"] for m in members]
        names = [row["kind"] for row in rows[0]]
        places = np.arange(len(names)) + (number - (len(found) - 1) / 2) * width
        means = [np.mean([row[i]["ponder"] for row in rows]) for i in range(len(names))]
        bars = axes.bar(places, means, width=0.92 * width, color=tones[label], label=label)
        axes.bar_label(bars, fmt="{:.1f}", fontsize=7, padding=1)
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("mean ponder N + R after")
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
    axes.legend(fontsize=8, ncols=len(found), loc="upper left")
    return save(figure, path)


def _who(summary: dict[str, Any], member: dict[str, Any]) -> str:
    """Which network a figure of single inputs shows, and why that one."""
    steps = member["evaluation"]["ponder_steps"]
    one = f"{name(member)}, seed {member['seed']}, mean N {steps:.2f}"
    others = [m for m in summary["members"] if m["model"] == member["model"] and m is not member]
    if not others:
        return one
    if not _idle(member):
        return f"{one}: of the networks that ponder the one of least error"
    ponder = "" if any(not _idle(m) for m in others) else ", none of which ponders much"
    return f"{one}: the one of least error{ponder}"


def _idle(member: dict[str, Any]) -> bool:
    return member["evaluation"]["ponder_steps"] < PONDERS


def _looked_at(summary, what: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The member that shows single inputs, and those; of several one that ponders, if one does."""
    found = [(m, m["evaluation"].get(what) or m.get(what)) for m in summary["members"]]
    found = [(member, shown) for member, shown in found if shown]
    order = lambda pair: (_idle(pair[0]), pair[0]["model"] != "act", _error(pair[0]))
    return min(found, key=order) if found else ({}, [])


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
