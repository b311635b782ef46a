"""The options of the experiments, in parts, and how a command line becomes a record of them."""

import contextlib
import dataclasses
import inspect
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import tyro

from actjax import budget
from actjax._checks import check_positive
from actjax.training import distributed
from experiments.cells import CELLS

BUDGETED = ("act", "lfact")  # models with a time penalty, which a ponder budget can move
ADAPTIVE = (*BUDGETED, "pondernet")  # models whose steps have a price tau
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
PACE = ("steps", "log_every", "checkpoint_every")
# where and on what a run is made, which changes none of its numbers
PLACES = ("out", "resume", "results", "cpu_devices", "coordinator", "process_id", "num_processes")


@dataclasses.dataclass(frozen=True)
class Preset:
    preset: str = "demo"
    """Settings to start from; each option given beside it replaces one of them."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A recurrent network, and how dear its steps are."""

    model: Literal["rnn", "act", "repeat", "lfact"] = "act"
    """Steps of the cell for each input: one (rnn), a learned number (act), a fixed one (repeat), or
    a learned number of layers (lfact)."""
    cell: Literal[tuple(CELLS)] = "simple"
    """The recurrent cell: a simple tanh cell, a GRU or an LSTM."""
    hidden: int = 128
    """Units of the cell."""
    tau: float = 1e-3
    """Time penalty of act and lfact: what a ponder step costs in the loss. Less: longer thought."""
    ponder_budget: float | None = None
    """Hold their mean ponder cost at this number by moving tau, which is then only the start."""
    tau_warmup: int = 0
    """Updates over which tau rises from 0, against halting that collapses before anything is
    learned."""
    min_steps: int = 1
    """Fewest ponder steps act may take for an input, against the same."""
    repeats: int = 2
    """Steps of the cell for each input, for repeat."""
    max_steps: int = 100
    """Most ponder steps act may take for an input (M), most layers of lfact (L)."""
    combine: Literal["affine", "mlp"] = "affine"
    """How lfact joins a layer's state with what it gets from the step before (g)."""
    activation: Literal["sigmoid", "tanh"] = "sigmoid"
    """The nonlinearity of g, which the paper calls sigma."""
    attend: Literal["all", "lower"] = "all"
    """Which layers of the step before lfact attends to: all, or only those that are not higher."""
    epsilon: float = 0.01
    """They stop once their halting probabilities sum to 1 - epsilon."""
    halt_bias: float = 1.0
    """First bias of their halting unit; a lower one makes them start with longer thought."""
    over_time: Literal["sum", "mean"] = "sum"
    """Whether loss and ponder cost are summed over a sequence (Graves) or averaged (Fojo)."""
    init: Literal["glorot", "glorot_all", "flax"] = "flax"
    """First weights of the cell: uniform after Glorot, or Flax's own (Lecun and orthogonal);
    glorot_all: those of the halting unit and the read-out after Glorot too, as in Fojo's code."""
    loop: Literal["auto", "while", "kernel", "scan"] = "auto"
    """How they run: while costs the steps taken, and so does kernel, for act on a GPU; scan costs
    max_steps and is the reference. auto: kernel on a GPU where the network allows it, or while."""
    lanes: int | None = None
    """Rows computed side by side; sequences wait for one. Default: the batch size."""


@dataclasses.dataclass(frozen=True)
class Training:
    """How a network is trained."""

    batch_size: int = 128
    """Sequences in an update."""
    learning_rate: float = 1e-3
    """Adam's learning rate."""
    devices: int = 1
    """Devices of each process that share each batch, which their number must divide."""
    steps: int = 10_000
    """Updates in the whole run."""
    seed: int = 0
    """The run is a function of its options and this number."""
    log_every: int = 100
    """Updates between rows of metrics; as many run in one dispatch."""
    checkpoint_every: int = 1000
    """Updates between checkpoints."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run is kept."""

    out: pathlib.Path | None = None
    """Folder of the run. Default: runs/, then the experiment, model or optimizer, and seed."""
    resume: Flag = False
    """Continue the run in that folder from its last checkpoint."""


@dataclasses.dataclass(frozen=True)
class Processes:
    """Who trains it."""

    coordinator: str | None = None
    """For a run of many processes, each started with the same options and its own number: HOST:PORT
    of process 0, or auto where Slurm, Open MPI, a TPU or the like tells all three."""
    process_id: int | None = None
    """The number of this process, from 0."""
    num_processes: int | None = None
    """How many there are."""


@dataclasses.dataclass(frozen=True)
class Options(Processes, Place, Training, Architecture, Preset):
    """What every task has; a task's own options follow."""


Config = TypeVar("Config")


def parse(
    experiment: str,
    presets: Mapping[str, Config],
    argv: Sequence[str],
    check: Callable[[Config], None],
) -> Config:
    """Reads a command line: the preset first, then the options given beside it.

    Raises:
      ValueError: for an unknown preset or a value out of range.
    """
    words = [part for word in argv for part in word.split("=", 1)]
    place = words.index("--preset") + 1 if "--preset" in words else len(words)
    name = words[place] if place < len(words) else next(iter(presets))
    require(name in presets, "preset", f"one of {', '.join(presets)} for {experiment}", name)
    default = dataclasses.replace(presets[name], preset=name)
    config = tyro.cli(
        type(default),
        prog=f"python -m experiments {experiment}",
        description=inspect.cleandoc(type(default).__doc__),
        default=default,
        args=list(argv),
    )
    check(config)
    return config


def pick(options: Any, *names: str) -> dict[str, Any]:
    """The options of these names, to be handed to what takes them by name."""
    return {name: getattr(options, name) for name in names}


def require(holds: bool, name: str, allowed: str, value: Any):
    """Refuses `value` with one sentence unless it `holds` what is allowed.

    Example:
      >>> require(2 < 1, "tau", "at least 0", -1.0)
      Traceback (most recent call last):
      ValueError: tau must be at least 0, got -1.0.
    """
    if not holds:
        raise ValueError(f"{name} must be {allowed}, got {value!r}.")


def check(options: Options):
    """Refuses options out of range, with one sentence."""
    for name in ("hidden", "repeats", "min_steps", "max_steps", "batch_size"):
        check_positive(name, getattr(options, name))
    check_schedule(options)
    distributed.check(options.coordinator, options.process_id, options.num_processes)
    devices = options.devices * (options.num_processes or 1)
    name = "devices" if options.num_processes in (None, 1) else "devices x num_processes"
    divides = devices > 0 and options.batch_size % devices == 0
    require(divides, name, f"a divisor of batch_size = {options.batch_size}", devices)
    require(options.tau >= 0, "tau", "at least 0", options.tau)
    require(options.tau_warmup >= 0, "tau_warmup", "at least 0", options.tau_warmup)
    if options.min_steps > 1:
        allowed = f"1 for {options.model}, which has no such limit"
        require(options.model == "act", "min_steps", allowed, options.min_steps)
        allowed = f"at most max_steps = {options.max_steps}"
        require(options.min_steps <= options.max_steps, "min_steps", allowed, options.min_steps)
    if options.ponder_budget is not None:
        allowed = "0 where a ponder budget moves tau"
        require(options.tau_warmup == 0, "tau_warmup", allowed, options.tau_warmup)
        held, most = options.ponder_budget, options.max_steps + 1
        nothing = "ponder cost" if options.model in ADAPTIVE else "halting"
        allowed = f"None for {options.model}, which has no {nothing} to hold"
        require(options.model in BUDGETED, "ponder_budget", allowed, held)
        allowed = f"above 2, the cost of one step, and below max_steps + 1 = {most}"
        require(budget.ONE_STEP < held < most, "ponder_budget", allowed, held)
    require(options.learning_rate > 0, "learning_rate", "above 0", options.learning_rate)
    require(0 < options.epsilon < 1, "epsilon", "above 0 and below 1", options.epsilon)
    if options.lanes is not None:
        check_positive("lanes", options.lanes)


def check_schedule(options: Any):
    """Refuses counts of updates and seeds that no run can have."""
    for name in ("steps", "log_every"):
        check_positive(name, getattr(options, name))
    multiple = options.checkpoint_every > 0 and options.checkpoint_every % options.log_every == 0
    allowed = f"a multiple of log_every = {options.log_every}"
    require(multiple, "checkpoint_every", allowed, options.checkpoint_every)
    require(options.seed >= 0, "seed", "at least 0", options.seed)


def check_one_process(experiment: str, options: Processes):
    """Refuses to share among processes what is not made for it."""
    allowed = f"None: {experiment} runs in one process, whose devices share the networks"
    require(options.coordinator is None, "coordinator", allowed, options.coordinator)


def joined(options: Processes) -> contextlib.AbstractContextManager[None]:
    """The block in which the processes of a run work together."""
    return distributed.joined(options.coordinator, **pick(options, "process_id", "num_processes"))


def label(architecture: Architecture) -> str:
    """A short name of the model: "rnn", "repeat-3", "act-tau0.001" or "lfact-tau0.001"."""
    suffix = {"rnn": "", "repeat": f"-{architecture.repeats}"}
    return architecture.model + suffix.get(architecture.model, f"-tau{architecture.tau:g}")


def as_json(experiment: str, config: Any) -> dict[str, Any]:
    """What the run is a function of, as JSON can hold it: not where it is kept or made."""
    values = dataclasses.asdict(config).items()
    text = lambda value: str(value) if isinstance(value, pathlib.Path) else value
    kept = {name: text(value) for name, value in values if name not in PLACES}
    return {"experiment": experiment, **kept}
