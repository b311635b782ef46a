"""Trains the optimizers that the library ships: `python -m experiments weights NAME`."""

import dataclasses
import pathlib
import subprocess
from typing import Any

import jax.numpy as jnp
import numpy as np

from actjax import learned, training
from actjax.learned import HaltState
from actjax.learned.stopping import at_step, first_step, halting_states
from experiments import record, run
from experiments.learned import baselines, evaluate, thresholds, train
from experiments.learned.problems import PROBLEMS
from experiments.options import Place, Preset, as_json, parse, require

# name -> its stages: what is learned on, and the preset; each begins with the network before
STAGES = {
    "quadratic": (("quadratic", "weights"),),
    "regression": (("regression", "demo"), ("regression", "head")),
    "mlp": (("networks", "weights"),),
}


@dataclasses.dataclass(frozen=True)
class Weights(Place, Preset):
    """Train an optimizer that the library ships, as it was trained.

    Writes NAME.npz, for `learned.load`, and NAME.json, the record of its model card.

    Presets: full (as shipped), short (a hundredth of it, to try).
    """

    shorter: int = 1
    """Divides the meta-updates of every stage."""
    most: int | None = None
    """Ends every stage after so many; with --resume, a run that was stopped there."""


PRESETS = {"full": Weights(), "short": Weights(shorter=100)}


def main(command: str, argv: list[str]):
    """`weights NAME`: trains, and leaves NAME.npz and NAME.json in the run's folder."""
    known = f"one of {', '.join(STAGES)}, as in: python -m experiments {command} mlp"
    name = argv[0] if argv else None
    require(name in STAGES, "NAME", known, name)
    options = parse(f"{command} {name}", PRESETS, argv[1:], check)
    record.check_folder("out", options.out)
    folder = options.out or pathlib.Path("runs") / command / name
    before, stages = None, []
    for number, (problem, preset) in enumerate(STAGES[name]):
        before, found = train_stage(folder / str(number), problem, preset, options, before)
        stages.append(found)
    chosen = {}
    if before.head is not None:
        before, chosen = with_rule(before, problem, preset)
    learned.save(folder / f"{name}.npz", before)
    card = {
        "name": name,
        **chosen,
        "stages": stages,
        "tested": tested(before, problem, preset),
        "command": record.command(),
        **record.environment(),
    }
    training.write_json(folder / f"{name}.json", card)
    print(f"{folder}/{name}.npz")


def train_stage(
    folder: pathlib.Path, name: str, preset: str, options: Weights, before: Any
) -> tuple[learned.LearnedOptimizer, dict[str, Any]]:
    """One run of `name`'s meta-training, its record beside it."""
    problem = PROBLEMS[name]
    chosen = problem.presets[preset]
    planned = max(chosen.steps // options.shorter, 1)
    chosen = dataclasses.replace(
        chosen,
        preset=preset,
        baselines=False,
        out=folder,
        resume=options.resume and folder.exists(),
        steps=min(planned, options.most or planned),
        network_from=folder.parent / str(int(folder.name) - 1) if before else None,
    )
    run.claim(folder, as_json(name, chosen), chosen)
    begun = folder / "commit"
    if not begun.exists():
        begun.write_text(commit())
    with run.interruptible(folder):
        found = train.train(name, problem, chosen, folder, problem.load(chosen))
    rows = training.read_metrics(folder / "metrics.jsonl")
    config = as_json(name, chosen) | {"network_from": "the stage before" if before else None}
    return found, {
        "config": config,
        "meta_updates": rows[-1]["step"],
        "planned": planned,
        "seconds": rows[-1]["seconds"],
        "commit": begun.read_text(),
        "validation_loss": min(row["validation_loss"] or 1e30 for row in rows),
    }


def with_rule(
    found: learned.LearnedOptimizer, name: str, preset: str
) -> tuple[learned.LearnedOptimizer, dict[str, Any]]:
    """The optimizer with the threshold of least loss and price on fresh validation problems."""
    problem = PROBLEMS[name]
    options = problem.presets[preset]
    belief, price = train.posterior(options), evaluate.step_price(options)
    drawn = dataclasses.replace(options, test_size=2000)
    family = problem.make_family(options)
    curves = evaluate.test_curves(
        found, family, drawn, steps=options.horizon, seed=evaluate.VALIDATION_SEED
    )
    validation = thresholds.recorded(belief, curves, options.horizon)
    threshold, cost = thresholds.choose("mass", validation, price)
    rule = learned.MassRule(threshold)
    return learned.LearnedOptimizer(found.network, found.head, belief, rule), {
        "threshold": threshold,
        "validation_cost": cost,
        "validation_cost_of_best_constant": thresholds.choose("constant", validation, price)[1],
    }


def tested(found: learned.LearnedOptimizer, name: str, preset: str) -> dict[str, Any]:
    """Losses on fresh problems of the kind that was trained on, beside Adam's at its best rate."""
    problem = PROBLEMS[name]
    options = problem.presets[preset]
    options = dataclasses.replace(options, test_size=min(options.test_size, 2000))
    family = problem.make_family(options)
    steps, count = options.horizon, options.test_size
    curves = evaluate.test_curves(found, family, options, steps=steps)
    losses = curves["losses"]
    rate = baselines.tune(family, "adam", options)["summed"]
    key = evaluate.test_keys(options)[1][0]
    adam = baselines.curves(family, "adam", rate, key, count=count, steps=steps).losses
    row = {
        "problems": count,
        "learned": evaluate.summarise(losses) | {"sum": float(losses.sum(1).mean())},
        "adam": evaluate.summarise(np.asarray(adam.T)) | {"sum": float(adam.sum(0).mean())},
        "adam_rate": rate,
    }
    if found.head is None:
        return row
    price = evaluate.step_price(options)
    mass = halting_states(found.posterior, jnp.asarray(curves["scores"])).mass
    at = first_step(found.stop(HaltState(None, None, None, mass, None)))
    fixed = losses.mean(0) + price * np.arange(1, steps + 1)
    best = evaluate.oracle_steps(jnp.asarray(losses), price)
    cost = lambda at: float((at_step(jnp.asarray(losses), at) + price * at).mean())
    return row | {
        "price": price,
        "steps": evaluate.spread(at) | {"min": int(at.min()), "max": int(at.max())},
        "loss_at_halt": float(at_step(jnp.asarray(losses), at).mean()),
        "spearman_difficulty": evaluate.spearman(at, curves["difficulty"]),
        "cost": {"learned": cost(at), "best_constant": float(fixed.min()), "oracle": cost(best)},
        "best_constant_step": int(fixed.argmin()) + 1,
    }


def check(options: Weights):
    require(options.shorter >= 1, "shorter", "at least 1", options.shorter)
    require(options.most is None or options.most >= 1, "most", "at least 1", options.most)


def commit() -> str:
    """The commit that a run was made from, "-dirty" where files differ from it."""
    words = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(
            words, capture_output=True, text=True, check=True, cwd=pathlib.Path(__file__).parent
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
