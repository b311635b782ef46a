"""Which sweeps belong together: those that differ in nothing but what a figure compares."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from experiments.task import Task

# what a figure compares, and what changes no number, or the length of a run alone
COMPARED = {"model", "tau", "repeats", "seed", "steps"}
FREE = COMPARED | {"preset", "lanes", "loop", "devices", "log_every", "checkpoint_every"}


def defaults(task: Task) -> dict[str, Any]:
    """What an option is in the config of a run that is older than the option."""
    options = next(iter(task.presets.values()))
    return {field.name: field.default for field in dataclasses.fields(options)}


def alike(one: dict[str, Any], other: dict[str, Any], known: Mapping[str, Any]) -> bool:
    """Whether two configs are the same but for what is free; `known` are the task's `defaults`."""
    told = lambda config, name: config.get(name, known.get(name))
    names = (one.keys() | other.keys()) - FREE
    return all(told(one, name) == told(other, name) for name in names)


def longest(members: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of several runs of the same network the longest, and none that diverged."""
    found = {}
    for member in sorted(members, key=lambda m: m["updates"]):
        if not member["diverged"]:
            names = ("model", "tau", "repeats", "ponder_budget", "seed")
            found[tuple(member[name] for name in names)] = member
    return list(found.values())


def pooled(
    found: list[tuple[str, dict[str, Any]]], known: Mapping[str, Any]
) -> list[tuple[str, dict[str, Any]]]:
    """Named summaries, those alike as one with the members of all; `known` as for `alike`.

    A pool bears what its summaries' names begin with in common: "fojo" for "fojo_act" and
    "fojo_rnn".
    """
    pools = []
    for name, summary in found:
        for names, summaries in pools:
            if alike(summaries[0]["config"], summary["config"], known):
                names.append(name)
                summaries.append(summary)
                break
        else:
            pools.append(([name], [summary]))
    return [(_name(names), _together(summaries)) for names, summaries in pools]


def _name(names: list[str]) -> str:
    places = zip(*(name.split("_") for name in names), strict=False)
    common = itertools.takewhile(lambda words: len(set(words)) == 1, places)
    return "_".join(words[0] for words in common) or "-".join(names)


def _together(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    members = [member for summary in summaries for member in summary["members"]]
    return summaries[0] | {"members": longest(members)}
