"""Learned optimizers as Optax transformations, for any model in any training loop."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from actjax._checks import check_choice, check_positive
from actjax.learned.features import as_tree, coordinates
from actjax.learned.heads import HaltState, Head, Softmax, StickBreaking, global_features
from actjax.learned.network import CoordinatewiseLSTM, LSTMState
from actjax.learned.prior import HorizonPrior
from actjax.learned.stopping import MassRule, PriceRule

NONFINITE = ("skip", "halt")


class LSTMOptimizerState(NamedTuple):
    """State of `lstm_optimizer`."""

    memory: LSTMState
    count: jax.Array  # type: ignore[assignment] # int32: updates taken
    skipped: jax.Array  # int32: gradients refused because they were not finite
    halted: jax.Array  # bool: set by such a gradient where nonfinite="halt"


class ACTOptimizerState(NamedTuple):
    """State of `act_optimizer`."""

    memory: LSTMState
    posterior: HaltState  # over the halting step, up to now
    previous_loss: jax.Array  # nan before the first update
    count: jax.Array  # type: ignore[assignment] # int32: updates taken
    skipped: jax.Array  # int32: gradients refused because they were not finite
    halted: jax.Array  # bool: from here on all updates are zero


def lstm_optimizer(
    network: CoordinatewiseLSTM, *, nonfinite: str = "skip"
) -> optax.GradientTransformationExtraArgs:
    """The LSTM optimizer (Andrychowicz 2016; Sander 2017, section 4.1).

    Updates are to be added to the parameters, with no learning rate. All leaves of the pytree form
    one set of coordinates; give groups of leaves their own networks with `optax.partition`.

    Args:
      network: meta-trained, or to be: it may hold tracers.
      nonfinite: what to do when a gradient holds NaN or infinity. "skip" makes the update zero and
        leaves the state as it was; "halt" makes this and every later update zero. Either way
        `state.skipped` counts it and nothing spreads.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from flax import nnx
      >>> optimizer = lstm_optimizer(CoordinatewiseLSTM(rngs=nnx.Rngs(0)))
      >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(())}
      >>> updates, state = optimizer.update(params, optimizer.init(params), params)
      >>> optax.apply_updates(params, updates)["w"].shape
      (2, 3)
    """
    check_choice("nonfinite", nonfinite, NONFINITE)

    def init(params):
        columns = coordinates(params)
        return LSTMOptimizerState(
            network.initial_state(columns), _count(columns), _count(columns), _count(columns) > 0
        )

    def update(gradients, state, params=None, **extra):
        del extra
        gradient = coordinates(gradients)
        seen = _seen_params(network, params)
        finite = jnp.isfinite(gradient).all()
        ok = finite & ~state.halted
        memory, values = network(state.memory, jnp.where(ok, gradient, 0), seen)
        after = LSTMOptimizerState(memory, state.count + 1, state.skipped, state.halted)
        state = state._replace(
            skipped=state.skipped + (~finite & ~state.halted),
            halted=state.halted | (~finite if nonfinite == "halt" else False),
        )
        state = _choose(ok, after, state)
        return as_tree(jnp.where(ok, values, 0), gradients), state

    return optax.GradientTransformationExtraArgs(init, update)


def act_optimizer(
    network: CoordinatewiseLSTM,
    head: Head,
    posterior: Any = None,
    *,
    stop: Any = None,
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """The ACT optimizer: it also decides when to stop (Sander 2017, section 4.2).

    After halting every update is exactly zero and `state.halted` is set, which `minimize` looks
    for. A head that sees global features needs the loss: call
    `update(gradients, state, params, value=loss)`, as for Optax's line searches.

    Args:
      network: steps; see `lstm_optimizer`.
      head: scores the chance to stop.
      posterior: what its scores mean, one of `heads`; by default `Softmax` with nu = 0.95.
      stop: rule `HaltState -> bool`; by default `default_rule(posterior)`: the price rule for the
        softmax, the mass rule at .5 for stick-breaking, and at 1 less a rounding, which is Graves'
        own rule, for Graves.
      nonfinite: as for `lstm_optimizer`.

    Raises:
      ValueError: from `update` when the head needs `value` and it was not given.
    """
    check_choice("nonfinite", nonfinite, NONFINITE)
    posterior = Softmax(HorizonPrior(0.95)) if posterior is None else posterior
    stop = default_rule(posterior) if stop is None else stop

    def init(params):
        columns = coordinates(params)
        nothing = _count(columns).astype(jnp.float32)
        return ACTOptimizerState(
            network.initial_state(columns),
            posterior.begin(nothing),
            nothing + jnp.nan,
            _count(columns),
            _count(columns),
            _count(columns) > 0,
        )

    def update(gradients, state, params=None, *, value=None, **extra):
        del extra
        if head.see_globals and value is None:
            raise ValueError(
                "value must be given to update for a head that sees the loss: "
                "update(gradients, state, params, value=loss)"
            )
        gradient = coordinates(gradients)
        seen = _seen_params(network, params)
        finite = jnp.isfinite(gradient).all()
        if value is not None:
            value = jnp.asarray(value, jnp.float32)
            finite = finite & jnp.isfinite(value)
        ok = finite & ~state.halted
        gradient = jnp.where(ok, gradient, 0)
        memory, values = network(state.memory, gradient, seen)
        count = state.count + 1
        features = None
        if head.see_globals:
            norm = jnp.sqrt(jnp.sum(jnp.square(gradient)))
            loss = jnp.where(ok, value, 0)
            features = global_features(loss, state.previous_loss, norm, count)[:, None]
        score = head(memory.hidden[-1].mean(-1, keepdims=True), features)[0]
        belief = posterior.advance(state.posterior, score)
        loss = state.previous_loss if value is None else value
        after = ACTOptimizerState(memory, belief, loss, count, state.skipped, stop(belief))
        state = state._replace(
            skipped=state.skipped + (~finite & ~state.halted),
            halted=state.halted | (~finite if nonfinite == "halt" else False),
        )
        return as_tree(jnp.where(ok, values, 0), gradients), _choose(ok, after, state)

    return optax.GradientTransformationExtraArgs(init, update)


def default_rule(posterior: Any) -> MassRule | PriceRule:
    """The stop rule an `act_optimizer` takes where none is given."""
    if isinstance(posterior, StickBreaking):
        return MassRule(0.5)
    return PriceRule() if isinstance(posterior, Softmax) else MassRule(1 - 1e-6)


class Minimum(NamedTuple):
    """What `minimize` found; under `jax.vmap` every field has the problems' axis in front."""

    params: Any
    loss: jax.Array  # at params
    steps: jax.Array  # int32: updates taken
    halted: jax.Array  # bool: stopped by itself, not by max_steps
    state: Any  # the optimizer's


def minimize(
    optimizer: optax.GradientTransformation, loss: Any, params: Any, *, max_steps: int
) -> Minimum:
    """Minimises `loss` in a `lax.while_loop` that ends when the optimizer halts.

    Batched with `jax.vmap` each problem halts by itself, and the loop ends with the last.

    Args:
      optimizer: any Optax transformation. One with a `halted` field in its state (several, in a
        partition: all of them) ends the loop; others run `max_steps`.
      loss: `params -> scalar`.
      params: where to start.
      max_steps: most updates to take, an integer of at least 1.

    Raises:
      ValueError: for another `max_steps`, where its value is known.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> found = minimize(optax.sgd(0.1), lambda x: jnp.sum(x**2), jnp.ones(3), max_steps=50)
      >>> int(found.steps), bool(found.loss < 1e-6)
      (50, True)
    """
    if not isinstance(max_steps, jax.Array):
        check_positive("max_steps", max_steps)
    elif not jnp.issubdtype(max_steps.dtype, jnp.integer):
        raise ValueError(f"max_steps must be an integer of at least 1, got {max_steps.dtype}.")
    elif not isinstance(max_steps, jax.core.Tracer):
        check_positive("max_steps", int(max_steps))
    optimizer = optax.with_extra_args_support(optimizer)
    params = jax.tree.map(jnp.asarray, params)
    value_and_grad = jax.value_and_grad(loss)

    def going(carry):
        _, state, steps = carry
        return (steps < max_steps) & ~is_halted(state)

    def body(carry):
        params, state, steps = carry
        value, gradients = value_and_grad(params)
        updates, state = optimizer.update(gradients, state, params, value=value)
        return optax.apply_updates(params, updates), state, steps + 1

    steps = jnp.zeros((), jnp.int32)
    params, state, steps = lax.while_loop(going, body, (params, optimizer.init(params), steps))
    return Minimum(params, loss(params), steps, is_halted(state), state)


def is_halted(state: Any) -> jax.Array:
    """Whether every optimizer in `state` that can halt has; False where none can: bool []."""
    flags = [flag for _, flag in optax.tree.get_all_with_path(state, "halted")]
    return jnp.stack(flags).all() if flags else jnp.asarray(False)


def _seen_params(network, params):
    if not network.see_params:
        return None
    if params is None:
        raise ValueError("params must be given to update for a network that sees them, got None")
    return coordinates(params)


def _count(columns: jax.Array) -> jax.Array:
    """An int32 zero that comes from the parameters."""
    return jnp.zeros_like(jnp.sum(columns), jnp.int32)


def _choose(condition, yes, no):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
