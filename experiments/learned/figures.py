"""Figures of the learned-optimizer experiments, drawn from their results alone."""

import pathlib
from typing import Any

import numpy as np

from experiments.show.style import plain_log, plt

NAMES = {
    "lstm": "LSTM optimizer",
    "act": "ACT optimizer",
    "sgd": "SGD",
    "nag": "Nesterov",
    "rmsprop": "RMSprop",
    "adam": "Adam",
    "adam9": "Adam (.9, .9)",
}
RULES = {
    "mass": ("mass rule", "tab:blue", "o"),
    "price": ("price rule", "tab:cyan", "s"),
    "gradient_norm": ("gradient norm", "tab:green", "^"),
    "plateau": ("plateau", "tab:olive", "v"),
    "oracle": ("oracle (hindsight)", "tab:gray", "x"),
}


def draw(result: dict[str, Any], folder: pathlib.Path, prefix: str = "") -> list[pathlib.Path]:
    """Draws every figure that a result gives, as `prefix` and the figure's name: their paths."""
    drawn = []

    def place(name: str) -> pathlib.Path:
        drawn.append(folder / f"{prefix}{name}.png")
        return drawn[-1]

    halting, ylabel = result.get("halting", {}), result.get("ylabel", "loss")
    if result.get("curves"):
        loss_curves(place("loss"), result["curves"], ylabel=ylabel)
    if "frontier" in halting:
        frontier(place("frontier"), halting, ylabel=ylabel)
        posterior(place("posterior"), halting)
        difficulty(place("difficulty"), halting, xlabel="log10 of the condition number")
    return drawn


def as_json(curves: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, list[float]]]:
    """What `loss_curves` draws of `curves`, to four digits."""
    found = {}
    for name, rows in curves.items():
        kept = rows if is_learned(name) else {"mean": rows["mean"]}
        found[name] = {what: [float(f"{x:.4g}") for x in row] for what, row in kept.items()}
    return found


def loss_curves(path: pathlib.Path, curves: dict[str, dict[str, Any]], *, ylabel: str):
    """Mean loss against step, with the 10 to 90 % band and the median of the learned optimizer.

    `curves` maps a name to {"mean", "median", "low", "high"}, each [steps]; of a baseline the mean
    is enough. One that diverges on a few problems leaves through the top.
    """
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    shown = []
    for name, rows in curves.items():
        mean = np.array(rows["mean"], float)  # null where it was not finite
        steps = np.arange(1, len(mean) + 1)
        learned = is_learned(name)
        style = {"linewidth": 2.2, "color": "black"} if learned else {"linewidth": 1.1}
        axes.plot(steps, mean, label=f"{title(name)}, mean", **style)
        shown += [mean[:1]]
        if learned:
            axes.plot(steps, rows["median"], color="black", linestyle=":", label="median")
            band = {"color": "black", "alpha": 0.12, "label": "10 to 90 %"}
            axes.fill_between(steps, rows["low"], rows["high"], **band)
            shown += [mean, rows["low"], rows["high"]]
    shown = np.concatenate(shown)
    low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
    margin = (high / low) ** 0.05
    axes.set(xlabel="optimization step", ylabel=ylabel, yscale="log")
    axes.set_ylim(low / margin, high * margin)
    plain_log(axes.yaxis)
    save(figure, path, ncols=2)


def is_learned(name: str) -> bool:
    return name.split("-")[0] in ("lstm", "act")


def title(name: str) -> str:
    """The name of a curve in words: "adam, tuned for the sum" is Adam's."""
    kind, *rest = name.split(", ")
    return ", ".join([NAMES.get(kind, NAMES.get(kind.split("-")[0], kind)), *rest])


def frontier(path: pathlib.Path, halting: dict[str, Any], *, ylabel: str):
    """Mean loss above the least the oracle reaches, against mean steps, of every stop rule."""
    floor = min(row["loss"] for row in halting["frontier"]["oracle"])
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")

    def draw(name: str, **style):
        rows = halting["frontier"][name]
        left = np.array([row["loss"] for row in rows]) - floor
        left = np.where(left > 1e-6, left, np.nan)  # which a logarithm could not show
        axes.plot([row["steps"] for row in rows], left, **style)

    draw("fixed", color="tab:red", label="fixed step (best constant)")
    for rule, (label, color, marker) in RULES.items():
        style = {"markersize": 3.5, "linewidth": 0.9, "color": color, "label": label}
        draw(rule, marker=marker, **style)
    mean, left = halting["steps"]["mean"], halting["loss_at_halt"] - floor
    axes.plot(mean, left, "*", color="black", markersize=13, label="default rule")
    ylabel = f"{ylabel}, above the oracle's least"
    axes.set(xlabel="mean steps taken", ylabel=ylabel, yscale="log", xlim=(0, 60))
    save(figure, path)


def posterior(path: pathlib.Path, halting: dict[str, Any]):
    """The posterior over halting steps: its mean over problems and three problems' own."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    mean = np.array(halting["posterior_mean_over_problems"])
    steps = np.arange(1, len(mean) + 1)
    axes.plot(steps, mean, color="black", linewidth=2, label="mean over problems")
    names = ("an easy problem", "a middling one", "a hard one")
    for row, name in zip(halting["sample"]["posteriors"], names, strict=False):
        axes.plot(steps, row, linewidth=1.1, label=name)
    if halting.get("prior"):
        axes.plot(steps, halting["prior"], color="gray", linestyle="--", label="prior")
    axes.set(xlabel="halting step t", ylabel="q(t)", ylim=(0, None))
    save(figure, path)


def difficulty(path: pathlib.Path, halting: dict[str, Any], *, xlabel: str):
    """Halting step of each problem against its difficulty."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    x = np.array(halting["sample"]["difficulty"])
    y = np.array(halting["sample"]["steps"])
    axes.plot(x, y, ".", markersize=3, alpha=0.4, color="tab:blue")
    edges = np.quantile(x, np.linspace(0, 1, 11))
    place = np.clip(np.searchsorted(edges, x) - 1, 0, 9)
    means = [y[place == j].mean() for j in range(10)]
    axes.plot((edges[1:] + edges[:-1]) / 2, means, "o-", color="black", label="mean by decile")
    rank = halting["spearman_difficulty"]
    title = "" if rank is None else f"Spearman {rank:.2f}"
    axes.set(xlabel=xlabel, ylabel="halting step", title=title)
    save(figure, path)


def bands(losses: np.ndarray) -> dict[str, np.ndarray]:
    """Mean, median and 10 and 90 % quantiles of losses [problems, steps], each [steps]."""
    low, median, high = np.quantile(losses, (0.1, 0.5, 0.9), axis=0)
    return {"mean": losses.mean(0), "median": median, "low": low, "high": high}


def save(figure, path: pathlib.Path, ncols: int = 1):
    figure.axes[0].legend(fontsize=8, ncols=ncols)
    figure.axes[0].grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)
