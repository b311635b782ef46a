"""`python -m experiments NAME [options]`."""

import importlib
import sys

from actjax.training import NonFiniteError
from experiments import learned

# name -> (module with main(argv), what it does)
EXPERIMENTS = {
    "parity": ("experiments.tasks.parity", "learn the parity of a vector of bits"),
    "logic": ("experiments.tasks.logic", "apply chains of binary gates"),
    "addition": ("experiments.tasks.addition", "add up decimal numbers"),
    "sort": ("experiments.tasks.sort", "sort real numbers"),
    "wikipedia": ("experiments.tasks.wikipedia", "predict the next byte of Wikipedia"),
    "finance": ("experiments.tasks.finance", "forecast classes of price changes"),
    **learned.COMMANDS,
    "demo": ("experiments.demo", "plain, Repeat and ACT side by side on both, in minutes"),
    "sweep": ("experiments.sweep", "a grid over models, time penalties and seeds, as one program"),
    "figures": ("experiments.show.plots", "draw the papers' figures from the summaries of sweeps"),
    "report": ("experiments.show.report", "one HTML page: the papers beside what ran here"),
}


def main(argv: list[str]) -> int:
    """Runs an experiment; the exit status is 0, 1 for a run that failed, 2 for wrong arguments."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, *options = argv
    if name not in EXPERIMENTS:
        print(f"error: there is no experiment {name!r}\n\n{usage()}", file=sys.stderr)
        return 2
    module = importlib.import_module(EXPERIMENTS[name][0])
    try:
        module.main(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NonFiniteError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: add --resume to continue from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe had enough, as in `... --help | head`
        sys.stdout = None
    return 0


def usage() -> str:
    width = max(map(len, EXPERIMENTS))
    names = [f"  {name:{width}}  {what}" for name, (_, what) in EXPERIMENTS.items()]
    return "\n".join(
        [
            "usage: python -m experiments NAME [options]",
            "",
            *names,
            "",
            "python -m experiments NAME --help explains the options of one.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
