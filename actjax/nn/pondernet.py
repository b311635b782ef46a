"""PonderNet: a recurrent network that learns a distribution over how many steps to take."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from actjax import _checks as checks
from actjax import halting
from actjax._streamable import Prepared
from actjax._unroll import unroll
from actjax.nn.cells import CellStep, Recurrent


class PonderNet(Recurrent):
    """A recurrent network that learns when to stop (Banino, Balaguer and Blundell 2021).

    The halting unit gives lambda_n, the probability to stop at step n if not before; nothing is
    averaged but the losses: `expected_loss` is what to train. Called, the network stops where
    little of the mass is left or, with `sample`, at a step drawn from the distribution, and gives
    its last state. Its rule alone, for steps of your own, is `actjax.halting.PonderNet`.

    Args:
      in_features, hidden_features, cell, max_steps, loop, lanes, dtype, rngs: as in `ACT`.
      prior: lambda_p of the geometric prior, in (0, 1), which expects 1 / prior steps.
      epsilon: the mass at which steps may end; the paper's 0.05.
      halt_bias: initial bias of the halting unit.

    >>> import optax
    >>> model = PonderNet(3, 8, max_steps=10, rngs=nnx.Rngs(0))
    >>> head = nnx.Linear(8, 2, rngs=nnx.Rngs(1))
    >>> xs, targets = jnp.ones((4, 5, 3)), jnp.zeros((4, 5), int)
    >>> entropy = optax.softmax_cross_entropy_with_integer_labels
    >>> def loss(modules):
    ...     model, head = modules
    ...     loss, divergence, _ = model.expected_loss(
    ...         xs, targets, lambda head, outputs, targets: entropy(head(outputs), targets), head
    ...     )
    ...     return (loss + 0.01 * divergence).mean()
    >>> gradient = jax.grad(loss)((model, head))
    >>> _, outputs, ponder = jax.jit(model)(xs)
    >>> outputs.shape, ponder.steps.shape
    ((4, 5, 8), (4, 5))
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        cell: Callable[..., Any] = nnx.GRUCell,
        max_steps: int = 20,
        prior: float = 0.2,
        epsilon: float = 0.05,
        halt_bias: float = 0.0,
        loop: str = "while",
        lanes: int | None = None,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_features, hidden_features, cell=cell, flag=True, dtype=dtype, rngs=rngs)
        checks.check_positive("max_steps", max_steps)
        checks.check_loop_and_lanes(loop, lanes)
        self.max_steps, self.prior, self.epsilon = max_steps, prior, epsilon
        self.rule()  # which refuses the latter two
        self.loop, self.lanes = loop, lanes
        bias = nnx.initializers.constant(halt_bias)
        self.halt = nnx.Linear(hidden_features, 1, bias_init=bias, dtype=dtype, rngs=rngs)

    def rule(self, mean: Any = False) -> halting.PonderNet:
        """The network's halting rule, of which `mean` says which leaves of a state are averaged."""
        return halting.PonderNet(self.epsilon, self.prior, mean)

    def __call__(self, xs, *, initial_state=None, lengths=None, rngs=None, sample=None):
        """Runs over whole sequences, the last state of every input being its output.

        Args:
          xs, initial_state, lengths, rngs: as in `ACT.__call__`.
          sample: a PRNG key, to draw the step at which each input stops from its distribution, as
            the paper does at test time; by default an input stops where less than `epsilon` of the
            mass is left.

        Returns:
          ``(final_state, outputs, ponder)`` as of `ACT`; ``ponder.extra["kl"]`` is the divergence
          of the distribution to the prior, float ``[B, T]``, unless steps are drawn.
        """
        step, params, state, inputs = self.prepare(xs, initial_state, self.halt, lengths, rngs)
        run = lambda step, state, inputs, rule: unroll(
            step,
            params,
            state,
            inputs,
            max_steps=self.max_steps,
            rule=rule,
            lengths=lengths,
            loop=self.loop,
            lanes=self.lanes,
        )
        if sample is None:
            final, states, ponder = run(step, state, inputs, self.rule())
        else:
            checks.check_key("sample", sample)
            level = jax.random.uniform(sample, jnp.shape(xs)[:2])
            left = jnp.ones_like(level[:, 0])
            given = (state, left), (inputs, level)
            (final, _), (states, _), ponder = run(_Drawn(step), *given, halting.Threshold())
        return step.read(final)[0], step.read(states)[1], ponder

    def expected_loss(
        self,
        xs,
        targets,
        loss: Callable[[Any, jax.Array, Any], jax.Array],
        params: Any = (),
        *,
        initial_state=None,
        lengths=None,
        rngs=None,
    ):
        """The expectation of a loss over the steps, ``sum_n p_n loss_n``.

        Args:
          xs, initial_state, lengths, rngs: as in `__call__`.
          targets: pytree of arrays ``[B, T, ...]``.
          loss: `(params, outputs, targets) -> [rows]`, the loss of outputs ``[rows,
            hidden_features]`` after any one step, beside targets ``[rows, ...]``.
          params: what `loss` has of parameters, a read-out say; differentiated too.

        Returns:
          ``(loss, kl, ponder)``: float ``[B, T]`` twice, the expected loss and the divergence of
          p_n to the prior, by 0.01 in the paper; zeros where padded; and the `Ponder` record.
        """
        step, own, state, inputs = self.prepare(xs, initial_state, self.halt, lengths, rngs)
        zero = jnp.zeros(jnp.shape(xs)[0], halting.halting_dtype(step.read(state)[1].dtype))
        _, (_, losses), ponder = unroll(
            _WithLoss(step, loss),
            (own, params),
            (state, zero),
            (inputs, targets),
            max_steps=self.max_steps,
            rule=self.rule(mean=(False, True)),
            lengths=lengths,
            loop=self.loop,
            lanes=self.lanes,
        )
        return losses, ponder.extra["kl"], ponder

    def for_stream(self, xs) -> Prepared:
        """What `actjax.stream` runs."""
        step, params, state, inputs = self.prepare(xs, halt=self.halt)
        limits = self.max_steps, step.read
        return Prepared(step, params, state, inputs, *limits, rule=self.rule())


@dataclasses.dataclass(frozen=True)
class _WithLoss:
    """A step that leaves its loss in the state."""

    step: CellStep
    loss: Callable[[Any, jax.Array, Any], jax.Array]

    def __call__(self, params, state, inputs, first):
        (own, read_out), (x, target) = params, inputs
        state, rate = self.step(own, state[0], x, first)
        value = self.loss(read_out, self.step.read(state)[1], target)
        return (state, value.astype(rate.dtype)), rate


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """A step that says 1 once the probability to have stopped is over a level drawn from [0, 1)."""

    step: CellStep

    def __call__(self, params, state, inputs, first):
        (state, left), (x, level) = state, inputs
        state, rate = self.step(params, state, x, first)
        left = jnp.where(first, 1, left) * (1 - rate).astype(left.dtype)
        return (state, left), (1 - left > level).astype(rate.dtype)
