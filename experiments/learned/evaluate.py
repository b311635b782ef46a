"""Testing an optimizer on fresh problems: loss curves, halting, and the frontier of stop rules."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from actjax.learned import meta, stopping
from actjax.learned.problems import Images
from actjax.learned.problems.classifier import Model, accuracy
from actjax.learned.stopping import at_step, first_step, halting_states, oracle_steps
from actjax.learned.transform import default_rule
from experiments.learned.options import LearnedOptions
from experiments.learned.train import posterior

TEST_SEED = 2017
CHUNK = 2000
MILESTONES = (10, 30, 50, 100, 200)


def test_keys(options: LearnedOptions, *, rounds: bool = True) -> tuple[int, list[jax.Array]]:
    """How many fresh problems are tested at once, and the key of each such round."""
    key = jax.random.key(TEST_SEED)
    if not rounds:
        return options.test_size, [key]
    count = min(CHUNK, options.test_size)
    return count, [jax.random.fold_in(key, n) for n in range(-(-options.test_size // count))]


def test_curves(
    learned,
    make_family,
    options: LearnedOptions,
    *,
    steps: int,
    data: Any = (),
    key: jax.Array | None = None,
) -> dict[str, np.ndarray]:
    """Losses, halting scores [problems, steps] and difficulty [problems] on fresh problems.

    They are those of the test, or, with a `key`, one round of others.
    """

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

    keys = test_keys(options)[1] if key is None else [key]
    parts = [chunk(learned, key, data) for key in keys]
    names = ("losses", "scores", "norms", "difficulty")
    return {
        name: np.concatenate([np.asarray(part[j]) for part in parts])[: options.test_size]
        for j, name in enumerate(names)
    }


def image_curves(
    learned, make_family, model: Model, options: LearnedOptions, data
) -> list[np.ndarray]:
    """Held-out losses, halting scores and test accuracy after each step: [problems, steps] each."""
    count, (key,) = test_keys(options, rounds=False)

    @jax.jit
    def curves(learned, data):
        family = make_family(data)
        heldout = jax.vmap(family.validation, in_axes=(-1, -1, 0))
        images = Images(data[1].images[:1000], data[1].labels[:1000])
        rollout = meta.start(learned.network, family, key, count)

        def step(rollout, _):
            rollout, row = meta.optimizer_step(learned, family, rollout)
            keys = jax.vmap(lambda k: jax.random.fold_in(k, rollout.step))(rollout.keys)
            score = heldout(rollout.params, rollout.data, keys)
            right = jax.vmap(lambda p: accuracy(model, p, images), in_axes=-1)(rollout.params)
            return rollout, (score, row.scores, right)

        return jax.lax.scan(step, rollout, length=options.test_steps)[1]

    return [np.asarray(rows).T for rows in curves(learned, data)]


def summarise(losses: np.ndarray) -> dict[str, Any]:
    """Mean, its standard error, median and quantiles of the loss at the milestones."""
    rows = {}
    for step in (m for m in MILESTONES if m <= losses.shape[1]):
        here = losses[:, step - 1].astype(np.float64)
        low, median, high = np.quantile(here, (0.1, 0.5, 0.9))
        with np.errstate(invalid="ignore"):  # a baseline may have diverged on some problem
            error = here.std() / np.sqrt(len(here))
        row = {"mean": here.mean(), "standard_error": error, "median": median}
        row |= {"quantile_10": low, "quantile_90": high}
        rows[str(step)] = {name: float(value) for name, value in row.items()}
    return rows


def halting(found: dict[str, np.ndarray], options: LearnedOptions) -> dict[str, Any]:
    """What the posterior makes of the test problems, and the frontier of the stop rules."""
    horizon = options.horizon
    losses, scores = (jnp.asarray(found[name][:, :horizon]) for name in ("losses", "scores"))
    norms = jnp.asarray(found["norms"][:, :horizon])
    belief = posterior(options)
    states = halting_states(belief, scores)
    q = np.asarray(jnp.exp(belief.log_posterior(scores)))
    margins = np.quantile(np.asarray(states.gain), np.linspace(0.01, 0.99, 33))
    least = np.quantile(np.asarray(norms), np.linspace(0, 1, 33))
    stops = {
        "mass": [first_step(states.mass > mass) for mass in np.linspace(0.02, 0.98, 33)],
        "price": [first_step(states.gain < margin) for margin in margins],
        "gradient_norm": [first_step(norms < norm) for norm in least],
        "plateau": [stopping.plateau_steps(losses, tol) for tol in np.geomspace(1e-6, 1.0, 33)],
        "oracle": [oracle_steps(losses, price) for price in np.geomspace(1e-5, 0.3, 33)],
    }
    frontier = {rule: sweep(losses, every) for rule, every in stops.items()}
    means = losses.mean(0)
    frontier["fixed"] = [{"steps": t + 1.0, "loss": float(x)} for t, x in enumerate(means)]
    steps = first_step(jnp.broadcast_to(default_rule(belief)(states), losses.shape))
    stopped = at_step(losses, steps)
    price = step_price(options)
    best = oracle_steps(losses, price)
    fixed = means + price * jnp.arange(1, horizon + 1)
    constant = int(jnp.argmin(fixed)) + 1
    order = found["difficulty"]
    shown = np.quantile(np.arange(min(len(order), 200)), (0.05, 0.5, 0.95)).astype(int)
    return {
        "posterior_mean_over_problems": q.mean(0).tolist(),
        "steps": spread(steps) | {"min": int(steps.min()), "max": int(steps.max())},
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


def image_halting(options: LearnedOptions, heldout, scores, right) -> dict[str, Any]:
    """Where the default rule stops, and what that costs in accuracy."""
    belief, horizon = posterior(options), options.horizon
    states = halting_states(belief, jnp.asarray(scores[:, :horizon]))
    steps = first_step(jnp.broadcast_to(default_rule(belief)(states), scores[:, :horizon].shape))
    return {
        "steps": spread(steps),
        "heldout_loss": spread(at_step(jnp.asarray(heldout), steps)),
        "test_accuracy": spread(at_step(jnp.asarray(right), steps)),
        "test_accuracy_at_horizon": spread(right[:, horizon - 1]),
    }


def spread(values) -> dict[str, float]:
    values = np.asarray(values, np.float64)
    return {"mean": float(values.mean()), "sd": float(values.std())}


def step_price(options: LearnedOptions) -> float:
    """What the objective charges for a step, in units of the loss."""
    if options.halting == "graves":
        return options.time_penalty
    share = 0.5 if options.halting == "softmax" else 1.0  # -log a against -log nu
    return -share * options.kl_weight * float(np.log(options.nu))


def sweep(losses, stops) -> list[dict[str, float]]:
    """Mean steps and mean loss of each setting of a rule."""
    mean = lambda steps: {
        "steps": float(steps.mean()),
        "loss": float(at_step(losses, steps).mean()),
    }
    return sorted(map(mean, stops), key=lambda row: row["steps"])


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
