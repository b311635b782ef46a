"""Refusals: bad input is turned away before any compilation, in one sentence."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_limits(max_steps: int, epsilon: float) -> None:
    check_positive("max_steps", max_steps)
    if not isinstance(epsilon, (int, float)) or not 0 < epsilon < 1:
        raise ValueError(f"epsilon must be a number strictly between 0 and 1, got {epsilon!r}.")


def check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        allowed = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be {allowed}, got {value!r}.")


def check_rows(name: str, tree: Any, rank: int) -> tuple[int, ...]:
    """Returns the leading axes, batch or batch and time, that all leaves of `tree` share."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
    axes = {1: "[batch, ...]", 2: "[batch, time, ...]"}[rank]
    if not shapes:
        raise ValueError(f"{name} must hold at least one array of shape {axes}, got none.")
    for shape in shapes:
        if len(shape) < rank:
            raise ValueError(f"{name} must hold arrays of shape {axes}, got shape {shape}.")
        if shape[:rank] != shapes[0][:rank]:
            raise ValueError(
                f"{name} must agree on the leading axes {axes}, got shapes {shapes[0]} and {shape}."
            )
    if 0 in shapes[0][:rank]:
        raise ValueError(f"{name} must not be empty along {axes}, got shape {shapes[0]}.")
    return shapes[0][:rank]


def check_state(state: Any, batch: int) -> None:
    for leaf in jax.tree.leaves(state):
        if jnp.ndim(leaf) < 1 or jnp.shape(leaf)[0] != batch:
            raise ValueError(
                f"state must hold arrays that lead with the batch size {batch}, "
                f"got shape {jnp.shape(leaf)}."
            )
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ValueError(
                "state must hold floating-point arrays, since their weighted mean is carried on, "
                f"got {jnp.result_type(leaf)}."
            )
    if not jax.tree.leaves(state):
        raise ValueError("state must hold at least one array of shape [batch, ...], got none.")


def check_lengths(lengths: Any, batch: int, time: int) -> None:
    if jnp.shape(lengths) != (batch,) or not jnp.issubdtype(jnp.result_type(lengths), jnp.integer):
        raise ValueError(
            f"lengths must be {batch} integers, one a sequence, "
            f"got shape {jnp.shape(lengths)} of {jnp.result_type(lengths)}."
        )
    if isinstance(lengths, jax.core.Tracer):
        return  # values are not known while tracing; the loops clip them to [0, time]
    values = np.asarray(lengths)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > time:
        bad = low if low < 0 else high
        raise ValueError(f"lengths must lie between 0 and the {time} inputs given, got {bad}.")


def check_step(step: Any, params: Any, state: Any, x: Any, first: Any) -> None:
    """Checks what `step` returns against its contract, without running it."""
    result = jax.eval_shape(step, params, state, x, first)
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(f"step must return (state, halt), got {type(result).__name__}.")
    new_state, halt = result
    describe = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)  # noqa: E731
    before, after = describe(jax.eval_shape(lambda tree: tree, state)), describe(new_state)
    if before != after:
        raise ValueError(
            f"step must return a state of the same structure, shapes and dtypes as it was given, "
            f"{before}, got {after}."
        )
    rows = first.shape
    if getattr(halt, "shape", None) != rows or not jnp.issubdtype(halt.dtype, jnp.floating):
        raise ValueError(
            f"step must return one float halting probability a row, of shape {rows}, got {halt}."
        )
