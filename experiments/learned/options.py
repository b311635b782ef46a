"""The options of the learned-optimizer experiments."""

import dataclasses
import pathlib
from typing import Literal

from actjax._checks import check_positive
from experiments.options import Place, Preset, check_schedule, require

BASELINES = ("sgd", "nag", "rmsprop", "adam", "adam9")
COUNTS = ("hidden", "layers", "batch_size", "horizon", "window", "validate_every")
COUNTS += ("validation_size", "test_size", "test_steps", "tuning_size")


@dataclasses.dataclass(frozen=True)
class Learning(Preset):
    """The optimizer, and how it is meta-trained and tested."""

    optimizer: Literal["lstm", "act", "sgd", "nag", "rmsprop", "adam", "adam9"] = "lstm"
    """Learned: lstm, or act, which also stops. Or a baseline with its learning rate tuned."""
    hidden: int = 20
    """Units of each layer of the coordinatewise LSTM."""
    layers: int = 2
    """Its layers."""
    preprocess: Literal["log_sign", "raw", "adam"] = "log_sign"
    """What it sees of a gradient; adam: moments in Adam's units, and it changes Adam's update."""
    p: float = 10.0
    """Gradients below exp(-p) count as small, for log_sign."""
    see_params: bool = False
    """Show it the parameters too."""
    see_scale: bool = False
    """Show it how large the parameters of each leaf are."""
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


@dataclasses.dataclass(frozen=True)
class LearnedOptions(Place, Learning):
    """What every experiment has; the options of its own problems follow."""


def check(options: LearnedOptions):
    """Refuses options out of range, with one sentence."""
    for name in COUNTS:
        check_positive(name, getattr(options, name))
    check_schedule(options)
    divides = options.horizon % options.window == 0
    require(divides, "window", f"a divisor of horizon = {options.horizon}", options.window)
    for name in ("p", "learning_rate", "clip", "kl_weight", "output_scale"):
        require(getattr(options, name) > 0, name, "above 0", getattr(options, name))
    for name in ("time_penalty", "gap_weight", "head_width", "columns"):
        require(getattr(options, name) >= 0, name, "at least 0", getattr(options, name))
    require(0 < options.nu < 1, "nu", "above 0 and below 1", options.nu)
    sampled = options.horizons == "sample" and options.halting != "softmax"
    require(not sampled, "horizons", f"'all' for halting {options.halting}", options.horizons)
    gap = options.gap_weight > 0 and options.halting == "graves"
    require(not gap, "gap_weight", "0 for halting graves", options.gap_weight)
    whole = options.second_order or options.see_params
    allowed = "0 with second_order or see_params"
    require(not (options.columns and whole), "columns", allowed, options.columns)


def run_folder(experiment: str, options: LearnedOptions, kind: str) -> pathlib.Path:
    """Where the run is kept; `kind` tells the variants of an experiment's problems apart."""
    place = f"{kind}-{label(options)}-seed{options.seed}"
    return options.out or pathlib.Path("runs") / experiment / place


def label(options: Learning) -> str:
    """A short name of the optimizer: "lstm", "act-stick" or "adam"."""
    return f"act-{options.halting}" if options.optimizer == "act" else options.optimizer
