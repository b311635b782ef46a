"""The figures of puzzles: of one run, from the files in its folder, or of all summaries."""

import functools
import math
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib.ticker
import numpy as np

from actjax.training import read_metrics
from experiments.record import read_json
from experiments.show import markup
from experiments.show.style import THOUSANDS, plt, plus_minus, save

CURVE_POINTS = 200
Members = list[dict[str, Any]]  # of which each is a run: "model", "evaluation", "example", "curve"


class Look(NamedTuple):
    """How the puzzles of a task are shown.

    Attributes:
      name: of the task.
      unit: what its difficulty counts, for an axis.
      asked: `(board, solution) -> ` which cells have to be found, bool, for the counts of those
        that are right, and a board's title.
      paint: `(axes, board, solution, answer)`: draws a board, with an answer unless that is None;
        all are integers ``[cells]``.
    """

    name: str
    unit: str
    asked: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, str]]
    paint: Callable[..., None]


def member(folder: pathlib.Path) -> dict[str, Any]:
    """What the files in the folder of a run say, as summaries hold it."""
    summary, rows = read_json(folder / "summary.json"), read_metrics(folder / "metrics.jsonl")
    config, example = summary["config"], read_json(folder / "example.json")
    return {
        **{name: summary[name] for name in ("model", "seed", "parameters", "wall_time_seconds")},
        **{name: config[name] for name in ("preset", "max_steps")},
        "size": math.isqrt(len(example["board"])),  # a file of one's own may have another
        "updates": summary["steps"],
        "planned": summary["planned_steps"],
        "evaluation": read_json(folder / "evaluation.json"),
        "example": example,
        "curve": curve(rows),
    }


def curve(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Accuracy and steps a board in training; rows are thinned, each the mean of some."""
    parts = np.array_split(np.arange(len(rows)), min(len(rows), CURVE_POINTS))
    mean = lambda values: [float(np.mean([values[i] for i in part])) for part in parts]
    return {
        "step": [rows[part[-1]]["step"] for part in parts],
        "accuracy": mean([row["accuracy"] for row in rows]),
        # with recycled lanes one over the mean share that ended, and 0 where none did
        "steps": [1 / share if share else 0.0 for share in mean([_ended(row) for row in rows])],
    }


def _ended(row: dict[str, Any]) -> float:
    return row["recycled"] if "recycled" in row else 1 / row["ponder_steps"]


def draw(look: Look, folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws all figures that the files in the folder of a run give: their paths."""
    one = member(folder)
    for name, (function, _) in FIGURES.items():
        function(look, {one["model"]: [one]}, folder / f"{name}.png")
    return [folder / f"{name}.png" for name in FIGURES]


def compare(
    look: Look, members: Members, folder: pathlib.Path
) -> list[tuple[str, str, pathlib.Path]]:
    """Draws the figures of all runs, those of a preset and size together: (name, title, path)."""
    drawn, pools = [], {}
    for one in members:
        pool = pools.setdefault(f"{one['preset']}_{one['size']}x{one['size']}", {})
        pool.setdefault(one["model"], []).append(one)
    for pool, runs in pools.items():
        for name, (function, title) in FIGURES.items():
            path = folder / f"{pool}_{name}.png"
            function(look, runs, path)
            drawn.append((f"{pool}, {name}", title.format(unit=look.unit), path))
    return drawn


def section(look: Look, found: list[tuple[pathlib.Path, dict[str, Any]]]) -> str:
    """The part of the report's page."""
    name = look.name
    parts = [f"<h2 id={name}>{name.capitalize()}</h2>"]
    if not found:
        command = f"python -m experiments {name} --results experiments/results/{name}/NAME.json"
        return "\n".join([*parts, markup.missing(command)])
    parts += [markup.heading(path, summary) for path, summary in found]
    members = [one for _, summary in found for one in summary["members"]]
    parts.append(markup.table(table(members)))
    with tempfile.TemporaryDirectory() as folder:
        for _, title, path in compare(look, members, pathlib.Path(folder)):
            parts.append(f"<h3>{title}</h3>{markup.picture(path)}")
    return "\n".join(parts)


def table(members: Members) -> list[dict[str, str]]:
    """A row for each preset and model, the mean over seeds."""
    rows, groups = [], {}
    for one in members:
        groups.setdefault((one["preset"], one["size"], one["model"]), []).append(one)
    for (preset, size, model), runs in groups.items():
        found = [one["evaluation"] for one in runs]
        share = lambda name, found=found: plus_minus([100 * e[name] for e in found], 2) + " %"
        done, planned = runs[0]["updates"], runs[0]["planned"]
        part = f" of {planned:,}" if done < planned else ""
        rows.append(
            {
                "preset": f"{preset}, {size} x {size}",
                "model": model,
                "seeds": str(len(runs)),
                "updates": f"{done:,}{part}",
                "minutes": f"{np.mean([one['wall_time_seconds'] for one in runs]) / 60:.0f}",
                f"solved in {runs[0]['max_steps']} steps": share("accuracy_always"),
                "solved, stopped early": share("accuracy"),
                "in steps": plus_minus([e["steps"] for e in found], 2),
            }
        )
    return rows


def curves(look: Look, runs: dict[str, Members], path: pathlib.Path):
    """Share of boards that are right, and steps a board, against updates."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 6), sharex=True)
    for color, (label, members) in _colored(runs):
        for number, one in enumerate(members):
            line = {"color": color, "alpha": 1 if number == 0 else 0.4}
            updates = one["curve"]["step"]
            name = None if number else label
            top.plot(updates, one["curve"]["accuracy"], label=name, **line)
            bottom.plot(updates, one["curve"]["steps"], **line)
    top.set_ylabel("boards right after a step (training)")
    top.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    top.legend(fontsize="small")
    bottom.set_ylabel("steps a board (training)")
    bottom.set_ylim(bottom=0)
    bottom.xaxis.set_major_formatter(THOUSANDS)
    bottom.set_xlabel("updates")
    save(figure, path, dpi=120)


def difficulty(look: Look, runs: dict[str, Members], path: pathlib.Path):
    """Steps of boards stopped early by difficulty, and those not solved, then and in one step."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4))
    for color, (label, members) in _colored(runs):
        for number, one in enumerate(members):
            rows = one["evaluation"]["by_difficulty"]
            draw = functools.partial(_with_spread, rows=rows, color=color, faint=number > 0)
            draw(left, "steps", label=label, style="-")
            draw(right, "error_of_one_step", label=f"{label}, after one step", style="--")
            draw(right, "error", label=f"{label}, stopped early", style="-")
    for axes, name in ((left, "steps until stopped"), (right, "test boards not solved")):
        axes.set_xlabel(look.unit)
        axes.set_ylabel(name)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.legend(fontsize="small", loc="center left")
    left.set_ylim(bottom=0)
    right.set_ylim(bottom=-0.02)
    right.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    save(figure, path, dpi=120)


def _with_spread(axes, key: str, *, rows, color, faint: bool, label: str, style: str):
    """Means by difficulty, with their standard errors unless `faint`."""
    x, y, spread = (
        np.array([row[name] for row in rows], float)
        for name in ("difficulty", key, f"{key}_standard_error")
    )
    if faint:
        axes.plot(x, y, style, color=color, alpha=0.4, linewidth=1)
        return
    axes.plot(x, y, style, color=color, label=label)
    axes.fill_between(x, y - spread, y + spread, color=color, alpha=0.2, linewidth=0)


def allowed(look: Look, runs: dict[str, Members], path: pathlib.Path):
    """Boards left unsolved by steps allowed, beside stopping early at every level and at the chosen
    one."""
    figure, axes = plt.subplots(figsize=(6.4, 4.4))
    most, floor = 1, 1.0  # at which stands what was solved whole
    for color, (label, members) in _colored(runs):
        for number, one in enumerate(members):
            found, name = one["evaluation"], f"{label}: " if len(runs) > 1 else ""
            always, levels = found["by_steps_allowed"], found["by_level"]
            most, least = max(most, len(always)), 0.5 / found["boards"]
            floor = min(floor, least)
            say = lambda text, number=number, name=name: None if number else name + text
            wrong = lambda right, least=least: np.maximum(1 - np.asarray(right), least)
            line = {"color": color, "alpha": 1 if number == 0 else 0.45}
            steps = range(1, len(always) + 1)
            axes.plot(steps, wrong(always), "o--", ms=4, lw=1, **line, label=say("always n steps"))
            steps, right = ([row[name] for row in levels] for name in ("steps", "accuracy"))
            axes.plot(steps, wrong(right), "-", **line, label=say("stopped early, by level"))
            chosen = say(f"level chosen on validation boards ({found['level']:g})")
            place = [found["steps"]], wrong([found["accuracy"]])
            axes.plot(*place, "*", color="tab:red", ms=13, alpha=line["alpha"], label=chosen)
    axes.set(xscale="log", yscale="log")
    ticks = [2**n for n in range(8) if 2**n <= most]
    axes.set_xticks(ticks, list(map(str, ticks)))
    axes.minorticks_off()
    shares = [10.0**-n for n in range(6) if 10.0**-n > 1.5 * floor]
    axes.set_yticks([*shares, floor], [*(f"{100 * share:g} %" for share in shares), "none"])
    axes.set_ylim(bottom=0.7 * floor)
    axes.set_xlabel("mean steps a board")
    axes.set_ylabel("test boards not solved")
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small")
    save(figure, path, dpi=120)


def solved(look: Look, runs: dict[str, Members], path: pathlib.Path, *, most: int = 6):
    """One board of the first run as it is solved: the puzzle, then its answers step by step."""
    piece = next(iter(runs.values()))[0]["example"]
    answers, board, solution = (np.array(piece[n]) for n in ("answers", "board", "solution"))
    asked, title = look.asked(board, solution)
    shown = np.unique(np.linspace(0, len(answers) - 1, min(most, len(answers))).round().astype(int))
    figure, panels = plt.subplots(1, len(shown) + 1, figsize=(2.1 * len(shown) + 2.1, 2.55))
    right = (answers == solution)[:, asked].sum(1)
    titles = [f"step {n + 1}: {right[n]} right\nq = {piece['confidence'][n]:.1f}" for n in shown]
    drawn = zip(panels, [title, *titles], [None, *answers[shown]], strict=True)
    for axes, words, answer in drawn:
        look.paint(axes, board, solution, answer)
        axes.set_title(words, fontsize=9)
        size = math.isqrt(len(board))
        axes.set(xlim=(0, size), ylim=(size, 0), aspect="equal", xticks=[], yticks=[])
    save(figure, path, dpi=120)


FIGURES = {
    "difficulty": (difficulty, "Steps and error by {unit}"),
    "steps_allowed": (allowed, "Boards not solved by steps allowed, and stopped early"),
    "curves": (curves, "Learning curves"),
    "example": (solved, "A board as it is solved"),
}


def _colored(runs: dict[str, Members]):
    return zip(plt.get_cmap("tab10").colors, runs.items(), strict=False)
