"""Who computes what Graves 2016 says: contenders beside the NumPy float64 reference of the tests.

A contender is ``(xs, cotangent) -> Result`` on a small network with given weights; the rows of
`conformance` are its largest differences to the reference and the cosines of its gradients to the
reference's, which are taken by central differences.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import actjax
from tests import reference

CELLS = {"rnn": nnx.SimpleCell, "lstm": nnx.OptimizedLSTMCell}
STEPS = {"rnn": reference.simple_step, "lstm": reference.lstm_step}
PARAMETERS = ("kernel", "recurrent", "bias", "flag", "halt", "halt_bias")
BATCH, TIME, FEATURES, HIDDEN = 4, 3, 2, 5
LIMITS = {"max_steps": 30, "epsilon": 0.01}
# The bias of the halting unit: with the first every row halts at once, with the last none before M.
CASES = {"N = 1": 10.0, "bias 1": 1.0, "bias -1": -1.0, "bias -3": -3.0, "at M": -10.0}


def as_weights(model: actjax.ACT) -> dict:
    """The parameters by the names of the reference; of a gradient, the gradients."""
    cell = model.cell
    kernel = cell.dense_i.kernel[...]
    biased = cell.dense_i if cell.dense_i.bias is not None else cell.dense_h
    return {
        "kernel": kernel[:-1],
        "recurrent": cell.dense_h.kernel[...],
        "bias": biased.bias[...],
        "flag": kernel[-1],
        "halt": model.halt.kernel[...][:, 0],
        "halt_bias": model.halt.bias[...][0],
    }


def set_halting(model: actjax.ACT, bias: float, factor: float) -> actjax.ACT:
    model.halt.bias[...] = jnp.full_like(model.halt.bias[...], bias)
    model.halt.kernel[...] = factor * model.halt.kernel[...]
    return model


class Result(NamedTuple):
    """What a contender makes of the small network, as float64 arrays."""

    outputs: np.ndarray  # [B, T, H]
    steps: np.ndarray  # [B, T]
    remainder: np.ndarray  # [B, T]
    weights: np.ndarray  # [B, T, at least the largest N], zeros after N
    cost: np.ndarray  # the mean ponder cost
    ponder_gradient: np.ndarray  # of that cost, by all parameters
    task_gradient: np.ndarray  # of sum(cotangent * outputs)


def flat(weights: dict) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(weights[k], float)) for k in PARAMETERS])


def of_reference(cell, weights, xs, cotangent) -> Result:
    """By tests/reference.py, the gradients by central differences."""
    shapes = [np.shape(weights[k]) for k in PARAMETERS]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]

    def run(vector):
        parts = zip(np.split(vector, ends), shapes, strict=True)
        w = dict(zip(PARAMETERS, (part.reshape(shape) for part, shape in parts), strict=True))
        step = functools.partial(STEPS[cell], w)
        outputs = np.zeros((BATCH, TIME, HIDDEN))
        steps, remainder = np.zeros((2, BATCH, TIME))
        halting = np.zeros((BATCH, TIME, LIMITS["max_steps"]))
        for b in range(BATCH):
            state = [np.zeros(HIDDEN)] * (1 + (cell == "lstm"))
            for t in range(TIME):
                state, n, remainder[b, t], p = reference.ponder_one(step, state, xs[b, t], **LIMITS)
                outputs[b, t], steps[b, t], halting[b, t, :n] = state[-1], n, p
        return outputs, steps, remainder, halting, (steps + remainder).mean()

    def losses(vector):
        outputs, *_, cost = run(vector)
        return np.array([cost, (cotangent * outputs).sum()])

    point, width = flat(weights), 1e-6
    nudges = width * np.eye(point.size)
    slopes = [(losses(point + d) - losses(point - d)) / (2 * width) for d in nudges]
    return Result(*run(point), *np.transpose(slopes))


@jax.jit
def _ours(model, xs, cotangent):
    def places_too(step):
        """The step whose state has a place for each n: their means are the halting weights."""

        def wrapped(params, state, x, first):
            inner, places = state
            inner, halt = step(params, inner, x, first)
            begin = jnp.eye(1, LIMITS["max_steps"])
            return (inner, jnp.where(first[:, None], begin, jnp.roll(places, 1, axis=1))), halt

        return wrapped

    step, params, state, inputs = model.prepare(xs, None, model.halt)
    start = state, jnp.zeros((BATCH, LIMITS["max_steps"]))
    _, (_, weights), _ = actjax.unroll(places_too(step), params, start, inputs, **LIMITS)
    _, outputs, record = model(xs)
    ponder_gradient = jax.grad(lambda m: m(xs)[2].cost.mean())(model)
    task_gradient = jax.grad(lambda m: (cotangent * m(xs)[1]).sum())(model)
    gradients = as_weights(ponder_gradient), as_weights(task_gradient)
    return outputs, record.steps, record.remainder, weights, record.cost.mean(), *gradients


def of_ours(model, xs, cotangent) -> Result:
    *values, ponder_gradient, task_gradient = _ours(model, xs, cotangent)
    values = (np.asarray(value, float) for value in values)
    return Result(*values, flat(ponder_gradient), flat(task_gradient))


def compare(found: Result, exact: Result) -> dict:
    """Largest differences, cosines of gradients, the largest N, told and by the weights, and the
    sum of weights farthest from 1.
    """
    size = max(found.weights.shape[-1], exact.weights.shape[-1])
    pad = lambda p: np.pad(p, [(0, 0), (0, 0), (0, size - p.shape[-1])])
    apart = lambda name: float(abs(getattr(found, name) - getattr(exact, name)).max())
    sums = found.weights.sum(axis=-1)
    return {
        "steps": apart("steps"),
        "remainder": apart("remainder"),
        "weights": float(abs(pad(found.weights) - pad(exact.weights)).max()),
        "outputs": apart("outputs"),
        "cost": apart("cost"),
        "cosine_ponder": cosine(found.ponder_gradient, exact.ponder_gradient),
        "cosine_task": cosine(found.task_gradient, exact.task_gradient),
        "steps_max": int(found.steps.max()),
        "weights_max": int((found.weights != 0).sum(axis=-1).max()),
        "weights_sum": float(sums.flat[abs(sums - 1).argmax()]),
    }


def cosine(a: np.ndarray, b: np.ndarray) -> float | None:
    """None where there is no gradient to compare with."""
    norms = np.linalg.norm(a), np.linalg.norm(b)
    return float(a @ b / np.prod(norms)) if min(norms) > 1e-9 else None


def conformance(cell: str, cases: dict[str, float], peers=None) -> list[dict]:
    """Rows of `compare`, one for each case and contender.

    Args:
      peers: ``(cell, weights) -> {name: contender}``, those to compare beside this package.
    """
    rows, random = [], np.random.default_rng(0)
    xs = random.normal(size=(BATCH, TIME, FEATURES)).astype(np.float32)
    cotangent = random.normal(size=(BATCH, TIME, HIDDEN)).astype(np.float32)
    for case, bias in cases.items():
        model = actjax.ACT(FEATURES, HIDDEN, cell=CELLS[cell], **LIMITS, rngs=nnx.Rngs(0))
        model = set_halting(model, bias, 2.0)
        weights = {k: np.asarray(v) for k, v in as_weights(model).items()}
        contenders = {"actjax": functools.partial(of_ours, model)}
        contenders |= peers(cell, weights) if peers else {}
        exact = of_reference(cell, weights, xs.astype(float), cotangent.astype(float))
        for who, contender in contenders.items():
            row = {"cell": cell, "case": case, "contender": who}
            rows.append(row | compare(contender(xs, cotangent), exact))
    return rows
