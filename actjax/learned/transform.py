"""Learned optimizers as Optax transformations, for any model in any training loop.

Their updates are to be added as they are: no learning rate and no minus follow. So

    frozen leaves      `optax.partition` with `optax.set_to_zero()`; `optax.masked` would hand the
                       bare gradients of the other leaves on, to be *added*
    weight decay       behind the optimizer with a minus, `optax.add_decayed_weights(-rate)`: what
                       is added there goes onto the parameters. In front of it, with a plus, it
                       becomes part of the gradient that the network sees
    after halting      `freeze_when_halted` around a chain, since what stands behind an
                       `act_optimizer` goes on moving the parameters by itself
    complex leaves     two coordinates a number. As for all of Optax, gradients of a real loss in
                       complex parameters must be conjugated first, as `minimize` does
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from actjax._checks import check_choice, shown
from actjax.learned.columns import Network, advance, empty_memory, memory_rows, pooled_hidden
from actjax.learned.features import as_tree, check_params, coordinates, leaf_scales
from actjax.learned.heads import HaltState, Head, Softmax, StickBreaking, global_features
from actjax.learned.prior import HorizonPrior
from actjax.learned.stopping import MassRule, PriceRule
from actjax.training.state import as_transformation

NONFINITE = ("skip", "halt")


class LSTMOptimizerState(NamedTuple):
    """State of `lstm_optimizer`."""

    memory: jax.Array  # [rows, N]: moments, if any, cells and hidden states of all coordinates
    count: jax.Array  # type: ignore[assignment] # int32: updates taken
    skipped: jax.Array  # int32: gradients refused because they were not finite
    halted: jax.Array  # bool: set by such a gradient where nonfinite="halt"


class ACTOptimizerState(NamedTuple):
    """State of `act_optimizer`."""

    memory: jax.Array  # [rows, N]: moments, if any, cells and hidden states of all coordinates
    posterior: HaltState  # over the halting step, up to now
    previous_loss: jax.Array  # 0 before the first update
    count: jax.Array  # type: ignore[assignment] # int32: updates taken
    skipped: jax.Array  # int32: gradients refused because they were not finite
    halted: jax.Array  # bool: from here on all updates are zero


def lstm_optimizer(
    network: Network, *, nonfinite: str = "skip", state_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    """The LSTM optimizer (Andrychowicz 2016; Sander 2017, section 4.1).

    All leaves of the pytree form one set of coordinates; give groups of leaves their own networks,
    or none, with `optax.partition`. What stands before and behind it in a chain: see
    `actjax.learned.transform`.

    Args:
      network: meta-trained, or to be: it may hold tracers.
      nonfinite: what to do when a gradient holds NaN or infinity. "skip" makes the update zero and
        leaves the state as it was; "halt" makes this and every later update zero. Either way
        `state.skipped` counts it and nothing spreads.
      state_dtype: in which the memory is kept between updates, the network's own (float32) unless
        given; `jnp.bfloat16` halves its 320 bytes a coordinate and the arithmetic stays as it is.
        For accelerators: on a CPU the coordinates then go through all at once, which is slower.

    Raises:
      ValueError: for another `nonfinite` or a `state_dtype` that is not floating; from `init` and
        `update` for params and gradients that hold anything but floating-point and complex arrays;
        from `update` for a state that `init` did not make of such params.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from flax import nnx
      >>> from actjax.learned import CoordinatewiseLSTM
      >>> network = CoordinatewiseLSTM(rngs=nnx.Rngs(0))
      >>> optimizer = lstm_optimizer(network)
      >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(())}
      >>> updates, state = optimizer.update(params, optimizer.init(params), params)
      >>> optax.apply_updates(params, updates)["w"].shape
      (2, 3)

      A leaf that stays as it is, and decay of .01 an update for the other:

      >>> learned = optax.chain(optimizer, optax.add_decayed_weights(-0.01))
      >>> chosen = optax.partition(
      ...     {"learned": learned, "frozen": optax.set_to_zero()}, {"w": "learned", "b": "frozen"}
      ... )
      >>> moved, _ = chosen.update(params, chosen.init(params), params)
      >>> bool(jnp.allclose(moved["w"], updates["w"] - 0.01)), float(moved["b"])
      (True, 0.0)

      `optax.inject_hyperparams` takes a network for a schedule unless told that it is static:

      >>> def scaled(network, scale):
      ...     return optax.chain(lstm_optimizer(network), optax.scale(scale))
      >>> halved = optax.inject_hyperparams(scaled, static_args="network")(network, scale=0.5)
      >>> half, state = halved.update(params, halved.init(params), params)
      >>> bool(jnp.allclose(half["w"], 0.5 * updates["w"])), float(state.hyperparams["scale"])
      (True, 0.5)
    """
    _check_options(network, nonfinite, state_dtype)

    def init(params):
        check_params(params)
        columns = coordinates(params)
        memory = empty_memory(network, columns, state_dtype)
        return LSTMOptimizerState(memory, _zero(columns), _zero(columns), _zero(columns, bool))

    def update(gradients, state, params=None, **extra):
        del extra
        gradient = _gradient(network, gradients, state, LSTMOptimizerState)
        seen = _seen(network, params, gradient)
        finite = jnp.isfinite(gradient).all()
        ok = finite & ~state.halted
        memory, values = advance(network, state.memory, gradient, seen, ok)
        state = LSTMOptimizerState(
            memory,
            state.count + ok.astype(jnp.int32),
            state.skipped + (~finite & ~state.halted).astype(jnp.int32),
            state.halted | (~finite if nonfinite == "halt" else False),
        )
        return as_tree(values, gradients), state

    return optax.GradientTransformationExtraArgs(init, update)


def act_optimizer(
    network: Network,
    head: Head,
    posterior: Any = None,
    *,
    stop: Any = None,
    nonfinite: str = "skip",
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """The ACT optimizer: it also decides when to stop (Sander 2017, section 4.2).

    After halting every update of its own is exactly zero and `state.halted` is set, which
    `minimize` looks for; `freeze_when_halted` keeps what stands behind it in a chain from moving
    the parameters on. A head that sees global features needs the loss: call
    `update(gradients, state, params, value=loss)`, as for Optax's line searches.

    Args:
      network: steps; see `lstm_optimizer`.
      head: scores the chance to stop.
      posterior: what its scores mean, one of `heads`; by default `Softmax` with nu = 0.95.
      stop: rule `HaltState -> bool`; by default `default_rule(posterior)`: the price rule for the
        softmax, the mass rule at .5 for stick-breaking, and at 1 less a rounding, which is Graves'
        own rule, for Graves.
      nonfinite: as for `lstm_optimizer`.
      state_dtype: as for `lstm_optimizer`.

    Raises:
      ValueError: as for `lstm_optimizer`; from `update` when the head needs `value` and it was not
        given, and for a `value` that is not one real number.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from actjax.learned import CoordinatewiseLSTM, Head
      >>> network, head = CoordinatewiseLSTM(rngs=nnx.Rngs(0)), Head(20, rngs=nnx.Rngs(1))
      >>> optimizer = act_optimizer(network, head, stop=lambda belief: belief.steps >= 2)
      >>> params = jnp.ones(3)
      >>> state = optimizer.init(params)
      >>> for _ in range(3):
      ...     updates, state = optimizer.update(params, state, params, value=jnp.sum(params**2))
      >>> bool(state.halted), int(state.count), float(abs(updates).max())
      (True, 2, 0.0)
    """
    _check_options(network, nonfinite, state_dtype)
    posterior = Softmax(HorizonPrior(0.95)) if posterior is None else posterior
    stop = default_rule(posterior) if stop is None else stop

    def init(params):
        check_params(params)
        columns = coordinates(params)
        loss = _zero(columns, jnp.float32)
        return ACTOptimizerState(
            empty_memory(network, columns, state_dtype),
            posterior.begin(loss),
            loss,
            _zero(columns),
            _zero(columns),
            # Without coordinates, as in an empty group of a partition, there is nothing to go on.
            _zero(columns, bool) | (columns.size == 0),
        )

    def update(gradients, state, params=None, *, value=None, **extra):
        del extra
        if head.see_globals and value is None:
            raise ValueError(
                "value must be the loss for a head that sees it, as in "
                "update(gradients, state, params, value=loss), got None."
            )
        gradient = _gradient(network, gradients, state, ACTOptimizerState)
        seen = _seen(network, params, gradient)
        finite = jnp.isfinite(gradient).all()
        if value is not None:
            _check_loss(value)
            value = jnp.asarray(value, jnp.float32)
            finite = finite & jnp.isfinite(value)
        ok = finite & ~state.halted
        memory, values = advance(network, state.memory, gradient, seen, ok)
        count = state.count + ok.astype(jnp.int32)
        loss = state.previous_loss if value is None else jnp.where(ok, value, state.previous_loss)
        features = None
        if head.see_globals:
            norm = jnp.sqrt(jnp.sum(jnp.square(jnp.where(ok, gradient, 0))))
            features = global_features(loss, state.previous_loss, norm, count)[:, None]
        score = head(pooled_hidden(network, memory), features)[0]
        belief = posterior.advance(state.posterior, score)
        state = ACTOptimizerState(
            memory,
            _choose(ok, belief, state.posterior),
            loss,
            count,
            state.skipped + (~finite & ~state.halted).astype(jnp.int32),
            jnp.where(ok, stop(belief), state.halted | (~finite if nonfinite == "halt" else False)),
        )
        return as_tree(values, gradients), state

    return optax.GradientTransformationExtraArgs(init, update)


def default_rule(posterior: Any) -> MassRule | PriceRule:
    """The stop rule an `act_optimizer` takes where none is given."""
    if isinstance(posterior, StickBreaking):
        return MassRule(0.5)
    return PriceRule() if isinstance(posterior, Softmax) else MassRule(1 - 1e-6)


def freeze_when_halted(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Makes every update of a chain exactly zero once what halts in it has halted.

    Weight decay, momentum or averages behind an `act_optimizer` would go on moving the parameters.
    Put it around the chain; in an `optax.partition`, around the chain of each group.

    Args:
      optimizer: any transformation with a `halted` field somewhere in its state. Of several, all
        must have halted. Its state stays as it was then.

    Raises:
      ValueError: from `init` for an optimizer without such a field.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from flax import nnx
      >>> from actjax.learned import CoordinatewiseLSTM, Head
      >>> network, head = CoordinatewiseLSTM(rngs=nnx.Rngs(0)), Head(20, rngs=nnx.Rngs(1))
      >>> learned = act_optimizer(network, head, stop=lambda belief: belief.steps >= 2)
      >>> optimizer = freeze_when_halted(optax.chain(learned, optax.add_decayed_weights(-0.01)))
      >>> params = jnp.ones(3)
      >>> state = optimizer.init(params)
      >>> for _ in range(3):
      ...     updates, state = optimizer.update(params, state, params, value=jnp.sum(params**2))
      >>> bool(is_halted(state)), float(abs(updates).max())
      (True, 0.0)
    """
    optimizer = as_transformation(optimizer)

    def init(params):
        state = optimizer.init(params)
        if not _halted_flags(state):
            raise ValueError(
                "optimizer must hold a transformation that halts, such as act_optimizer, "
                f"got a state without a field `halted`: {type(state).__name__}."
            )
        return state

    def update(updates, state, params=None, **extra):
        done = is_halted(state)
        updates, after = optimizer.update(updates, state, params, **extra)
        updates = jax.tree.map(lambda leaf: jnp.where(done, 0, leaf), updates)
        return updates, _choose(done, state, after)

    return optax.GradientTransformationExtraArgs(init, update)


def is_halted(state: Any) -> jax.Array:
    """Whether every optimizer in `state` that can halt has; False where none can: bool []."""
    flags = _halted_flags(state)
    return jnp.stack(flags).all() if flags else jnp.asarray(False)


def _halted_flags(state):
    return [flag for _, flag in optax.tree.get_all_with_path(state, "halted")]


def _check_options(network, nonfinite, state_dtype):
    check_choice("nonfinite", nonfinite, NONFINITE)
    if state_dtype is not None and not jnp.issubdtype(state_dtype, jnp.floating):
        raise ValueError(f"state_dtype must be a floating-point dtype, got {state_dtype!r}.")
    if state_dtype is not None and network.moment_rows:
        # A mean of squares that decays by .99 does not move in bfloat16.
        raise ValueError(
            f"state_dtype must be None for a network that keeps moments, got {state_dtype!r}."
        )


def _gradient(network, gradients, state, kind):
    """The coordinates of the gradients, float [N], if `state` is one of theirs."""
    check_params(gradients, "gradients")
    if not isinstance(state, kind):
        raise ValueError(
            f"state must be an {kind.__name__}, as init makes it, got {type(state).__name__}."
        )
    gradient = coordinates(gradients)
    wanted, found = (memory_rows(network), len(gradient)), getattr(state.memory, "shape", None)
    if found != wanted:
        raise ValueError(
            f"state must be what init makes of params with the {len(gradient)} coordinates of the "
            f"gradients, a memory of shape {wanted}, got one of shape {found}."
        )
    return gradient


def _check_loss(value):
    dtype = getattr(value, "dtype", type(value))
    is_real = any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer))
    if not is_real or jnp.shape(value):
        got = shown(value) if hasattr(value, "shape") else repr(value)
        raise ValueError(f"value must be the loss, one real number, got {got}.")


def _seen(network, params, gradient):
    """The parameters and their scales as a network sees them, None where it does not."""
    if not (network.see_params or network.see_scale):
        return None, None
    if params is None:
        raise ValueError("params must be given to update for a network that sees them, got None.")
    count = sum(jnp.size(leaf) * (1 + jnp.iscomplexobj(leaf)) for leaf in jax.tree.leaves(params))
    if count != len(gradient):
        raise ValueError(
            f"params must have the {len(gradient)} coordinates of the gradients, got {count}."
        )
    values = coordinates(params) if network.see_params else None
    return values, leaf_scales(params) if network.see_scale else None


def _zero(columns: jax.Array, dtype=jnp.int32) -> jax.Array:
    """A zero that comes from the parameters, in a buffer of its own."""
    return jnp.sum(jnp.zeros_like(columns, jnp.int32)).astype(dtype)


def _choose(condition, yes, no):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
