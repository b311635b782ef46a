"""Finance beside LFACT 2020: figures and a table of the members of all its summaries together."""

import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.show import markup, style
from experiments.show.papers import PAPERS
from experiments.show.style import MODELS, mean_and_error, plt, plus_minus, save, whiskers

PAPER = PAPERS["tasks"]["finance"]
TASKS = {"rnn": "next step", "seq2seq-5": "seq2seq, 5 steps", "seq2seq-10": "seq2seq, 10 steps"}
PERIODS = ("train", "validation", "test")
PAPER_MU = 0.1
FLOORS = {"repeat": "the last class again", "opposite": "its opposite"}
Members = list[dict[str, Any]]


def usual(members: Members) -> Members:
    """Those at the settings of the comparison: the whole training period, the paper's mu."""
    return [m for m in members if m["train_on"] is None and _paper_mu(m)]


def select(members: Members, **wanted) -> Members:
    return [m for m in members if all(m[key] == value for key, value in wanted.items())]


def apart(members: Members) -> tuple[Members, Members]:
    """The networks among members, and the forecasts that nothing was trained for."""
    networks = [m for m in members if m["model"] in MODELS]
    return networks, [m for m in members if m["model"] not in MODELS]


def scores(members: Members, period: str = "test") -> list[float]:
    return [m["evaluation"][period]["f1"] for m in members]


def by_seed(members: Members, period: str = "test") -> list[float]:
    """F1 averaged over instances, one number a seed."""
    seeds = _values(members, "seed")
    return [float(np.mean(scores(select(members, seed=seed), period))) for seed in seeds]


def change(values: list[float], base: list[float]) -> tuple[float, float]:
    """Relative change of the mean over that of `base`, and its standard error."""
    (mean, error), (start, spread) = mean_and_error(values), mean_and_error(base)
    return mean / start - 1, float(np.hypot(error / mean, spread / start)) * mean / start


def f1(members: Members, path: pathlib.Path) -> bool:
    """Test F1 by instance and model, and its change over the plain network (2a, 3a and 6)."""
    members, floors = apart(members)
    members = _comparison(members)
    tasks = _tasks(members)
    if not tasks:
        return False
    figure, panels = _panels(tasks, 2, 6)
    for (top, bottom), task in zip(panels.T, tasks, strict=True):
        here = select(members, task=task)
        instances, models = _values(here, "instance"), _models(here)
        width = 0.8 / len(models)
        for number, model in enumerate(models):
            label, color = MODELS[model]
            for place, instance in enumerate(instances):
                found = scores(select(here, model=model, instance=instance))
                base = scores(select(here, model="rnn", instance=instance))
                x = place + (number - (len(models) - 1) / 2) * width
                bar = {"width": width * 0.92, "color": color}
                name = None if place else label
                if found:
                    mean, error = mean_and_error(found)
                    top.bar(x, mean, label=name, **bar, **whiskers(error))
                if found and base and model != "rnn":
                    ratio, error = change(found, base)
                    bottom.bar(x, 100 * ratio, **bar, **whiskers(100 * error))
        for place, instance in enumerate(instances):
            always = select(here, instance=instance)[0]["evaluation"]["test"]["usual_f1"]
            name = None if place else "most frequent class"
            line = {"xmin": place - 0.45, "xmax": place + 0.45}
            top.hlines(always, **line, color="k", linestyle=":", label=name)
            for (kind, words), style_ in zip(FLOORS.items(), ("-", "--"), strict=True):
                found = scores(select(floors, task=task, instance=instance, model=kind))
                if found:
                    named = None if place else words
                    top.hlines(found[0], **line, color="k", linestyle=style_, lw=1, label=named)
        for axes in (top, bottom):
            axes.set_xticks(range(len(instances)), [f"INS{i + 1}" for i in instances])
        top.set_ylim(top=1.4 * top.get_ylim()[1])  # room for the legend
        bottom.axhline(0, color="k", linewidth=0.8)
    panels[0, 0].set_ylabel("test F1")
    panels[1, 0].set_ylabel("change of F1 over the RNN (%)")
    panels[0, -1].legend(fontsize="small", loc="upper right", ncols=2)
    return save(figure, path)


def by_step(members: Members, path: pathlib.Path) -> bool:
    """Test F1 at each prediction step on the first instance (2c, 3b and 7)."""
    members = _first_instance(_comparison(members))
    tasks = _tasks(members)
    if not tasks:
        return False
    figure, panels = _panels(tasks, 1, 3.4)
    for axes, task in zip(panels[0], tasks, strict=True):
        for model in _models(select(members, task=task)):
            label, color = MODELS[model]
            here = select(members, task=task, model=model)
            rows = np.array([m["evaluation"]["test"]["f1_by_step"] for m in here])
            x = np.arange(1, rows.shape[1] + 1)
            mean, error = np.array([mean_and_error(column) for column in rows.T]).T
            axes.plot(x, mean, color=color, marker=".", label=label)
            axes.fill_between(x, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
        axes.set_xlabel("prediction step")
    panels[0, 0].set_ylabel(f"test F1, INS{members[0]['instance'] + 1}")
    panels[0, -1].legend(fontsize="small")
    return save(figure, path)


def steps(members: Members, path: pathlib.Path) -> bool:
    """N_t at each step of the first instance, LFACT's layers and ACT's mean (2d, 3c to 3e)."""
    members = _first_instance(_comparison(members))
    layered = select(members, model="lfact")
    tasks = _tasks(layered)
    if not tasks:
        return False
    shape = (len(tasks), len(PERIODS))
    figure, panels = plt.subplots(*shape, figsize=(11, 2.3 * len(tasks) + 0.4), squeeze=False)
    for row, task in zip(panels, tasks, strict=True):
        for axes, period in zip(row, PERIODS, strict=True):
            found = _steps(select(layered, task=task), period)
            x = np.arange(1, len(found["mean"][0]) + 1)
            words = "LFACT, maximum", "LFACT, 90th percentile", "LFACT, mean"
            style.layers_panel(axes, found, words, marker=".")
            others = select(members, task=task, model="act")
            if others:
                mean = _steps(others, period)["mean"].mean(0)
                axes.plot(x, mean, color="tab:blue", linestyle="--", label="ACT, mean")
            axes.set_title(f"{TASKS.get(task, task)}: {period}", fontsize=9)
            axes.set_ylim(0, 1.5 * axes.get_ylim()[1])  # room for the legend
        row[0].set_ylabel(r"$N_t$")
    for axes in panels[-1]:
        axes.set_xlabel("step")
    panels[0, 0].legend(fontsize=7, loc="upper right", ncols=2)
    return save(figure, path)


def mu(members: Members, path: pathlib.Path) -> bool:
    """LFACT's change of F1 over the plain network for each mu, all instances (2b)."""
    members = [m for m in select(members, task="rnn", train_on=None) if m["model"] != "act"]
    members = _of_common_seeds(members, lambda m: (m["model"], m["mu"]))
    base, layered = select(members, model="rnn"), select(members, model="lfact")
    values = _values(layered, "mu")
    if len(values) < 2 or not base:
        return False
    figure, axes = plt.subplots(figsize=(5, 3.4))
    for place, value in enumerate(values):
        ratio, error = change(by_seed(select(layered, mu=value)), by_seed(base))
        axes.bar(place, 100 * ratio, color="tab:red", width=0.7, **whiskers(100 * error))
    axes.axhline(0, color="k", linewidth=0.8)
    axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axes.set_xlabel("mu")
    axes.set_ylabel("LFACT: change of F1 over the RNN (%)")
    axes.set_title(_seeds(members), fontsize=9)
    return save(figure, path)


def size(members: Members, path: pathlib.Path) -> bool:
    """Test F1 against the number of rows trained on (as figure 9 on Wikipedia)."""
    members = [m for m in members if _paper_mu(m) and m["task"] == "rnn"]
    members = _of_common_seeds(members, lambda m: (m["model"], m["train_on"]))
    if len(_values(members, "training_rows")) < 2:
        return False
    figure, axes = plt.subplots(figsize=(5, 3.4))
    for model in _models(members):
        label, color = MODELS[model]
        here = select(members, model=model)
        kinds = [select(here, train_on=rows) for rows in {m["train_on"] for m in here}]
        trained = lambda kind: np.mean([m["training_rows"] for m in kind])
        points = [(trained(kind), *mean_and_error(by_seed(kind))) for kind in kinds]
        rows, mean, error = np.array(sorted(points)).T
        look = {"color": color, "marker": ".", "label": label, "capsize": 3}
        axes.errorbar(rows, mean, error if np.isfinite(error).all() else None, **look)
    axes.set_xlabel("rows trained on")
    axes.set_ylabel("test F1, all instances")
    axes.set_title(_seeds(members), fontsize=9)
    axes.legend(fontsize="small")
    return save(figure, path)


def curves(members: Members, path: pathlib.Path) -> bool:
    """F1 in validation and N while training, the mean over seeds and instances (as 4c)."""
    members = _comparison(members)
    tasks = _tasks(members)
    if not tasks:
        return False
    figure, panels = _panels(tasks, 2, 5, sharex="col")
    for (top, bottom), task in zip(panels.T, tasks, strict=True):
        for model in _models(select(members, task=task)):
            label, color = MODELS[model]
            here = [m["curve"] for m in select(members, task=task, model=model)]
            rows = min(len(curve["step"]) for curve in here)
            for axes, key in ((top, "validation_f1_max"), (bottom, "ponder_steps")):
                values = np.array([curve[key][:rows] for curve in here], float)
                axes.plot(here[0]["step"][:rows], values.mean(0), color=color, label=label)
        bottom.set_xlabel("updates")
    panels[0, 0].set_ylabel("validation F1")
    panels[1, 0].set_ylabel("mean N in training")
    panels[0, -1].legend(fontsize="small")
    return save(figure, path)


FIGURES = {"f1": f1, "mu": mu, "by_step": by_step, "steps": steps, "curves": curves, "size": size}


def draw(members: Members, folder: pathlib.Path) -> list[tuple[str, str, pathlib.Path]]:
    """Draws every figure that the members give: (number, title, path) of each."""
    drawn = []
    for name, figure in PAPER["figures"].items():
        path = pathlib.Path(folder) / f"{name}.png"
        if FIGURES[name](members if name == "f1" else apart(members)[0], path):
            drawn.append((figure["number"], figure["title"], path))
    return drawn


def table(members: Members) -> list[dict[str, str]]:
    """F1 on the test periods as text, a line for each task and model that ran.

    Errors are standard errors over seeds. The change is that of the mean over all instances.
    """
    members, floors = apart(members)
    members, rows = usual(members), []
    mean = lambda records, key: mean_and_error([record[key] for record in records])[0]
    for task, paper in PAPER["table"].items():
        base = select(members, task=task, model="rnn")
        for model, (label, _) in MODELS.items():
            ours = select(members, task=task, model=model)
            if not ours:
                continue
            changed = ""
            if base and model != "rnn":
                ratio, error = change(by_seed(ours), by_seed(base))
                spread = f" ± {100 * error:.1f}" if math.isfinite(error) else ""
                changed = f"{100 * ratio:+.1f}{spread} %"
            test = [m["evaluation"]["test"] for m in ours]
            instances = _values(ours, "instance")
            f1s = {f"F1, INS{i + 1}": scores(select(ours, instance=i)) for i in instances}
            rows.append(
                {
                    "task": TASKS[task],
                    "model": label,
                    "seeds": str(len({m["seed"] for m in ours})),
                    **{title: plus_minus(values) for title, values in f1s.items()},
                    "mean of the instances": plus_minus(by_seed(ours)),
                    "change over the RNN": changed,
                    "paper": paper[model],
                    "train F1": plus_minus(by_seed(ours, "train")),
                    "F1 of the usual class": f"{mean(test, 'usual_f1'):.3f}",
                    "accuracy": f"{mean(test, 'accuracy'):.3f}",
                    "of the usual class": f"{mean(test, 'usual_accuracy'):.3f}",
                    "steps N": f"{mean(test, 'ponder_steps'):.2f}",
                }
            )
        rows += _floor_rows(task, floors) if base else []
    return rows


def _floor_rows(task: str, floors: Members) -> list[dict[str, str]]:
    """A line for each forecast that nothing was trained for."""
    rows = []
    for kind, words in FLOORS.items():
        found = select(floors, task=task, model=kind)
        if found:
            f1s = {f"F1, INS{m['instance'] + 1}": f"{scores([m])[0]:.4f}" for m in found}
            row = {"task": TASKS[task], "model": words, "seeds": "none", **f1s}
            accuracy = np.mean([m["evaluation"]["test"]["accuracy"] for m in found])
            row["mean of the instances"] = f"{np.mean(scores(found)):.4f}"
            row["train F1"] = f"{np.mean(scores(found, 'train')):.4f}"
            rows.append(row | {"accuracy": f"{accuracy:.3f}"})
    return rows


def section(found: list[tuple[pathlib.Path, dict[str, Any]]]) -> str:
    """The report's section, whose figures compare the members of all summaries."""
    title = "<h2 id=finance>Finance</h2>"
    if not found:
        return title + markup.missing("python -m experiments finance --results FILE")
    members = [member for _, summary in found for member in summary["members"]]
    parts = [title, f"<p>{PAPER['about']}</p>"]
    rows = table(members)
    parts += [markup.table(rows)] if rows else []
    for name, figure in PAPER["figures"].items():
        shown = members if name == "f1" else apart(members)[0]
        picture = markup.figure(FIGURES[name], shown)
        if picture:
            heading = f"<h3>{figure['number']}: {figure['title']}</h3>"
            parts.append(heading + markup.note(f"Paper: {figure['says']}") + picture)
    parts += [markup.folded(markup.heading(path, summary), "") for path, summary in found]
    return "\n".join(parts)


def _panels(tasks: list[str], rows: int, height: float, **shared):
    """A figure with a column of panels for each task."""
    size = {"figsize": (4.2 * len(tasks), height), "squeeze": False}
    figure, panels = plt.subplots(rows, len(tasks), **size, **shared)
    for axes, task in zip(panels[0], tasks, strict=True):
        axes.set_title(TASKS.get(task, task), fontsize=10)
    return figure, panels


def _paper_mu(member: dict[str, Any]) -> bool:
    return member["model"] != "lfact" or member["mu"] == (
        PAPER_MU if member["task"] == "rnn" else 0
    )


def _comparison(members: Members) -> Members:
    return usual(members) or members


def _of_common_seeds(members: Members, setting: Callable[[dict], Any]) -> Members:
    """Those of the seeds that every setting has, so that like is compared with like."""
    seeds = {}
    for member in members:
        seeds.setdefault(setting(member), set()).add(member["seed"])
    common = set.intersection(*seeds.values()) if seeds else set()
    return [member for member in members if member["seed"] in common]


def _seeds(members: Members) -> str:
    """How many seeds a figure rests on, and what follows."""
    seeds = _values(members, "seed")
    if len(seeds) > 1:
        return f"{len(seeds)} seeds"
    return f"seed {seeds[0]} alone: differences of this size are within the noise of seeds"


def _first_instance(members: Members) -> Members:
    first = min((m["instance"] for m in members), default=0)
    return select(members, instance=first)


def _tasks(members: Members) -> list[str]:
    found = {m["task"] for m in members}
    return [*(t for t in TASKS if t in found), *sorted(found - TASKS.keys())]


def _models(members: Members) -> list[str]:
    found = {m["model"] for m in members}
    return [model for model in MODELS if model in found]


def _values(members: Members, key: str) -> list:
    return sorted({m[key] for m in members})


def _steps(members: Members, period: str) -> dict[str, np.ndarray]:
    """The records of N_t at each step, one row a seed."""
    return style.by_seed([m["evaluation"][period]["steps_by_step"] for m in members])
