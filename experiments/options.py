"""The options that every experiment has, and how a command line becomes a record of them."""

import contextlib
import dataclasses
import inspect
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import tyro

from actjax import budget
from actjax.training import distributed

ADAPTIVE = ("act", "lfact")  # models with a time penalty


@dataclasses.dataclass(frozen=True)
class Options:
    """The network, how it is trained, and where the run is kept."""

    preset: str = "demo"
    """Settings to start from; each option given beside it replaces one of them."""

    model: Literal["rnn", "act", "repeat", "lfact"] = "act"
    """Steps of the cell for each input: one (rnn), a learned number (act), a fixed one (repeat), or
    a learned number of layers (lfact)."""
    cell: Literal["simple", "gru", "lstm"] = "simple"
    """The recurrent cell: a simple tanh cell, a GRU or an LSTM."""
    hidden: int = 128
    """Units of the cell."""
    tau: float = 1e-3
    """Time penalty of act and lfact: what a ponder step costs in the loss. Less: longer thought."""
    ponder_budget: float | None = None
    """Hold their mean ponder cost at this number by moving tau, which is then only the start."""
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
    init: Literal["glorot", "flax"] = "flax"
    """First weights of the cell: uniform after Glorot, or Flax's own (Lecun and orthogonal)."""
    loop: Literal["while", "scan"] = "while"
    """How they run: while costs the steps taken; scan costs max_steps and is the reference."""
    lanes: int | None = None
    """Rows computed side by side; sequences wait for one. Default: the batch size."""

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

    out: pathlib.Path | None = None
    """Folder of the run. Default: runs/, then the experiment, the model and the seed."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue the run in that folder from its last checkpoint."""

    coordinator: str | None = None
    """For a run of many processes, each started with the same options and its own number: HOST:PORT
    of process 0, or auto where Slurm, Open MPI, a TPU or the like tells all three."""
    process_id: int | None = None
    """The number of this process, from 0."""
    num_processes: int | None = None
    """How many there are."""


Config = TypeVar("Config", bound=Options)


def parse(experiment: str, presets: Mapping[str, Config], argv: Sequence[str]) -> Config:
    """Reads a command line: the preset first, then the options given beside it.

    Raises:
      ValueError: for an unknown preset or a value out of range.
    """
    argv = list(argv)
    name = _given(argv, "--preset") or next(iter(presets))
    if name not in presets:
        raise ValueError(f"preset is {name!r}; {experiment} has {', '.join(presets)}")
    default = dataclasses.replace(presets[name], preset=name)
    config = tyro.cli(
        type(default),
        prog=f"python -m experiments {experiment}",
        description=inspect.cleandoc(type(default).__doc__),
        default=default,
        args=argv,
    )
    check(config)
    return config


def check(config: Options):
    """Refuses options out of range, with one sentence."""
    positive = ("hidden", "repeats", "max_steps", "batch_size", "steps", "log_every")
    for name in positive:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 1")
    if config.checkpoint_every < 1 or config.checkpoint_every % config.log_every:
        raise ValueError(
            f"checkpoint_every is {config.checkpoint_every}; it must be a multiple of "
            f"log_every = {config.log_every}"
        )
    distributed.check(config.coordinator, config.process_id, config.num_processes)
    processes = config.num_processes or 1
    if config.devices < 1 or config.batch_size % (config.devices * processes):
        name = "devices" if processes == 1 else "devices x num_processes"
        raise ValueError(
            f"{name} is {config.devices * processes}; it must divide batch_size = "
            f"{config.batch_size}"
        )
    if config.tau < 0:
        raise ValueError(f"tau is {config.tau}; it must not be negative")
    if config.ponder_budget is not None:
        if config.model not in ADAPTIVE:
            raise ValueError(
                f"ponder_budget is {config.ponder_budget}; {config.model} has no halting to hold"
            )
        if not budget.ONE_STEP < config.ponder_budget < config.max_steps + 1:
            raise ValueError(
                f"ponder_budget is {config.ponder_budget}; it must be above 2, the cost of one "
                f"step, and below max_steps + 1 = {config.max_steps + 1}"
            )
    if not config.learning_rate > 0:
        raise ValueError(f"learning_rate is {config.learning_rate}; it must be above 0")
    if not 0 < config.epsilon < 1:
        raise ValueError(f"epsilon is {config.epsilon}; it must be above 0 and below 1")
    if config.lanes is not None and config.lanes < 1:
        raise ValueError(f"lanes is {config.lanes}; it must be at least 1")
    if config.seed < 0:
        raise ValueError(f"seed is {config.seed}; it must not be negative")


def joined(config: Options) -> contextlib.AbstractContextManager[None]:
    """The block in which the processes of a run work together."""
    return distributed.joined(
        config.coordinator, process_id=config.process_id, num_processes=config.num_processes
    )


def check_one_process(experiment: str, config: Options):
    """Refuses to share among processes what is not made for it."""
    if config.coordinator is not None:
        raise ValueError(
            f"coordinator is {config.coordinator!r}; {experiment} runs in one process, whose "
            "devices share the networks"
        )


def run_folder(experiment: str, config: Options) -> pathlib.Path:
    """Where the run is kept."""
    return config.out or pathlib.Path("runs") / experiment / f"{label(config)}-seed{config.seed}"


def label(config: Options) -> str:
    """A short name of the model: "rnn", "repeat-3", "act-tau0.001" or "lfact-tau0.001"."""
    suffix = {"rnn": "", "repeat": f"-{config.repeats}"}
    return config.model + suffix.get(config.model, f"-tau{config.tau:g}")


def as_json(experiment: str, config: Options) -> dict[str, Any]:
    """What the run is a function of, as JSON can hold it: not where it is kept or made."""
    values = dataclasses.asdict(config)
    for name in ("out", "resume", "coordinator", "process_id", "num_processes"):
        del values[name]
    return {"experiment": experiment, **values}


def _given(argv: list[str], option: str) -> str | None:
    for place, word in enumerate(argv):
        if word == option and place + 1 < len(argv):
            return argv[place + 1]
        if word.startswith(option + "="):
            return word.removeprefix(option + "=")
    return None
