"""The Wikipedia figures of LFACT 2020, drawn from the summary of one sweep over its models."""

import pathlib
from typing import Any

import numpy as np

from experiments.options import pick
from experiments.show import style
from experiments.show.style import (
    MODELS,
    THOUSANDS,
    mean_and_error,
    mean_curve,
    plt,
    save,
    whiskers,
)
from experiments.task import Task


def bits(summary: dict[str, Any], path: pathlib.Path) -> bool:
    """Bits per character of each model and its change over the plain network (figure 4a)."""
    found = _by_model(summary)
    if "lfact" not in found or len(found) < 2:
        return False
    scores = {m: [x["evaluation"]["bits_per_character"] for x in found[m]] for m in found}
    figure, axes = plt.subplots(figsize=(4.6, 3.6))
    for place, (model, values) in enumerate(scores.items()):
        mean, error = mean_and_error(values)
        look = {"color": MODELS[model][1], "alpha": 0.75, "width": 0.65}
        axes.bar(place, mean, **look, **whiskers(error))
        axes.plot([place] * len(values), values, "k.", markersize=4)
        note = f"{mean:.3f}"
        if model != "rnn" and "rnn" in scores:
            note += f"\n{mean / np.mean(scores['rnn']) - 1:+.1%}"
        axes.annotate(note, (place, mean / 2), ha="center", va="center", fontsize=9)
    axes.set_xticks(range(len(scores)), [MODELS[model][0] for model in scores])
    axes.set_ylabel("bits per character, test windows")
    return save(figure, path)


def layers(summary: dict[str, Any], path: pathlib.Path) -> bool:
    """Mean N and the mean of a row's largest N + R, during training (figure 4c)."""
    found = _by_model(summary)
    if "lfact" not in found:
        return False
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    for model in found.keys() - {"rnn"}:
        label, color = MODELS[model]
        for key, line, what in (
            ("ponder_steps", "-", "mean N"),
            ("ponder_max", ":", "most N + R"),
        ):
            steps, mean = mean_curve(found[model], key)
            left.plot(steps, mean, line, color=color, label=f"{label}, {what}")
    for model in found:
        steps, mean = mean_curve(found[model], "validation_max")
        right.plot(steps, -mean, color=MODELS[model][1], label=MODELS[model][0])
    left.set_ylabel("ponder in training")
    right.set_ylabel("bits per character, validation")
    right.set_ylim(top=-mean_curve(found["lfact"], "validation_max")[1][1])
    for axes in (left, right):
        axes.set_xlabel("updates")
        axes.xaxis.set_major_formatter(THOUSANDS)
    left.legend(fontsize="small", loc="center right")
    right.legend(fontsize="small")
    return save(figure, path)


def layers_by_step(summary: dict[str, Any], path: pathlib.Path) -> bool:
    """N_t of LFACT at each step: mean, 90th percentile and maximum (figure 8)."""
    found = _by_model(summary).get("lfact")
    if not found or "train" not in found[0]["evaluation"].get("steps_by_step", {}):
        return False
    records = [member["evaluation"]["steps_by_step"] for member in found]
    shape = {"figsize": (12, 2.9), "sharey": True, "layout": "constrained"}
    figure, panels = plt.subplots(1, len(records[0]), **shape)
    for axes, period in zip(panels, records[0], strict=True):
        found = style.by_seed([record[period] for record in records])
        style.layers_panel(axes, found, ("maximum", "90 %", "mean"))
        axes.set_title(period, fontsize=10)
        axes.set_xlabel("character of the window")
    panels[0].set_ylabel(r"$N_t$ of LFACT")
    panels[0].set_ylim(0, 1.15 * panels[0].get_ylim()[1])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return save(figure, path)


WORDS = {  # of a setting of LFACT that differs from the preset's
    "mu": "μ {:g}",
    "combine": "g: {}",
    "activation": "σ: {}",
    "attend": "attends: {}",
    "max_steps": "L {}",
}


def settings(task: Task, found: list[dict[str, Any]], path: pathlib.Path) -> bool:
    """Bits of LFACT by its own settings, and of all models by the text that they train on.

    Figures 4b and 9 and section 4.2. Bars have the error over test windows, of the seeds that all
    settings have.
    """
    base = pick(task.presets["lfact"], *WORDS, "sequences", "steps")
    bars, sizes = {}, {}
    for summary in found:
        config = summary["config"]
        if config.get("preset") != "lfact":
            continue
        differs = [name for name, value in base.items() if config.get(name, value) != value]
        for member in summary["members"]:
            result, seed = member["evaluation"], member["seed"]
            if set(differs) <= {"sequences", "steps"}:  # as many passes over less text
                at = sizes.setdefault(member["model"], {}).setdefault(config["sequences"], {})
                at[seed] = result["bits_per_character"]
            if member["model"] == "lfact" and not differs:
                bars.setdefault("preset", {})[seed] = result
            if member["model"] == "lfact" and len(differs) == 1 and differs[0] in WORDS:
                name = WORDS[differs[0]].format(config[differs[0]])
                bars.setdefault(name, {})[seed] = result
    seeds = set.intersection(*map(set, bars.values())) if bars else set()
    if len(bars) < 2 or not seeds:
        return False
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for place, at in enumerate(bars.values()):
        mean = np.mean([at[seed]["bits_per_character"] for seed in seeds])
        errors = [at[seed]["bits_per_character_standard_error"] for seed in seeds]
        left.errorbar(place, mean, np.hypot.reduce(errors) / len(seeds), fmt="o", capsize=3)
    left.set_xticks(range(len(bars)), bars, rotation=30, ha="right")
    left.set_ylabel("bits per character, test windows")
    left.set_title(f"LFACT, seed {', '.join(map(str, sorted(seeds)))}", fontsize=9)
    for model, at in sizes.items():
        if len(at) > 1:
            points = [(n, *mean_and_error(list(at[n].values()))) for n in sorted(at)]
            windows, mean, error = np.array(points).T
            label, color = MODELS[model]
            right.errorbar(windows, mean, error, color=color, label=label, marker=".", capsize=3)
    right.set_xlabel("windows trained on, 15 times each")
    right.legend(fontsize="small")
    return save(figure, path)


def _by_model(summary: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Members by model, in the order of `MODELS`; none where the sweep validated nothing."""
    members = [m for m in summary["members"] if "validation_max" in m["curve"]]
    found = {model: [m for m in members if m["model"] == model] for model in MODELS}
    return {model: here for model, here in found.items() if here}
