"""Minimising a function in one compiled loop that ends when the optimizer halts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from actjax._checks import check_positive, shown
from actjax._loop.once import in_forward_only
from actjax.learned.features import check_params
from actjax.learned.transform import is_halted
from actjax.training.state import apply_updates, as_transformation

_REVERSE = (
    "minimize has no reverse-mode derivative: use forward mode, as jax.jacfwd does, or a lax.scan "
    "over updates of the optimizer."
)


class Minimum(NamedTuple):
    """What `minimize` found; under `jax.vmap` every field has the problems' axis in front."""

    params: Any
    loss: jax.Array  # at params
    steps: jax.Array  # int32: updates taken
    halted: jax.Array  # bool: stopped by itself, not by max_steps
    state: Any  # the optimizer's


def minimize(
    optimizer: optax.GradientTransformation,
    loss: Callable[[Any], jax.Array],
    params: Any,
    *,
    max_steps: int,
) -> Minimum:
    """Minimises `loss` in a `lax.while_loop` that ends when the optimizer halts.

    Batched with `jax.vmap` each problem halts by itself, and the loop ends with the last.

    The optimizer is given `value`, `grad` and `value_fn`, so that line searches (`optax.lbfgs`) and
    all that look at the loss (`optax.polyak_sgd`, `optax.contrib.reduce_on_plateau`,
    `optax.contrib.momo`, `act_optimizer`) work as they are. Where a line search has the last word
    the value and the gradient that it kept are used again (`optax.value_and_grad_from_state`).

    Gradients in complex parameters are conjugated, as Optax asks for, so that they lead downhill.

    What it finds has a derivative in forward mode (`jax.jacfwd`), in `params` and in what `loss`
    closes over. Reverse mode asks for a loop of known length.

    Args:
      optimizer: any Optax transformation. One with a `halted` field in its state (several, in a
        partition: all of them) ends the loop; others run `max_steps`.
      loss: `params -> scalar`, real.
      params: where to start: a pytree of floating-point and complex numbers.
      max_steps: most updates to take, an integer of at least 1.

    Raises:
      ValueError: for another `max_steps`, where its value is known; for other params; for a loss
        that is not one real number; for a backtracking line search over complex parameters.
      TypeError: what it finds is differentiated in reverse mode.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> found = minimize(optax.sgd(0.1), lambda x: jnp.sum(x**2), jnp.ones(3), max_steps=50)
      >>> int(found.steps), bool(found.loss < 1e-6)
      (50, True)
      >>> rosenbrock = lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
      >>> found = minimize(optax.lbfgs(), rosenbrock, jnp.array([-1.0, 1.0]), max_steps=40)
      >>> bool(jnp.allclose(found.params, 1.0, atol=1e-3))
      True
    """
    if not isinstance(max_steps, jax.Array):
        check_positive("max_steps", max_steps)
    elif not jnp.issubdtype(max_steps.dtype, jnp.integer):
        raise ValueError(f"max_steps must be an integer of at least 1, got {max_steps.dtype}.")
    elif not isinstance(max_steps, jax.core.Tracer):
        check_positive("max_steps", int(max_steps))
    check_params(params)
    # With strong types, which are what every update gives back.
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), params)
    optimizer = as_transformation(optimizer)
    state = optimizer.init(params)
    result = jax.eval_shape(loss, params)
    if getattr(result, "shape", None) != () or not jnp.issubdtype(result.dtype, jnp.floating):
        raise ValueError(f"loss must return one real floating-point number, got {shown(result)}.")
    if any(map(jnp.iscomplexobj, jax.tree.leaves(params))):
        _check_complex(state)

    def going(carry):
        _, state, steps = carry
        return (steps < max_steps) & ~is_halted(state)

    def body(carry):
        params, state, steps = carry
        search = _last_search(state)
        if search is not None and search.value.dtype == result.dtype:
            value, slope = optax.value_and_grad_from_state(loss)(params, state=search)
        else:
            value, slope = jax.value_and_grad(loss)(params)
        gradients = jax.tree.map(jnp.conj, slope)
        updates, state = optimizer.update(
            gradients, state, params, value=value, grad=gradients, value_fn=loss
        )
        return apply_updates(params, updates), state, steps + 1

    steps = jnp.zeros((), jnp.int32)
    params, state, steps = lax.while_loop(going, body, (params, state, steps))
    params, state = in_forward_only((params, state), _REVERSE)
    return Minimum(params, loss(params), steps, is_halted(state), state)


def _last_search(state: Any) -> Any:
    """The state of a line search that nothing follows in a chain, if it keeps its gradient."""
    while type(state) is tuple and state:
        state = state[-1]
    kept = getattr(state, "value", None) is not None and getattr(state, "grad", None) is not None
    return state if kept else None


def _check_complex(state: Any):
    """Optax's backtracking takes the slope of conjugated gradients wrongly."""
    kind = optax.ScaleByBacktrackingLinesearchState
    is_search = lambda node: isinstance(node, kind)
    if any(map(is_search, jax.tree.leaves(state, is_leaf=is_search))):
        raise ValueError(
            "optimizer must search lines by optax.scale_by_zoom_linesearch, if at all, for complex "
            "params, got scale_by_backtracking_linesearch."
        )
