"""The tables of Fojo 2018, 6.1 and 6.2, beside what ran here."""

from typing import Any

from experiments.options import as_json
from experiments.show import pool
from experiments.show.papers import PAPERS
from experiments.task import Task

COMMAND = (
    "python -m experiments sweep {task} --preset fojo --models rnn,repeat,act --repeats 2,3,5,8 "
    "--tau 1e-1,1e-2,5e-3,1e-3 --seeds 2 --retire --results FILE"
)
SOLVED = 0.98
NOT_RUN = "not run"


def table_of(task: Task) -> dict[str, Any] | None:
    """The paper's table of a task: its "number", and "rows" with the mean repetitions and the
    updates until solved as printed, null where the paper's network never was, and "from_curve",
    read from its figures."""
    return PAPERS["tasks"].get(task.name, {}).get("table")


def compare(task: Task, found: list[tuple[str, dict[str, Any]]]) -> list[dict[str, str]]:
    """The table's rows as text, the paper's columns and ours, one line a row of the paper.

    Args:
      task: one that has a table.
      found: names and summaries of sweeps of the task; only those at the paper's settings count,
        and of several runs of a model and seed the longest.
    """
    settings, known = as_json(task.name, task.presets["fojo"]), pool.defaults(task)
    members = pool.longest(
        [
            member | {"sweep": name}
            for name, summary in found
            if pool.alike(summary["config"], settings, known) and summary["solved"] == SOLVED
            for member in summary["members"]
        ]
    )
    rows = []
    for row in table_of(task)["rows"]:
        ours = sorted((m for m in members if _key(m) == row["key"]), key=lambda m: m["seed"])
        solved = row["solved_at"]
        rows.append(
            {
                "model": row["model"],
                "paper, as printed": "not solved" if solved is None else f"{solved:,}",
                "paper, from its curve": row.get("from_curve", "not read" if solved else ""),
                "ours: solved at": "; ".join(map(_outcome, ours)) or NOT_RUN,
                "paper: repetitions": f"{row['repetitions']:.4g}",
                "ours: N - 1 + R at the end": "; ".join(f"{_repetitions(m):.3f}" for m in ours),
                "N at the end": "; ".join(f"{m['evaluation']['ponder_steps']:.3f}" for m in ours),
                "mean N of the run": "; ".join(f"{m['mean_ponder_steps']:.3f}" for m in ours),
                "smoothed accuracy": "; ".join(_best(m) for m in ours),
                "sweep": ", ".join(sorted({m["sweep"] for m in ours})),
            }
        )
    return rows


def _key(member) -> list[str | float | None]:
    if member["model"] == "act":
        return ["act", member["tau"]]
    return ["repeat", member["repeats"]] if member["repeats"] else ["rnn", None]


def _repetitions(member) -> float:
    """N - 1 + R, whose whole part Fojo counts; without halting R is 0 and N is what he counts."""
    found = member["evaluation"]
    return found["ponder"] - 1 if member["model"] == "act" else found["ponder_steps"]


def _outcome(member) -> str:
    if member["solved_at"] is not None:
        return f"{member['solved_at']:,}"
    return f"not in {member['updates']:,}"


def _best(member) -> str:
    best = member["smoothed_accuracy"]
    return "too few rows" if best is None else f"{best:.3f}"
