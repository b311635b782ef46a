"""Flax modules: ACT, Repeat and the plain RNN, over any recurrent cell of `flax.nnx`'s shape.

A module is a pytree: ``jax.grad(loss)(model)``, ``jax.vmap(make)(keys)`` and Optax work on it
directly.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from actjax._checks import check_like, check_loop_and_lanes, check_positive
from actjax._streamable import Prepared
from actjax._unroll import repeat, unroll
from actjax.halting import FixedSteps, Ponder, Rule, chosen_rule, halting_dtype
from actjax.nn import kernel
from actjax.nn.cells import Recurrent, refuse_epsilon
from actjax.nn.widths import cut_units, pad_units, wanted, widened


class ACT(Recurrent):
    """Adaptive Computation Time over a recurrent cell (Graves 2016, section 2).

    At each input the cell runs until its halting unit says stop; the state carried on and the
    output are means over the steps taken, weighted by the halting rule (eq 9).

    Args:
      in_features: size of an input. (The cell gets one more: the flag of the first step, eq 3.)
      hidden_features: size of the state.
      cell: a cell class or factory ``cell(in_features, hidden_features, rngs=...)``, e.g.
        `nnx.SimpleCell`, `nnx.GRUCell`, `nnx.LSTMCell`, `nnx.OptimizedLSTMCell`, or one of your
        own: see `Recurrent`.
      max_steps: M, the limit on ponder steps at one input (eq 13). ``model.max_steps`` may be set
        later: a trained network may be given more steps, or fewer, at evaluation.
      epsilon: lets a first step halt (eq 7); 0.01 unless given.
      rule: a `halting.Rule` in the place of Graves' and its epsilon, as in `unroll`. ``model.rule``
        may be set later too.
      halt_bias: initial bias b_h of the halting unit (eq 5): 1 in the paper; a negative one starts
        with long ponders and is less prone to collapse to one step.
      loop, lanes: as in `unroll`; or "kernel", the adaptive loop as one kernel each way, for cells
        of Flax's own of up to 256 units: fast on a GPU, interpreted (slow) elsewhere. It is written
        in Pallas for Triton: JAX 0.10 to 0.12 have it, and later ones are to remove it.
      dtype: compute dtype of the cell, e.g. ``jnp.bfloat16``; halting stays in float32.
      rngs: `nnx.Rngs`.

    >>> import jax
    >>> model = ACT(3, 8, max_steps=10, rngs=nnx.Rngs(0))
    >>> state, outputs, ponder = jax.jit(model)(jnp.ones((2, 5, 3)))
    >>> outputs.shape, ponder.steps.shape, ponder.cost.dtype
    ((2, 5, 8), (2, 5), dtype('float32'))
    """

    epsilon = property(fset=refuse_epsilon)

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        cell: Callable[..., Any] = nnx.GRUCell,
        max_steps: int = 100,
        epsilon: float | None = None,
        rule: Rule | None = None,
        halt_bias: float = 1.0,
        loop: str = "while",
        lanes: int | None = None,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_features, hidden_features, cell=cell, flag=True, dtype=dtype, rngs=rngs)
        check_positive("max_steps", max_steps)
        check_loop_and_lanes(loop, lanes, "kernel")
        refusal = kernel.kernel_supports(self.cell) if loop == "kernel" else None
        if refusal:
            raise ValueError(refusal)
        rule = chosen_rule(rule, epsilon)
        if loop == "kernel":
            kernel.check_rule(rule)
        self.max_steps, self.rule, self.loop, self.lanes = max_steps, rule, loop, lanes
        bias = nnx.initializers.constant(halt_bias)
        self.halt = nnx.Linear(hidden_features, 1, bias_init=bias, dtype=dtype, rngs=rngs)

    def __call__(self, xs, *, initial_state=None, lengths=None, rngs=None):
        """Runs over whole sequences.

        Args:
          xs: float ``[B, T, in_features]``.
          initial_state: the cell's carry, each array ``[B, hidden_features]``; by default the
            cell's own, zeros for Flax's.
          lengths: int ``[B]``, how many inputs of each sequence are real; all by default.
          rngs: what a cell with noise, such as `nnx.Dropout`, draws from: an `nnx.Rngs`, a PRNG
            key, or a mapping from streams ("dropout", "default") to keys. Every sequence, input and
            ponder step has draws of its own. Sequence b has the key ``jax.random.fold_in(key, b)``;
            a key for each sequence, ``[B]``, makes it the same wherever it stands.

        Returns:
          ``(final_state, outputs, ponder)``: the carry after each sequence's last input, the
          outputs ``[B, T, hidden_features]``, and the `Ponder` record ``[B, T]``.

        Raises:
          ValueError: an argument of the wrong shape, a cell that changes its variables when it is
            called (as `nnx.BatchNorm` does in training), or one that draws noise without `rngs`.
        """
        kernels = self.loop == "kernel"
        wide = None if kernels else widened(self, wanted(self.hidden_features))
        if wide is not None:
            return _narrow(self, wide, xs, initial_state, lengths)
        prepared = self.prepare(xs, initial_state, self.halt, lengths, rngs)
        options = {"max_steps": self.max_steps, "lengths": lengths, "lanes": self.lanes}
        if kernels:  # of which the rule may have been changed
            kernel.check_rule(self.rule)
            return kernel.run(*prepared, kind=type(self.cell), epsilon=self.rule.epsilon, **options)
        final, states, ponder = unroll(*prepared, rule=self.rule, loop=self.loop, **options)
        step = prepared[0]
        return step.read(final)[0], step.read(states)[1], ponder

    def for_stream(self, xs) -> Prepared:
        """What `actjax.stream` runs."""
        step, params, state, inputs = self.prepare(xs, halt=self.halt)
        return Prepared(step, params, state, inputs, self.max_steps, step.read, rule=self.rule)


class Repeat(Recurrent):
    """Repeat-RNN: every input is given to the cell a fixed number of times (Fojo 2018, chapter 5).

    The state after the last repetition is carried on and is the output. Nothing is learned about
    halting: the `Ponder` record holds ``steps = repeats`` and no remainder.

    Args:
      in_features, hidden_features, cell, dtype, rngs: as in `ACT`.
      repeats: how often each input is given.
      flag: whether the input is augmented by a flag of the first repetition.

    >>> import jax
    >>> model = Repeat(3, 8, repeats=2, rngs=nnx.Rngs(0))
    >>> _, outputs, ponder = jax.jit(model)(jnp.ones((2, 5, 3)))
    >>> outputs.shape, int(ponder.steps[0, 0])
    ((2, 5, 8), 2)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        cell: Callable[..., Any] = nnx.GRUCell,
        repeats: int,
        flag: bool = True,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_features, hidden_features, cell=cell, flag=flag, dtype=dtype, rngs=rngs)
        check_positive("repeats", repeats)
        self.repeats = repeats

    def __call__(self, xs, *, initial_state=None, lengths=None, rngs=None):
        """As `ACT.__call__`."""
        wide = widened(self, wanted(self.hidden_features))
        if wide is not None:
            return _narrow(self, wide, xs, initial_state, lengths)
        step, params, state, inputs = self.prepare(xs, initial_state, None, lengths, rngs)
        final, states, steps = repeat(
            step, params, state, inputs, repeats=self.repeats, lengths=lengths
        )
        outputs = step.read(states)[1]
        ponder = Ponder(steps, jnp.zeros_like(steps, halting_dtype(outputs.dtype)))
        return step.read(final)[0], outputs, ponder

    def for_stream(self, xs) -> Prepared:
        """What `actjax.stream` runs."""
        step, params, state, inputs = self.prepare(xs)
        limits = self.repeats, step.read
        rule = FixedSteps(self.repeats)
        return Prepared(step, params, state, inputs, *limits, rule=rule, halts=False)


class RNN(Repeat):
    """The plain RNN: `Repeat` with one repetition and no flag, so that it is the cell as it is.

    >>> import jax
    >>> model = RNN(3, 8, cell=nnx.OptimizedLSTMCell, rngs=nnx.Rngs(0))
    >>> _, outputs, _ = jax.jit(model)(jnp.ones((2, 5, 3)))
    >>> outputs.shape
    (2, 5, 8)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        cell: Callable[..., Any] = nnx.GRUCell,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            in_features, hidden_features, cell=cell, repeats=1, flag=False, dtype=dtype, rngs=rngs
        )


def _narrow(model: Recurrent, wide: Recurrent, xs, initial_state, lengths):
    """What `model` returns, by the network that `widened` made of it."""
    features = wide.hidden_features
    if initial_state is not None:
        like = jax.eval_shape(lambda: model.initial_carry(len(xs)))
        check_like("initial_state", initial_state, like)
        initial_state = pad_units(initial_state, features)
    final, outputs, ponder = wide(xs, initial_state=initial_state, lengths=lengths)
    return *cut_units((final, outputs), model.hidden_features), ponder
