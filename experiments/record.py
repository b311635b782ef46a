"""What a run writes down and prints: its command, where it ran, summaries, tables, and places."""

import json
import math
import os
import pathlib
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import flax
import jax
import numpy as np
import optax

import actjax
from actjax.training.metrics import write_atomically
from experiments.options import require


def command(argv: list[str] | None = None) -> str:
    """The command line that gives a run again: without the place where this one was kept, and
    without the processes that shared it."""
    places = ("--out", "--coordinator", "--process-id", "--num-processes")
    words, rest = [], iter(sys.argv[1:] if argv is None else argv)
    for word in rest:
        if word in places:
            next(rest, None)
        elif word != "--resume" and not word.startswith(tuple(f"{place}=" for place in places)):
            words.append(word)
    return shlex.join(["python", "-m", "experiments", *words])


def environment() -> dict[str, Any]:
    """The device and the versions a result came from."""
    device = jax.devices()[0]
    modules = {"jax": jax, "flax": flax, "optax": optax, "numpy": np}
    return {
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "versions": {
            "python": platform.python_version(),
            **{name: module.__version__ for name, module in modules.items()},
            "actjax": getattr(actjax, "__version__", "source"),
        },
    }


def read_json(path: pathlib.Path, default: Any = None) -> Any:
    """What `training.write_json` wrote; `default`, if there is one, where there is no file."""
    return default if default is not None and not path.exists() else json.loads(path.read_text())


def write_results(path: pathlib.Path | None, summary: dict[str, Any]):
    """Writes a summary of members where `--results` wants it: a line for each member, and numbers
    to five digits, so that it is a few kilobytes a member."""
    if path is None:
        return
    round_off = lambda number: float(f"{number:.5g}")
    members = [each_float(member, round_off) for member in summary["members"]]
    lines = ",\n".join(json.dumps(member, separators=(",", ":")) for member in members)
    head = {name: value for name, value in summary.items() if name != "members"}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(head, indent=1)[:-2] + f',\n "members": [\n{lines}\n]}}\n')


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: null for numbers that are not finite."""
    return each_float(value, lambda number: number if math.isfinite(number) else None)


def each_float(value: Any, change: Callable[[float], Any]) -> Any:
    """`value` with every float in its lists and dicts changed."""
    if isinstance(value, dict):
        return {name: each_float(part, change) for name, part in value.items()}
    if isinstance(value, list):
        return [each_float(part, change) for part in value]
    return change(value) if isinstance(value, float) else value


def print_table(title: str, rows: list[dict[str, str]], *notes: str):
    """Prints a table of rows, each a dict from a column's title to its cell, then notes."""
    first, *rest = dict.fromkeys(name for row in rows for name in row)
    rows = [{name: row.get(name, "") for name in (first, *rest)} for row in rows]
    width = {name: max(len(name), *(len(row[name]) for row in rows)) for name in (first, *rest)}

    def line(cells: dict[str, str]) -> str:  # words to the left, figures to the right
        padded = [f"{cells[first]:<{width[first]}}", *(f"{cells[n]:>{width[n]}}" for n in rest)]
        return "  ".join(padded).rstrip()

    rule = "-" * (sum(width.values()) + 2 * len(width) - 2)
    print("", title, rule, line({name: name for name in width}), rule, sep="\n")
    print(*(line(row) for row in rows), rule, *notes, sep="\n")


def check_file(name: str, path: pathlib.Path | None):
    """Refuses a file that cannot be written, before the work: None is none to be written."""
    if path is not None:
        require(not path.is_dir(), name, "a file, not a folder", str(path))
        _check_writable(name, path, path.parent)


def check_folder(name: str, path: pathlib.Path | None):
    """Refuses a folder that cannot be made or written to, before the work."""
    if path is not None:
        _check_writable(name, path, path)


def _check_writable(name: str, path: pathlib.Path, folder: pathlib.Path):
    """Writes for a moment into what there is of `folder`, and so leaves nothing behind."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    allowed = f"a place to write to, and {str(there)!r} is a file"
    require(there.is_dir(), name, allowed, str(path))
    try:
        with tempfile.TemporaryFile(dir=there):
            writable = os.access(there, os.W_OK)
    except OSError:
        writable = False
    allowed = f"a place to write to, and nothing can be written in {str(there)!r}"
    require(writable, name, allowed, str(path))
