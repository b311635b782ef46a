"""What stopping early is worth: answers after every number of steps, and where a level stops them.

All networks and rules are measured alike. At each step n a network has an answer and a confidence;
it is *always* given M steps, or stopped at the first step whose confidence is over a level. The
level is chosen on validation boards, and what it does is reported of test boards.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from actjax.tasks.puzzles import Puzzles
from experiments.reasoners import judge, start_judging

LEVELS = np.arange(-2, 12.5, 0.5)
SPARE = 0.001  # of the best accuracy on validation boards, may be lost


class Trace(NamedTuple):
    """Every step of every board: ``M`` steps, ``P`` boards.

    Attributes:
      answers: int8 ``[M, P, cells]``, counted from 1, were the step the last.
      right: bool ``[M, P]``, whether all of them are.
      confidence: float ``[M, P]``; see `reasoners.judge`.
    """

    answers: np.ndarray
    right: np.ndarray
    confidence: np.ndarray


def trace(
    model: nnx.Module, puzzles: Puzzles, *, rule: str, max_steps: int, rows: int = 128
) -> Trace:
    """Runs a network for M steps on all boards, `rows` at a time."""

    @jax.jit
    def some(model, boards):
        def one(carry, _):
            state, registers = carry
            state, q = model.advance(state, boards)
            registers, scores, confidence = judge(rule, registers, model.read(state), q)
            return (state, registers), ((scores.argmax(-1) + 1).astype(jnp.int8), confidence)

        state = model.start(boards)
        carry = state, start_judging(model.read(state))
        return lax.scan(one, carry, length=max_steps)[1]

    boards, count = jnp.asarray(puzzles.boards, jnp.int32), len(puzzles.boards)
    found = []
    for begin in range(0, count, rows):  # the last batch is filled with boards from the first
        places = np.arange(begin, begin + min(rows, count)) % count
        found.append(jax.tree.map(np.asarray, some(model, boards[places])))
    answers, confidence = (np.concatenate(x, axis=1)[:, :count] for x in zip(*found, strict=True))
    return Trace(answers, (answers == np.asarray(puzzles.solutions)).all(-1), confidence)


def stops(found: Trace, level: float) -> np.ndarray:
    """The step at which each board stops, counted from 1: int [P]."""
    done = found.confidence > level
    done[-1] = True
    return done.argmax(0) + 1


def early(found: Trace, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Which boards are right when stopped, bool [P], and their steps, int [P]."""
    steps = stops(found, level)
    return found.right[steps - 1, np.arange(len(steps))], steps


def choose(found: Trace, *, spare: float = SPARE) -> float:
    """The level with the fewest steps that loses no more than `spare` to the best, or to always
    taking M: where more steps than a board needs make it worse, that is no measure."""
    right = np.array([early(found, level)[0].mean() for level in LEVELS])
    good = LEVELS[right >= max(right.max(), found.right[-1].mean()) - spare]
    return float(min(good, default=LEVELS[-1], key=lambda level: stops(found, level).mean()))


def evaluate(validation: Trace, test: Trace, difficulty: np.ndarray) -> dict[str, Any]:
    """What a network does on test boards with the level that validation boards chose.

    Returns:
      "accuracy_always", "accuracy" (stopped early), "steps" and their standard errors, "level";
      "by_steps_allowed", the accuracy at n = 1 .. M steps always; "by_level", accuracy and steps
      at every level; "by_difficulty": steps and error, and the error if all stopped after their
      first step.
    """
    level = choose(validation)
    right, steps = early(test, level)
    always = test.right[-1]
    groups = {int(value): difficulty == value for value in np.unique(difficulty)}
    return {
        "boards": len(difficulty),
        "level": level,
        **_with_error("accuracy_always", always),
        **_with_error("accuracy", right),
        **_with_error("steps", steps),
        "stopped_by_the_limit": float((steps == len(test.right)).mean()),
        "by_steps_allowed": test.right.mean(1).tolist(),
        "by_level": [
            {"level": float(at), "accuracy": float(ok.mean()), "steps": float(n.mean())}
            for at, (ok, n) in ((at, early(test, at)) for at in LEVELS)
        ],
        "by_difficulty": [
            {
                "difficulty": value,
                "boards": int(rows.sum()),
                **_with_error("steps", steps[rows]),
                **_with_error("error", ~right[rows]),
                **_with_error("error_of_one_step", ~test.right[0, rows]),
            }
            for value, rows in groups.items()
        ],
    }


def _with_error(name: str, values: np.ndarray) -> dict[str, float]:
    """The mean and its standard error."""
    values = np.asarray(values, float)
    error = values.std() / np.sqrt(len(values))
    return {name: float(values.mean()), f"{name}_standard_error": float(error)}


def example(puzzles: Puzzles, found: Trace, level: float) -> dict[str, Any]:
    """The board, of those solved, that took most steps to stop, with all its answers on the way."""
    right, steps = early(found, level)
    place = int(np.where(right, steps, 0).argmax())
    last = int(steps[place])
    return {
        "board": np.asarray(puzzles.boards)[place].tolist(),
        "solution": np.asarray(puzzles.solutions)[place].tolist(),
        "answers": found.answers[:last, place].tolist(),
        "confidence": found.confidence[:last, place].astype(float).tolist(),
    }
