"""Meta-training of an optimizer in its folder."""

import json
import pathlib
from typing import Any

import jax
import optax
from flax import nnx

from actjax import training
from actjax.learned import CoordinatewiseLSTM, Head, HorizonPrior, LearnedOptimizer
from actjax.learned.heads import make_posterior
from actjax.learned.network import GroupedLSTM
from actjax.learned.training import (
    halting_objective,
    init_meta,
    make_meta_step,
    summed_loss,
)
from experiments.learned.options import LearnedOptions
from experiments.learned.problems import Problem
from experiments.options import PACE, pick, require


def train(
    experiment: str, problem: Problem, options: LearnedOptions, folder: pathlib.Path, data: Any
) -> LearnedOptimizer:
    """Trains the optimizer that `options` describe and returns the best one validated."""
    make_family = problem.make_family(options)
    meta_optimizer = optax.chain(
        optax.clip_by_global_norm(options.clip),
        optax.adam(optax.cosine_decay_schedule(options.learning_rate, options.steps, 0.02)),
    )
    objective = summed_loss()
    if options.optimizer == "act":
        weights = pick(options, "gap_weight", "horizons")
        objective = halting_objective(posterior(options), **weights)
    step = make_meta_step(
        make_family,
        objective,
        meta_optimizer,
        **pick(options, "batch_size", "horizon", "window", "second_order"),
        **pick(options, "validate_every", "validation_size"),
        train_network=options.train_network or options.optimizer == "lstm",
        columns=options.columns or None if options.optimizer == "lstm" else None,
    )
    first = first_optimizer(options, problem.groups)
    state = init_meta(first, meta_optimizer, make_family, data, **pick(options, "batch_size"))
    state = training.fit(
        step,
        state,
        key=jax.random.key(options.seed),
        data=data,
        directory=folder,
        **pick(options, *PACE),
        description=f"{experiment} {options.optimizer}",
    )
    save_optimizer(folder, state.extra.best, int(state.step))
    return state.extra.best


def make_optimizer(options: LearnedOptions, groups: tuple[int, ...] = ()) -> LearnedOptimizer:
    """An untrained optimizer."""
    rngs = nnx.Rngs(options.seed)
    names = "layers", "preprocess", "p", "see_params", "see_scale", "output_scale"
    make = lambda: CoordinatewiseLSTM(options.hidden, **pick(options, *names), rngs=rngs)
    networks = [make() for _ in groups or (0,)]
    network = GroupedLSTM(networks, groups) if len(groups) > 1 else networks[0]
    if options.optimizer != "act":
        return LearnedOptimizer(network)
    # Halting starts near the prior: one step in 1 / (1 - nu).
    bias = float(jax.scipy.special.logit(1 - options.nu)) if options.halting != "softmax" else 0.0
    sees = {"see_globals": options.globals, "width": options.head_width}
    return LearnedOptimizer(network, Head(options.hidden, **sees, bias=bias, rngs=rngs))


def first_optimizer(options: LearnedOptions, groups: tuple[int, ...]) -> LearnedOptimizer:
    """The optimizer a run begins with: fresh, or with the network of an earlier one."""
    fresh = make_optimizer(options, groups)
    if options.optimizer != "act" or options.network_from is None:
        return fresh
    trained = load_optimizer(options.network_from, LearnedOptimizer(fresh.network))
    return LearnedOptimizer(trained.network, fresh.head)


def posterior(options: LearnedOptions):
    """What the halting scores mean."""
    prior = HorizonPrior(options.nu, horizon=options.horizon)
    return make_posterior(options.halting, prior, **pick(options, "kl_weight", "time_penalty"))


def save_optimizer(folder: pathlib.Path, learned: LearnedOptimizer, step: int):
    """Keeps the optimizer trained for `step` meta-updates as a checkpoint of its own."""
    kept = training.Checkpoints(folder / "best")
    if kept.latest() != step:
        kept.save(step, learned)
    kept.close()


def load_optimizer(folder: pathlib.Path, like: LearnedOptimizer) -> LearnedOptimizer:
    """The optimizer that a finished run kept."""
    folder = pathlib.Path(folder)
    allowed = "the folder of a finished run"
    require((folder / "best").is_dir(), "network_from", allowed, str(folder))
    kept = training.Checkpoints(folder / "best")
    try:
        return kept.restore(kept.latest(), like)
    finally:
        kept.close()


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """config.json of a run."""
    path = pathlib.Path(folder) / "config.json"
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        raise ValueError(f"run must hold a run's config.json, got {str(folder)!r}.") from None
