"""One self-contained HTML page: what the papers report beside what ran here."""

import dataclasses
import functools
import html
import pathlib
from typing import Any

import tyro

from experiments.options import require
from experiments.record import check_file
from experiments.show import claims, learned, markup, page, settings, sweeps, tables
from experiments.show.lookup import Results
from experiments.show.papers import PAPERS, RESULTS, summaries
from experiments.show.pool import defaults, pooled
from experiments.task import Task


@dataclasses.dataclass(frozen=True)
class Options:
    """Build one HTML page of all results: the papers' figures and tables beside ours."""

    results: pathlib.Path = RESULTS
    """Folder with a folder a task, which holds the summaries of sweeps (.json)."""
    out: pathlib.Path = pathlib.Path("report.html")
    """The page."""


def main(tasks: dict[str, Task], argv: list[str]):
    """Writes the page, and refuses to where there is nothing to show."""
    options = tyro.cli(
        Options, prog="python -m experiments report", description=Options.__doc__, args=argv
    )
    check_file("out", options.out)
    folders = [options.results / name for name in (*tasks, "learned")]
    allowed = "a folder with a folder a task that holds summaries of sweeps (.json)"
    require(any(any(f.glob("*.json")) for f in folders), "results", allowed, str(options.results))
    text = build(tasks, options.results)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    print(f"report: {options.out}")


def build(tasks: dict[str, Task], results: pathlib.Path) -> str:
    """The page as HTML, figures inside; what has not been run says so.

    Raises:
      ValueError: for a file among the results that is not the summary of a sweep.
    """
    parts = []
    if results.resolve() == RESULTS.resolve():  # of which the claims speak
        parts.append(claims.section(Results(results)))
    for name, task in tasks.items():
        found = summaries(name, results)
        parts.append(task.section(found) if task.section else _section(task, found))
    parts.append(learned.section(results / "learned"))
    return page.whole("actjax: results", PAPERS["about"], "\n".join(parts))


def _section(task: Task, found: list[tuple[pathlib.Path, dict[str, Any]]]) -> str:
    parts = [f"<h2 id={task.name}>{task.name.capitalize()}</h2>"]
    if not found:
        parts.append(markup.missing(f"python -m experiments sweep {task.name} --results FILE"))
    for path, summary in found:
        parts.append(
            markup.folded(markup.heading(path, summary), markup.table(settings.rows(summary)))
        )
    named = [(path.stem, summary) for path, summary in found]
    if tables.table_of(task):
        parts.append(_table(task, named))
    pools = pooled(named, defaults(task))
    several = [(name, summary) for name, summary in pools if len(summary["members"]) > 1]
    # a network by itself has a picture only where there is nothing else to show
    parts += [_figure(figure, several or pools) for figure in sweeps.figures_of(task)]
    for function, title in sweeps.ACROSS.get(task.name, {}).values():
        draw = functools.partial(function, task)
        if picture := markup.figure(draw, [summary for _, summary in named]):
            shown = markup.side_by_side([markup.captioned(f"Ours, {title}", picture)])
            parts.append(f"<h3>{title[0].upper()}{title[1:]}</h3>" + shown)
    held = [entry for entry in named if _holds_budget(entry[1])]
    if held:
        parts.append("<h3>Ponder budget</h3>" + markup.note(f"Paper: {PAPERS['budget']}"))
        parts += [_budget(name, summary) for name, summary in held]
    return "\n".join(parts)


def _table(task: Task, found: list[tuple[str, dict[str, Any]]]) -> str:
    rows = tables.compare(task, found)
    command = html.escape(tables.COMMAND.format(task=task.name))
    number = tables.table_of(task)["number"]
    about = PAPERS["about_tables"].format(command=command)
    part = f"<h3>Table {number} of Fojo 2018</h3>{about}{markup.table(rows)}"
    if all(row["ours: solved at"] == tables.NOT_RUN for row in rows):
        words = "No sweep at the paper's size has been run: it is one for an accelerator."
        part += f"\n<p class=missing>{words}</p>"
    return part


def _figure(figure: sweeps.Figure, found) -> str:
    title = (
        f"{figure.number}: {figure.title}"
        if figure.number
        else figure.title[0].upper() + figure.title[1:]
    )
    parts = [f"<h3>{title}</h3>"]
    if figure.says:
        parts.append(markup.note(f"Paper: {figure.says}"))
    drawn = [
        markup.captioned(f"Ours, {pool} (preset {summary['config']['preset']})", picture)
        for pool, summary in found
        if (picture := markup.figure(figure.draw, summary))
    ]
    if not drawn and not figure.number:  # nobody waits for it
        return ""
    shown = markup.side_by_side(drawn) if drawn else "<p class=missing>Not run.</p>"
    return "\n".join([*parts, shown])


def _budget(name: str, summary: dict[str, Any]) -> str:
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
    return markup.note(name) + markup.table(rows) + markup.figure(sweeps.BUDGET[0], summary)


def _holds_budget(summary: dict[str, Any]) -> bool:
    return any(member["ponder_budget"] is not None for member in summary["members"])
