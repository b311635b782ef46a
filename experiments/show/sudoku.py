"""The figures of a Sudoku run, drawn from the files in its folder alone."""

import math
import pathlib
from typing import Any

import numpy as np

from actjax.training import read_metrics
from experiments.record import read_json
from experiments.show import figures
from experiments.show.style import plt, save


def draw(folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws all figures that the files in the folder of a run give: their paths."""
    found, summary = read_json(folder / "evaluation.json"), read_json(folder / "summary.json")
    label = summary["model"]
    curves(read_metrics(folder / "metrics.jsonl"), folder / "curves.png")
    figures.difficulty({label: [found["by_difficulty"]]}, folder / "difficulty.png", unit="holes")
    allowed(found, folder / "steps_allowed.png")
    solved(read_json(folder / "example.json"), folder / "example.png")
    names = ("curves", "difficulty", "steps_allowed", "example")
    return [folder / f"{name}.png" for name in names]


def curves(rows: list[dict[str, Any]], path: pathlib.Path):
    """Share of boards that are right, and steps a board, against updates."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 6), sharex=True)
    updates = [row["step"] for row in rows]
    top.plot(updates, [row["accuracy"] for row in rows])
    top.set_ylabel("boards right after a step (training)")
    bottom.plot(updates, [steps_of(row) for row in rows])
    bottom.set_ylabel("steps a board")
    bottom.set_xlabel("updates")
    save(figure, path, dpi=120)


def steps_of(row: dict[str, Any]) -> float:
    """Mean steps a board in a row of metrics; with recycled lanes, of those that ended."""
    if "recycled" in row:
        return 1 / row["recycled"] if row["recycled"] else float("nan")
    return row["ponder_steps"]


def allowed(found: dict[str, Any], path: pathlib.Path):
    """Accuracy by steps allowed, beside stopping early at every level and at the chosen one."""
    figure, axes = plt.subplots(figsize=(6, 4))
    always = found["by_steps_allowed"]
    axes.plot(range(1, len(always) + 1), always, "o-", color="0.5", label="always n steps")
    levels = found["by_level"]
    steps, accuracy = ([row[name] for row in levels] for name in ("steps", "accuracy"))
    axes.plot(steps, accuracy, ".-", color="tab:blue", label="stopped early, by level")
    chosen = f"level {found['level']:g}, chosen on validation boards"
    axes.plot([found["steps"]], [found["accuracy"]], "*", color="tab:red", ms=14, label=chosen)
    axes.set_xlabel("mean steps a board")
    axes.set_ylabel("test boards solved")
    axes.legend(fontsize="small")
    save(figure, path, dpi=120)


def solved(piece: dict[str, Any], path: pathlib.Path, *, most: int = 8):
    """One board as it is solved: given digits black, right ones green and wrong ones red."""
    answers, board, solution = (np.array(piece[n]) for n in ("answers", "board", "solution"))
    size = math.isqrt(len(board))
    shown = np.unique(np.linspace(0, len(answers) - 1, min(most, len(answers))).round().astype(int))
    figure, panels = plt.subplots(1, len(shown) + 1, figsize=(2.2 * len(shown) + 2.2, 2.7))
    titles = ["puzzle", *(f"step {n + 1}\nq {piece['confidence'][n]:.1f}" for n in shown)]
    for axes, title, cells in zip(panels, titles, [board, *answers[shown]], strict=True):
        _grid(axes, size)
        axes.set_title(title, fontsize=9)
        for cell in np.flatnonzero(cells):
            given, right = board[cell] > 0, cells[cell] == solution[cell]
            row, column = divmod(cell, size)
            color = "black" if given and right else "tab:green" if right else "tab:red"
            weight = "bold" if given else "normal"
            axes.text(
                column + 0.5,
                size - row - 0.5,
                str(cells[cell]),
                ha="center",
                va="center",
                color=color,
                weight=weight,
                fontsize=54 / size,
            )
    save(figure, path, dpi=120)


def _grid(axes, size: int):
    from actjax.tasks.sudoku import BOXES

    height, width = BOXES[size]
    for place in range(size + 1):
        for draw, band in ((axes.axhline, height), (axes.axvline, width)):
            # lines are counted from below, and boxes fill the grid either way
            draw(place, color="0.3", linewidth=1.6 if place % band == 0 else 0.4)
    axes.set(xlim=(0, size), ylim=(0, size), aspect="equal", xticks=[], yticks=[])
