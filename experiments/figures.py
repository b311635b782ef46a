"""Figures, drawn from the files of a run alone."""

import json
import pathlib
from typing import Any

import matplotlib
import numpy as np
import scipy.signal

from actjax.training import read_metrics

matplotlib.use("Agg")

import matplotlib.pyplot as plt

WINDOW = 71  # rows, and a cubic: how Fojo 2018, section 6.4, smooths


def draw(folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws all figures that the files in the folder of a run give: their paths."""
    folder = pathlib.Path(folder)
    rows = read_metrics(folder / "metrics.jsonl")
    drawn = [curves({folder.name: rows}, folder / "curves.png")]
    evaluation = _load(folder / "evaluation.json")
    if evaluation and "by_difficulty" in evaluation:
        levels = {folder.name: evaluation["by_difficulty"]}
        drawn.append(difficulty(levels, folder / "difficulty.png"))
    for piece in _load(folder / "stretches.json") or []:
        drawn.append(stretch(piece, folder / f"stretch_{piece['name']}.png"))
    return drawn


def curves(runs: dict[str, list[dict[str, Any]]], path: pathlib.Path) -> pathlib.Path:
    """Accuracy or bits per character, and ponder, against updates (Fojo 2018, figure 6.4)."""
    any_row = next(iter(runs.values()))[-1]
    name = "bits_per_character" if "bits_per_character" in any_row else "accuracy"
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 6), sharex=True)
    for color, (label, rows) in zip(_colors(len(runs)), runs.items(), strict=True):
        updates = np.array([row["step"] for row in rows])
        for axes, key in ((top, name), (bottom, "ponder")):
            values = np.array([row[key] for row in rows], float)
            axes.plot(updates, values, color=color, alpha=0.25, linewidth=0.8)
            axes.plot(updates, smooth(values), color=color, label=label)
    top.set_ylabel(name.replace("_", " "))
    bottom.set_ylabel("ponder N + R")
    bottom.set_xlabel("updates")
    top.legend(fontsize="small")
    return _save(figure, path)


def difficulty(levels: dict[str, list[dict[str, float]]], path: pathlib.Path) -> pathlib.Path:
    """Ponder and error rate against difficulty, with standard errors (Graves 2016, figure 6)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
    for color, (label, rows) in zip(_colors(len(levels)), levels.items(), strict=True):
        x = [row["difficulty"] for row in rows]
        for axes, key in ((left, "ponder"), (right, "error")):
            y = np.array([row[key] for row in rows])
            spread = np.array([row[f"{key}_standard_error"] for row in rows])
            axes.plot(x, y, color=color, label=label)
            axes.fill_between(x, y - spread, y + spread, color=color, alpha=0.25, linewidth=0)
    left.set_ylabel("ponder N + R")
    right.set_ylabel("error rate")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xlabel("difficulty: bits")
    left.legend(fontsize="small")
    return _save(figure, path)


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
    return _save(figure, path)


def character(byte: int) -> str:
    """How a byte is written on an axis: itself, or a sign for one that cannot be seen."""
    signs = {ord(" "): "_", ord("\n"): "\\n", ord("\t"): "\\t", ord("$"): r"\$"}
    return signs.get(byte, chr(byte) if 32 < byte < 127 else f"{byte:02x}")


def smooth(values: np.ndarray) -> np.ndarray:
    """Savitzky-Golay over 71 rows with a cubic, or over as many rows as there are."""
    window = min(WINDOW, len(values) - (len(values) + 1) % 2)
    return scipy.signal.savgol_filter(values, window, 3) if window > 3 else values


def _colors(count: int):
    return [plt.get_cmap("tab10")(index % 10) for index in range(count)]


def _save(figure, path: pathlib.Path) -> pathlib.Path:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _load(path: pathlib.Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None
