"""`python -m experiments NAME [options]`."""

import functools
import importlib
import sys
from collections.abc import Callable

from actjax.training import NonFiniteError
from experiments import learned, run, tasks

# name -> (module with main(tasks, argv), what it does)
COMMANDS = {
    "demo": (
        "experiments.demo",
        "what pondering buys, in 2 minutes: difficulty, a budget, text, a stream",
    ),
    "sweep": ("experiments.sweep", "a grid over models, time penalties and seeds, as one program"),
    "figures": (
        "experiments.show.sweeps",
        "draw the papers' figures from the summaries of sweeps",
    ),
    "examples": (
        "experiments.show.examples",
        "draw an example of each task, as the papers do",
    ),
    "claims": (
        "experiments.show.claims",
        "docs/results.md: every claim of the papers, and whether it holds",
    ),
    "collapse": ("experiments.collapse", "what helps against halting that collapses, side by side"),
    "report": ("experiments.show.report", "one HTML page: the papers beside what ran here"),
}


def commands() -> dict[str, tuple[Callable[[list[str]], None], str]]:
    """Every command: name -> (main(argv), what it does), the tasks first."""
    known, found = tasks.known(), {}
    for name, task in known.items():
        found[name] = task.main or functools.partial(run.main, task), task.what
    for name, (place, what) in learned.COMMANDS.items():
        found[name] = functools.partial(_call, place, name), what
    for name, (place, what) in COMMANDS.items():
        found[name] = functools.partial(_call, place, known), what
    return found


def main(argv: list[str]) -> int:
    """Runs an experiment; the exit status is 0, 1 for a run that failed, 2 for wrong arguments."""
    known = commands()
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(known))
        return 0
    name, *options = argv
    if name not in known:
        print(f"error: NAME must be one of these, got {name!r}.\n\n{usage(known)}", file=sys.stderr)
        return 2
    try:
        known[name][0](options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NonFiniteError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"interrupted: {stop or 'nothing has been kept'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe had enough, as in `... --help | head`
        sys.stdout = None
    except OSError as error:  # a full disk, say
        where = f" ({error.filename!r})" if error.filename else ""
        print(f"stopped: {error.strerror or error}{where}", file=sys.stderr)
        return 1
    return 0


def usage(known: dict) -> str:
    width = max(map(len, known))
    names = [f"  {name:{width}}  {what}" for name, (_, what) in known.items()]
    return "\n".join(
        [
            "usage: python -m experiments NAME [options]",
            "",
            *names,
            "",
            "python -m experiments NAME --help explains the options of one.",
        ]
    )


def _call(place: str, first, argv: list[str]):
    """`main(first, argv)` of a module, which is not loaded before it is asked for."""
    return importlib.import_module(place).main(first, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
