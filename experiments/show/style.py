"""What the figures share: colours, groups of members, and how a figure is saved."""

import pathlib
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import matplotlib.ticker

PLAIN = "0.25"
MOST_NAMES = 6  # of taus in a legend
MODELS = {"rnn": ("RNN", PLAIN), "act": ("ACT", "tab:blue"), "lfact": ("LFACT", "tab:red")}
THOUSANDS = matplotlib.ticker.FuncFormatter(
    lambda updates, _: f"{updates / 1000:g}k" if updates else "0"
)


def groups(members: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Members by model and setting, in the order plain, Repeat, ACT and LFACT by falling tau."""

    def order(member):
        model = {"rnn": 0, "act": 2, "lfact": 3, "pondernet": 4}.get(member["model"], 1)
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
    model = {"lfact": "LFACT", "pondernet": "PonderNet"}.get(member["model"], "ACT")
    return f"{model} τ {member['tau']:g}"


def colors(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """A colour for each of `groups`: grey for the plain network, warm ones for Repeat, LFACT's and
    PonderNet's own, and for ACT a scale by the logarithm of tau, or in the order of the names
    where tau moves."""
    kind = lambda members: (members[0]["repeats"] and "repeat") or members[0]["model"]
    tones = {}
    for name, members in found.items():
        same = [n for n, others in found.items() if kind(others) == kind(members)]
        place = same.index(name) / max(1, len(same) - 1)
        match kind(members):
            case "rnn":
                tones[name] = PLAIN
            case "repeat":
                tones[name] = plt.cm.autumn(0.1 + 0.65 * place)
            case "lfact":
                tones[name] = MODELS["lfact"][1] if len(same) == 1 else plt.cm.Reds(1 - 0.6 * place)
            case "pondernet":
                tones[name] = plt.cm.PuRd(0.7 - 0.4 * place)
            case _:
                scale = tau_scale(found)
                if scale is None:
                    tones[name] = plt.cm.viridis(0.92 * place)
                else:
                    tones[name] = scale.to_rgba(members[0]["tau"])
    return tones


def tau_scale(found: dict[str, list[dict[str, Any]]]) -> matplotlib.cm.ScalarMappable | None:
    """Colours by tau, dark for a high price; None where it moves or there is one alone."""
    fixed = [m[0] for m in found.values() if m[0]["model"] == "act"]
    taus = {m["tau"] for m in fixed if not m["ponder_budget"] and m["tau"]}
    if len(taus) < 2 or any(m["ponder_budget"] for m in fixed):
        return None
    low, high = min(taus), max(taus)
    norm = matplotlib.colors.LogNorm(low * (low / high) ** 0.09, high)  # no yellow on white
    return matplotlib.cm.ScalarMappable(norm, plt.cm.viridis_r)


def legend(figure, axes, found: dict[str, list[dict[str, Any]]]):
    """Names the colours: each group in words, or many taus by a bar of the scale beside `axes`."""
    scale = tau_scale(found)
    handles, names = axes.get_legend_handles_labels()
    taus = [name for name, members in found.items() if members[0]["model"] == "act"]
    if scale is not None and len(taus) > MOST_NAMES:
        bar = figure.colorbar(scale, ax=figure.axes, pad=0.01, aspect=30)
        bar.set_label("τ")
        ticks = [members[0]["tau"] for name, members in found.items() if name in taus]
        bar.ax.set_ylim(min(ticks), max(ticks))
        handles, names = zip(
            *((h, n) for h, n in zip(handles, names, strict=True) if n not in taus), strict=True
        )
    axes.legend(handles, names, fontsize=8, ncols=1 + len(names) // 6)


def mean_and_error(values) -> tuple[float, float]:
    """Mean over seeds and its standard error: NaN for one seed, see `whiskers`."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def whiskers(error: float) -> dict[str, Any]:
    """How a bar shows its standard error; without one not even the caps are drawn."""
    return {"yerr": error, "capsize": 3} if np.isfinite(error) else {}


def plus_minus(values, digits: int = 4) -> str:
    """Mean over seeds and its standard error in words; of one seed the value alone."""
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f} ± {error:.{digits}f}" if len(values) > 1 else f"{mean:.{digits}f}"


def mean_curve(members, key) -> tuple[np.ndarray, np.ndarray]:
    """The mean of members' curves over their updates; one that ended early keeps its last value,
    and so does a row without one, such as a last one that was too short to be validated."""
    steps = max((m["curve"]["step"] for m in members), key=lambda s: s[-1])
    rows = []
    for member in members:
        values = np.array(member["curve"][key], float)  # None is NaN
        known = np.isfinite(values)
        rows.append(np.interp(steps, np.array(member["curve"]["step"])[known], values[known]))
    return np.asarray(steps), np.mean(rows, axis=0)


def layers_panel(axes, found: dict[str, np.ndarray], words: tuple[str, str, str], **line):
    """N_t at each step over seeds [seeds, T]: its largest, 90th percentile and mean, so named."""
    x = np.arange(1, found["mean"].shape[1] + 1)
    largest, top_tenth, mean = words
    axes.bar(x, found["maximum"].max(0), color="#f3c1bd", width=1, label=largest)
    axes.bar(x, found["percentile_90"].mean(0), color="#d9766c", width=1, label=top_tenth)
    axes.plot(x, found["mean"].mean(0), color="k", label=mean, **line)
    axes.set_xlim(0.5, x[-1] + 0.5)


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
    if tight and figure.get_layout_engine() is None:
        figure.tight_layout()
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
    return True
