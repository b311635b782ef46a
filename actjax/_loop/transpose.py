"""One ponder step and its transpose, cut into parts that the adaptive loop runs each at its time.

A reverse pass that recomputes the step pays its products again, and one that adds a weight
gradient at every iteration pays memory traffic for it. So a training step here has three products
for each of the step's own: forward, the cotangent of the state, and one large late product for the
weights, over the rows of many iterations.

    hoist      what depends on the weights alone            once, before the loops
    forward    the step, and its residuals                  at every iteration
    recover    what the halting rule is transposed at       at every iteration, in reverse
    backward   the cotangents of its state and input        at every iteration, in reverse
    late       the cotangents of the weights                once for many iterations

The algorithm. The step and its vector-Jacobian product (`jax.vjp`) are traced together, with the
calls written out, into one list of equations. Each part is a slice of it: the equations that its
results need, back to what is known by then.

1. Hoisted is what reads weights alone and is no larger than what it is made of.
2. `reverse` is what the cotangents of state and input need beyond the forward pass; what is then
   missing for those of the weights is `late`. What `late` reads of `reverse`, cotangents of
   pre-activations for most, is handed on to it (``pending``).
3. Residuals are what `reverse` and `late` read of the forward pass, short of what cheap elementwise
   arithmetic on other residuals gives back: of an LSTM the four activated gates, tanh(c), and the
   c and h before the step.
4. Rows never interact inside a step, so to `late` the rows of many iterations are one batch. It is
   traced for so many, and has to come out alike (`follows`); where it does not, as with noise drawn
   for all rows or a fixed number of them, weight cotangents are added up at every iteration.

Why not the leaves of `jax.vjp` with a policy of `jax.checkpoint`, which say it in a third of the
lines: there the late pass is given the cotangents of the step's results alone, and so repeats the
backward products of every layer of the step but the last (of two tanh layers one in three); and
what weights alone give, a normed weight say, is a leaf like another, kept at every iteration.

Known costs: equations are bound one by one (`trace.evaluate`), so a new kind of call in a jaxpr has
to be added to those that are written out, or is not cut but run whole; and a step is traced twice,
for the lanes and for the rows of a late product.
"""

from collections.abc import Callable, Iterable, Sequence

import jax

from actjax._loop.rows import blank, floats, is_float, like_inputs, merge
from actjax._loop.trace import (
    CHEAP,
    alike,
    all_reads,
    evaluate,
    evaluate_inlined,
    finite_at_zero,
    is_variable,
    reads,
    regroup,
    results,
    shape_of,
    size,
    values,
)


class SplitStep:
    """A step and its transpose, cut; arrays are passed as flat lists of leaves.

    Only floating-point leaves have cotangents; the lists of cotangents skip the others.

    Args:
      step: ``step(weights, state, x, first) -> (state, halt)`` on flat lists of leaves.
      weights, state, x, first: example arguments; all but the weights lead with the row axis.
      read: which of the new state's floats `recover` is to give back, beside the halting
        probability.
      once: whether what is handed on to `late` is worked out once and read from there on; a
        compiler may find it cheaper to repeat it for each that reads it.

    Attributes:
      equations: how many the step and its transpose have.
      residuals, pending: shapes and dtypes of what is kept at every iteration.
      by_rows: whether `late` may be given the rows of many iterations as one batch.
      finite_at_zero: whether `late` may be given rows that were never written, zeros. Elsewhere
        their cotangents of zero may meet an infinity, as where it divides by a residual.
    """

    def __init__(
        self,
        step: Callable,
        weights: Sequence,
        state: Sequence,
        x: Sequence,
        first: jax.Array,
        *,
        read: Sequence[bool],
        once: bool = False,
    ):
        eqns, consts, inputs, outputs = _trace(step, weights, state, x, first)
        self._weights, self._state, self._x, self._first, self._cotangents = inputs
        self._new_state, self._halt, self._d_weights, self._d_state, self._d_x = outputs
        self._eqns, self._consts, self.equations = eqns, consts, len(eqns)
        self._producer = {v: eqn for eqn in eqns for v in eqn.outvars}

        # What depends on the weights alone; broadcasts stay where they are used.
        invariant = self._invariant = {*self._weights, *consts}
        self._hoisted = []
        for eqn in eqns:
            if invariant.issuperset(reads(eqn)):
                invariant.update(eqn.outvars)
                if sum(map(size, eqn.outvars)) <= sum(map(size, reads(eqn))):
                    self._hoisted.extend(eqn.outvars)
        given = {*self._weights, *consts, *self._hoisted, *self._x, self._first}

        forward = self._slice([*self._new_state, self._halt], given.union(self._state))
        known = results(forward).union(self._state)
        needs = [*self._d_state, *self._d_x]
        reverse = self._slice(needs, given.union(known, self._cotangents))
        produced = results(reverse).union(self._cotangents) - known
        late = self._slice(self._d_weights, given.union(known, produced))
        late_reads = all_reads(late, self._d_weights)

        pairs = zip(filter(lambda v: is_float(v.aval), self._new_state), read, strict=True)
        self._read = [self._halt, *(v for v, is_read in pairs if is_read)]
        needed = all_reads(reverse, [*needs, *self._read]) | late_reads
        self._residuals = self._choose(forward, (needed & known) - invariant, given)
        self._pending = [v for eqn in reverse for v in eqn.outvars if v in late_reads]
        self._pending += [v for v in self._cotangents if v in late_reads]

        self._forward = self._slice(
            [*self._new_state, self._halt, *self._residuals], given.union(self._state)
        )
        kept = given.union(self._residuals)
        self._recover = self._slice(self._read, kept)
        kept = kept.union(results(self._recover), self._cotangents)
        self._backward = self._slice(needs, kept)
        self._whole = self._slice([*needs, *self._d_weights], kept)
        kept = {*self._weights, *consts, *self._x, self._first, *self._residuals, *self._pending}
        self._late = self._slice(self._d_weights, kept)

        self._once = frozenset(self._pending if once else ())
        self.halt_dtype = self._halt.aval.dtype
        self.residuals = [shape_of(v) for v in self._residuals]
        self.pending = [shape_of(v) for v in self._pending]
        read_late = all_reads(self._late, self._d_weights)
        batched = [v for v in self._residuals if v in read_late] + self._pending
        self.by_rows = all(v.aval.shape[:1] == first.shape for v in batched)

        self.finite_at_zero = all(map(finite_at_zero, self._late))

    def follows(self, other: "SplitStep") -> bool:
        """Whether `late` may be given the rows of many iterations of `other` as one batch.

        It may not where it would draw noise, or count rows, for as many rows as it is given.
        """
        shapes = lambda split: [(s.shape[1:], s.dtype) for s in split.residuals + split.pending]
        return (
            self.by_rows
            and other.by_rows
            and shapes(self) == shapes(other)
            and alike(self._late, other._late, self._invariant)
        )

    def hoist(self, weights: Sequence) -> list:
        """What depends on the weights alone: the first argument of `forward` and `backward`."""
        env = {**self._consts, **dict(zip(self._weights, weights, strict=True))}
        evaluate(self._slice(self._hoisted, env), env)
        return [*weights, *(env[v] for v in self._hoisted)]

    def forward(self, fixed, state, x, first) -> tuple[list, jax.Array, list]:
        """Takes the step: ``(new_state, halt, residuals)``."""
        env = self._environment(fixed, x, first)
        env.update(zip(self._state, state, strict=True))
        evaluate(self._forward, env)
        (halt,) = values([self._halt], env)
        return values(self._new_state, env), halt, values(self._residuals, env)

    def recover(self, fixed, residuals, x, first) -> tuple[jax.Array, list, dict]:
        """Gives ``(halt, read, recovered)`` back from the residuals: the halting probability, those
        of the new state that are `read`, and what `backward` can build on."""
        env = self._environment(fixed, x, first)
        env.update(zip(self._residuals, residuals, strict=True))
        evaluate(self._recover, env)
        halt, *read = values(self._read, env)
        return halt, read, env

    def backward(self, recovered: dict, d_state, d_halt, *, with_weights: bool = False):
        """Transposes the step: ``(d_state, d_x, pending)``.

        Args:
          recovered: what `recover` returned beside the state.
          d_state, d_halt: cotangents of the new state's floats and of the halting probability.
          with_weights: returns the cotangents of the weights in the place of ``pending``.
        """
        d_halt = d_halt.astype(self.halt_dtype)
        env = {**recovered, **dict(zip(self._cotangents, [*d_state, d_halt], strict=True))}
        evaluate(self._whole if with_weights else self._backward, env, self._once)
        handed_on = self._d_weights if with_weights else self._pending
        return values(self._d_state, env), values(self._d_x, env), values(handed_on, env)

    def late(self, weights, residuals, x, first, pending) -> list:
        """The cotangents of the weights, summed over all rows given."""
        env = {**self._consts, **dict(zip(self._weights, weights, strict=True))}
        env.update(zip(self._x, x, strict=True))
        env[self._first] = first
        env.update(zip(self._residuals, residuals, strict=True))
        env.update(zip(self._pending, pending, strict=True))
        evaluate(self._late, env)
        return values(self._d_weights, env)

    def _environment(self, fixed, x, first) -> dict:
        env = dict(zip([*self._weights, *self._hoisted], fixed, strict=True))
        env.update(self._consts)
        env.update(zip(self._x, x, strict=True))
        env[self._first] = first
        return env

    def _slice(self, targets: Iterable, stop: Iterable) -> list:
        """The equations that compute `targets` from the variables in `stop`, in order."""
        stop, needed, wanted = set(stop), set(), [v for v in targets if is_variable(v)]
        while wanted:
            v = wanted.pop()
            if v not in stop and id(self._producer[v]) not in needed:
                needed.add(id(self._producer[v]))
                wanted.extend(reads(self._producer[v]))
        return [eqn for eqn in self._eqns if id(eqn) in needed]

    def _choose(self, forward: list, needed: set, given: set) -> list:
        """Which variables to keep so that all of `needed` can be had again cheaply."""
        chosen = [v for v in self._state if v in needed]
        for eqn in forward:
            if eqn.primitive.name not in CHEAP:
                chosen.extend(v for v in eqn.outvars if v in needed)
        available = given.union(chosen)
        for eqn in forward:
            if eqn.primitive.name in CHEAP:
                if not available.issuperset(reads(eqn)):
                    chosen.extend(v for v in eqn.outvars if v in needed)
                    available.update(v for v in eqn.outvars if v in needed)
                else:
                    available.update(eqn.outvars)
        return chosen


def _trace(step, weights, state, x, first):
    """Traces the step with its transpose: equations, constants, input and output variables."""

    def both(weights, state, x, first, d_state, d_halt):
        given = weights, state, x

        def call(*of_floats):
            new_state, halt = step(*map(merge, given, of_floats), first)
            return (floats(new_state), halt), new_state

        (_, halt), transpose, new_state = jax.vjp(call, *map(floats, given), has_aux=True)
        d_weights, d_state, d_x = transpose((d_state, d_halt))
        return new_state, halt, d_weights, d_state, d_x

    new_state, halt = jax.eval_shape(step, weights, state, x, first)
    zero = like_inputs(weights, state, x)
    zeros = lambda like: blank(zero, like.shape, like.dtype)
    cotangents = list(map(zeros, floats(new_state)))
    arguments = (weights, state, x, first, cotangents, zeros(halt))
    traced, shapes = jax.make_jaxpr(both, return_shape=True)(*arguments)
    flat = lambda *leaves: evaluate_inlined(traced.jaxpr, traced.consts, leaves)
    inlined = jax.make_jaxpr(flat)(*jax.tree.leaves(arguments))
    jaxpr = inlined.jaxpr
    inputs = regroup(jaxpr.invars, [weights, state, x, [first], [*cotangents, halt]])
    outputs = regroup(jaxpr.outvars, list(shapes))
    inputs[3], outputs[1] = inputs[3][0], outputs[1][0]
    consts = dict(zip(jaxpr.constvars, inlined.consts, strict=True))
    return jaxpr.eqns, consts, inputs, outputs
