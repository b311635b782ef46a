"""Transformations of ponder steps, for halting that looks at the state.

A halting rule (`actjax.halting.Rule`) sees one number a step. What must see more is put around the
step, which then says 1 to stop or 0 to go on; `actjax.halting.Threshold` is the rule to go with it:

    until_converged    stop when an input's successive outputs hardly differ
    by_position        a row is a sequence whose positions halt one by one
    checked            finds a step that returns what is no probability

All work in every loop, and gradients go through them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from actjax._checks import check_number, check_positive, check_rows, shown
from actjax._contracts import check_mean
from actjax._loop.rows import is_float
from actjax._unroll import Step
from actjax.halting import Rule, chosen_rule, halting_dtype


def until_converged(
    step: Step,
    *,
    tolerance: float,
    distance: Callable[[Any, Any], jax.Array] | None = None,
    read: Callable[[Any, Any], Any] | None = None,
) -> Step:
    """A step that halts once an input's outputs have come to rest, never at its first step.

    As looped language models stop a token (Geiping et al. 2025, "Scaling up Test-Time Compute with
    Latent Reasoning", section 6: at a KL divergence of 5e-4 between successive distributions).

    Args:
      step: as in `unroll`; its own halting probability is not used.
      tolerance: above 0; a row halts when its distance is below.
      distance: `(new, old) -> [rows]`, how far two outputs are apart: `rms`, unless given, or
        `kl_of_logits`, or any other.
      read: `(params, state) -> output`, what is compared, pytree of ``[rows, ...]``; the state's
        floats unless given.

    Returns:
      A step for ``rule=actjax.halting.Threshold()``.

    >>> import actjax
    >>> def newton(params, state, x, first):  # for the square root of x
    ...     return (state + x / state) / 2, jnp.zeros(first.shape)
    >>> step = until_converged(newton, tolerance=1e-3)
    >>> root, ponder = actjax.ponder(step, (), jnp.ones((2, 1)), jnp.array([[1.0], [1e4]]),
    ...                              max_steps=50, rule=actjax.halting.Threshold())
    >>> root[:, 0].round(2), ponder.steps
    (Array([  1., 100.], dtype=float32), Array([ 2, 11], dtype=int32))
    """
    check_number("tolerance", tolerance, 0, math.inf)
    distance = rms if distance is None else distance
    return _Converging(step, tolerance, distance, _floats if read is None else read)


@dataclasses.dataclass(frozen=True)
class _Converging:
    """The step of `until_converged`; equal ones are equal, so that they are compiled once."""

    step: Step
    tolerance: float
    distance: Callable[[Any, Any], jax.Array]
    read: Callable[[Any, Any], Any]

    def __call__(self, params, state, x, first):
        new, _ = self.step(params, state, x, first)
        output, before = (self.read(params, jax.lax.stop_gradient(s)) for s in (new, state))
        apart = self.distance(output, before)
        if getattr(apart, "shape", None) != first.shape or not is_float(apart):
            raise ValueError(
                f"distance must return one float a row, of shape {first.shape}, got {shown(apart)}."
            )
        at_rest = ~first & (apart < self.tolerance)  # which NaN never is
        return new, at_rest.astype(halting_dtype(apart.dtype))


def _floats(params: Any, state: Any) -> list:
    return [leaf for leaf in jax.tree.leaves(state) if is_float(leaf)]


def rms(new: Any, old: Any) -> jax.Array:
    """The root of the mean square difference of two outputs over all their leaves: float [rows]."""
    rows = len(jax.tree.leaves(new)[0])
    flat = lambda tree: jnp.concatenate(
        [
            leaf.reshape(rows, -1).astype(halting_dtype(leaf.dtype))
            for leaf in jax.tree.leaves(tree)
        ],
        axis=1,
    )
    return jnp.sqrt(jnp.mean((flat(new) - flat(old)) ** 2, axis=1))


def kl_of_logits(new: jax.Array, old: jax.Array) -> jax.Array:
    """KL(softmax(new) || softmax(old)) in nats, the mean of all there are in a row: float [rows].

    Args:
      new, old: float ``[rows, ..., classes]``.
    """
    dtype = halting_dtype(new.dtype)
    log_p, log_q = (jax.nn.log_softmax(logits.astype(dtype)) for logits in (new, old))
    divergence = (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
    return divergence.reshape(len(new), -1).mean(1)


class Positions(NamedTuple):
    """The state of a row whose ``S`` positions halt one by one.

    Attributes:
      state: pytree ``[rows, S, ...]``, each position's state; one that has halted keeps its last,
        and the others may go on to look at it.
      result: pytree ``[rows, S, ...]``, what each position leaves behind: by the rule's `mean` the
        weighted mean of its states so far, in float32 at least, or the last.
      steps: int32 ``[rows, S]``, N, or those taken so far.
      remainder: float ``[rows, S]``, p^N, or the weight of the last step so far.
      registers: those of the rule, ``[rows, S, ...]``.
      running: bool ``[rows, S]``.
      extra: what the rule tells of each position, ``[rows, S, ...]``, as `Ponder.extra`.
    """

    state: Any
    result: Any
    steps: jax.Array
    remainder: jax.Array
    registers: Any
    running: jax.Array
    extra: Any = None

    @property
    def cost(self) -> jax.Array:
        """Ponder cost N + R of each position, float ``[rows, S]`` (Graves 2016, eq 10)."""
        return self.steps.astype(self.remainder.dtype) + self.remainder


def start_positions(state: Any, *, rule: Rule | None = None, present: Any = None) -> Positions:
    """The record before the first step of `by_position`.

    Args:
      state: pytree of float arrays ``[rows, S, ...]``, each position's state.
      rule: as in `by_position`.
      present: bool ``[rows, S]``, which positions there are, all by default. The others never step,
        and their `steps` are 0.
    """
    rule = chosen_rule(rule)
    batch, count = check_rows("state", state, 2)
    leaf = next((leaf for leaf in jax.tree.leaves(state) if is_float(leaf)), None)
    if leaf is None:
        raise ValueError("state must hold floating-point arrays, got none.")
    if present is not None:
        _check_present(present, (batch, count))
    zero = leaf.reshape(*leaf.shape[:2], -1)[..., 0].astype(halting_dtype(leaf.dtype)) * 0
    running = jnp.ones(zero.shape, bool) if present is None else jnp.asarray(present)
    running = running & (zero == 0)
    check_mean(rule, state)
    registers = rule.start(zero.ravel())
    arguments = zero.astype(jnp.int32).ravel(), zero.ravel(), running.ravel()
    told = jax.eval_shape(rule.update, registers, *arguments)[2]
    extra = _by_row(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), told), zero.shape)
    registers = _by_row(registers, zero.shape)
    flags = jax.tree.broadcast(rule.mean, state)
    wide = lambda leaf: jnp.zeros_like(leaf, halting_dtype(leaf.dtype))
    result = jax.tree.map(
        lambda leaf, m: wide(leaf) if m and is_float(leaf) else leaf, state, flags
    )
    return Positions(state, result, zero.astype(jnp.int32), zero, registers, running, extra)


def _check_present(present: Any, shape: tuple[int, int]) -> None:
    """Checks that `present` is bool ``[rows, S]``."""
    if jnp.shape(present) != shape or not jnp.issubdtype(jnp.result_type(present), jnp.bool_):
        raise ValueError(
            f"present must be bools of shape {shape}, "
            f"got shape {jnp.shape(present)} of {jnp.result_type(present)}."
        )


def by_position(step: Step, *, max_steps: int, rule: Rule | None = None) -> Step:
    """A step of rows whose positions halt one by one (Universal Transformer, Dehghani et al. 2019).

    A row is a whole sequence of S positions, which may attend to one another. A position that has
    halted keeps its state; the row ends with its last position. Its halted positions are computed
    on, to no effect: the cost of a row is S times the steps of its slowest position.

    The result of a position is the weighted mean of its states, as the paper's equation has it. Two
    widely used implementations keep a running blend in its place.

    Args:
      step: `(params, state, x, first) -> (state, halt)` as in `unroll`, of states
        ``[rows, S, ...]``, with halting probabilities ``[rows, S]``.
      max_steps: the limit on steps of a position; the same as is given to the loop.
      rule: of the positions; `Graves` unless given.

    Returns:
      A step of a `Positions` record, for ``rule=actjax.halting.Threshold()`` and inputs one a row
      (`ponder`), which starts from `start_positions`.

    >>> import actjax
    >>> def step(weight, state, x, first):  # a position looks at the mean of all
    ...     state = jnp.tanh(weight * state + state.mean(1, keepdims=True) + x)
    ...     return state, jax.nn.sigmoid(state[..., 0])
    >>> x = jnp.linspace(-2.0, 2.0, 3 * 4 * 2).reshape(3, 4, 2)
    >>> found, _ = actjax.ponder(by_position(step, max_steps=9), 0.5, start_positions(x), x,
    ...                          max_steps=9, rule=actjax.halting.Threshold())
    >>> found.result.shape, found.steps[1]
    ((3, 4, 2), Array([4, 3, 2, 2], dtype=int32))
    """
    check_positive("max_steps", max_steps)
    return _Positioned(step, max_steps, chosen_rule(rule))


@dataclasses.dataclass(frozen=True)
class _Positioned:
    """The step of `by_position`; equal ones are equal, so that they are compiled once."""

    step: Step
    max_steps: int
    rule: Rule

    def __call__(self, params, positions: Positions, x, first):
        if not isinstance(positions, Positions):
            raise ValueError(
                "state must be a Positions record, as start_positions makes it, "
                f"got {type(positions).__name__}."
            )
        state, result, steps, remainder, registers, running, extra = positions
        new, halt = self.step(params, state, x, first)
        if getattr(halt, "shape", None) != running.shape:
            raise ValueError(
                "step must return one halting probability a position, "
                f"of shape {running.shape}, got {shown(halt)}."
            )
        halt, n = halt.astype(remainder.dtype), steps + 1
        shape, flat = halt.shape, lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
        held, count, halts = jax.tree.map(flat, (registers, n, halt))
        last = self.rule.decide(held, count, halts) | (count >= self.max_steps)
        after, weight, told = _by_row(self.rule.update(held, count, halts, last), shape)
        last = last.reshape(shape)
        flags = jax.tree.broadcast(self.rule.mean, state)
        result = jax.tree.map(
            lambda r, s, is_mean: _leave(r, s, weight, running, is_mean), result, new, flags
        )
        positions = Positions(
            state=_select(running, new, state),
            result=result,
            steps=jnp.where(running, n, steps),
            remainder=jnp.where(running, weight, remainder),
            registers=_select(running, after, registers),
            running=running & ~last,
            extra=_select(running, told, extra),
        )
        done = ~positions.running.any(1)
        return positions, done.astype(remainder.dtype)


def _leave(result, state, weight, running, is_mean: bool):
    """What positions leave behind after one more step."""
    if is_mean and is_float(state):
        shaped = weight.reshape(weight.shape + (1,) * (state.ndim - 2))
        state = result + shaped * state.astype(result.dtype)
    return _select(running, state, result)


def _select(mask, new, old):
    """Where `mask`, bool [rows, S], the positions of `new`, else of `old`."""
    pick = lambda a, b: jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 2)), a, b)
    return jax.tree.map(pick, new, old)


def _by_row(tree: Any, shape: tuple[int, ...]) -> Any:
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), tree)


def checked(step: Callable) -> Callable:
    """`step`, with NaN for halting probabilities outside [0, 1]: finds steps that return logits.

    The rule makes numbers of any halting values, without a word: weights that are negative or above
    1, and remainders above 1. Their range is known only where their values are, inside compiled
    loops; a NaN comes through to the results, and under `jax.debug_nans` raises where it is made.

    Args:
      step: as `unroll`, `unroll_layers` or `repeat` want it.

    >>> step = checked(lambda params, state, x, first: (state, state[:, 0]))
    >>> _, halt = step((), jnp.array([[0.5], [3.1]]), None, None)
    >>> halt
    Array([0.5, nan], dtype=float32)
    """

    @functools.wraps(step)
    def checked_step(*arguments):
        state, halt = step(*arguments)
        inside = (halt >= 0) & (halt <= 1)
        return state, jnp.where(inside, halt, jnp.nan)

    return checked_step
