"""What `actjax.stream` runs: any model that says how it goes through a loop."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from actjax._checks import check_rows
from actjax._contracts import check_step
from actjax.halting import Rule


def _both(state: Any) -> tuple[Any, Any]:
    return state, state


class Prepared(NamedTuple):
    """A model's loop over some sequences, ready to run.

    Attributes:
      step: a ponder step as `actjax.unroll` takes it or, where `state` is a `Layers` record, as
        `actjax.unroll_layers` does.
      params: what the step is given as its parameters, any pytree.
      state: what a sequence starts from, pytree of ``[B, ...]``. It may not depend on what is in
        the sequences: a step that is to start from its input makes its state of that where `first`.
      inputs: what the step is given at each input, pytree of ``[B, T, ...]``. Each may depend on
        its own x alone, since sequences are run piece by piece.
      max_steps: M, the limit on ponder steps at one input.
      read: from the step's states to ``(state, outputs)``: what the model calls its state, and what
        it puts out; the states themselves by default. (A `Layers` record is a state as it is.)
      epsilon, rule: as in `unroll`.
      halts: whether the remainder R means something; it is 0 where nothing is learned of halting.
    """

    step: Callable
    params: Any
    state: Any
    inputs: Any
    max_steps: int
    read: Callable[[Any], tuple[Any, Any]] = _both
    epsilon: float | None = None
    rule: Rule | None = None
    halts: bool = True


@runtime_checkable
class Streamable(Protocol):
    """A model that `actjax.stream` can run: a pytree with this method, as all of `actjax.nn` are.

    >>> import actjax
    >>> import numpy as np
    >>> from flax import nnx
    >>> class Decay(nnx.Module):
    ...     def __init__(self):
    ...         self.rate = nnx.Param(jnp.float32(0.5))
    ...     def for_stream(self, xs):
    ...         def step(rate, state, x, first):
    ...             state = rate[...] * state + x
    ...             return state, jax.nn.sigmoid(state[:, 0])
    ...         return Prepared(step, self.rate, jnp.zeros_like(xs[:, 0]), xs, max_steps=5)
    >>> (result,) = actjax.stream(Decay(), [np.ones((7, 2), np.float32)], lanes=2, chunk=4)
    >>> result.outputs.shape, result.steps
    ((7, 2), array([2, 2, 2, 2, 2, 2, 2], dtype=int32))
    """

    def for_stream(self, xs: Any) -> Prepared:
        """Returns what is to be run over sequences.

        Args:
          xs: pytree of arrays ``[B, T, ...]``, the next T inputs of B sequences. It is called under
            `jax.jit`, with pieces of the sequences.
        """
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepModel:
    """A pure step as a model for `actjax.stream`, with what `actjax.unroll` is given beside it.

    Attributes:
      step, max_steps, epsilon, rule: as in `unroll`; equal ones are not compiled again.
      params: as in `unroll`.
      state: what every sequence starts from, pytree of arrays of one row, ``[...]``, without the
        batch axis that `unroll` has.
      read: as in `Prepared`.

    >>> import actjax
    >>> import numpy as np
    >>> def step(table, state, token, first):
    ...     state = jnp.tanh(state + table[token])
    ...     return state, jax.nn.sigmoid(state[:, 0])
    >>> model = StepModel(step, jnp.eye(5), jnp.zeros(5), max_steps=4)
    >>> texts = [np.array([1, 2, 3]), np.array([4])]
    >>> [result.outputs.shape for result in actjax.stream_batch(model, texts, lanes=2, chunk=2)]
    [(3, 5), (1, 5)]
    """

    step: Callable = dataclasses.field(metadata={"static": True})
    params: Any
    state: Any
    max_steps: int = dataclasses.field(metadata={"static": True})
    epsilon: float | None = dataclasses.field(default=None, metadata={"static": True})
    rule: Rule | None = dataclasses.field(default=None, metadata={"static": True})
    read: Callable[[Any], tuple[Any, Any]] = dataclasses.field(
        default=_both, metadata={"static": True}
    )

    def for_stream(self, xs: Any) -> Prepared:
        batch, _ = check_rows("sequences", xs, 2)
        state = _in_rows(self.state, batch)
        try:
            self._check_step(state, xs, batch)
        except (TypeError, ValueError):
            self._check_one_row(xs, batch)
            raise
        limits = self.max_steps, self.read, self.epsilon, self.rule
        return Prepared(self.step, self.params, state, xs, *limits)

    def _check_step(self, state: Any, xs: Any, batch: int) -> None:
        first = jax.ShapeDtypeStruct((batch,), bool)
        check_step(self.step, self.params, state, jax.tree.map(lambda x: x[:, 0], xs), first)

    def _check_one_row(self, xs: Any, batch: int) -> None:
        """Refuses a state with a batch axis, without which the step does as it has to."""
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(self.state)]
        if () in shapes or len({shape[0] for shape in shapes}) != 1:
            return
        row = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], self.state)
        try:
            self._check_step(_in_rows(row, batch), xs, batch)
        except (TypeError, ValueError):
            return
        raise ValueError(
            "state must be that of one row, without a batch axis, "
            f"got shape {' and '.join(map(str, shapes))}."
        )


def _in_rows(state: Any, batch: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (batch, *jnp.shape(leaf))), state)
