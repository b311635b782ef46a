"""Every claim of the papers beside what ran here: docs/results.md, and a section of the report.

    python -m experiments claims            writes docs/results.md, whole
    python -m experiments claims --check    changes nothing; fails where JSON says otherwise

`claims.toml` holds the papers' claims and our verdicts, `results_template.md` the rest of the page.
Our numbers stand in neither: both name them in braces, see `experiments.show.lookup`.
"""

import dataclasses
import pathlib
import re
import tomllib
from collections.abc import Callable
from typing import Any

import tyro

from experiments.options import Flag, require
from experiments.show import markup, settings, tables
from experiments.show.lookup import Results, filled, number, spread
from experiments.show.papers import RESULTS, summaries
from experiments.show.style import groups
from experiments.task import Task

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "results.md"
DATA = tomllib.loads((HERE / "claims.toml").read_text())
VERDICTS = {
    "holds": "holds",
    "not": "does not hold",
    "open": "these data cannot say",
    "not run": "not run",
}
PLACE = re.compile(r"^<!-- (\w+)(?:: (.*?))? -->$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Options:
    """Write docs/results.md: every claim of the papers, its number, ours, and a verdict."""

    check: Flag = False
    """Change nothing; fail where the page is not what the results say."""


def main(tasks: dict[str, Task], argv: list[str]):
    """Writes the page, or compares it."""
    prog = "python -m experiments claims"
    options = tyro.cli(Options, prog=prog, description=Options.__doc__, args=argv)
    text = page(tasks)
    if options.check:
        written = PAGE.exists() and PAGE.read_text() == text
        require(written, "docs/results.md", f"what {prog} writes", "something else")
        return
    PAGE.write_text(text)
    print(f"{len(DATA['claim'])} claims: {PAGE}")


def page(tasks: dict[str, Task], folder: pathlib.Path = RESULTS) -> str:
    """docs/results.md, from the template, the claims and the results.

    Raises:
      ValueError: for a claim without a verdict, or a number that is not in the results.
    """
    results = Results(folder)
    text = (HERE / "results_template.md").read_text()
    kinds: dict[str, Callable[[str], str]] = {
        "claims": lambda paper: _claims(paper, results),
        "verdicts": lambda _: _verdicts(),
        "fojo": lambda task: _markdown(
            tables.compare(tasks[task], summaries_by_name(task, folder))
        ),
        "sweep": lambda name: _sweep(results, name),
        "kinds": lambda names: _kinds(results, names.split()),
        "rules": lambda names: _rules(results, names.split()),
    }
    head, _, tail = text.partition("<!-- runs -->")
    shown = filled(PLACE.sub(lambda found: kinds[found[1]](found[2]), head), results)
    return shown + _runs(results) + tail  # the runs of all that has been looked at


def section(results: Results) -> str:
    """The report's section: the same list, a table a paper."""
    parts = ["<h2 id=claims>Every claim, and whether it holds</h2>"]
    for paper in DATA["paper"]:
        parts.append(f"<h3>{paper['title']}: {paper['verdict']}</h3>")
        plain = [  # without Markdown's marks
            {title: cell.replace("`", "") for title, cell in row.items()}
            for row in rows(paper["id"], results)
        ]
        parts.append(markup.note(paper["says"]) + markup.table(plain))
    return "\n".join(parts)


def rows(paper: str, results: Results) -> list[dict[str, str]]:
    """The claims of one paper as text, a dict from a column's title to its cell."""
    found = []
    for claim in DATA["claim"]:
        if claim["paper"] == paper:
            own = Results(results.folder)
            ours = filled(claim.get("ours", ""), own)
            _check(claim, own)
            results.used += [name for name in own.used if name not in results.used]
            files = [*map(_shown, own.used), *claim.get("tests", [])]
            words = VERDICTS[claim["verdict"]]
            if "needs" in claim:
                words += f": needs {claim['needs']}"
            row = {"where": claim["where"], "the paper": claim["says"], "ours": ours}
            row |= {"verdict": words, "seeds": _seeds(claim, own), "file": ", ".join(files)}
            found.append(row | {"machine time": _time(own)})
    return found


def _shown(name: str) -> str:
    """A file's name: below the results, or below the repository."""
    return name.removeprefix("../../")


def _check(claim: dict[str, Any], own: Results):
    """Refuses a claim that is not decided by anything, or not run without saying what it needs."""
    name = f"{claim['paper']}, {claim['where']}"
    require(claim["verdict"] in VERDICTS, f"verdict of {name}", f"one of {[*VERDICTS]}", claim)
    run = claim["verdict"] != "not run"
    decided = bool(own.used or claim.get("tests"))
    require(decided or not run, f"claim {name}", "decided by a file or a test", "none")
    require(run or "needs" in claim, f"claim {name}", "with what it needs to be run", "none")
    for test in claim.get("tests", []):
        there = (ROOT / test.partition("::")[0]).exists()
        require(there, f"test of {name}", "a file of the repository", test)


def _seeds(claim: dict[str, Any], own: Results) -> str:
    """How many seeds the networks of a claim's files had, or what the claim says of them."""
    if "seeds" in claim:
        return str(claim["seeds"])
    counts = set()
    for name in own.used:
        members = own.read(name).get("members")
        if members is None:
            counts.add(1)
        elif members[0]["model"] != "usual":  # floors have none
            counts.add(len({member["seed"] for member in members}))
    return ", ".join(map(str, sorted(counts)))


def _time(own: Results) -> str:
    """The minutes that a claim's files took together, of all their networks."""
    seconds = sum(_seconds(own.read(name)) for name in own.used)
    return _minutes(seconds) if seconds else ""


def _seconds(found: dict[str, Any]) -> float:
    return found.get("wall_time_seconds", found.get("training_seconds", 0.0))


def _minutes(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min"


def _claims(paper: str, results: Results) -> str:
    return _markdown(rows(paper, results))


def _verdicts() -> str:
    """How many claims of each paper hold, and the verdict on it."""
    found = []
    for paper in DATA["paper"]:
        own = [claim["verdict"] for claim in DATA["claim"] if claim["paper"] == paper["id"]]
        row = {"paper": f"[{paper['title']}](#{paper['id']})", "claims": str(len(own))}
        row |= {words: str(own.count(verdict)) for verdict, words in VERDICTS.items()}
        found.append(row | {"verdict": f"**{paper['verdict']}**: {paper['says']}"})
    return _markdown(found)


def summaries_by_name(task: str, folder: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
    """The summaries in a task's folder, each with the name of its file."""
    return [(path.stem, summary) for path, summary in summaries(task, folder)]


def _sweep(results: Results, name: str) -> str:
    """A line for each setting of a sweep: error, steps and the slope of N in difficulty."""
    summary = results.read(name)
    found = []
    for row in settings.rows(summary):
        row.pop("updates", None)
        found.append(row)
    return _markdown(found)


def _kinds(results: Results, names: list[str]) -> str:
    """Ponder N + R after each kind of byte, a column a network that ponders."""
    columns: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        for label, members in groups(results.read(name)["members"]).items():
            evaluations = [m["evaluation"] for m in members]
            if label != "without ACT" and evaluations[0]["ponder_steps"] > 1.005:
                columns[f"{label} ({name})"] = evaluations
    kinds = [row["kind"] for row in next(iter(columns.values()))[0]["by_kind"]]
    found = []
    for place, kind in enumerate(kinds):
        cells = {"after": kind}
        for label, evaluations in columns.items():
            cells[label] = spread([e["by_kind"][place]["ponder"] for e in evaluations], ".2f")
        found.append(cells)
    last = {"after": "bits per character"}
    for label, evaluations in columns.items():
        last[label] = spread([e["bits_per_character"] for e in evaluations], ".3f")
    return _markdown([*found, last])


def _rules(results: Results, names: list[str]) -> str:
    """Stopping rules at thresholds chosen on validation problems, for each price of a step."""
    found = []
    for name in names:
        for part in results.read(name)["halting"]["chosen_on_validation"]:
            for rule, row in part["rules"].items():
                error = number(row["standard_error"], ".4f")
                cells = {"run": name.partition("/")[2], "price of a step": f"{part['price']:.5f}"}
                cells |= {"rule": RULES[rule], "steps": number(row["steps"], ".1f")}
                cells["loss + price × steps"] = f"{number(row['cost'], '.4f')} ± {error}"
                over = number(row["over_constant"], "+.4f")
                error = number(row["over_constant_standard_error"], ".4f")
                cells["over the constant step, paired"] = (
                    "" if rule == "constant" else f"{over} ± {error}"
                )
                found.append(cells)
    return _markdown(found)


RULES = {
    "mass": "mass of the learned head",
    "price": "predicted gain below a price",
    "gradient_norm": "norm of the gradient",
    "plateau": "plateau of the loss",
    "constant": "constant step",
    "oracle": "oracle: best step in hindsight",
}


def _runs(results: Results) -> str:
    """The command, the machine and the time of every file that was shown."""
    found = []
    for name in sorted(results.used):
        run = results.read(name)
        versions = run["versions"]
        code = run.get("code", "")
        row = {"file": f"`{_shown(name)}.json`", "command": f"`{run['command']}`"}
        row |= {"time": _minutes(_seconds(run)) if _seconds(run) else "", "device": run["device"]}
        found.append(row | {"jax": versions["jax"], "code": f"`{code}`" if code else ""})
    return _markdown(found)


def _markdown(found: list[dict[str, str]]) -> str:
    """Rows of text as a table in Markdown; a row may lack some columns."""
    names = list(dict.fromkeys(name for row in found for name in row))
    escape = lambda cell: cell.replace("|", "\\|").replace("\n", " ")
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(escape(row.get(n, "")) for n in names) + " |" for row in found]
    return "\n".join(lines)
