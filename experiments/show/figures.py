"""Figures, drawn from the files of a run alone."""

import pathlib
from typing import Any

import numpy as np

from actjax.training import read_metrics
from experiments.record import read_json
from experiments.show.style import matplotlib, plt, save
from experiments.smoothing import WINDOW, smooth


def draw(folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws all figures that the files in the folder of a run give: their paths."""
    folder = pathlib.Path(folder)
    label = read_json(folder / "summary.json", {}).get("model", folder.name)
    drawn = [curves({label: [read_metrics(folder / "metrics.jsonl")]}, folder / "curves.png")]
    levels = read_json(folder / "evaluation.json", {}).get("by_difficulty")
    if levels:
        drawn.append(difficulty({label: [levels]}, folder / "difficulty.png"))
    for piece in read_json(folder / "stretches.json", []):
        drawn.append(stretch(piece, folder / f"stretch_{piece['name']}.png"))
    return drawn


def curves(runs: dict[str, list[list[dict[str, Any]]]], path: pathlib.Path) -> pathlib.Path:
    """Accuracy or bits per character, and steps, against updates (Fojo 2018, figure 6.4).

    Args:
      runs: label -> the rows of metrics of each of its runs, drawn in one color.
    """
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 6), sharex=True)
    for (label, color), seeds in zip(_colors(runs), runs.values(), strict=True):
        for number, rows in enumerate(seeds):
            name = "bits_per_character" if "bits_per_character" in rows[-1] else "accuracy"
            updates = [row["step"] for row in rows]
            for axes, key in ((top, name), (bottom, "ponder_steps")):
                values = np.array([row[key] for row in rows], float)
                smoothed = smooth(values, min(WINDOW, len(values) // 8 | 1))
                if key == "accuracy":  # the filter overshoots where a curve arrives at 1
                    smoothed = np.minimum(smoothed, 1)
                axes.plot(updates, values, color=color, alpha=0.2, linewidth=0.8)
                axes.plot(updates, smoothed, color=color, label=None if number else label)
            top.set_ylabel(name.replace("_", " ") + " (training)")
    bottom.set_ylabel("steps N")
    bottom.set_xlabel("updates")
    top.legend(fontsize="small")
    save(figure, path, dpi=120)
    return path


def difficulty(
    runs: dict[str, list[list[dict[str, float]]]], path: pathlib.Path, *, unit: str = "difficulty"
) -> pathlib.Path:
    """Steps N and error rate against difficulty, with standard errors (Graves 2016, figure 6).

    Args:
      runs: label -> the rows "by_difficulty" of each of its runs, drawn in one color.
      unit: what difficulty counts.
    """
    figure, panels = plt.subplots(1, 2, figsize=(9, 4))
    for (label, color), seeds in zip(_colors(runs), runs.values(), strict=True):
        for number, rows in enumerate(seeds):
            x = [row["difficulty"] for row in rows]
            for axes, key in zip(panels, ("steps", "error"), strict=True):
                y = np.array([row[key] for row in rows])
                spread = np.array([row[f"{key}_standard_error"] for row in rows])
                axes.plot(x, y, color=color, label=None if number else label)
                axes.fill_between(x, y - spread, y + spread, color=color, alpha=0.2, linewidth=0)
    for axes, name in zip(panels, ("ponder steps N", "error rate"), strict=True):
        axes.set_ylabel(name)
        axes.set_xlabel(unit)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
    panels[0].legend(fontsize="small")
    save(figure, path, dpi=120)
    return path


def stretch(
    piece: dict[str, Any], path: pathlib.Path, *, title: str = "", characters: int = 60
) -> pathlib.Path:
    """Ponder, loss and entropy, character by character (Graves 2016, figures 23 and 24).

    Args:
      characters: of a line; a longer piece goes on below. The last may be a little longer or
        shorter, so that all are alike.
    """
    lines = np.array_split(np.arange(len(piece["bytes"])), -(-len(piece["bytes"]) // characters))
    shown = (
        ("ponder", "ponder N + R", "tab:blue", 2),
        ("loss_bits", "loss (bits)", "tab:red", 1),
        ("entropy_bits", "entropy (bits)", "tab:green", 1),
    )
    heights = [height for *_, height in shown] + [0.45]  # a gap below each line
    figure = plt.figure(figsize=(9, 3.6 * len(lines) + (0.3 if title else 0)))
    grid = figure.add_gridspec(
        len(heights) * len(lines),
        1,
        height_ratios=heights * len(lines),
        hspace=0.12,
        left=0.075,
        right=0.995,
        top=1 - (0.4 if title else 0.1) / figure.get_figheight(),
        bottom=0.02,
    )
    figure.suptitle(title, fontsize=11)
    for place, line in enumerate(lines):
        panels = [figure.add_subplot(grid[len(heights) * place + row]) for row in range(len(shown))]
        for panel, (key, name, color, _) in zip(panels, shown, strict=True):
            values = np.array(piece[key])
            low = values.min() if key == "ponder" else 0
            high = max(values.max(), low + 1)
            margin = 0.07 * (high - low)
            panel.set_ylim(low - margin, high + margin)  # the same for every line
            panel.plot(line, values[line], color=color, marker=".", markersize=5, linewidth=1.2)
            if key == "ponder":
                panel.fill_between(line, low, values[line], color=color, alpha=0.15, linewidth=0)
            panel.set_ylabel(name.replace(" (", "\n("), fontsize=9)
            panel.yaxis.set_label_coords(-0.045, 0.5)
            panel.tick_params(axis="y", labelsize=8)
            panel.set_xlim(line[0] - 0.7, line[-1] + 0.7)
            panel.set_xticks([])
            for at in line:
                if piece["bytes"][at] in b" \n":
                    panel.axvspan(at - 0.5, at + 0.5, color="0.93", linewidth=0, zorder=0)
        letters = [character(piece["bytes"][at]) for at in line]
        panels[-1].set_xticks(line, letters)
        panels[-1].tick_params(axis="x", labelfontfamily="monospace", labelsize=11, length=0)
    save(figure, path, dpi=120, tight=False)
    return path


def character(byte: int) -> str:
    """How a byte is written on an axis: itself, or a sign for one that cannot be seen."""
    signs = {ord(" "): "_", ord("\n"): "\\n", ord("\t"): "\\t", ord("$"): r"\$"}
    return signs.get(byte, chr(byte) if 32 < byte < 127 else f"{byte:02x}")


def _colors(runs: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(label, plt.get_cmap("tab10")(place % 10)) for place, label in enumerate(runs)]
