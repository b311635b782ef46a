"""The report's section on learned optimizers (Sander 2017), from what `evaluate.write` saved."""

import html
import json
import pathlib
from typing import Any

from experiments.learned.figures import NAMES
from experiments.show import markup
from experiments.show.papers import PAPERS

HELD_OUT = "held_out.json"


def section(folder: pathlib.Path) -> str:
    """Results and pictures of every run in `folder`; experiments without one say so.

    Raises:
      ValueError: for a file that is not the result of one of the experiments.
    """
    parts = [PAPERS["about_learned"]]
    found = results(folder)
    for experiment, says in PAPERS["learned"].items():
        parts.append(f"<h3>{experiment}</h3>" + markup.note(f"Paper: {says}"))
        here = [(path, result) for path, result in found if result["experiment"] == experiment]
        parts += [_run(path, result) for path, result in here]
        parts += [] if here else [markup.missing(f"python -m experiments {experiment}")]
    if (folder / HELD_OUT).exists():
        parts += _held_out(folder / HELD_OUT)
    return "\n".join(parts)


def _held_out(path: pathlib.Path) -> list[str]:
    """The shipped optimizer beside Adam on problems that it has not learned on."""
    result = json.loads(path.read_text())
    rows = [
        {
            "problem": row["what"],
            "summed loss": f"{row['learned_sum']:.2f}",
            "Adam's, its rate tuned on the same seeds": f"{row['adam_sum']:.2f}",
            "difference": f"{row['difference']:+.2f} ± {row['standard_error']:.2f}",
            "lower on": f"{row['lower_on']} of {row['seeds']} seeds",
        }
        for row in result["problems"].values()
    ]
    says = f"The optimizer {result['optimizer']} on what it has never seen, {result['steps']} steps"
    return [f"<h3>held out</h3><p>{html.escape(says)}.</p>", markup.table(rows)]


def results(folder: pathlib.Path) -> list[tuple[pathlib.Path, dict[str, Any]]]:
    """The results in a folder, by name."""
    paths = (path for path in sorted(folder.glob("*.json")) if path.name != HELD_OUT)
    return [(path, _read(path)) for path in paths]


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text())
        known = result["experiment"] in PAPERS["learned"] and "command" in result
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ValueError(
            f"results must hold results of learned-optimizer experiments, got {str(path)!r}."
        )
    return result


def _run(path: pathlib.Path, result: dict[str, Any]) -> str:
    """One run: what it was, its table, its halting and its pictures."""
    minutes = result["training_seconds"] / 60
    trained = f"{result['meta_updates']:,} meta-updates in {minutes:.0f} minutes"
    parts = [markup.ran(path, result, trained), markup.table(table(result))]
    parts += [f"<p>{html.escape(halting(result))}</p>"] if "halting" in result else []
    parts += map(markup.picture, sorted(path.parent.glob(f"{path.stem}_*.png")))
    return "\n".join(parts)


def table(result: dict[str, Any]) -> list[dict[str, str]]:
    """Losses after so many steps as text, a row for each optimizer."""
    rows = []
    if "learned" in result:
        rows.append({"optimizer": NAMES["lstm"]} | _cells(result["learned"]))
    for name, aims in result.get("baselines", {}).items():
        for aim, row in aims.items():
            title = f"{NAMES[name]}, rate {row['learning_rate']:.3g}, tuned for the {aim} loss"
            rows.append({"optimizer": title} | _cells(row))
    return rows


def _cells(row: dict[str, Any]) -> dict[str, str]:
    cells = {f"step {step}": _mean(row[step]) for step in row if step.isdigit()}
    return cells | ({"sum": f"{row['sum']:.1f}"} if "sum" in row else {})


def _mean(found: dict[str, Any]) -> str:
    """The mean ± its standard error; a baseline that diverged on some problem has not both."""
    if found["mean"] is None:
        return "diverged"
    error = found["standard_error"]
    return f"{found['mean']:.4g}" + ("" if error is None else f" ± {error:.2g}")


def halting(result: dict[str, Any]) -> str:
    """Where the halting head stops, and what that costs, in words."""
    found, horizon = result["halting"], result["config"]["horizon"]
    stops = f"Stops after {found['steps']['mean']:.1f} ± {found['steps']['sd']:.1f} steps (sd)"
    if "test_accuracy" in found:
        here, there = found["test_accuracy"]["mean"], found["test_accuracy_at_horizon"]["mean"]
        return f"{stops} at a test accuracy of {here:.3f}; after {horizon} it is {there:.3f}."
    cost, rank = found["cost"], found["spearman_difficulty"]
    return (
        f"{stops} at a loss of {found['loss_at_halt']:.4f}; after {horizon} it is "
        f"{found['loss_at_horizon']:.4f}. Spearman correlation of the halting step with the "
        f"condition number: {'none' if rank is None else f'{rank:.2f}'}. Loss with the price of "
        f"the steps at the head's default threshold: {cost['learned']:.4f}; best constant step "
        f"{cost['best_constant']:.4f}, oracle {cost['oracle']:.4f}.{_at_thresholds(found)}"
    )


def _at_thresholds(found: dict[str, Any]) -> str:
    """What every rule costs at the threshold that validation problems picked, in words."""
    if "chosen_on_validation" not in found:
        return ""
    rules = found["chosen_on_validation"][0]["rules"]
    words = {"mass": "the head", "price": "its predicted gain", "gradient_norm": "gradient norm"}
    words |= {"plateau": "plateau of the loss", "constant": "constant step"}
    costs = [f"{title} {rules[name]['cost']:.4f}" for name, title in words.items()]
    error = rules["mass"]["standard_error"]
    return f" At thresholds chosen on validation: {', '.join(costs)} (each ± {error:.4f})."
