"""Testing an optimizer on fresh problems: loss curves, halting, and the frontier of stop rules."""

import dataclasses
import importlib
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from actjax import training
from actjax.learned import meta
from actjax.learned.stopping import (
    at_step,
    first_step,
    halting_states,
    oracle_steps,
    plateau_steps,
)
from experiments import run
from experiments.learned import COMMANDS
from experiments.learned.options import LearnedOptions
from experiments.learned.train import load_optimizer, make_optimizer, posterior, read_config

TEST_SEED = 2017
CHUNK = 2000
MILESTONES = (10, 30, 50, 100, 200)


def test_curves(
    learned, make_family, options: LearnedOptions, *, steps: int, data: Any = ()
) -> dict[str, np.ndarray]:
    """Losses, halting scores [problems, steps] and difficulty [problems] on fresh problems."""

    @jax.jit
    def chunk(learned, key, data):
        family = make_family(data)
        rollout = meta.start(learned.network, family, key, min(CHUNK, options.test_size))
        difficulty = jax.vmap(family.difficulty, in_axes=-1)(rollout.data)
        norms = jnp.zeros((steps,))

        def step(rollout, _):
            squares = jnp.square(meta.coordinates(rollout.gradient))
            norm = jnp.sqrt(squares.reshape(-1, rollout.loss.shape[0]).sum(0))
            rollout, curves = meta.optimizer_step(learned, family, rollout)
            return rollout, (curves.losses, curves.scores, norm)

        _, (losses, scores, norms) = jax.lax.scan(step, rollout, length=steps)
        return losses.T, scores.T, norms.T, difficulty

    key = jax.random.key(TEST_SEED)
    rounds = -(-options.test_size // CHUNK)
    parts = [chunk(learned, jax.random.fold_in(key, n), data) for n in range(rounds)]
    names = ("losses", "scores", "norms", "difficulty")
    return {
        name: np.concatenate([np.asarray(part[j]) for part in parts])[: options.test_size]
        for j, name in enumerate(names)
    }


def summarise(losses: np.ndarray) -> dict[str, Any]:
    """Mean, its standard error, median and quantiles of the loss at the milestones."""
    rows = {}
    for step in (m for m in MILESTONES if m <= losses.shape[1]):
        here = losses[:, step - 1].astype(np.float64)
        low, median, high = np.quantile(here, (0.1, 0.5, 0.9))
        with np.errstate(invalid="ignore"):  # a baseline may have diverged on some problem
            error = here.std() / np.sqrt(len(here))
        rows[str(step)] = {
            "mean": float(here.mean()),
            "standard_error": float(error),
            "median": float(median),
            "quantile_10": float(low),
            "quantile_90": float(high),
        }
    return rows


def halting(found: dict[str, np.ndarray], options: LearnedOptions) -> dict[str, Any]:
    """What the posterior makes of the test problems, and the frontier of the stop rules."""
    horizon = options.horizon
    losses, scores = (jnp.asarray(found[name][:, :horizon]) for name in ("losses", "scores"))
    norms = jnp.asarray(found["norms"][:, :horizon])
    belief = posterior(options)
    states = halting_states(belief, scores)
    q = np.asarray(jnp.exp(belief.log_posterior(scores)))
    frontier = {
        "mass": sweep(losses, [first_step(states.mass > m) for m in np.linspace(0.02, 0.98, 33)]),
        "price": sweep(losses, [first_step(states.gain < g) for g in price_margins(states)]),
        "fixed": [
            {"steps": float(t), "loss": float(losses[:, t - 1].mean())}
            for t in range(1, horizon + 1)
        ],
        "gradient_norm": sweep(
            losses,
            [first_step(norms < n) for n in np.quantile(np.asarray(norms), np.linspace(0, 1, 33))],
        ),
        "plateau": sweep(
            losses, [plateau_steps(losses, tol) for tol in np.geomspace(1e-6, 1.0, 33)]
        ),
        "oracle": sweep(losses, [oracle_steps(losses, p) for p in np.geomspace(1e-5, 0.3, 33)]),
    }
    from actjax.learned.transform import default_rule

    steps = first_step(jnp.broadcast_to(default_rule(belief)(states), losses.shape))
    stopped = at_step(losses, steps)
    price = step_price(options)
    best = oracle_steps(losses, price)
    fixed = losses.mean(0) + price * jnp.arange(1, horizon + 1)
    constant = int(jnp.argmin(fixed)) + 1
    order = found["difficulty"]
    shown = np.quantile(np.arange(min(len(order), 200)), (0.05, 0.5, 0.95)).astype(int)
    return {
        "posterior_mean_over_problems": q.mean(0).tolist(),
        "steps": {
            "mean": float(steps.mean()),
            "sd": float(steps.std()),
            "min": int(steps.min()),
            "max": int(steps.max()),
        },
        "loss_at_halt": float(stopped.mean()),
        "loss_at_halt_standard_error": float(stopped.std() / np.sqrt(len(order))),
        "loss_at_horizon": float(losses[:, -1].mean()),
        "spearman_difficulty": spearman(steps, order),
        "spearman_oracle_steps": spearman(steps, best),
        "price_of_a_step": price,
        "cost": {  # mean of loss + price * steps
            "learned": float((stopped + price * steps).mean()),
            "best_constant": float(fixed.min()),
            "oracle": float((at_step(losses, best) + price * best).mean()),
        },
        "best_constant_step": constant,
        "oracle_steps_mean": float(best.mean()),
        "frontier": frontier,
        "sample": {
            "steps": np.asarray(steps[:2000]).tolist(),
            "difficulty": order[:2000].tolist(),
            "posteriors": q[np.argsort(order[:200])[shown]].tolist(),
        },
    }


def step_price(options: LearnedOptions) -> float:
    """What the objective charges for a step, in units of the loss."""
    if options.halting == "graves":
        return options.time_penalty
    share = 0.5 if options.halting == "softmax" else 1.0  # -log a against -log nu
    return -share * options.kl_weight * float(np.log(options.nu))


def price_margins(states) -> np.ndarray:
    return np.quantile(np.asarray(states.gain), np.linspace(0.01, 0.99, 33))


def sweep(losses, stops) -> list[dict[str, float]]:
    """Mean steps and mean loss of each setting of a rule."""
    rows = []
    for steps in stops:
        here = at_step(losses, steps)
        rows.append({"steps": float(steps.mean()), "loss": float(here.mean())})
    return sorted(rows, key=lambda row: row["steps"])


def spearman(a, b) -> float | None:
    """Rank correlation, or None where one of them is constant."""
    a, b = np.asarray(a), np.asarray(b)
    return None if a.std() == 0 or b.std() == 0 else float(stats.spearmanr(a, b)[0])


def dominance(frontier: dict[str, Any], rule: str, *, low: float = 0.05) -> dict[str, float]:
    """How a rule's loss compares with stopping at a constant step of equal mean, over its range.

    Settings whose mean steps lie within the middle of the horizon are compared, each with the
    fixed curve interpolated there; positive gain means the rule is better.
    """
    fixed = frontier["fixed"]
    steps, loss = [r["steps"] for r in fixed], [r["loss"] for r in fixed]
    horizon = steps[-1]
    inner = [r for r in frontier[rule] if low * horizon <= r["steps"] <= (1 - low) * horizon]
    gains = [float(np.interp(r["steps"], steps, loss) - r["loss"]) for r in inner]
    if not gains:
        return {"settings": 0}
    return {
        "settings": len(gains),
        "better": int(np.sum(np.array(gains) > 0)),
        "smallest_gain": min(gains),
        "mean_gain": float(np.mean(gains)),
    }


def main(argv: list[str]):
    """`evaluate RUN`: tests the optimizer kept in a run's folder again and redraws its figures."""
    if len(argv) != 1 or argv[0].startswith("-"):
        raise ValueError("evaluate takes the folder of one run: python -m experiments evaluate RUN")
    folder = pathlib.Path(argv[0])
    config = read_config(folder)
    name = config.pop("experiment")
    if name not in COMMANDS:
        raise ValueError(f"run is {str(folder)!r}; it holds the experiment {name!r}")
    module = importlib.import_module(COMMANDS[name][0])
    kind = type(next(iter(module.PRESETS.values())))
    paths = {"network_from"}
    known = {field.name for field in dataclasses.fields(kind)}
    values = {k: v for k, v in config.items() if k in known}
    values |= {k: pathlib.Path(values[k]) for k in paths & values.keys() if values[k] is not None}
    options = dataclasses.replace(kind(**values), out=folder)
    groups = module.groups(options) if hasattr(module, "groups") else ()
    learned = load_optimizer(folder, make_optimizer(options, groups))
    module.report(options, learned, folder)


def write(
    experiment: str, options: LearnedOptions, folder: pathlib.Path, found: dict[str, Any], seconds
) -> pathlib.Path:
    """Writes the results of a test beside the run."""
    from experiments.learned.options import as_json

    rows = training.read_metrics(folder / "metrics.jsonl")
    result = {
        "experiment": experiment,
        "config": as_json(experiment, options),
        **found,
        "meta_updates": rows[-1]["step"] if rows else 0,
        "training_seconds": rows[-1]["seconds"] if rows else 0.0,
        "test_seconds": round(seconds, 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command(),
        **run.environment(),
    }
    path = folder / "result.json"
    training.write_json(path, finite(result))
    return path


def finite(value: Any) -> Any:
    """`value` with null for what JSON cannot hold: the mean of a baseline that diverged, say."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def command() -> str:
    import shlex
    import sys

    return shlex.join(["python", "-m", "experiments", *sys.argv[1:]])
