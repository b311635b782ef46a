"""What quadratic and regression share: train or tune, test, write down, draw."""

import pathlib
import time
from typing import Any

import jax
import numpy as np

from actjax.learned.heads import StickBreaking
from experiments import run
from experiments.learned import baselines, evaluate, figures, train
from experiments.learned.options import BASELINES, LearnedOptions, label, run_folder

TUNING_SEED = 11


def main(experiment: str, options: LearnedOptions, make_family, kind: str, ylabel: str):
    """Trains the optimizer of `options`, or tunes a baseline, and tests it."""
    folder = run_folder(experiment, options, kind)
    if options.optimizer in BASELINES:
        from actjax import training
        from experiments.learned.options import as_json

        training.claim_folder(folder, as_json(experiment, options), resume=options.resume)
        began = time.perf_counter()
        rows, _ = baseline_rows(options, make_family, (options.optimizer,))
        evaluate.write(
            experiment, options, folder, {"baselines": rows}, time.perf_counter() - began
        )
        show(options, {"baselines": rows}, folder)
        return
    learned = train.train(experiment, options, make_family, folder)
    report(experiment, options, learned, folder, make_family, ylabel)


def report(
    experiment: str, options: LearnedOptions, learned, folder: pathlib.Path, make_family, ylabel
) -> dict[str, Any]:
    """Tests a learned optimizer beside the baselines and writes result.json and its figures."""
    began = time.perf_counter()
    steps = max(options.test_steps, options.horizon)
    curves = evaluate.test_curves(learned, make_family, options, steps=steps)
    found = {"learned": evaluate.summarise(curves["losses"])}
    drawn = {label(options): figures.bands(curves["losses"])}
    found["baselines"], more = baseline_rows(
        options, make_family, BASELINES if options.baselines else ()
    )
    drawn |= more
    figures.loss_curves(folder / "loss.png", drawn, ylabel=ylabel)
    if options.optimizer == "act":
        found["halting"] = halting = evaluate.halting(curves, options)
        found["dominance"] = {
            rule: evaluate.dominance(halting["frontier"], rule)
            for rule in ("mass", "price", "gradient_norm", "plateau")
        }
        belief = train.posterior(options)
        prior = None
        if isinstance(belief, StickBreaking):
            zeros = belief._prior_scores(np.zeros(options.horizon, np.float32))
            prior = np.exp(belief.log_posterior(zeros))
        elif options.halting == "softmax":
            prior = np.exp(belief.prior.log_marginal())
        figures.frontier(folder / "frontier.png", halting, ylabel=ylabel)
        figures.posterior(folder / "posterior.png", halting, prior)
        figures.difficulty(
            folder / "difficulty.png", halting, xlabel="log10 of the condition number"
        )
    evaluate.write(experiment, options, folder, found, time.perf_counter() - began)
    show(options, found, folder)
    return found


def baseline_rows(options: LearnedOptions, make_family, names) -> tuple[dict[str, Any], dict]:
    """Each baseline tuned on held-out problems for its final loss, and tested."""
    rows, drawn = {}, {}
    count = min(options.test_size, evaluate.CHUNK)
    for name in names:
        rates = baselines.tune(
            make_family,
            name,
            count=options.tuning_size,
            steps=options.horizon,
            seed=TUNING_SEED,
        )

        @jax.jit
        def test(rate, key, name=name):
            return baselines.curves(
                make_family, name, rate, key, count=count, steps=options.test_steps
            )

        key = jax.random.key(evaluate.TEST_SEED)
        rounds = -(-options.test_size // count)
        tested = {}
        for rate in set(rates.values()):
            parts = [test(rate, jax.random.fold_in(key, n)).T for n in range(rounds)]
            tested[rate] = np.concatenate([np.asarray(part) for part in parts])
        rows[name] = {
            aim: {"learning_rate": rate, **evaluate.summarise(tested[rate])}
            for aim, rate in rates.items()
        }
        drawn[name] = figures.bands(tested[rates["final"]])
    return rows, drawn


def show(options: LearnedOptions, found: dict[str, Any], folder: pathlib.Path):
    """Prints the losses at the milestones and, for act, what its halting is worth."""
    table = []
    if "learned" in found:
        table.append(_row(label(options), found["learned"]))
    for name, aims in found["baselines"].items():
        table.append(_row(f"{name} {aims['final']['learning_rate']:.3g}", aims["final"]))
    notes = [f"results and figures: {folder}"]
    if "halting" in found:
        halting = found["halting"]
        notes.insert(
            0,
            "halts after {mean:.1f} ± {sd:.1f} steps".format(**halting["steps"])
            + f" at loss {halting['loss_at_halt']:.4f} (at the horizon "
            f"{halting['loss_at_horizon']:.4f}); Spearman with difficulty "
            f"{halting['spearman_difficulty']}; loss + price x steps: "
            + ", ".join(f"{k} {v:.4f}" for k, v in halting["cost"].items()),
        )
    run.show("Mean loss [median] after so many steps", table, *notes)


def _row(name: str, rows: dict[str, Any]) -> dict[str, str]:
    cells = {
        step: f"{r['mean']:.4g} [{r['median']:.3g}]" for step, r in rows.items() if step.isdigit()
    }
    return {"model": name, **cells}
