"""Refusals: bad input is turned away before any compilation, in one sentence."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from actjax._variables import shared_variable

INT32_MAX = 2**31 - 1  # the loops count in int32


def check_number(name: str, value: Any, low: float, high: float, *, include_low=False) -> None:
    number = isinstance(value, (int, float, np.integer, np.floating))
    if include_low and number and value == low:
        return
    if not number or not low < value < high:
        kind = f"between {low} (included) and" if include_low else f"strictly between {low} and"
        if high == float("inf"):
            kind, high = "above", low
        raise ValueError(f"{name} must be a number {kind} {high}, got {described(value)}.")


def check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {described(value)}.")
    if value > INT32_MAX:
        raise ValueError(f"{name} must be an integer of at most {INT32_MAX}, got {value}.")


def check_key(name: str, key: Any, rank: int = 0) -> None:
    """Checks that `key` is a PRNG key, typed or as `jax.random.PRNGKey` makes it, or many."""
    dtype, ndim = getattr(key, "dtype", None), getattr(key, "ndim", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if ndim != rank + (not typed) or not (typed or dtype == jnp.uint32):
        kind = "PRNG keys" if rank else "a PRNG key, as jax.random.key(0) is"
        got = repr(key) if dtype is None else shown(key)
        raise ValueError(f"{name} must be {kind}, got {got}.")


def check_rngs(rngs: Any) -> None:
    if not isinstance(rngs, nnx.Rngs):
        raise ValueError(f"rngs must be nnx.Rngs, as nnx.Rngs(0) is, got {described(rngs)}.")


def described(value: Any) -> str:
    """What an error says of a value: as it is written, unless `jit` keeps it from being known."""
    return "a value traced by jit" if isinstance(value, jax.core.Tracer) else repr(value)


def shown(result: Any) -> str:
    """What an error says of a result of which a trace knows no more than its shape and dtype."""
    if isinstance(result, tuple):
        return f"({', '.join(map(shown, result))})"
    if not hasattr(result, "shape"):
        return type(result).__name__
    return f"shape {result.shape} of {result.dtype}"


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        allowed = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be {allowed}, got {value!r}.")


def check_loop_and_lanes(loop: str, lanes: int | None, *others: str) -> None:
    """The options of a module that it hands to `unroll`; it may know other loops too."""
    check_choice("loop", loop, ("while", "scan", *others))
    if lanes is not None:
        check_positive("lanes", lanes)


def check_rows(name: str, tree: Any, rank: int) -> tuple[int, ...]:
    """Returns the leading axes, batch or batch and time, that all leaves of `tree` share."""
    check_arrays(name, tree)
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
    """Checks that `state` holds arrays ``[batch, ...]``."""
    check_arrays("state", state)
    for leaf in jax.tree.leaves(state):
        if jnp.ndim(leaf) < 1 or jnp.shape(leaf)[0] != batch:
            raise ValueError(
                f"state must hold arrays that lead with the batch size {batch}, "
                f"got shape {jnp.shape(leaf)}."
            )
    if not jax.tree.leaves(state):
        raise ValueError("state must hold at least one array of shape [batch, ...], got none.")
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(state)]
    if not any(jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes):
        raise ValueError(
            f"state must hold floating-point arrays, through which gradients flow, got {dtypes[0]}."
        )


def check_arrays(name: str, tree: Any) -> None:
    """Checks that all leaves are arrays or numbers, and says what to do with functions."""
    for leaf in jax.tree.leaves(tree):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None:
            known = isinstance(leaf, (bool, int, float, complex)) or hasattr(leaf, "__jax_array__")
        else:
            kinds = np.bool_, np.number, jax.dtypes.extended
            known = any(jnp.issubdtype(dtype, kind) for kind in kinds)
        if known:
            continue
        if callable(leaf):
            function = getattr(leaf, "__name__", type(leaf).__name__)
            raise ValueError(
                f"{name} must hold arrays and numbers, got the function {function!r}: part the "
                "functions from them, as equinox.partition(model, equinox.is_array) does, and put "
                "both together in the step."
            )
        kind = type(leaf).__name__ if dtype is None else f"an array of {dtype}"
        raise ValueError(f"{name} must hold arrays and numbers, got {kind}.")


def check_loop(loop: str, batch: Any, time: Any) -> None:
    """Checks that the loop can take so many inputs, of a step of the caller's own."""
    if loop == "kernel":
        raise ValueError(
            "loop must be 'while' or 'scan' for a step of one's own, as only ACT has kernels, "
            "got 'kernel'."
        )
    check_choice("loop", loop, ("while", "scan"))
    if loop == "scan":
        return
    check_closed(loop, batch, time)
    if batch * time > INT32_MAX:
        raise ValueError(
            f"xs must hold at most {INT32_MAX} inputs under loop='while', "
            f"got {batch} sequences of {time}."
        )


def check_closed(loop: str, batch: Any, time: Any) -> None:
    if not (isinstance(batch, int) and isinstance(time, int)):
        raise ValueError(
            "loop must be 'scan' where jax.export leaves a dimension open, "
            f"got {loop!r} and {batch} sequences of {time} inputs."
        )


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
    for leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ValueError(
                "layers must hold floating-point states, through which gradients flow, "
                f"got {jnp.result_type(leaf)}."
            )
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


def no_probabilities(halts: Any) -> tuple[np.ndarray, np.ndarray]:
    """Known halting probabilities in float64; which lie outside [0, 1] by more than rounding."""
    inexact = jnp.issubdtype(halts.dtype, jnp.inexact)
    slack = 4 * float(jnp.finfo(halts.dtype).eps) if inexact else 0.0
    values = np.asarray(halts, np.float64)
    return values, (values < -slack) | (values > 1 + slack)


def check_probabilities(name: str, halts: Any) -> None:
    """Refuses halting probabilities outside [0, 1], where their values are known."""
    if jnp.iscomplexobj(halts):
        raise ValueError(f"{name} must be real numbers, got {halts.dtype}.")
    if isinstance(halts, jax.core.Tracer):
        return
    values, outside = no_probabilities(halts)
    if outside.any():
        raise ValueError(
            f"{name} must be probabilities between 0 and 1, got {values[outside][0]:g}."
        )


def check_unshared(name: str, module: Any) -> None:
    """Refuses a module that holds one variable in two places: `jax.grad` would part them."""
    places = shared_variable(module)
    if places is not None:
        raise ValueError(
            f"{name} must hold each variable once, since jax.grad and optimizers would part what "
            f"is shared, got one variable as {places[0]!r} and {places[1]!r}."
        )
