"""What the benchmarks share: the time of one update, the machine it was taken on, the record.

Imported before `actjax` and `experiments`, it lets both be found in a clone without installation.
"""

import argparse
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from typing import Any

import jax

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def seconds_each(call, *, target: float = 0.15, repeats: int = 3) -> float:
    """The least time of one update, in seconds.

    Args:
      call: ``call(updates)`` does so many updates in one dispatch and returns arrays to wait for.
      target: seconds that a timed dispatch should take; the number of updates follows.
      repeats: timed dispatches; two where a single update takes longer than `target`.
    """

    def timed(updates):
        began = time.perf_counter()
        jax.block_until_ready(call(updates))
        return time.perf_counter() - began

    timed(1)
    once = timed(1)
    if once > target:
        return min(once, timed(1))
    updates = max(1, round(target / once))
    return min(timed(updates) / updates for _ in range(repeats))


def first_and_least(call, repeats: int) -> tuple[float, float, Any]:
    """Seconds of the first call of a function, those of the quickest after it, and its result."""
    times = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - began)
    return times[0], min(times[1:]), result


def new_file(name: str) -> pathlib.Path:
    """The type of an option `--out`: a file that cannot be written is refused before the work."""
    from experiments.record import check_file

    try:
        check_file("out", pathlib.Path(name))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return pathlib.Path(name)


def make_parser(description: str, **counts: int) -> argparse.ArgumentParser:
    """A command line with `--out`, and an option for each of `counts`, their defaults."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    for name, default in counts.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--out", type=new_file, help="JSON file to write")
    return parser


def write(out: pathlib.Path | None, arguments: dict[str, Any], **results: Any):
    """Writes the file `out`, if there is to be one: the results, and what gave them, and where."""
    from experiments.record import environment  # here: a card's machine may lack what it needs

    script = f"benchmarks/{pathlib.Path(sys.argv[0]).name}"
    command = shlex.join(["python", script, *sys.argv[1:]])
    arguments = {name: value for name, value in arguments.items() if name != "out"}
    arguments["out"] = None if out is None else str(out)
    save(out, {"command": command, "arguments": arguments, **environment(), **machine(), **results})


def save(out: pathlib.Path | None, record: dict[str, Any]):
    """Writes a record as JSON into the file `out`, if there is to be one."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n")


def machine() -> dict:
    """Processor, cores, load and commit."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count()
    load = list(os.getloadavg()) if hasattr(os, "getloadavg") else None
    return {"cpu": _cpu(), "cores": cores, "load_average": load, "commit": commit}


def _cpu() -> str:
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
