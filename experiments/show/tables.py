"""The papers' tables beside what ran here: Fojo 2018's 6.1 and 6.2, and the F1 of LFACT 2020."""

import math
from typing import Any, NamedTuple

from experiments.options import as_json
from experiments.show.plots import lfact, pool
from experiments.show.plots.style import mean_and_error, plus_minus
from experiments.tasks import addition, parity


class Row(NamedTuple):
    """A row of a table of Fojo 2018.

    Attributes:
      model: as printed.
      key: how a member of a sweep is known: (model, tau or repeats).
      solved_at: updates until solved, None where the paper's network never was.
      repetitions: mean repetitions, the paper's own measure.
    """

    model: str
    key: tuple[str, float | None]
    solved_at: int | None
    repetitions: float


TABLES = {
    "parity": (
        Row("RNN", ("rnn", None), None, 1),
        Row("ACT-RNN, τ = 0.1", ("act", 1e-1), None, 1.000),
        Row("ACT-RNN, τ = 0.01", ("act", 1e-2), 53_000, 1.805),
        Row("ACT-RNN, τ = 0.005", ("act", 5e-3), 356_000, 2.027),
        Row("ACT-RNN, τ = 0.001", ("act", 1e-3), 55_000, 2.044),
        Row("Repeat-RNN, ρ = 2", ("repeat", 2), 22_000, 2),
        Row("Repeat-RNN, ρ = 3", ("repeat", 3), 49_000, 3),
        Row("Repeat-RNN, ρ = 5", ("repeat", 5), 27_000, 5),
        Row("Repeat-RNN, ρ = 8", ("repeat", 8), 26_000, 8),
    ),
    "addition": (
        Row("LSTM", ("rnn", None), None, 1),
        Row("ACT-LSTM, τ = 0.1", ("act", 1e-1), None, 1.012),
        Row("ACT-LSTM, τ = 0.01", ("act", 1e-2), 899_000, 5.079),
        Row("ACT-LSTM, τ = 0.005", ("act", 5e-3), 988_000, 6.736),
        Row("ACT-LSTM, τ = 0.001", ("act", 1e-3), None, 11.907),
        Row("Repeat-LSTM, ρ = 2", ("repeat", 2), None, 2),
        Row("Repeat-LSTM, ρ = 3", ("repeat", 3), 997_000, 3),
        Row("Repeat-LSTM, ρ = 5", ("repeat", 5), 514_000, 5),
        Row("Repeat-LSTM, ρ = 8", ("repeat", 8), 576_000, 8),
    ),
}
# LFACT 2020, sections 4.1 and A.2: F1 of the plain network by instance, and others' change over it
FINANCE = {
    "rnn": ("0.475, 0.461, 0.447", {"act": "+6.3 %", "lfact": "+14.1 %"}),
    "seq2seq-5": ("0.492, 0.534, 0.498", {"act": "below 0", "lfact": "above 0"}),
    "seq2seq-10": ("0.439, 0.481, 0.447", {"act": "about 0", "lfact": "+7.4 %"}),
}
NUMBER = {"parity": "6.1", "addition": "6.2"}
COMMAND = (
    "python -m experiments sweep {task} --preset fojo --models rnn,repeat,act --repeats 2,3,5,8 "
    "--tau 1e-1,1e-2,5e-3,1e-3 --seeds 2 --retire --results FILE"
)
SETTINGS = {"parity": parity.PRESETS["fojo"], "addition": addition.PRESETS["fojo"]}
SOLVED = 0.98
NOT_RUN = "not run"


def compare(task: str, found: list[tuple[str, dict[str, Any]]]) -> list[dict[str, str]]:
    """The table's rows as text, the paper's columns and ours, one line a row of the paper.

    Args:
      task: "parity" or "addition".
      found: names and summaries of sweeps of the task; only those at the paper's settings count,
        and of several runs of a model and seed the longest.
    """
    settings = as_json(task, SETTINGS[task])
    members = pool.longest(
        [
            member | {"sweep": name}
            for name, summary in found
            if pool.alike(summary["config"], settings) and summary["solved"] == SOLVED
            for member in summary["members"]
        ]
    )
    rows = []
    for row in TABLES[task]:
        ours = sorted((m for m in members if _key(m) == row.key), key=lambda m: m["seed"])
        rows.append(
            {
                "model": row.model,
                "paper: solved at": "not solved"
                if row.solved_at is None
                else _count(row.solved_at),
                "ours: solved at": "; ".join(map(_outcome, ours)) or NOT_RUN,
                "paper: repetitions": f"{row.repetitions:.4g}",
                "ours: mean N of the run": "; ".join(f"{m['mean_ponder_steps']:.3f}" for m in ours),
                "N at its end": "; ".join(f"{m['evaluation']['ponder_steps']:.3f}" for m in ours),
                "smoothed accuracy": "; ".join(_best(m) for m in ours),
                "sweep": ", ".join(sorted({m["sweep"] for m in ours})),
            }
        )
    return rows


def finance(members: list[dict[str, Any]]) -> list[dict[str, str]]:
    """F1 on the test periods as text, a line for each task and model that ran.

    Errors are standard errors over seeds. The change is that of the mean over all instances.
    """
    members, rows = lfact.usual(members), []
    for task, (paper_f1, paper_change) in FINANCE.items():
        base = lfact.select(members, task=task, model="rnn")
        for model, (label, _) in lfact.MODELS.items():
            ours = lfact.select(members, task=task, model=model)
            if not ours:
                continue
            changed = ""
            if base and model != "rnn":
                ratio, error = lfact.change(lfact.by_seed(ours), lfact.by_seed(base))
                spread = f" ± {100 * error:.1f}" if math.isfinite(error) else ""
                changed = f"{100 * ratio:+.1f}{spread} %"
            instances = sorted({m["instance"] for m in ours})
            test = [m["evaluation"]["test"] for m in ours]
            rows.append(
                {
                    "task": lfact.TASKS[task],
                    "model": label,
                    "seeds": str(len({m["seed"] for m in ours})),
                    **{
                        f"F1, INS{i + 1}": plus_minus(lfact.scores(lfact.select(ours, instance=i)))
                        for i in instances
                    },
                    "change over the RNN": changed,
                    "paper": paper_f1 if model == "rnn" else paper_change[model],
                    "F1 of the usual class": f"{_mean(test, 'usual_f1'):.3f}",
                    "accuracy": f"{_mean(test, 'accuracy'):.3f}",
                    "of the usual class": f"{_mean(test, 'usual_accuracy'):.3f}",
                    "steps N": f"{_mean(test, 'ponder_steps'):.2f}",
                }
            )
    return rows


def _mean(records: list[dict[str, Any]], key: str) -> float:
    return mean_and_error([record[key] for record in records])[0]


def _key(member) -> tuple[str, float | None]:
    if member["model"] == "act":
        return "act", member["tau"]
    return ("repeat", member["repeats"]) if member["repeats"] else ("rnn", None)


def _outcome(member) -> str:
    if member["solved_at"] is not None:
        return _count(member["solved_at"])
    return f"not in {_count(member['updates'])}"


def _best(member) -> str:
    best = member["smoothed_accuracy"]
    return "too few rows" if best is None else f"{best:.3f}"


def _count(updates: int) -> str:
    return f"{updates:,}"
