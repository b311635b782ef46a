"""One self-contained HTML page: what the papers report beside what ran here."""

import dataclasses
import html
import pathlib
import tempfile
from typing import Any

import numpy as np
import tyro

from experiments.learned import page
from experiments.show import markup, plots, tables
from experiments.show.plots import lfact
from experiments.show.plots.style import groups, mean_and_error, plus_minus

# What each paper says of a figure, for the column beside ours.
PAPER = {
    ("parity", "errors"): "Almost 40 % error without ACT; below 5 % on average for τ ≤ 0.03.",
    ("parity", "curves"): "Lower τ learns faster and better; ponder varies widely at low τ.",
    ("parity", "difficulty"): "Ponder grows about linearly with the number of bits for the "
    "successful networks, steeper at lower τ; without ACT the error climbs with difficulty.",
    ("parity", "act"): "Once ponder passes one step accuracy rises much faster; smaller τ, more "
    "ponder.",
    ("parity", "repeat"): "More repeats learn faster; from about 8 training becomes unstable.",
    ("logic", "errors"): "About 0.2 without ACT; virtually zero for all τ ≤ 0.01.",
    ("logic", "curves"): "Low τ solves the task in about 10,000 iterations (of 16 updates each).",
    ("logic", "difficulty"): "From 5 to 10 gates ponder rises with difficulty; without ACT the "
    "error climbs abruptly after 5 gates.",
    ("addition", "errors"): "Solved by ACT for every τ of the grid, not without ACT.",
    ("addition", "curves"): "Networks with higher τ need fewer examples.",
    ("addition", "difficulty"): "Ponder about linear in the number of digits, slope near 1 for the "
    "most efficient networks.",
    ("addition", "sequences"): "Ponder tracks the number of digits of the two numbers summed.",
    ("addition", "act"): "From about 40 % to 100 % with the right τ; too small a τ is unstable.",
    ("addition", "repeat"): "More repeats learn faster, up to about 9, where training is unstable.",
    ("addition", "by_step"): "The first input is pondered far less than the later ones.",
    ("sort", "errors"): "From about 12 % error without ACT to about 6 % for the best τ.",
    ("sort", "curves"): "The best networks take about 9 times the computation.",
    ("sort", "difficulty"): "Error grows fast with length; ponder per step grows sublinearly.",
    ("sort", "sequences"): "A large spike of ponder near the end of the input.",
    ("wikipedia", "errors"): "Fairly similar with and without ACT, and across τ.",
    ("wikipedia", "curves"): "Little ponder; ACT somewhat more data efficient.",
    ("wikipedia", "bits"): "RNN and ACT about equal; LFACT 11.9 % better than ACT, 12.6 % better "
    "than the RNN. The paper's values, near 1.1 bits, are out of reach of a GRU of 128 units on "
    "text it has not seen; how they were measured is not said.",
    (
        "wikipedia",
        "layers",
    ): "N falls early in training and settles; its maximum rises for a while.",
    ("wikipedia", "layers_by_step"): "Nearly always one layer; two or three for 0.03 to 0.24 % of "
    "the sequences.",
    ("wikipedia", "stretches"): "Ponder rises at spaces and longer at commas and full stops; it "
    "does not rise on unpredictable numbers, where loss and entropy do.",
}
FINANCE = {
    "f1": "LFACT is 14.1 % above the RNN in predicting the next step and 7.4 % in ten steps; ACT "
    "6.3 % and about 0.",
    "mu": "The best mu lies between 0.01 and 0.1, 1.2 % above mu = 0.",
    "by_step": "LFACT and ACT are stable in all steps of predicting the next, the RNN is poor in "
    "early ones; of ten steps ahead all three fall, the plain model most.",
    "steps": "More layers at early steps (2d); N is low and constant over the decoder's steps, "
    "whose input is the same.",
    "curves": "On Wikipedia N falls early and then settles.",
    "size": "On Wikipedia LFACT improves with more text, 7 % ahead of the others throughout.",
}
BUDGET = (
    "An open problem of Graves 2016: tau sets how accuracy is paid for with time, and has to be "
    "found by hand. A ponder budget holds the mean ponder at a target by moving τ."
)

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
       color: #1b1b1b; }
h1 { font-size: 1.7rem; } h2 { margin-top: 3rem; border-bottom: 1px solid #ccc; }
h3 { margin-bottom: .2rem; } img { max-width: 100%; }
table { border-collapse: collapse; font-size: .85rem; margin: .6rem 0; }
td, th { border-bottom: 1px solid #ddd; padding: .2rem .7rem .2rem 0; text-align: left;
         vertical-align: top; }
code { background: #f3f3f3; padding: .1rem .3rem; font-size: .8rem; overflow-wrap: anywhere; }
.note { color: #555; } .missing { color: #a33; }
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Build one HTML page of all results: the papers' figures and tables beside ours."""

    results: pathlib.Path = plots.RESULTS
    """Folder with a folder a task, which holds the summaries of sweeps (.json)."""
    out: pathlib.Path = pathlib.Path("report.html")
    """The page."""


def main(argv: list[str]):
    options = tyro.cli(
        Options, prog="python -m experiments report", description=Options.__doc__, args=argv
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(build(options.results))
    print(f"report: {options.out}")


def build(results: pathlib.Path) -> str:
    """The page as HTML, figures inside; what has not been run says so.

    Raises:
      ValueError: for a file among the results that is not the summary of a sweep.
    """
    parts = [
        "<h1>Adaptive computation: the papers and what ran here</h1>",
        "<p>Graves 2016, <i>Adaptive Computation Time for Recurrent Neural Networks</i>, and Fojo "
        "2018, <i>Reproducing and analyzing Adaptive Computation Time</i>. Every figure and number "
        "of ours is drawn from the summary of a sweep, named with the command that made it. Error "
        "bars are standard errors over seeds. Sizes differ from the papers' where a sweep's preset "
        "is <code>cpu</code> or <code>demo</code>.</p>",
        "<p class=note>Counts of updates: the papers' “iterations” are those of one of 16 "
        "asynchronous workers, so Graves's 1M iterations are about 16M weight updates; Fojo's and "
        "ours are weight updates of one synchronous program.</p>",
    ]
    for task in plots.TASKS:
        parts.append(_section(task, plots.summaries(task, results)))
    parts.append(_finance(plots.summaries("finance", results)))
    parts.append(page.section(results / "learned"))
    body = "\n".join(parts)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>actjax: results</title>"
        "<meta name=viewport content='width=device-width'>"
        f"<style>{STYLE}</style><body>{body}</body></html>\n"
    )


def _section(task: str, found: list[tuple[pathlib.Path, dict[str, Any]]]) -> str:
    parts = [f"<h2 id={task}>{task.capitalize()}</h2>"]
    if not found:
        command = f"python -m experiments sweep {task} --results FILE"
        parts.append(f"<p class=missing>Not run. <code>{command}</code></p>")
    parts += [_sweep(path, summary) for path, summary in found]
    if task in tables.TABLES:
        rows = tables.compare(task, [(path.stem, summary) for path, summary in found])
        command = html.escape(tables.COMMAND.format(task=task))
        parts.append(
            f"<h3>Table {tables.NUMBER[task]} of Fojo 2018</h3><p class=note>At the paper's "
            "settings (preset fojo). Solved: 98 % accuracy after a Savitzky-Golay filter of 71 "
            "rows (ours: the mean of as many updates as lie between two rows); one number a seed. "
            "Repetitions: the paper's are averaged over runs of up to 2,000,000 updates, long "
            "after most had solved the task; ours end when solved, and so hold more of the time "
            f"before. The whole table: <code>{command}</code></p>" + markup.table(rows)
        )
        if all(row["ours: solved at"] == tables.NOT_RUN for row in rows):
            parts.append(
                "<p class=missing>No sweep at the paper's size has been run: it is one for an "
                "accelerator.</p>"
            )
    pools = plots.pooled([(path.stem, summary) for path, summary in found])
    for name, figure in plots.FIGURES.items():
        if task in figure.numbers:
            parts.append(_figure(task, name, figure, pools))
    held = [entry for entry in found if _holds_budget(entry[1])]
    if held:
        parts.append("<h3>Ponder budget</h3>" + f"<p class=note>Paper: {html.escape(BUDGET)}</p>")
        parts += [_budget(path, summary) for path, summary in held]
    return "\n".join(parts)


def _finance(found: list[tuple[pathlib.Path, dict[str, Any]]]) -> str:
    """The section of a task whose figures compare the members of all its summaries."""
    parts = ["<h2 id=finance>Finance</h2>"]
    if not found:
        command = "python -m experiments finance --results FILE"
        return parts[0] + f"<p class=missing>Not run. <code>{command}</code></p>"
    members = [member for _, summary in found for member in summary["members"]]
    parts.append(
        "<p>LFACT 2020, <i>Layer Flexible Adaptive Computation Time for Recurrent Neural "
        "Networks</i>: five classes of price changes of 22 ETFs. The paper's data are five-minute "
        "prices that are not public; the prices shipped here are daily closes, so that only "
        "differences between models can be compared. F1 is the macro-average over classes, "
        "averaged over instruments and prediction steps; the “usual class” is a forecast of each "
        "instrument's most frequent class in training, whatever the input.</p>"
    )
    rows = tables.finance(members)
    parts += [markup.table(rows)] if rows else []
    for name, (draw, number, title) in lfact.FIGURES.items():
        picture = _picture(draw, members)
        if picture:
            paper = f"<p class=note>Paper: {html.escape(FINANCE[name])}</p>"
            parts.append(f"<h3>{number}: {title}</h3>{paper}{picture}")
    parts += [_heading(path, summary) for path, summary in found]
    return "\n".join(parts)


def _sweep(path: pathlib.Path, summary: dict[str, Any]) -> str:
    return _heading(path, summary) + markup.table(_members(summary))


def _heading(path: pathlib.Path, summary: dict[str, Any]) -> str:
    """What ran, on what, by which command."""
    config = summary["config"]
    return (
        f"<p><b>{html.escape(path.stem)}</b>: preset {html.escape(config['preset'])}, "
        f"{len(summary['members'])} networks, {summary['wall_time_seconds'] / 60:.0f} minutes of "
        f"training on {markup.environment(summary)}<br>"
        f"<code>{html.escape(summary['command'])}</code></p>"
    )


def _members(summary: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each model and setting of a sweep, mean ± standard error over its seeds."""
    rows = []
    for label, every in groups(summary["members"]).items():
        members = [m for m in every if not m["diverged"]]
        lost = f", {len(every) - len(members)} diverged" if len(members) < len(every) else ""
        row = {"model": label, "seeds": f"{len(members)}{lost}"}
        rows.append(row)
        if not members:
            continue
        evaluations = [m["evaluation"] for m in members]
        slopes = [e["steps_slope"] for e in evaluations if e.get("steps_slope")]
        row |= {
            "updates": _span([m["updates"] for m in members]),
            "solved": f"{sum(m['solved_at'] is not None for m in members)} of {len(members)}",
        }
        if "bits_per_character" in evaluations[0]:
            del row["solved"]
            bits = [e["bits_per_character"] for e in evaluations]
            row["bits per character"] = plus_minus(bits, 3)
        else:
            row["sequence error rate"] = plus_minus([e["error"] for e in evaluations], 4)
        row["ponder N + R"] = plus_minus([e["ponder"] for e in evaluations], 2)
        row["steps N"] = plus_minus([e["ponder_steps"] for e in evaluations], 2)
        row["slope of N in difficulty"] = _slope(slopes)
        stuck = [m["advice"].split(" (")[0] for m in members if m["advice"]]
        if stuck:
            row["halting"] = f"{stuck[0]} ({len(stuck)} of {len(members)})"
    return rows


def _figure(task: str, name: str, figure, found) -> str:
    title = f"{figure.numbers[task]}: {figure.title}"
    parts = [f"<h3>{title}</h3>"]
    if (task, name) in PAPER:
        parts.append(f"<p class=note>Paper: {html.escape(PAPER[task, name])}</p>")
    drawn = [
        f"<p class=note>Ours, {html.escape(pool)} (preset "
        f"{html.escape(summary['config']['preset'])}):</p>{picture}"
        for pool, summary in found
        if (picture := _picture(figure.draw, summary))
    ]
    return "\n".join(parts + (drawn or ["<p class=missing>Not run.</p>"]))


def _budget(path: pathlib.Path, summary: dict[str, Any]) -> str:
    rows = []
    for member in summary["members"]:
        if member["ponder_budget"] is None or member["diverged"]:
            continue
        found = member["evaluation"]
        off = found["ponder"] / member["ponder_budget"] - 1
        rows.append(
            {
                "budget": f"{member['ponder_budget']:g}",
                "τ at the start": f"{member['tau']:g}",
                "τ at the end": f"{member['tau_at_end']:.3g}",
                "seed": str(member["seed"]),
                "ponder N + R": f"{found['ponder']:.3f}",
                "off the budget": f"{off:+.1%}",
                "sequence error rate": f"{found['error']:.4f}",
            }
        )
    picture = _picture(plots.FIGURES["budget"].draw, summary)
    return f"<p class=note>{html.escape(path.stem)}</p>{markup.table(rows)}{picture}"


def _holds_budget(summary: dict[str, Any]) -> bool:
    return any(member["ponder_budget"] is not None for member in summary["members"])


def _picture(draw, found: Any) -> str:
    """The figure as an image inside the page, or nothing where what was found has none to show."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "figure.png"
        if not draw(found, path):
            return ""
        return "".join(map(markup.picture, sorted(path.parent.iterdir())))


def _slope(slopes: list[dict[str, float]]) -> str:
    """The mean slope over seeds; its standard error has that over seeds and those of the fits."""
    if not slopes:
        return ""
    mean, over_seeds = mean_and_error([slope["value"] for slope in slopes])
    fits = np.array([slope["standard_error"] for slope in slopes])
    of_fits = np.sqrt((fits**2).sum()) / len(fits)
    return f"{mean:.4f} ± {np.hypot(np.nan_to_num(over_seeds), of_fits):.4f}"


def _span(values: list[int]) -> str:
    low, high = int(np.min(values)), int(np.max(values))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
