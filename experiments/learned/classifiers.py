"""What mnist and cifar10 share: learn to train a classifier, and compare with tuned Adam."""

import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from actjax import training
from actjax.learned import meta
from actjax.learned.problems import Images, classifier
from actjax.learned.problems.classifier import Model, accuracy
from actjax.learned.stopping import at_step, first_step, halting_states
from actjax.learned.transform import default_rule
from experiments import run
from experiments.learned import baselines, evaluate, figures, train
from experiments.learned.options import BASELINES, LearnedOptions, as_json, label, run_folder

RATES = tuple(10.0 ** (k / 4) for k in range(-12, 1))


def main(experiment: str, options: LearnedOptions, model: Model, data: tuple[Images, Images]):
    """Trains the optimizer of `options`, or tunes a baseline, and tests it."""
    folder = run_folder(experiment, options, "small" if options.data == "small" else "full")
    make_family = family_maker(model, options.minibatch)
    if options.optimizer in BASELINES:
        training.claim_folder(folder, as_json(experiment, options), resume=options.resume)
        report(experiment, options, None, folder, model, data)
        return
    learned = train.train(
        experiment, options, make_family, folder, data, groups=tuple(model.groups.values())
    )
    report(experiment, options, learned, folder, model, data)


def family_maker(model: Model, minibatch: int):
    return lambda data: classifier(model, data[0], data[1], batch_size=minibatch)


def report(
    experiment: str,
    options: LearnedOptions,
    learned: meta.LearnedOptimizer | None,
    folder: pathlib.Path,
    model: Model,
    data: tuple[Images, Images],
) -> dict[str, Any]:
    """Loss on held-out minibatches and test accuracy, beside the tuned baseline."""
    began = time.perf_counter()
    make_family = family_maker(model, options.minibatch)
    key = jax.random.key(evaluate.TEST_SEED)
    steps, count = options.test_steps, options.test_size
    found: dict[str, Any] = {}
    drawn = {}
    if learned is not None:
        heldout, _, scores, accuracies = learned_curves(
            learned, make_family, model, key, count, steps, data
        )
        drawn[label(options)] = figures.bands(heldout)
        found["learned"] = evaluate.summarise(heldout) | {
            "sum": float(heldout.sum(1).mean()),
            "test_accuracy": spread(accuracies[:, -1]),
        }
        if options.optimizer == "act":
            found["halting"] = halting(options, heldout, scores, accuracies)
    name = options.optimizer if learned is None else "adam"
    if learned is None or options.baselines:
        rates = baselines.tune(
            make_family,
            name,
            count=options.tuning_size,
            steps=options.horizon,
            seed=11,
            data=data,
            grid=RATES,
        )
        rows = {}
        for aim, rate in rates.items():
            losses = np.asarray(
                jax.jit(
                    lambda data, rate=rate: baselines.curves(
                        make_family,
                        name,
                        rate,
                        key,
                        count=count,
                        steps=steps,
                        data=data,
                        validation=True,
                    )
                )(data)
            ).T
            rows[aim] = {
                "learning_rate": rate,
                "sum": float(losses.sum(1).mean()),
                **evaluate.summarise(losses),
            }
            drawn[name if aim == "final" else f"{name}, tuned for the sum"] = figures.bands(losses)
        found["baselines"] = {name: rows}
    figures.loss_curves(folder / "loss.png", drawn, ylabel="loss on held-out minibatches, nats")
    evaluate.write(experiment, options, folder, found, time.perf_counter() - began)
    show(options, found, folder)
    return found


def learned_curves(learned, make_family, model, key, count, steps, data):
    """Held-out and training losses, scores and test accuracy after each step: [problems, steps]."""

    @jax.jit
    def curves(learned, data):
        family = make_family(data)
        heldout = jax.vmap(family.validation, in_axes=(-1, -1, 0))
        rollout = meta.start(learned.network, family, key, count)

        def step(rollout, _):
            rollout, row = meta.optimizer_step(learned, family, rollout)
            keys = jax.vmap(lambda k: jax.random.fold_in(k, rollout.step))(rollout.keys)
            score = heldout(rollout.params, rollout.data, keys)
            images = Images(data[1].images[:1000], data[1].labels[:1000])
            right = jax.vmap(lambda p: accuracy(model, p, images), in_axes=-1)(rollout.params)
            return rollout, (score, row.losses, row.scores, right)

        return jax.lax.scan(step, rollout, length=steps)[1]

    return [np.asarray(rows).T for rows in curves(learned, data)]


def halting(options: LearnedOptions, heldout, scores, accuracies) -> dict[str, Any]:
    """Where the default rule stops, and what that costs in accuracy."""
    horizon = options.horizon
    belief = train.posterior(options)
    states = halting_states(belief, jnp.asarray(scores[:, :horizon]))
    stop = jnp.broadcast_to(default_rule(belief)(states), scores[:, :horizon].shape)
    steps = first_step(stop)
    return {
        "steps": spread(steps),
        "heldout_loss": spread(at_step(jnp.asarray(heldout), steps)),
        "test_accuracy": spread(at_step(jnp.asarray(accuracies), steps)),
        "test_accuracy_at_horizon": spread(accuracies[:, horizon - 1]),
    }


def spread(values) -> dict[str, float]:
    values = np.asarray(values, np.float64)
    return {"mean": float(values.mean()), "sd": float(values.std())}


def show(options: LearnedOptions, found: dict[str, Any], folder: pathlib.Path):
    """Prints held-out losses at the milestones."""
    rows = []
    if "learned" in found:
        rows.append({"model": label(options), **_cells(found["learned"])})
    for name, aims in found.get("baselines", {}).items():
        for aim, row in aims.items():
            title = f"{name} {row['learning_rate']:.3g} (tuned for the {aim} loss)"
            rows.append({"model": title, **_cells(row)})
    notes = []
    if "halting" in found:
        mean = {name: row["mean"] for name, row in found["halting"].items()}
        notes.append(
            f"halts after {mean['steps']:.1f} steps with a test accuracy of "
            f"{mean['test_accuracy']:.3f}; after {options.horizon} it is "
            f"{mean['test_accuracy_at_horizon']:.3f}"
        )
    if "learned" in found:
        notes.append(
            "test accuracy {mean:.3f} ± {sd:.3f}".format(**found["learned"]["test_accuracy"])
        )
    notes.append(f"results and figures: {folder}")
    run.show("Mean held-out loss after so many steps, and its sum", rows, *notes)


def _cells(row: dict[str, Any]) -> dict[str, str]:
    cells = {step: f"{row[step]['mean']:.3f}" for step in row if step.isdigit()}
    return {**cells, "sum": f"{row['sum']:.1f}"}
