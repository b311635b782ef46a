"""Numbers in a text, looked up in the files of results: none is typed where it is shown.

A text holds `{FILE ... HOW FORMAT}`, FILE being a path below the results without its ending:

    {parity/grid model=rnn evaluation.error pm .3f}        mean ± standard error over members
    {parity/fojo_act tau=0.01 evaluation.ponder each .2f}  one a member, by seed: "3.08; 3.00"
    {learned/quadratic_uniform learned.100.mean is .4f}    a value of a file without members
    {=change finance/lfact-rnn finance/rnn-rnn}            a figure of `FIGURES`

Words with "=" choose members. A path may go through lists: `kind:a_letter` is the entry whose kind
is "a letter", a number is a place. FORMAT is Python's.
"""

import functools
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.show.papers import RESULTS
from experiments.show.style import mean_and_error

BRACES = re.compile(r"\{([^{}\n]+)\}")
MINUS = "\N{MINUS SIGN}"


class Results:
    """The files of a folder, and which of them have been looked at."""

    def __init__(self, folder: pathlib.Path = RESULTS):
        self.folder, self.used = folder, []

    def read(self, name: str) -> dict[str, Any]:
        """What `name`.json holds.

        Raises:
          ValueError: where there is no such file.
        """
        if name not in self.used:
            self.used.append(name)
        return _read(self.folder / f"{name}.json")

    def named(self, *patterns: str) -> list[str]:
        """The names of the files that `patterns`, such as "learned/run_s*", stand for."""
        paths = [sorted(self.folder.glob(f"{pattern}.json")) for pattern in patterns]
        return [str(path.relative_to(self.folder).with_suffix("")) for p in paths for path in p]

    def members(self, name: str, wanted: list[str]) -> list[dict[str, Any]]:
        """The members of a summary that `wanted`, words such as "tau=0.01", describe, by seed."""
        pairs = [word.partition("=")[::2] for word in wanted]
        found = [
            member
            for member in self.read(name)["members"]
            if all(_same(member.get(key), value) for key, value in pairs)
        ]
        if not found:
            raise ValueError(f"results must hold a member {' '.join(wanted)}, got none in {name}.")
        return sorted(found, key=lambda member: (member["seed"], member.get("instance", 0)))


@functools.cache
def _read(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"results must hold every file that is shown, got none at {str(path)!r}.")
    return json.loads(path.read_text())


def _same(value: Any, wanted: str) -> bool:
    if wanted == "none":
        return value is None
    if isinstance(value, int | float):
        return float(value) == float(wanted)
    return value == wanted


def at(record: Any, path: str) -> Any:
    """What lies at a path of names and places."""
    for name in path.split("."):
        if isinstance(record, list) and ":" in name:
            key, _, value = name.partition(":")
            record = next(row for row in record if _same(row[key], value.replace("_", " ")))
        elif isinstance(record, list):
            record = record[int(name)]
        else:
            record = record[name]
    return record


def filled(text: str, results: Results) -> str:
    """`text` with every brace looked up."""
    return BRACES.sub(lambda found: _look_up(found[1], results), text)


def _look_up(words: str, results: Results) -> str:
    first, *rest = words.split()
    if first.startswith("="):
        return FIGURES[first[1:]](results, *rest)
    *wanted, path, how, form = rest
    if how == "is":
        return number(at(results.read(first), path), form)
    return HOW[how]([at(member, path) for member in results.members(first, wanted)], form)


def number(value: float | None, form: str) -> str:
    """A number in `form`, or "none"."""
    return "none" if value is None else format(value, form).replace("-", MINUS)


def spread(values: list[float], form: str) -> str:
    """Mean ± standard error; of one value the value alone."""
    mean, error = mean_and_error(values)
    if len(values) < 2:
        return number(mean, form)
    return f"{number(mean, form)} ± {number(error, form.lstrip('+'))}"


HOW: dict[str, Callable[[list[Any], str], str]] = {
    "mean": lambda values, form: number(float(np.mean(values)), form),
    "pm": spread,
    "each": lambda values, form: "; ".join(number(value, form) for value in values),
    "count": lambda values, form: f"{sum(v is not None for v in values)} of {len(values)}",
}


def solved(results: Results, name: str, *wanted: str) -> str:
    """When each member had solved its task: "1,200; not in 2,000"."""
    words = []
    for member in results.members(name, list(wanted)):
        at_update, updates = member["solved_at"], member["updates"]
        words.append(f"not in {updates:,}" if at_update is None else f"{at_update:,}")
    return "; ".join(words)


def slope(results: Results, name: str, *wanted: str) -> str:
    """The slope of N in difficulty; its error has that over seeds and those of the fits."""
    members = results.members(name, list(wanted))
    slopes = [member["evaluation"]["steps_slope"] for member in members]
    mean, over_seeds = mean_and_error([found["value"] for found in slopes])
    fits = np.array([found["standard_error"] for found in slopes])
    error = np.hypot(np.nan_to_num(over_seeds), np.sqrt((fits**2).sum()) / len(fits))
    return f"{number(mean, '.3f')} ± {error:.3f}"


def off_budget(results: Results, name: str, *wanted: str) -> str:
    """How far each member's ponder is off its budget, in percent."""
    members = results.members(name, list(wanted))
    parts = [m["evaluation"]["ponder"] / m["ponder_budget"] - 1 for m in members]
    return ", ".join(number(100 * part, "+.0f") for part in parts) + " %"


def change(
    results: Results,
    name: str,
    base: str,
    path: str = "evaluation.test.f1",
    model: str = "",
    other: str = "",
) -> str:
    """By how much one model's figure is above another's: the mean of the relative changes of the
    seeds, each averaged over instances, paired, with its standard error."""
    one = _by_seed(results, name, path, [f"model={model}"] if model else [])
    two = _by_seed(results, base, path, [f"model={other}"] if other else [])
    seeds = sorted(one.keys() & two.keys())
    return spread([100 * (one[seed] / two[seed] - 1) for seed in seeds], "+.1f") + " %"


def _by_seed(results: Results, name: str, path: str, wanted: list[str]) -> dict[int, float]:
    found = {}
    for member in results.members(name, wanted):
        found.setdefault(member["seed"], []).append(at(member, path))
    return {seed: float(np.mean(values)) for seed, values in found.items()}


def over_seeds(results: Results, name: str, path: str, form: str, *wanted: str) -> str:
    """Mean ± standard error over seeds of what is first averaged over instances."""
    return spread(list(_by_seed(results, name, path, list(wanted)).values()), form)


def over_files(results: Results, path: str, form: str, *names: str) -> str:
    """Mean ± standard error of one value over files, each a run of another seed; a name may have
    a * in it."""
    return spread([at(results.read(name), path) for name in results.named(*names)], form)


def less_one(results: Results, name: str, *wanted: str) -> str:
    """N - 1 + R at the end, of which Fojo's table averages the whole part: the mean over seeds."""
    members = results.members(name, list(wanted))
    return f"{np.mean([m['evaluation']['ponder'] for m in members]) - 1:.2f}"


FIGURES: dict[str, Callable[..., str]] = {
    "solved": solved,
    "slope": slope,
    "off_budget": off_budget,
    "change": change,
    "over_seeds": over_seeds,
    "over_files": over_files,
    "less_one": less_one,
}
