"""Refusals: bad input is turned away before any compilation, in one sentence."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_limits(max_steps: int, epsilon: float) -> None:
    check_positive("max_steps", max_steps)
    number = isinstance(epsilon, (int, float, np.integer, np.floating))
    if not number or not 0 < epsilon < 1:
        raise ValueError(f"epsilon must be a number strictly between 0 and 1, got {epsilon!r}.")


def check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        allowed = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be {allowed}, got {value!r}.")


def check_loop(loop: Any) -> None:
    """Checks the loop for a step of the caller's own; the kernels know the cells of `ACT` only."""
    if loop == "kernel":
        raise ValueError(
            "loop must be 'while' or 'scan' for a step of one's own, as only ACT has kernels, "
            "got 'kernel'."
        )
    check_choice("loop", loop, ("while", "scan"))


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
    """Checks that `state` holds floating-point arrays ``[batch, ...]``: they have gradients."""
    for leaf in jax.tree.leaves(state):
        if jnp.ndim(leaf) < 1 or jnp.shape(leaf)[0] != batch:
            raise ValueError(
                f"state must hold arrays that lead with the batch size {batch}, "
                f"got shape {jnp.shape(leaf)}."
            )
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ValueError(
                "state must hold floating-point arrays, through which gradients flow, "
                f"got {jnp.result_type(leaf)}."
            )
    if not jax.tree.leaves(state):
        raise ValueError("state must hold at least one array of shape [batch, ...], got none.")


def check_like(name: str, tree: Any, like: Any) -> None:
    """Checks that `tree` has the structure of `like`, and its arrays their shapes."""
    given, wanted = (jax.tree.map(jnp.shape, part) for part in (tree, like))
    if given != wanted or jax.tree.structure(tree) != jax.tree.structure(like):
        raise ValueError(f"{name} must hold arrays of shapes {wanted}, got {given}.")


def check_layers(layers: Any, batch: int) -> int:
    """Returns the limit L on layers."""
    leaves = jax.tree.leaves(getattr(layers, "states", None))
    count = getattr(layers, "count", None)
    if not leaves or count is None:
        raise ValueError(f"layers must be a Layers record, got {type(layers).__name__}.")
    check_state(layers.states, batch)
    shapes = [jnp.shape(leaf) for leaf in leaves]
    if any(len(shape) < 2 or shape[1] != shapes[0][1] for shape in shapes) or shapes[0][1] < 1:
        raise ValueError(
            f"layers must hold states of shape [batch, L, ...] with one limit L of at least 1, "
            f"got shapes {shapes}."
        )
    limit = shapes[0][1]
    if jnp.shape(count) != (batch,) or not jnp.issubdtype(jnp.result_type(count), jnp.integer):
        raise ValueError(
            f"layers must count {batch} integers, one a sequence, "
            f"got shape {jnp.shape(count)} of {jnp.result_type(count)}."
        )
    if not isinstance(count, jax.core.Tracer):
        values = np.asarray(count)
        if values.min() < 1 or values.max() > limit:
            bad = int(values.min() if values.min() < 1 else values.max())
            raise ValueError(f"layers must count between 1 and the limit {limit}, got {bad}.")
    return limit


def check_options(lengths: Any, batch: int, time: int, **counts: int | None) -> jax.Array | None:
    """Checks what the loops are told beside their arrays; `counts` are positive or None.

    Returns the lengths as `check_lengths` does, or None.
    """
    for name, value in counts.items():
        if value is not None:
            check_positive(name, value)
    return None if lengths is None else check_lengths(lengths, batch, time)


def check_lengths(lengths: Any, batch: int, time: int) -> jax.Array:
    """Returns the lengths as int32, in which the arithmetic of the loops cannot wrap around."""
    if isinstance(lengths, (list, tuple)):
        lengths = np.asarray(lengths)
    if jnp.shape(lengths) != (batch,) or not jnp.issubdtype(jnp.result_type(lengths), jnp.integer):
        raise ValueError(
            f"lengths must be {batch} integers, one a sequence, "
            f"got shape {jnp.shape(lengths)} of {jnp.result_type(lengths)}."
        )
    if isinstance(lengths, jax.core.Tracer):
        # Values are not known while tracing; the loops clip them to [0, time].
        return lengths.astype(jnp.int32)
    values = np.asarray(lengths)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > time:
        bad = low if low < 0 else high
        raise ValueError(f"lengths must lie between 0 and the {time} inputs given, got {bad}.")
    return jnp.asarray(lengths, jnp.int32)


def check_effects(effects: Any) -> None:
    """Refuses a step that does more than it returns, of which the adaptive loop keeps nothing."""
    names = sorted({type(effect).__name__ for effect in effects} - {"NamedAxisEffect"})
    if names:
        raise ValueError(
            f"step must have no effects such as printing under loop='while', got {names}: "
            "use loop='scan' for them."
        )


def check_step(step: Any, params: Any, state: Any, *inputs: Any) -> None:
    """Checks what `step` returns against its contract, without running it.

    The last of its inputs has one number a row.
    """
    result = jax.eval_shape(step, params, state, *inputs)
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(f"step must return (state, halt), got {type(result).__name__}.")
    new_state, halt = result
    describe = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)
    before, after = describe(jax.eval_shape(lambda tree: tree, state)), describe(new_state)
    if before != after:
        raise ValueError(
            f"step must return a state of the same structure, shapes and dtypes as it was given, "
            f"{before}, got {after}."
        )
    rows = inputs[-1].shape
    if getattr(halt, "shape", None) != rows or not jnp.issubdtype(halt.dtype, jnp.floating):
        raise ValueError(
            f"step must return one float halting probability a row, of shape {rows}, got {halt}."
        )
