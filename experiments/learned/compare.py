"""Trains an optimizer, or tunes a baseline, tests it on fresh problems, writes down and draws."""

import dataclasses
import pathlib
import time
from typing import Any

import jax
import numpy as np

from actjax import training
from actjax.learned import meta
from actjax.learned.heads import StickBreaking
from experiments import record, run
from experiments.learned import baselines, evaluate, figures, train
from experiments.learned.options import BASELINES, LearnedOptions, check, label, run_folder
from experiments.learned.problems import PROBLEMS, Problem
from experiments.options import as_json, parse, require
from experiments.show import learned as learned_page

Drawn = dict[str, dict[str, np.ndarray]]  # name -> the bands of its losses


def main(name: str, argv: list[str]):
    """The command `name` of these experiments, `evaluate` among them."""
    if name == "evaluate":
        test_again(argv)
        return
    problem = PROBLEMS[name]
    options = parse(name, problem.presets, argv, check)
    record.check_folder("out", options.out)
    compare(name, problem, options, problem.load(options))


def compare(name: str, problem: Problem, options: LearnedOptions, data: Any) -> dict[str, Any]:
    """Trains the optimizer of `options`, unless it is a baseline, and tests it: the result."""
    folder = run_folder(name, options, problem.kind(options))
    run.claim(folder, as_json(name, options), options)
    learned = None
    if options.optimizer not in BASELINES:
        with run.interruptible(folder):
            learned = train.train(name, problem, options, folder, data)
    return report(name, problem, options, learned, folder, data)


def test_again(argv: list[str]):
    """`evaluate RUN`: tests the optimizer kept in a run's folder again and redraws its figures."""
    allowed = "the folder of one run, as in: python -m experiments evaluate RUN"
    require(len(argv) == 1 and not argv[0].startswith("-"), "evaluate", allowed, " ".join(argv))
    folder = pathlib.Path(argv[0])
    config = train.read_config(folder)
    name = config.pop("experiment", None)
    require(name in PROBLEMS, "run", f"one of {', '.join(PROBLEMS)}", name)
    problem = PROBLEMS[name]
    kind = type(problem.presets["demo"])
    known = {field.name for field in dataclasses.fields(kind)}
    values = {key: value for key, value in config.items() if key in known}
    if values.get("network_from") is not None:
        values["network_from"] = pathlib.Path(values["network_from"])
    options = dataclasses.replace(kind(**values), out=folder)
    learned = train.load_optimizer(folder, train.make_optimizer(options, problem.groups))
    report(name, problem, options, learned, folder, problem.load(options))


def report(
    name: str,
    problem: Problem,
    options: LearnedOptions,
    learned: meta.LearnedOptimizer | None,
    folder: pathlib.Path,
    data: Any,
) -> dict[str, Any]:
    """Tests an optimizer beside the baselines, writes result.json and draws its figures."""
    began = time.perf_counter()
    family, found, drawn, losses = problem.make_family(options), {}, {}, None
    if learned is not None:
        test = test_on_images if problem.model else test_on_functions
        found, losses = test(problem, options, learned, family, data)
        drawn[label(options)] = figures.bands(losses)
    names = (options.optimizer,)
    if learned is not None:
        names = (("adam",) if problem.model else BASELINES) if options.baselines else ()
    found["baselines"], more = test_baselines(problem, options, names, family, data, losses)
    drawn |= more
    rows = training.read_metrics(folder / "metrics.jsonl")
    result = {
        "experiment": name,
        "config": as_json(name, options),
        **found,
        "ylabel": problem.ylabel,
        "curves": figures.as_json(drawn),
        "meta_updates": rows[-1]["step"] if rows else 0,
        "training_seconds": rows[-1]["seconds"] if rows else 0.0,
        "test_seconds": round(time.perf_counter() - began, 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": record.command(),
        **record.environment(),
    }
    result = record.plain(result)
    training.write_json(folder / "result.json", result)
    figures.draw(result, folder)
    notes = [learned_page.halting(result)] if "halting" in result else []
    if problem.model and learned is not None:
        accuracy = result["learned"]["test_accuracy"]
        notes.append("test accuracy {mean:.3f} ± {sd:.3f}".format(**accuracy))
    notes.append(f"results and figures: {folder}")
    record.print_table("Mean loss after so many steps", learned_page.table(result), *notes)
    return result


def test_on_functions(
    problem: Problem, options: LearnedOptions, learned, family, data
) -> tuple[dict[str, Any], np.ndarray]:
    """What an optimizer does on fresh functions, and its losses [problems, steps]."""
    steps = max(options.test_steps, options.horizon)
    curves = evaluate.test_curves(learned, family, options, steps=steps, data=data)
    found = {"learned": evaluate.summarise(curves["losses"])}
    if options.optimizer == "act":
        found["halting"] = halting = evaluate.halting(curves, options)
        small = dataclasses.replace(options, test_size=options.tuning_size)
        seen = {"steps": options.horizon, "data": data, "seed": evaluate.VALIDATION_SEED}
        validation = evaluate.test_curves(learned, family, small, **seen)
        halting["chosen_on_validation"] = evaluate.chosen_on_validation(validation, curves, options)
        halting["prior"] = _prior(options)
        compared, frontier = ("mass", "price", "gradient_norm", "plateau"), halting["frontier"]
        found["dominance"] = {rule: evaluate.dominance(frontier, rule) for rule in compared}
    return found, curves["losses"]


def test_on_images(
    problem: Problem, options: LearnedOptions, learned, family, data
) -> tuple[dict[str, Any], np.ndarray]:
    """What an optimizer does on held-out minibatches, and its losses [problems, steps]."""
    curves, final = evaluate.image_curves(learned, family, problem.model, options, data)
    heldout, scores, right = curves
    more = {"sum": float(heldout.sum(1).mean()), "test_accuracy": evaluate.spread(final)}
    found = {"learned": evaluate.summarise(heldout) | more}
    if options.optimizer == "act":
        found["halting"] = evaluate.image_halting(options, heldout, scores, right)
    return found, heldout


def test_baselines(
    problem: Problem,
    options: LearnedOptions,
    names: tuple[str, ...],
    family,
    data,
    learned: np.ndarray | None,
) -> tuple[dict[str, Any], Drawn]:
    """Baselines at the learning rates with the lowest final and summed loss on held-out problems.

    They are tested on the problems that learned optimizers are tested on. Beside `learned`, losses
    [problems, steps] on them, each row has "learned_less": the optimizer's loss less the baseline's
    at the milestones, paired, and of their sums for images.
    """
    rows, drawn = {}, {}
    grid = baselines.IMAGE_RATES if problem.model else baselines.RATES
    count, keys = evaluate.test_keys(options, rounds=problem.model is None)
    for name in names:
        shown = {"data": data, "validation": problem.model is not None}
        rates = baselines.tune(family, name, options, grid=grid, **shown)

        @jax.jit
        def test(rate, key, data, name=name):
            sizes = {"count": count, "steps": options.test_steps}
            score = problem.model is not None
            found = baselines.curves(family, name, rate, key, **sizes, data=data, validation=score)
            if not score:
                return found.losses, None
            right = evaluate.final_accuracy(problem.model, found.params, data[1], axis=0)
            return found.losses, right

        rows[name], tested = {}, {}
        for aim, rate in rates.items():
            if rate not in tested:
                parts = [test(rate, key, data) for key in keys]
                losses = np.concatenate([np.asarray(part).T for part, _ in parts])
                tested[rate] = losses, parts[0][1]
            losses, right = tested[rate]
            row = {"learning_rate": rate, **evaluate.summarise(losses)}
            if problem.model:
                row["sum"] = float(losses.sum(1).mean())
                row["test_accuracy"] = evaluate.spread(right)
            if learned is not None:
                row["learned_less"] = _paired(learned, losses, summed=problem.model is not None)
            rows[name][aim] = row
            if aim == "final" or problem.model:
                title = name if aim == "final" else f"{name}, tuned for the sum"
                drawn[title] = figures.bands(losses)
    return rows, drawn


def _paired(ours: np.ndarray, others: np.ndarray, *, summed: bool) -> dict[str, Any]:
    """What ours lie below others, paired, at the milestones and of the sums."""
    steps = [step for step in evaluate.MILESTONES if step <= min(ours.shape[1], others.shape[1])]
    less = {str(n): evaluate.paired(ours[:, n - 1], others[:, n - 1]) for n in steps}
    return less | ({"sum": evaluate.paired(ours.sum(1), others.sum(1))} if summed else {})


def _prior(options: LearnedOptions) -> list[float] | None:
    """The distribution of the halting step before anything is seen, where there is one."""
    belief = train.posterior(options)
    if isinstance(belief, StickBreaking):
        zeros = belief._prior_scores(np.zeros(options.horizon, np.float32))
        return np.exp(belief.log_posterior(zeros)).tolist()
    found = np.exp(belief.prior.log_marginal()) if options.halting == "softmax" else None
    return None if found is None else found.tolist()
