"""The options of the learned-optimizer experiments."""

import dataclasses
import inspect
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import tyro

BASELINES = ("sgd", "nag", "rmsprop", "adam", "adam9")


@dataclasses.dataclass(frozen=True)
class LearnedOptions:
    """The optimizer, how it is meta-trained and tested, and where the run is kept."""

    preset: str = "demo"
    """Settings to start from; each option given beside it replaces one of them."""

    optimizer: Literal["lstm", "act", "sgd", "nag", "rmsprop", "adam", "adam9"] = "lstm"
    """Learned: lstm, or act, which also stops. Or a baseline with its learning rate tuned."""
    hidden: int = 20
    """Units of each layer of the coordinatewise LSTM."""
    layers: int = 2
    """Its layers."""
    preprocess: Literal["log_sign", "raw"] = "log_sign"
    """What it sees of a gradient."""
    p: float = 10.0
    """Gradients below exp(-p) count as small, for log_sign."""
    see_params: bool = False
    """Show it the parameters too."""
    output_scale: float = 0.1
    """An update is this times the network's output."""

    halting: Literal["softmax", "stick", "graves"] = "stick"
    """Posterior over the halting step, for act: the papers', stick-breaking or Graves' rule."""
    nu: float = 0.95
    """Prior probability of going on after a step, for softmax and stick."""
    kl_weight: float = 0.02
    """Weight of the divergence to the prior: with nu it is the price of a step."""
    time_penalty: float = 5e-4
    """Price of a step under Graves' rule."""
    gap_weight: float = 0.0
    """Weight of KL(q || q*) to the best posterior in hindsight, beside the papers' objective."""
    horizons: Literal["all", "sample"] = "all"
    """Sum over the horizons T exactly, or draw one a problem (softmax)."""
    globals: bool = True
    """Whether the halting head sees loss, its change and the gradient's norm."""
    head_width: int = 16
    """Units between the head's inputs and its score; 0 is the papers' linear head."""
    network_from: pathlib.Path | None = None
    """Folder of an lstm run whose network act starts from."""
    train_network: bool = True
    """Whether act goes on training the network, or its head alone."""

    batch_size: int = 125
    """Problems in a meta-update."""
    horizon: int = 100
    """Updates taken on a problem in training."""
    window: int = 20
    """Steps between truncations of the gradient (lstm), or between kept states (act)."""
    columns: int = 0
    """Coordinates, drawn anew, that a meta-gradient goes through (lstm); 0 takes all."""
    second_order: bool = False
    """Differentiate through the gradients of the problems."""
    learning_rate: float = 3e-3
    """Adam's, for the meta-updates; falls to 2 % of it by a cosine."""
    clip: float = 1.0
    """Largest norm of a meta-gradient."""
    steps: int = 6000
    """Meta-updates in the whole run."""
    validate_every: int = 500
    """Meta-updates between validations; the best optimizer is kept."""
    validation_size: int = 1000
    """Problems in the validation set."""
    test_size: int = 20_000
    """Fresh problems for the test."""
    test_steps: int = 200
    """Updates taken on each of them."""
    tuning_size: int = 1000
    """Held-out problems on which the baselines' learning rates are tuned."""
    baselines: bool = True
    """Test the tuned baselines beside a learned optimizer."""
    seed: int = 0
    """The run is a function of its options and this number."""
    log_every: int = 250
    """Meta-updates between rows of metrics; as many run in one dispatch."""
    checkpoint_every: int = 500
    """Meta-updates between checkpoints."""

    out: pathlib.Path | None = None
    """Folder of the run. Default: runs/, then the experiment, the optimizer and the seed."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue the run in that folder from its last checkpoint."""


Config = TypeVar("Config", bound=LearnedOptions)


def parse(experiment: str, presets: Mapping[str, Config], argv: Sequence[str]) -> Config:
    """Reads a command line: the preset first, then the options given beside it.

    Raises:
      ValueError: for an unknown preset or a value out of range.
    """
    argv = list(argv)
    name = next(iter(presets))
    for place, word in enumerate(argv):
        if word == "--preset" and place + 1 < len(argv):
            name = argv[place + 1]
        elif word.startswith("--preset="):
            name = word.removeprefix("--preset=")
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


def check(config: LearnedOptions):
    """Refuses options out of range, with one sentence."""
    for name in (
        *("hidden", "layers", "batch_size", "horizon", "window", "steps", "validate_every"),
        *("validation_size", "test_size", "test_steps", "tuning_size", "log_every"),
    ):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 1")
    if config.checkpoint_every < 1 or config.checkpoint_every % config.log_every:
        raise ValueError(
            f"checkpoint_every is {config.checkpoint_every}; it must be a multiple of "
            f"log_every = {config.log_every}"
        )
    if config.horizon % config.window:
        raise ValueError(
            f"window is {config.window}; it must divide horizon = {config.horizon} evenly"
        )
    for name in ("p", "learning_rate", "clip", "kl_weight", "output_scale"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be above 0")
    if not 0 < config.nu < 1:
        raise ValueError(f"nu is {config.nu}; it must be above 0 and below 1")
    if config.horizons == "sample" and config.halting != "softmax":
        raise ValueError(f"horizons is sample; halting is {config.halting!r}, it must be softmax")
    if config.gap_weight and config.halting == "graves":
        raise ValueError(f"gap_weight is {config.gap_weight}; it must be 0 for halting graves")
    if config.columns and (config.second_order or config.see_params):
        raise ValueError(
            f"columns is {config.columns}; with second_order or see_params it must be 0"
        )
    if config.columns < 0:
        raise ValueError(f"columns is {config.columns}; it must not be negative")
    if config.time_penalty < 0 or config.gap_weight < 0 or config.head_width < 0:
        raise ValueError("time_penalty, gap_weight and head_width must not be negative")
    if config.seed < 0:
        raise ValueError(f"seed is {config.seed}; it must not be negative")


def run_folder(experiment: str, config: LearnedOptions, kind: str) -> pathlib.Path:
    """Where the run is kept; `kind` tells the variants of an experiment's problems apart."""
    place = f"{kind}-{label(config)}-seed{config.seed}"
    return config.out or pathlib.Path("runs") / experiment / place


def label(config: LearnedOptions) -> str:
    """A short name of the optimizer: "lstm", "act-stick" or "adam"."""
    return f"act-{config.halting}" if config.optimizer == "act" else config.optimizer


def as_json(experiment: str, config: LearnedOptions) -> dict[str, Any]:
    """What the run is a function of, as JSON can hold it: not where it is kept."""
    values = dataclasses.asdict(config)
    del values["out"], values["resume"]
    values = {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in values.items()}
    return {"experiment": experiment, **values}
