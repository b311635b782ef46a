"""What the figures share: colours, groups of members, and how a figure is saved."""

import pathlib
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import matplotlib.ticker

PLAIN = "0.25"
MODELS = {"rnn": ("RNN", PLAIN), "act": ("ACT", "tab:blue"), "lfact": ("LFACT", "tab:red")}
THOUSANDS = matplotlib.ticker.FuncFormatter(
    lambda updates, _: f"{updates / 1000:g}k" if updates else "0"
)


def groups(members: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Members by model and setting, in the order plain, Repeat, ACT and LFACT by falling tau."""

    def order(member):
        model = {"rnn": 0, "act": 2, "lfact": 3}.get(member["model"], 1)
        return model, member["repeats"] or 0, -(member["tau"] or 0)

    found = {}
    for member in sorted(members, key=order):
        found.setdefault(name(member), []).append(member)
    return found


def name(member: dict[str, Any]) -> str:
    if member["model"] == "rnn":
        return "without ACT"
    if member["repeats"]:
        return f"repeat {member['repeats']}"
    if member["ponder_budget"]:
        return f"budget {member['ponder_budget']:g} from τ {member['tau']:g}"
    layered = "LFACT " if member["model"] == "lfact" else ""
    return f"{layered}τ {member['tau']:g}"


def colors(names) -> dict[str, Any]:
    """A colour each: grey for the plain network, a scale for the others in their order."""
    scaled = [n for n in names if n != "without ACT"]
    scale = plt.cm.viridis(np.linspace(0, 0.92, len(scaled)))
    return {"without ACT": PLAIN} | dict(zip(scaled, scale, strict=True))


def mean_and_error(values) -> tuple[float, float]:
    """Mean over seeds and its standard error: NaN for one seed, which matplotlib does not draw."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def plus_minus(values, digits: int = 4) -> str:
    """Mean over seeds and its standard error in words; of one seed the value alone."""
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f} ± {error:.{digits}f}" if len(values) > 1 else f"{mean:.{digits}f}"


def mean_curve(members, key) -> tuple[np.ndarray, np.ndarray]:
    """The mean of members' curves over their updates; one that ended early keeps its last value."""
    steps = max((m["curve"]["step"] for m in members), key=lambda s: s[-1])
    rows = [np.interp(steps, m["curve"]["step"], m["curve"][key]) for m in members]
    return np.asarray(steps), np.mean(rows, axis=0)


def layers_panel(axes, found: dict[str, np.ndarray], words: tuple[str, str, str], **line):
    """N_t at each step over seeds [seeds, T]: its largest, 90th percentile and mean, so named."""
    x = np.arange(1, found["mean"].shape[1] + 1)
    largest, top_tenth, mean = words
    axes.bar(x, found["maximum"].max(0), color="#f3c1bd", label=largest)
    axes.bar(x, found["percentile_90"].mean(0), color="tab:red", width=0.45, label=top_tenth)
    axes.plot(x, found["mean"].mean(0), color="k", label=mean, **line)


def by_seed(records: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The records of N_t at each step, one row a seed."""
    return {name: np.array([record[name] for record in records]) for name in records[0]}


def plain_log(axis):
    """Numbers in full on a logarithmic axis of less than two decades, where powers say little."""
    low, high = axis.get_view_interval()
    if high < 100 * low:
        axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 3, 5)))
        axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
        axis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def save(figure, path: pathlib.Path, dpi: int = 90, *, tight: bool = True) -> bool:
    if tight:
        figure.tight_layout()
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
    return True
