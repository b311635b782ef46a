"""Meta-training: an optimizer unrolled on many problems at once, and its objectives.

The problems of a batch lie on the *last* axis of every leaf, so that all their coordinates form the
columns of one product a layer (see `network`). Time is counted from 1; the loss of step t is scored
after update t, on the minibatch whose gradient update t + 1 will use, so that each step costs one
evaluation of value and gradient.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax

from actjax._checks import check_positive
from actjax.learned.features import as_tree, coordinates, leaf_scales
from actjax.learned.heads import Head, global_features
from actjax.learned.network import CoordinatewiseLSTM, GroupedLSTM, LSTMState
from actjax.learned.problems.family import Family
from actjax.learned.transform import act_optimizer, lstm_optimizer


class LearnedOptimizer(nnx.Module):
    """The parameters of an optimizer: the network, and the halting head where it has one.

    Args:
      network: steps.
      head: scores the chance to stop.
      posterior: what its scores mean, where that is settled; see `act_optimizer`.
      stop: the rule by which it then stops, likewise.

    Example:
      >>> import jax.numpy as jnp
      >>> from actjax import learned
      >>> optimizer = learned.load("regression").optimizer()
      >>> found = learned.minimize(optimizer, lambda x: jnp.sum((x - 1) ** 2), jnp.zeros(3),
      ...                          max_steps=200)
      >>> bool(found.halted), bool(found.loss < 0.1)
      (True, True)
    """

    def __init__(
        self,
        network: CoordinatewiseLSTM | GroupedLSTM,
        head: Head | None = None,
        posterior: Any = None,
        stop: Any = None,
    ):
        self.network = network
        self.head = head
        self.posterior = posterior
        self.stop = stop

    def optimizer(self, **options) -> optax.GradientTransformationExtraArgs:
        """Itself as an Optax transformation: `act_optimizer` with a head, else `lstm_optimizer`.

        Args:
          **options: `nonfinite` and `state_dtype` of either.
        """
        if self.head is None:
            return lstm_optimizer(self.network, **options)
        return act_optimizer(self.network, self.head, self.posterior, stop=self.stop, **options)


class Rollout(NamedTuple):
    """Where the problems of a batch stand; B is the last axis of params, data and gradient."""

    params: Any
    data: Any
    keys: jax.Array  # [B]: one a problem, for its minibatches
    step: jax.Array  # int32 []: updates taken
    memory: LSTMState  # [hidden, N * B]
    loss: jax.Array  # [B]: of the current params
    previous_loss: jax.Array  # [B]: of the params before; 0 at the start
    gradient: Any  # of complex params the conjugate, which leads uphill


class Curves(NamedTuple):
    """What an unroll of S steps leaves behind."""

    losses: jax.Array  # [S, B]: after each update
    scores: jax.Array  # [S, B]: of the halting head; zeros without one


def start(
    network: CoordinatewiseLSTM | GroupedLSTM, family: Family, key: jax.Array, batch_size: int
) -> Rollout:
    """Draws `batch_size` fresh problems."""
    check_positive("batch_size", batch_size)
    key_problem, key_batch = jax.random.split(key)
    params, data = jax.vmap(family.sample, out_axes=-1)(jax.random.split(key_problem, batch_size))
    keys = jax.random.split(key_batch, batch_size)
    loss, gradient = evaluate(family, params, data, keys, jnp.zeros((), jnp.int32))
    memory = network.initial_state(coordinates(params))
    step = jnp.zeros((), jnp.int32)
    return Rollout(params, data, keys, step, memory, loss, jnp.zeros_like(loss), gradient)


def unroll(
    optimizer: LearnedOptimizer,
    family: Family,
    rollout: Rollout,
    steps: int,
    *,
    second_order: bool = False,
    chunk: int | None = None,
    drawn: jax.Array | None = None,
) -> tuple[Rollout, Curves]:
    """Takes `steps` updates on every problem.

    Args:
      optimizer: its network and, where it has one, halting head.
      family: the problems' family.
      rollout: where they stand.
      steps: S.
      second_order: differentiate through the optimizee's gradient. Off, as in the papers, the
        gradients the network is shown are constants, and the derivative of a loss in its
        parameters is the gradient already at hand, so that nothing is evaluated twice.
      chunk: keep only every `chunk`-th state for the backward pass and work out the others again;
        must divide `steps`.
      drawn: int [M], columns drawn evenly from all N * B. The derivative is then taken through
        these alone and scaled up: since first-order columns do not see each other that is an
        unbiased estimate, and for models of many parameters it costs little more than the unroll.

    Returns:
      Where the problems stand then, and their curves.
    """
    if chunk is not None and (chunk < 1 or steps % chunk):
        raise ValueError(f"chunk must divide steps = {steps}, got {chunk!r}.")
    if drawn is not None:
        network, head = optimizer.network, optimizer.head
        plain = isinstance(network, CoordinatewiseLSTM) and not network.see_params and head is None
        if second_order or not plain:
            raise ValueError(
                "drawn must be None but for first-order derivatives of one CoordinatewiseLSTM that "
                "sees no params and has no head, got columns."
            )
        return _unroll_drawn(optimizer, family, rollout, steps, drawn)

    def step(rollout: Rollout, _):
        return optimizer_step(optimizer, family, rollout, second_order=second_order)

    if chunk is None:
        return lax.scan(step, rollout, length=steps)

    @jax.checkpoint
    def several(rollout, _):
        return lax.scan(step, rollout, length=chunk)

    rollout, curves = lax.scan(several, rollout, length=steps // chunk)
    return rollout, jax.tree.map(lambda rows: rows.reshape(steps, -1), curves)


def _unroll_drawn(optimizer, family, rollout, steps, drawn):
    """`unroll` whose derivative goes through the columns `drawn`, which are stepped twice."""
    constant = LearnedOptimizer(lax.stop_gradient(optimizer.network))
    share = drawn.shape[0] / rollout.memory.hidden[0].shape[-1]

    def step(carry, _):
        rollout, memory, moved = carry
        seen = coordinates(rollout.gradient), None, _scales(constant.network, rollout.params)
        rollout, curves = optimizer_step(constant, family, rollout)
        memory, update = optimizer.network(memory, *jax.tree.map(lambda row: row[drawn], seen))
        moved = moved + update
        slope = coordinates(rollout.gradient)[drawn] / share
        nothing = (moved - lax.stop_gradient(moved)) * lax.stop_gradient(slope)
        losses = lax.stop_gradient(curves.losses).at[drawn % curves.losses.shape[0]].add(nothing)
        return (rollout, memory, moved), curves._replace(losses=losses)

    memory = jax.tree.map(lambda columns: columns[:, drawn], rollout.memory)
    moved = jnp.zeros_like(memory.hidden[0][0])
    (rollout, _, _), curves = lax.scan(step, (rollout, memory, moved), length=steps)
    return rollout, curves


def optimizer_step(
    optimizer: LearnedOptimizer, family: Family, rollout: Rollout, *, second_order: bool = False
) -> tuple[Rollout, Curves]:
    """One update of every problem, and its row of the curves."""
    network = optimizer.network
    gradient = rollout.gradient if second_order else lax.stop_gradient(rollout.gradient)
    seen = coordinates(rollout.params) if network.see_params else None
    memory, update = network(
        rollout.memory, coordinates(gradient), seen, _scales(network, rollout.params)
    )
    params = jax.tree.map(jnp.add, rollout.params, as_tree(update, rollout.params))
    count = rollout.step + 1
    if second_order:
        loss, next_gradient = evaluate(family, params, rollout.data, rollout.keys, count)
    else:
        here = lax.stop_gradient(params)
        loss, next_gradient = evaluate(family, here, rollout.data, rollout.keys, count)
        loss = with_derivative(loss, params, next_gradient)
    scores = jnp.zeros_like(loss)
    if optimizer.head is not None:
        scores = score(optimizer.head, memory, rollout, gradient, count)
    after = rollout._replace(
        params=params,
        step=count,
        memory=memory,
        loss=loss,
        previous_loss=rollout.loss,
        gradient=next_gradient,
    )
    return after, Curves(loss, scores)


def _scales(network, params) -> jax.Array | None:
    """What a network made with `see_scale` sees of the params; no derivative goes through it."""
    return lax.stop_gradient(leaf_scales(params, batched=True)) if network.see_scale else None


def score(head: Head, memory: LSTMState, rollout: Rollout, gradient: Any, count) -> jax.Array:
    """The halting head's score at this step, from what is known before the update is tried: [B]."""
    problems = rollout.loss.shape[0]
    top = memory.hidden[-1]
    pooled = top.reshape(top.shape[0], -1, problems).mean(1)
    features = None
    if head.see_globals:
        squares = jnp.square(coordinates(gradient)).reshape(-1, problems)
        losses = lax.stop_gradient((rollout.loss, rollout.previous_loss))
        norm = jnp.sqrt(squares.sum(0))
        steps = jnp.broadcast_to(count, norm.shape)
        features = global_features(*losses, norm, steps)
    return head(pooled, features)


def evaluate(family: Family, params, data, keys, step) -> tuple[jax.Array, Any]:
    """Losses [B] and gradients of all problems at their current parameters.

    Gradients in complex parameters are conjugated: the directions in which the losses grow.
    """
    here = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)

    def total(params):
        losses = jax.vmap(family.loss, in_axes=(-1, -1, 0))(params, data, here)
        return losses.sum(), losses

    gradient, losses = jax.grad(total, has_aux=True)(params)
    return losses, jax.tree.map(jnp.conj, gradient)


@jax.custom_vjp
def with_derivative(losses: jax.Array, params: Any, gradient: Any) -> jax.Array:
    """`losses` [B] as a function of `params` whose gradient, of `evaluate`, is known already."""
    del params, gradient
    return losses


def _with_derivative_forward(losses, params, gradient):
    del params
    return losses, gradient


def _with_derivative_backward(gradient, cotangent):
    of_all = lambda g: lax.expand_dims(cotangent, range(g.ndim - 1)).astype(g.dtype)
    known = jax.tree.map(lambda g: g.conj() * of_all(g), gradient)
    return jnp.zeros_like(cotangent), known, jax.tree.map(jnp.zeros_like, gradient)


with_derivative.defvjp(_with_derivative_forward, _with_derivative_backward)
