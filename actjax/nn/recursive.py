"""Recursive reasoning: a small network applied to its own answer until it says that it is done.

The form of the Tiny Recursive Model (Jolicoeur-Martineau 2025, "Less is More: Recursive Reasoning
with Tiny Networks"), which simplified HRM (Wang et al. 2025), around any Flax network.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from actjax._checks import check_choice, check_positive, check_rngs
from actjax._contracts import check_written, own_variables
from actjax._variables import observed
from actjax.halting import halting_dtype


class Thought(NamedTuple):
    """What a recursive network goes on from; each ``[rows, ..., features]``.

    Attributes:
      answer: y, the answer so far, before it is read out.
      latent: z, the scratch pad.
    """

    answer: jax.Array
    latent: jax.Array


class Recursive(nnx.Module):
    """Any network refined: one *supervised step* takes a question and a `Thought` to a better one.

    A supervised step is `cycles` cycles; a cycle updates the latent `latent_steps` times by
    ``z = network(x + y + z)`` and then the answer by ``y = network(y + z)``. The module is a ponder
    step of `actjax.unroll` (`Recursive.step`), with a halting probability sigmoid(q) read from the
    answer: `actjax.halting.Threshold` makes the steps end at q > 0 and the last answer the result.

    Args:
      network: from ``[rows, ..., features]`` to the same, say a stack of blocks.
      features: size of the last axis.
      latent_steps: n, updates of the latent in a cycle; 6 in the paper.
      cycles: T, cycles in a supervised step; 3 in the paper.
      gradient: ``"last"``: through the last cycle alone, as the paper has it, so that none reaches
        the steps before, or ``"all"``.
      halt_bias: initial bias of q; low, so that nothing halts before that is learned. The weights
        of q start at zero.
      dtype: compute dtype of the halting unit.
      rngs: `nnx.Rngs`.

    >>> import actjax
    >>> model = Recursive(nnx.Linear(8, 8, rngs=nnx.Rngs(0)), 8, rngs=nnx.Rngs(1))
    >>> question = jnp.ones((2, 1, 16, 8))  # one input a row, of 16 positions
    >>> thought, _, ponder = actjax.unroll(
    ...     Recursive.step, model, model.start(question[:, 0]), question, max_steps=16,
    ...     rule=actjax.halting.Threshold(),
    ... )
    >>> thought.answer.shape, ponder.steps.shape
    ((2, 16, 8), (2, 1))
    """

    def __init__(
        self,
        network: nnx.Module,
        features: int,
        *,
        latent_steps: int = 6,
        cycles: int = 3,
        gradient: str = "last",
        halt_bias: float = -5.0,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        check_positive("features", features)
        check_positive("latent_steps", latent_steps)
        check_positive("cycles", cycles)
        check_choice("gradient", gradient, ("last", "all"))
        if not all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(network)):
            raise ValueError(
                f"network must be a Flax module or another pytree of arrays, got {network!r}."
            )
        self.network, self.features = network, features
        self.latent_steps, self.cycles, self.gradient = latent_steps, cycles, gradient
        self.halt = nnx.Linear(
            features,
            1,
            kernel_init=nnx.initializers.zeros,
            bias_init=nnx.initializers.constant(halt_bias),
            dtype=dtype,
            rngs=rngs,
        )

    def start(self, x: jax.Array) -> Thought:
        """The thought before the first step on questions `x`, ``[rows, ..., features]``: zeros."""
        return Thought(jnp.zeros_like(x), jnp.zeros_like(x))

    def __call__(self, x: jax.Array, thought: Thought) -> Thought:
        """One supervised step.

        Args:
          x: float ``[rows, ..., features]``, the questions.
          thought: what the step before left, or `start`.

        Raises:
          ValueError: a network that changes its variables when it is called, as `nnx.BatchNorm`
            does in training, that draws noise, or that returns another shape.
        """
        self._check_network(x)
        before, question = self, x
        if self.gradient == "last":
            graph, state = nnx.split(self)
            before = nnx.merge(graph, lax.stop_gradient(state))
            question, thought = lax.stop_gradient((x, thought))
        if self.cycles > 1:
            once = lambda thought, _: (before._cycle(question, thought), None)
            thought, _ = lax.scan(once, thought, length=self.cycles - 1)
        return self._cycle(x, thought)

    def _check_network(self, x):
        touched = []

        def call(network, x):
            result, found = observed(lambda network: network(x), network)
            touched.append(found)
            return result

        with own_variables("network"):
            jax.eval_shape(call, self.network, x)
        check_written("network", touched[-1])
        if touched[-1].drawn:
            raise ValueError(
                "network must draw no noise, since all steps would draw the same (switch it off by "
                f"model.eval()), got the stream {touched[-1].drawn[0]!r}."
            )

    def _cycle(self, x, thought):
        answer, latent = thought
        for _ in range(self.latent_steps):
            latent = self._refined(x + answer + latent)
        return Thought(self._refined(answer + latent), latent)

    def _refined(self, x):
        """What the network makes of `x`, in the dtype of `x`, in which thoughts are carried."""
        y = self.network(x)
        if y.shape != x.shape:
            raise ValueError(
                f"network must return an array of the shape it is given, {x.shape}, got {y.shape}."
            )
        return y.astype(x.dtype)

    def logit(self, thought: Thought) -> jax.Array:
        """q: whether the answer is thought to be right, float ``[rows]``; its sigmoid is h^n."""
        answer = thought.answer
        pooled = answer.mean(range(1, answer.ndim - 1)) if answer.ndim > 2 else answer
        return self.halt(pooled)[:, 0].astype(halting_dtype(answer.dtype))

    def step(self, thought: Thought, x: jax.Array, first: jax.Array):
        """A ponder step as `actjax.unroll` takes it, with the module as its parameters."""
        del first
        thought = self(x, thought)
        return thought, jax.nn.sigmoid(self.logit(thought))
