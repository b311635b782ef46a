"""What a step, a rule and a module must return and leave alone: seen in a trace, never by a run."""

import contextlib
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from actjax._checks import no_probabilities, shown
from actjax._variables import Touched, observed


def check_effects(effects: Any) -> None:
    """Refuses a step that does more than it returns, of which the adaptive loop keeps nothing."""
    names = sorted({type(effect).__name__ for effect in effects} - {"NamedAxisEffect"})
    if names:
        raise ValueError(
            f"step must have no effects such as printing under loop='while', got {names}: "
            "use loop='scan' for them."
        )


def check_step(step: Any, params: Any, state: Any, *inputs: Any) -> Any:
    """Checks what `step` returns against its contract, without running it; returns its jaxpr.

    The last of its inputs has one number a row.
    """
    touched = []

    def call(params, state, *inputs):
        result, found = observed(lambda params: step(params, state, *inputs), params)
        touched.append(found)
        return result

    with own_variables("step"):
        traced, result = jax.make_jaxpr(call, return_shape=True)(params, state, *inputs)
    check_written("params", touched[-1])
    if touched[-1].drawn:
        raise ValueError(
            "params must hold no stream of noise that the step draws from, since all steps would "
            f"draw the same, got the stream {touched[-1].drawn[0]!r}: give keys in xs instead."
        )
    if not isinstance(result, tuple) or len(result) != 2:
        got = "an array" if hasattr(result, "shape") else type(result).__name__
        raise ValueError(f"step must return (state, halt), got {got}.")
    new_state, halt = result
    before, after = _described(jax.eval_shape(lambda tree: tree, state)), _described(new_state)
    if before != after:
        raise ValueError(
            f"step must return a state of the same structure, shapes and dtypes as it was given, "
            f"{before}, got {after}."
        )
    rows = inputs[-1].shape
    if getattr(halt, "shape", None) != rows or not jnp.issubdtype(halt.dtype, jnp.floating):
        raise ValueError(
            "step must return one float halting probability a row, "
            f"of shape {rows}, got {shown(halt)}."
        )
    return traced


def check_halts(traced: Any, arguments: Any, lengths: Any) -> None:
    """Checks the halting probabilities of the first step where its arguments are known numbers.

    Args:
      traced: the step, as `check_step` returns it.
    """
    leaves = jax.tree.leaves((arguments, lengths, traced.consts))
    if traced.effects or any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return
    with jax.debug_nans(False):  # the loop is where a NaN is to be found
        halt = jax.core.eval_jaxpr(traced.jaxpr, traced.consts, *jax.tree.leaves(arguments))[-1]
    halt, outside = no_probabilities(halt)
    if lengths is not None:
        outside &= np.asarray(lengths) > 0
    if outside.any():
        raise ValueError(
            "step must return halting probabilities between 0 and 1, as jax.nn.sigmoid makes them "
            f"of logits, got {halt[outside][0]:g}."
        )


def check_rule(rule: Any, epsilon: float | None = None) -> Any:
    """Returns `rule`, if its methods return what they have to; they are not run.

    Args:
      epsilon: what was given beside it, which is for Graves' rule alone to be made with.
    """
    if isinstance(rule, type):
        raise ValueError(f"rule must be made, {rule.__name__}(...), got the class.")
    missing = [name for name in ("mean", "start", "decide", "update") if not hasattr(rule, name)]
    if missing:
        raise ValueError(f"rule must have {', '.join(missing)} as a Rule does, got {rule!r}.")
    if epsilon is not None:
        raise ValueError(f"epsilon must be the rule's own where rule is given, got {epsilon!r}.")
    halt, n = jax.ShapeDtypeStruct((2,), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    before = jax.eval_shape(rule.start, halt)
    last = jax.eval_shape(rule.decide, before, n, halt)
    if getattr(last, "shape", None) != (2,) or last.dtype != bool:
        raise ValueError(f"rule must decide by one bool a row, got {shown(last)}.")
    result = jax.eval_shape(rule.update, before, n, halt, last)
    if not isinstance(result, tuple) or len(result) != 3:
        kind = len(result) if isinstance(result, tuple) else shown(result)
        raise ValueError(f"rule must update to (registers, weight, extra), got {kind}.")
    after, weight, extra = result
    if _described(after) != _described(before):
        raise ValueError(
            "rule must update its registers to the structure, shapes and dtypes they started with, "
            f"{_described(before)}, got {_described(after)}."
        )
    is_float = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    if getattr(weight, "shape", None) != (2,) or not is_float(weight):
        raise ValueError(f"rule must give one float weight a row, got {shown(weight)}.")
    for leaf in jax.tree.leaves((before, extra)):
        if leaf.shape[:1] != (2,) or not is_float(leaf):
            raise ValueError(
                f"rule must hold and tell floats that lead with the row axis, got {shown(leaf)}."
            )
    return rule


def check_mean(rule: Any, state: Any) -> None:
    """Checks that `rule.mean` fits the state."""
    try:
        jax.tree.broadcast(rule.mean, state)
    except ValueError:
        raise ValueError(
            "rule must have a mean that is a bool or a tree of bools that the state begins with, "
            f"{jax.tree.structure(state)}, got {rule.mean!r}."
        ) from None


def _described(tree: Any) -> Any:
    """The shape and dtype of every leaf."""
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)


@contextlib.contextmanager
def own_variables(name: str):
    """Within it, what is called `name` is traced: it may change no variable from outside."""
    try:
        yield
    except flax.errors.TraceContextError:
        raise ValueError(
            f"{name} must change no variable when it is called, "
            "got a write to one that is not among its own."
        ) from None


def check_written(name: str, touched: Touched) -> None:
    """Refuses a call that changed variables: no later step would find what it wrote."""
    if touched.written:
        path, kind = touched.written[0]
        raise ValueError(
            f"{name} must change none of its variables when it is called, since a loop keeps "
            f"nothing of it, got a write to {kind} {path!r}."
        )
