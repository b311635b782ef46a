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
from experiments.options import require


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
        objective = halting_objective(
            posterior(options), gap_weight=options.gap_weight, horizons=options.horizons
        )
    step = make_meta_step(
        make_family,
        objective,
        meta_optimizer,
        batch_size=options.batch_size,
        horizon=options.horizon,
        window=options.window,
        second_order=options.second_order,
        train_network=options.train_network or options.optimizer == "lstm",
        columns=options.columns or None if options.optimizer == "lstm" else None,
        validate_every=options.validate_every,
        validation_size=options.validation_size,
    )
    state = init_meta(
        first_optimizer(options, problem.groups),
        meta_optimizer,
        make_family,
        data,
        batch_size=options.batch_size,
    )
    state = training.fit(
        step,
        state,
        key=jax.random.key(options.seed),
        steps=options.steps,
        data=data,
        directory=folder,
        log_every=options.log_every,
        checkpoint_every=options.checkpoint_every,
        description=f"{experiment} {options.optimizer}",
    )
    best = state.extra.best if bool(jax.numpy.isfinite(state.extra.best_loss)) else state.model
    save_optimizer(folder, best)
    return best


def make_optimizer(options: LearnedOptions, groups: tuple[int, ...] = ()) -> LearnedOptimizer:
    """An untrained optimizer."""
    rngs = nnx.Rngs(options.seed)
    networks = [
        CoordinatewiseLSTM(
            options.hidden,
            layers=options.layers,
            preprocess=options.preprocess,
            p=options.p,
            see_params=options.see_params,
            output_scale=options.output_scale,
            rngs=rngs,
        )
        for _ in groups or (0,)
    ]
    network = GroupedLSTM(networks, groups) if len(groups) > 1 else networks[0]
    if options.optimizer != "act":
        return LearnedOptimizer(network)
    # Halting starts near the prior: one step in 1 / (1 - nu).
    bias = float(jax.scipy.special.logit(1 - options.nu)) if options.halting != "softmax" else 0.0
    head = Head(
        options.hidden,
        see_globals=options.globals,
        width=options.head_width,
        bias=bias,
        rngs=rngs,
    )
    return LearnedOptimizer(network, head)


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
    return make_posterior(
        options.halting, prior, kl_weight=options.kl_weight, time_penalty=options.time_penalty
    )


def save_optimizer(folder: pathlib.Path, learned: LearnedOptimizer):
    """Keeps the trained optimizer as a checkpoint of its own."""
    kept = training.Checkpoints(folder / "best")
    if kept.latest() is None:
        kept.save(0, learned)
    kept.close()


def load_optimizer(folder: pathlib.Path, like: LearnedOptimizer) -> LearnedOptimizer:
    """The optimizer that a finished run kept."""
    folder = pathlib.Path(folder)
    allowed = "the folder of a finished run"
    require((folder / "best").is_dir(), "network_from", allowed, str(folder))
    kept = training.Checkpoints(folder / "best")
    try:
        return kept.restore(0, like)
    finally:
        kept.close()


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """config.json of a run."""
    path = pathlib.Path(folder) / "config.json"
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        raise ValueError(f"run must hold a run's config.json, got {str(folder)!r}.") from None
