"""Figures of the learned-optimizer experiments."""

import pathlib
from typing import Any

import numpy as np

from experiments.show.learned import NAMES
from experiments.show.style import plt

RULES = {
    "mass": ("mass rule", "tab:blue", "o"),
    "price": ("price rule", "tab:cyan", "s"),
    "gradient_norm": ("gradient norm", "tab:green", "^"),
    "plateau": ("plateau", "tab:olive", "v"),
    "oracle": ("oracle (hindsight)", "tab:gray", "x"),
}


def loss_curves(path: pathlib.Path, curves: dict[str, dict[str, np.ndarray]], *, ylabel: str):
    """Mean loss against step, with the 10 to 90 % band and the median of the learned optimizer.

    `curves` maps a name to {"mean", "median", "low", "high"}, each [steps].
    """
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, rows in curves.items():
        learned = name == "lstm" or name.startswith("act")
        steps = np.arange(1, len(rows["mean"]) + 1)
        style = {"linewidth": 2.2, "color": "black"} if learned else {"linewidth": 1.1}
        axes.plot(steps, rows["mean"], label=f"{NAMES.get(name, name)}, mean", **style)
        if learned:
            axes.plot(steps, rows["median"], color="black", linestyle=":", label="median")
            axes.fill_between(
                steps, rows["low"], rows["high"], color="black", alpha=0.12, label="10 to 90 %"
            )
    axes.set(xlabel="optimization step", ylabel=ylabel, yscale="log")
    # A baseline that diverges on a few problems leaves through the top.
    axes.set_ylim(top=3 * max(float(rows["mean"][0]) for rows in curves.values()))
    axes.legend(fontsize=8, ncols=2)
    axes.grid(alpha=0.3)
    save(figure, path)


def frontier(path: pathlib.Path, halting: dict[str, Any], *, ylabel: str):
    """Mean loss above the least the oracle reaches, against mean steps, of every stop rule."""
    floor = min(row["loss"] for row in halting["frontier"]["oracle"])
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    fixed = halting["frontier"]["fixed"]
    axes.plot(
        [r["steps"] for r in fixed],
        _above([r["loss"] for r in fixed], floor),
        color="tab:red",
        label="fixed step (best constant)",
    )
    for rule, (label, color, marker) in RULES.items():
        rows = halting["frontier"][rule]
        axes.plot(
            [r["steps"] for r in rows],
            _above([r["loss"] for r in rows], floor),
            marker=marker,
            markersize=3.5,
            linewidth=0.9,
            color=color,
            label=label,
        )
    axes.plot(
        halting["steps"]["mean"],
        halting["loss_at_halt"] - floor,
        "*",
        color="black",
        markersize=13,
        label="default rule",
    )
    axes.set(
        xlabel="mean steps taken",
        ylabel=f"{ylabel}, above the oracle's least",
        yscale="log",
        xlim=(0, 60),
    )
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    save(figure, path)


def posterior(path: pathlib.Path, halting: dict[str, Any], prior: np.ndarray | None):
    """The posterior over halting steps: its mean over problems and three problems' own."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    mean = np.array(halting["posterior_mean_over_problems"])
    steps = np.arange(1, len(mean) + 1)
    axes.plot(steps, mean, color="black", linewidth=2, label="mean over problems")
    names = ("an easy problem", "a middling one", "a hard one")
    for row, name in zip(halting["sample"]["posteriors"], names, strict=False):
        axes.plot(steps, row, linewidth=1.1, label=name)
    if prior is not None:
        axes.plot(steps, prior, color="gray", linestyle="--", label="prior")
    axes.set(xlabel="halting step t", ylabel="q(t)", ylim=(0, None))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
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
    axes.set(
        xlabel=xlabel,
        ylabel="halting step",
        title="" if rank is None else f"Spearman {rank:.2f}",
    )
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    save(figure, path)


def _above(losses: list[float], floor: float) -> np.ndarray:
    """What is left above `floor`; nothing where a logarithm could not show it."""
    left = np.array(losses) - floor
    return np.where(left > 1e-6, left, np.nan)


def bands(losses: np.ndarray) -> dict[str, np.ndarray]:
    """Mean, median and 10 and 90 % quantiles of losses [problems, steps], each [steps]."""
    low, median, high = np.quantile(losses, (0.1, 0.5, 0.9), axis=0)
    return {"mean": losses.mean(0), "median": median, "low": low, "high": high}


def save(figure, path: pathlib.Path):
    figure.savefig(path, dpi=130)
    plt.close(figure)
