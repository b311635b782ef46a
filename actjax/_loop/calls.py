"""A call of the public functions, a constant of `jit`, and the loop it runs on each device."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from actjax import _contracts as contracts
from actjax._loop import adaptive, scan
from actjax._loop.devices import by_device
from actjax._loop.plan import lanes_of
from actjax._loop.rows import fill_padding, without_keys
from actjax._loop.trace import operations
from actjax.halting import Rule


@dataclasses.dataclass(frozen=True)
class Unroll:
    """The loop of `unroll` over the rows of one device."""

    step: Callable
    rule: Rule
    loop: str
    batch: int  # rows of all devices, which share `lanes`
    lanes: int | None
    segment: int | None
    max_steps: int

    def __call__(self, params, rows):
        state, xs, lengths = rows
        batch, time = jax.tree.leaves(xs)[0].shape[:2]
        xs = fill_padding(xs, lengths)
        first = jnp.ones(batch, bool)
        cost = _check_step(self.step, lengths, params, state, _first(xs), first)
        step, state, read = without_keys(self.step, state)
        arguments = step, params, state, xs, lengths
        limits = {"max_steps": self.max_steps, "rule": self.rule}
        if self.loop == "scan":
            final, states, record = scan.masked_scan(*arguments, **limits)
        else:
            lanes = lanes_of(self.lanes, self.batch, batch, time, cost)
            options = limits | {"lanes": lanes, "segment": self.segment}
            final, states, record = adaptive.adaptive(*arguments, **options)
        return read(final), read(states), record


@dataclasses.dataclass(frozen=True)
class UnrollLayers:
    """The loop of `unroll_layers` over the rows of one device."""

    step: Callable
    rule: Rule
    loop: str
    batch: int
    lanes: int | None
    segment: int | None

    def __call__(self, params, rows):
        layers, xs, lengths = rows
        batch, time = jax.tree.leaves(xs)[0].shape[:2]
        xs = fill_padding(xs, lengths)
        n = jnp.ones(batch, jnp.int32)
        cost = _check_step(self.step, lengths, params, layers.deepest, _first(xs), layers, n)
        limits = {"rule": self.rule}
        if self.loop == "scan":
            return scan.masked_scan_layers(self.step, params, layers, xs, lengths, **limits)
        lanes = lanes_of(self.lanes, self.batch, batch, time, cost)
        limits |= {"lanes": lanes, "segment": self.segment}
        limits |= {"max_steps": jax.tree.leaves(layers.states)[0].shape[1]}
        return adaptive.adaptive_layers(self.step, params, layers, xs, lengths, **limits)


@dataclasses.dataclass(frozen=True)
class Repeat:
    """The loop of `repeat` over the rows of one device."""

    step: Callable
    repeats: int

    def __call__(self, params, rows):
        state, xs, lengths = rows
        xs = fill_padding(xs, lengths)
        first = jnp.ones(jax.tree.leaves(xs)[0].shape[:1], bool)
        contracts.check_step(self.step, params, state, _first(xs), first)
        step, state, read = without_keys(self.step, state)
        final, states, steps = scan.repeat_scan(step, params, state, xs, lengths, self.repeats)
        return read(final), read(states), steps


def run(call, params, rows):
    """Runs a loop, compiled for good where equal steps are known to do the same.

    `jit` remembers what it has compiled by its static arguments. A frozen dataclass is what its
    fields are; a function may have closed over what has changed since.
    """
    params, rows = jax.tree.map(jnp.asarray, (params, rows))
    constant = all(map(_by_value, (call.step, getattr(call, "rule", call.step))))
    return (_compiled if constant else by_device)(call, params, rows)


_compiled = jax.jit(by_device, static_argnums=0)


def _by_value(step) -> bool:
    if not dataclasses.is_dataclass(step) or type(step).__hash__ is object.__hash__:
        return False
    try:
        hash(step)
    except TypeError:
        return False
    return True


def _check_step(step, lengths, params, state, *inputs) -> int:
    """Refuses a step that breaks its contract; returns the operations of one on one row."""
    traced = contracts.check_step(step, params, state, *inputs)
    contracts.check_halts(traced, (params, state, *inputs), lengths)
    return operations(traced.jaxpr) // len(inputs[-1])


def _first(xs):
    return jax.tree.map(lambda leaf: leaf[:, 0], xs)
