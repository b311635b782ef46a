"""Time penalties that look after themselves: tau fixed, on a schedule, or held to a ponder budget.

The time penalty tau of Graves 2016, eq 12, is a sensitive number without a unit, and choosing it
is the paper's own open problem ("an important direction for future work"). A *ponder budget* is
a number with one: the mean ponder cost N + R of an input step. `hold` moves tau during training
until the network's ponder is there.

A controller is a pair of pure functions over a small state, like an Optax transformation: it runs
inside a compiled training step, under `vmap` over an ensemble, and its state is checkpointed with
the rest. Read `state.tau`, take the training step with it, then `update` with the ponder measured::

    controller = hold(3.0)
    state = controller.init()
    for ...:
        ponder = train_step(tau=state.tau, ...)
        state = controller.update(state, ponder)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from actjax._checks import check_positive

ONE_STEP = 2.0  # N + R of a network that always halts at its first step, where R = 1

LEAST_ERROR = -1e6  # stands for the log of a ponder of 0, so that a gain of 0 times it is 0


class TauState(NamedTuple):
    """State of a controller, all float32 or int32 scalars.

    Attributes:
      tau: the time penalty to train with now.
      dual: what `hold` has learned of the penalty that the budget needs; tau where nothing learns.
      ponder: running mean of the ponder cost measured so far; 0 before the first update.
      updates: number of updates so far.
    """

    tau: Array
    dual: Array
    ponder: Array
    updates: Array


class TauController(NamedTuple):
    """How tau moves.

    Attributes:
      init: `() -> TauState`.
      update: `(state, ponder) -> TauState`, where `ponder` is the mean of N + R over the input
        steps of the batch just trained on, a scalar.
    """

    init: Callable[[], TauState]
    update: Callable[[TauState, Array], TauState]


def fixed(tau: ArrayLike) -> TauController:
    """Tau as in the papers: one number, chosen by hand.

    Args:
      tau: a number, at least 0, or a traced scalar (one member's tau of an ensemble).

    Example:
      >>> float(fixed(0.5).init().tau)
      0.5
    """
    _check_tau("tau", tau, least=0.0)
    return TauController(init=lambda: _start(tau), update=_watch)


def schedule(tau_at: Callable[[Array], Array]) -> TauController:
    """Tau as a function of the number of updates, such as an Optax schedule.

    Example:
      >>> import optax
      >>> controller = schedule(optax.linear_schedule(0.0, 1.0, 10))
      >>> state = controller.update(controller.init(), 2.0)
      >>> round(float(state.tau), 3)
      0.1
    """

    def update(state, ponder):
        state = _watch(state, ponder)
        return state._replace(tau=jnp.asarray(tau_at(state.updates), jnp.float32))

    return TauController(init=lambda: _start(tau_at(jnp.zeros((), jnp.int32))), update=update)


def warm_up(tau: ArrayLike, updates: int) -> TauController:
    """Tau that rises from 0 in a straight line, and stays: the network may learn first.

    The cure of halting that collapses at the start, where more steps have nothing to show for them
    yet (`python -m experiments collapse`). Unlike a `schedule`, its state holds all there is to it,
    so that the members of an ensemble may have a tau each.

    Args:
      tau: as in `fixed`.
      updates: over which it rises.

    Example:
      >>> controller = warm_up(0.5, 10)
      >>> state = controller.init()
      >>> float(state.tau), round(float(controller.update(state, 2.0).tau), 3)
      (0.0, 0.05)
    """
    _check_tau("tau", tau, least=0.0)
    check_positive("updates", updates)

    def update(state, ponder):
        state = _watch(state, ponder)
        return state._replace(tau=state.dual * jnp.minimum(1.0, state.updates / updates))

    return TauController(init=lambda: _start(tau)._replace(tau=jnp.float32(0)), update=update)


def hold(
    ponder: ArrayLike,
    *,
    tau: ArrayLike = 1e-3,
    min_tau: float = 1e-6,
    max_tau: float = 1.0,
    integral: float = 5e-3,
    proportional: float = 12.0,
    window: int = 50,
) -> TauController:
    """Holds the mean ponder cost at a budget: tau rises while it is above and falls while below.

    A PI controller. Its integral part is dual ascent on the constraint E[N + R] = `ponder` in the
    logarithm of the dual variable: with e = log(running mean / budget), clipped to [-1, 1], every
    update adds `integral * e` to log dual. Its proportional part acts at once, on the ponder of
    the batch just measured: tau = dual * clip(1 + proportional * log(measured / budget), 0, 1).
    There is no penalty at all on a network that ponders clearly less than its budget. That is
    what a wrong start needs: a network follows tau over some 1000 updates, and a dual that is far
    too large would else press halting down to one step, where no gradient is left to come back
    by, long before dual ascent has taken it back.

    Below `min_tau` the penalty no longer matters: a network that ponders less than the budget then
    does so because the task does not reward more. Above `max_tau` it drowns the task's own loss.

    Args:
      ponder: the budget, a mean of N + R above 2, which is what a single step costs; a number or a
        traced scalar.
      tau: the value to start from, which the result should not depend on.
      min_tau, max_tau: limits on the dual.
      integral: gain on the error at each update; 5e-3 moves tau by up to a factor of e in 200.
      proportional: gain on the error of a batch: the penalty is gone at a ponder of
        exp(-1 / proportional) times the budget, 8 % below it.
      window: number of updates over which the ponder is averaged for the integral part.

    Raises:
      ValueError: for a budget of 2 or less, limits in the wrong order or a `tau` outside them, a
        negative gain or an empty window.

    Example:
      >>> controller = hold(3.0, tau=0.01)
      >>> state = controller.update(controller.init(), 5.0)
      >>> bool(state.tau > 0.01)
      True
      >>> float(controller.update(state, 2.5).tau)
      0.0
    """
    if not isinstance(ponder, jax.core.Tracer) and not _is_number(ponder, ONE_STEP, strictly=True):
        raise ValueError(f"ponder must be above 2, the cost of one step, got {ponder!r}.")
    if not 0 < min_tau < max_tau:
        raise ValueError(
            f"min_tau must be above 0 and below max_tau = {max_tau!r}, got {min_tau!r}."
        )
    _check_tau("tau", tau, least=min_tau, most=max_tau)
    for name, gain in (("integral", integral), ("proportional", proportional)):
        if not gain >= 0:
            raise ValueError(f"{name} must be at least 0, got {gain!r}.")
    check_positive("window", window)

    def update(state, measured):
        state = _watch(state, measured, window=window)
        move = integral * jnp.clip(jnp.log(state.ponder / ponder), -1.0, 1.0)
        log_dual = jnp.log(state.dual) + move
        dual = jnp.exp(jnp.clip(log_dual, jnp.log(min_tau), jnp.log(max_tau)))
        measured = jnp.asarray(measured, jnp.float32)
        error = jnp.maximum(jnp.log(measured / ponder), LEAST_ERROR)
        pressed = jnp.clip(1.0 + proportional * error, 0.0, 1.0)
        return state._replace(tau=dual * pressed, dual=dual)

    return TauController(init=lambda: _start(tau), update=update)


def halting_advice(
    steps: float, *, max_steps: int, held: bool = False, margin: float = 0.02
) -> str | None:
    """One sentence of advice where halting has stopped adapting, else None.

    It names what helped where cures were compared (`python -m experiments collapse`), of which a
    `halt_bias` below 0 was none: it puts the collapse off.

    Args:
      steps: mean number of ponder steps N over recent batches.
      max_steps: the limit M.
      held: whether a ponder budget is at work already.
      margin: how near to 1, or (as a fraction) to M, counts as stuck.

    Example:
      >>> halting_advice(3.7, max_steps=100)
      >>> halting_advice(1.0, max_steps=100)[:38]
      'halting has collapsed to one step (mea'
    """
    instead = "" if held else ", a ponder budget,"
    if max_steps > 1 and steps < 1 + margin:
        also = "" if held else ", a ponder budget (budget.hold)"
        return (
            f"halting has collapsed to one step (mean N = {steps:.3f}): no gradient reaches the "
            f"halting unit any more; start again with a tau that rises from 0 (budget.warm_up)"
            f"{also} or a minimum of steps (halting.AtLeast), or use a smaller tau"
        )
    if max_steps > 1 and steps > max_steps * (1 - margin):
        return (
            f"halting sits at the limit (mean N = {steps:.1f} of max_steps = {max_steps}): use a "
            f"larger tau{instead} or halt_bias above 0"
        )
    return None


def _start(tau: ArrayLike) -> TauState:
    return TauState(
        tau=jnp.asarray(tau, jnp.float32),
        dual=jnp.asarray(tau, jnp.float32),
        ponder=jnp.zeros((), jnp.float32),
        updates=jnp.zeros((), jnp.int32),
    )


def _watch(state: TauState, ponder: Array, *, window: int = 50) -> TauState:
    """Counts the update and moves the running mean: a plain mean until `window` updates are in."""
    updates = state.updates + 1
    weight = 1.0 / jnp.minimum(updates, window).astype(jnp.float32)
    ponder = state.ponder + weight * (jnp.asarray(ponder, jnp.float32) - state.ponder)
    return state._replace(ponder=ponder, updates=updates)


def _check_tau(name: str, tau: ArrayLike, *, least: float, most: float = float("inf")):
    if isinstance(tau, jax.core.Tracer):
        return
    if not _is_number(tau, least, most):
        allowed = f"at least {least:g}" if most == float("inf") else f"from {least:g} to {most:g}"
        raise ValueError(f"{name} must be {allowed}, got {tau!r}.")


def _is_number(
    value: ArrayLike, least: float, most: float = float("inf"), *, strictly: bool = False
) -> bool:
    """Whether a known value is one real, finite number from `least`, or above it, to `most`."""
    number = np.asarray(value)
    real = jnp.issubdtype(number.dtype, jnp.number) and jnp.isrealobj(number)
    if number.ndim or not real or not np.isfinite(number):
        return False
    return bool((number > least if strictly else number >= least) and number <= most)
