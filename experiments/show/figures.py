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
    """Accuracy or bits per character, and ponder, against updates (Fojo 2018, figure 6.4).

    Args:
      runs: label -> the rows of metrics of each of its runs, drawn in one color.
    """
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 6), sharex=True)
    for (label, color), seeds in zip(_colors(runs), runs.values(), strict=True):
        for number, rows in enumerate(seeds):
            name = "bits_per_character" if "bits_per_character" in rows[-1] else "accuracy"
            updates = [row["step"] for row in rows]
            for axes, key in ((top, name), (bottom, "ponder")):
                values = np.array([row[key] for row in rows], float)
                smoothed = smooth(values, min(WINDOW, len(values) // 8 | 1))
                axes.plot(updates, values, color=color, alpha=0.2, linewidth=0.8)
                axes.plot(updates, smoothed, color=color, label=None if number else label)
            top.set_ylabel(name.replace("_", " ") + " (training)")
    bottom.set_ylabel("ponder N + R")
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


def stretch(piece: dict[str, Any], path: pathlib.Path) -> pathlib.Path:
    """Ponder, loss and entropy, character by character (Graves 2016, figures 23 and 24)."""
    places = np.arange(len(piece["bytes"]))
    figure, axes = plt.subplots(3, 1, figsize=(15, 5.5), sharex=True)
    shown = (
        ("ponder", "ponder N + R", "tab:blue"),
        ("loss_bits", "loss (bits)", "tab:red"),
        ("entropy_bits", "entropy (bits)", "tab:green"),
    )
    for panel, (key, name, color) in zip(axes, shown, strict=True):
        panel.plot(places, piece[key], color=color, marker=".", markersize=4, linewidth=1)
        panel.set_ylabel(name)
        for place, byte in enumerate(piece["bytes"]):
            if byte in b" \n":
                panel.axvline(place, color="0.85", linewidth=0.8, zorder=0)
    axes[-1].set_xticks(places, [character(byte) for byte in piece["bytes"]])
    axes[-1].tick_params(axis="x", labelfontfamily="monospace", labelsize=8, length=2)
    axes[-1].set_xlim(-1, len(places))
    axes[-1].set_xlabel("input byte; each panel: after reading it, predicting the next")
    save(figure, path, dpi=120)
    return path


def character(byte: int) -> str:
    """How a byte is written on an axis: itself, or a sign for one that cannot be seen."""
    signs = {ord(" "): "_", ord("\n"): "\\n", ord("\t"): "\\t", ord("$"): r"\$"}
    return signs.get(byte, chr(byte) if 32 < byte < 127 else f"{byte:02x}")


def _colors(runs: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(label, plt.get_cmap("tab10")(place % 10)) for place, label in enumerate(runs)]
