"""The halting rule of Adaptive Computation Time, as pure functions on arrays.

Graves 2016, "Adaptive Computation Time for Recurrent Neural Networks", eqs 5 to 8 and 13. A row
takes ponder steps n = 1, 2, ...; step n emits a halting probability ``h^n`` and the row stops at

    N = min(M, min{n : h^1 + ... + h^n >= 1 - epsilon})                               (eqs 7, 13)

with remainder ``R = 1 - (h^1 + ... + h^{N-1})`` (eq 8) and weights ``p^n = h^n`` for n < N,
``p^N = R`` (eq 6), which therefore sum to 1 whether the row halted or the limit M stopped it. The
ponder cost is ``N + R`` (eq 10).

Everything that halts in this package calls this file: one step at a time in the loops
(`halting_step` and its transpose `halting_step_transpose`), or a whole row at once
(`halting_weights`). The arithmetic is done in float32 at least, whatever the dtype of the network.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from actjax._checks import check_limits


class Ponder(NamedTuple):
    """How long each input was pondered. ``B`` sequences of ``T`` inputs; zeros where padded.

    Attributes:
      steps: int32 ``[B, T]``. N, the number of ponder steps taken; a constant to the gradient.
      remainder: float ``[B, T]``. R, the weight of the last step, through which halting is learned.
    """

    steps: jax.Array
    remainder: jax.Array

    @property
    def cost(self) -> jax.Array:
        """Ponder cost N + R of each input, float ``[B, T]`` (Graves 2016, eq 10)."""
        return self.steps.astype(self.remainder.dtype) + self.remainder


class HaltingWeights(NamedTuple):
    """The halting rule applied to whole rows of halting probabilities.

    Attributes:
      weights: float ``[..., M]``. p^n, zero after the last step; sums to 1 over the last axis.
      steps: int32 ``[...]``. N.
      remainder: float ``[...]``. R = p^N.
    """

    weights: jax.Array
    steps: jax.Array
    remainder: jax.Array


def halting_dtype(dtype) -> jnp.dtype:
    """The dtype in which halting is computed for a network of `dtype`: float32 or wider."""
    dtype = jnp.dtype(dtype)
    wide = jnp.issubdtype(dtype, jnp.inexact) and dtype.itemsize >= 4
    return dtype if wide else jnp.dtype(jnp.float32)


def halting_step(
    halt: jax.Array, total: jax.Array, n: jax.Array, *, max_steps: int, epsilon: float
) -> tuple[jax.Array, jax.Array]:
    """Decides whether ponder step n is a row's last, and what weight it gets (eqs 6, 7, 13).

    Args:
      halt: float ``[rows]``. h^n, in (0, 1).
      total: float ``[rows]``. h^1 + ... + h^{n-1}.
      n: int ``[rows]``. The number of this step, 1 for the first.
      max_steps: M, the limit on steps.
      epsilon: the slack that lets a row halt at its first step.

    Returns:
      ``(weight, last)``: p^n, float ``[rows]``, and whether n = N, bool ``[rows]``.

    >>> weight, last = halting_step(jnp.array([0.4]), jnp.array([0.6]), jnp.array([2]),
    ...                             max_steps=10, epsilon=0.01)
    >>> bool(last[0]), round(float(weight[0]), 2)
    (True, 0.4)
    """
    last = (total + halt >= 1 - epsilon) | (n >= max_steps)
    return jnp.where(last, 1 - total, halt), last


def halting_step_transpose(
    weight_cotangent: jax.Array,
    last_weight_cotangent: jax.Array,
    remainder_cotangent: jax.Array,
    last: jax.Array,
) -> jax.Array:
    """The gradient of a loss in h^n, given its gradients in the weights and in R (eqs 14 to 20).

    For n < N, p^n = h^n while p^N = R = 1 - sum h^k, so ``dh^n = dp^n - dp^N - dR``. The last
    probability only decides to stop, so ``dh^N = 0``.

    Args:
      weight_cotangent: float ``[rows]``. dL/dp^n.
      last_weight_cotangent: float ``[rows]``. dL/dp^N.
      remainder_cotangent: float ``[rows]``. dL/dR by other ways than p^N (the ponder cost).
      last: bool ``[rows]``. Whether n = N.

    Returns:
      dL/dh^n, float ``[rows]``.
    """
    gradient = weight_cotangent - last_weight_cotangent - remainder_cotangent
    return jnp.where(last, 0, gradient)


def halting_weights(halts: ArrayLike, *, epsilon: float = 0.01) -> HaltingWeights:
    """Applies the rule to all M halting probabilities of each row at once.

    Use it where every step has been computed anyway. Differentiable in `halts`, with the same
    gradient as the loops.

    Args:
      halts: float ``[..., M]``. h^1 .. h^M along the last axis; its length is the limit M.
      epsilon: as in `halting_step`.

    Returns:
      `HaltingWeights`.

    Raises:
      ValueError: no step along the last axis, or an epsilon that is not between 0 and 1.

    >>> rule = halting_weights(jnp.array([0.5, 0.3, 0.6, 0.9]))
    >>> int(rule.steps), [round(float(p), 2) for p in rule.weights]
    (3, [0.5, 0.3, 0.2, 0.0])
    """
    halts = jnp.asarray(halts)
    check_limits(1, epsilon)
    if halts.ndim < 1 or halts.shape[-1] < 1:
        raise ValueError(
            f"halts must have shape [..., M] with at least one step, got {halts.shape}."
        )
    halts = halts.astype(halting_dtype(halts.dtype))
    totals = jnp.cumsum(halts, axis=-1)
    before = jnp.concatenate([jnp.zeros_like(totals[..., :1]), totals[..., :-1]], axis=-1)
    n = jnp.arange(1, halts.shape[-1] + 1).reshape((1,) * (halts.ndim - 1) + (-1,))
    weights, last = halting_step(halts, before, n, max_steps=halts.shape[-1], epsilon=epsilon)
    steps = jnp.argmax(last, axis=-1).astype(jnp.int32) + 1
    weights = jnp.where(n <= steps[..., None], weights, 0)
    remainder = jnp.take_along_axis(weights, steps[..., None] - 1, axis=-1)[..., 0]
    return HaltingWeights(weights, steps, remainder)


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
