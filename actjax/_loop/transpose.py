"""One ponder step and its transpose, cut into parts that the adaptive loop runs each at its time.

A reverse pass that recomputes the step pays its products again, and one that adds a weight
gradient at every iteration pays memory traffic for it. So the step and its vector-Jacobian product
are traced together and the trace is cut by what depends on what:

    hoist      what depends on the weights alone            once, before the loops
    forward    the step, and its residuals                  at every iteration
    backward   the cotangents of its state and input        at every iteration, in reverse
    late       the cotangents of the weights                once for many iterations

Residuals are what the transpose reads of the step, short of what cheap elementwise arithmetic on
other residuals gives back. `backward` hands on to `late` the arrays it needs (``pending``: the
cotangents of pre-activations). Rows never interact inside a step, so to `late` the rows of many
iterations are one large batch, and a weight gradient is one large product.
"""

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
from jax.extend import core

from actjax._loop.rows import blank, like_inputs

# Arithmetic that costs less to repeat than its result costs to keep.
_CHEAP = frozenset(
    "add add_any sub mul neg max min sign select_n convert_element_type broadcast_in_dim reshape "
    "squeeze slice transpose concatenate split iota copy integer_pow one_minus_square square "
    "and or not eq ne lt le gt ge".split()
)
# Arithmetic that makes equal rows of equal rows, where each row comes first and stays what it is.
_ROW_BY_ROW = _CHEAP - {"iota"} | frozenset("div exp log tanh logistic sqrt rsqrt pow".split())
_CALLS = frozenset(("jit", "pjit", "closed_call"))


class SplitStep:
    """A step and its transpose, cut; arrays are passed as flat lists of leaves.

    Only floating-point weights and inputs have cotangents; the lists of cotangents skip the others.

    Args:
      step: ``step(weights, state, x, first) -> (state, halt)`` on flat lists of leaves.
      weights, state, x, first: example arguments; all but the weights lead with the row axis.

    Attributes:
      residuals, pending: shapes and dtypes of what is kept at every iteration.
      by_rows: whether `late` may be given the rows of many iterations as one batch.
    """

    def __init__(
        self, step: Callable, weights: Sequence, state: Sequence, x: Sequence, first: jax.Array
    ):
        eqns, consts, inputs, outputs = _trace(step, weights, state, x, first)
        self._weights, self._state, self._x, self._first, self._cotangents = inputs
        self._new_state, self._halt, self._d_weights, self._d_state, self._d_x = outputs
        self._eqns, self._consts = eqns, consts
        self._producer = {v: eqn for eqn in eqns for v in eqn.outvars}

        # What depends on the weights alone; broadcasts stay where they are used.
        invariant = self._invariant = {*self._weights, *consts}
        self._hoisted = []
        for eqn in eqns:
            if invariant.issuperset(_reads(eqn)):
                invariant.update(eqn.outvars)
                if sum(map(_size, eqn.outvars)) <= sum(map(_size, _reads(eqn))):
                    self._hoisted.extend(eqn.outvars)
        given = {*self._weights, *consts, *self._hoisted, *self._x, self._first}

        forward = self._slice([*self._new_state, self._halt], given.union(self._state))
        known = _results(forward).union(self._state)
        needs = [*self._d_state, *self._d_x]
        reverse = self._slice(needs, given.union(known, self._cotangents))
        produced = _results(reverse).union(self._cotangents) - known
        late = self._slice(self._d_weights, given.union(known, produced))
        late_reads = _all_reads(late, self._d_weights)

        needed = _all_reads(reverse, [*needs, *self._new_state]) | late_reads
        self._residuals = self._choose(forward, (needed & known) - invariant, given)
        self._pending = [v for eqn in reverse for v in eqn.outvars if v in late_reads]
        self._pending += [v for v in self._cotangents if v in late_reads]

        self._forward = self._slice(
            [*self._new_state, self._halt, *self._residuals], given.union(self._state)
        )
        kept = given.union(self._residuals)
        self._recover = self._slice(self._new_state, kept)
        kept = kept.union(self._new_state, _results(self._recover), self._cotangents)
        self._backward = self._slice(needs, kept)
        self._whole = self._slice([*needs, *self._d_weights], kept)
        kept = {*self._weights, *consts, *self._x, self._first, *self._residuals, *self._pending}
        self._late = self._slice(self._d_weights, kept)

        self.halt_dtype = self._halt.aval.dtype
        self.residuals = [_shape(v) for v in self._residuals]
        self.pending = [_shape(v) for v in self._pending]
        read_late = _all_reads(self._late, self._d_weights)
        batched = [v for v in self._residuals if v in read_late] + self._pending
        self.by_rows = all(v.aval.shape[:1] == first.shape for v in batched)

    def follows(self, other: "SplitStep") -> bool:
        """Whether `late` may be given the rows of many iterations of `other` as one batch.

        It may not where it would draw noise, or count rows, for as many rows as it is given.
        """
        shapes = lambda split: [(s.shape[1:], s.dtype) for s in split.residuals + split.pending]
        return (
            self.by_rows
            and other.by_rows
            and shapes(self) == shapes(other)
            and _alike(self._late, other._late, self._invariant)
        )

    def hoist(self, weights: Sequence) -> list:
        """What depends on the weights alone: the first argument of `forward` and `backward`."""
        env = {**self._consts, **dict(zip(self._weights, weights, strict=True))}
        _evaluate(self._slice(self._hoisted, env), env)
        return [*weights, *(env[v] for v in self._hoisted)]

    def forward(self, fixed, state, x, first) -> tuple[list, jax.Array, list]:
        """Takes the step: ``(new_state, halt, residuals)``."""
        env = self._environment(fixed, x, first)
        env.update(zip(self._state, state, strict=True))
        _evaluate(self._forward, env)
        (halt,) = _values([self._halt], env)
        return _values(self._new_state, env), halt, _values(self._residuals, env)

    def recover(self, fixed, residuals, x, first) -> tuple[list, dict]:
        """Gives the new state back from the residuals, with what `backward` can build on."""
        env = self._environment(fixed, x, first)
        env.update(zip(self._residuals, residuals, strict=True))
        _evaluate(self._recover, env)
        return _values(self._new_state, env), env

    def backward(self, recovered: dict, d_state, d_halt, *, with_weights: bool = False):
        """Transposes the step: ``(d_state, d_x, pending)``.

        Args:
          recovered: what `recover` returned beside the state.
          d_state, d_halt: cotangents of the new state and of the halting probability.
          with_weights: returns the cotangents of the weights in the place of ``pending``.
        """
        d_halt = d_halt.astype(self.halt_dtype)
        env = {**recovered, **dict(zip(self._cotangents, [*d_state, d_halt], strict=True))}
        _evaluate(self._whole if with_weights else self._backward, env)
        handed_on = self._d_weights if with_weights else self._pending
        return _values(self._d_state, env), _values(self._d_x, env), _values(handed_on, env)

    def late(self, weights, residuals, x, first, pending) -> list:
        """The cotangents of the weights, summed over all rows given."""
        env = {**self._consts, **dict(zip(self._weights, weights, strict=True))}
        env.update(zip(self._x, x, strict=True))
        env[self._first] = first
        env.update(zip(self._residuals, residuals, strict=True))
        env.update(zip(self._pending, pending, strict=True))
        _evaluate(self._late, env)
        return _values(self._d_weights, env)

    def _environment(self, fixed, x, first) -> dict:
        env = dict(zip([*self._weights, *self._hoisted], fixed, strict=True))
        env.update(self._consts)
        env.update(zip(self._x, x, strict=True))
        env[self._first] = first
        return env

    def _slice(self, targets: Iterable, stop: Iterable) -> list:
        """The equations that compute `targets` from the variables in `stop`, in order."""
        stop, needed, wanted = set(stop), set(), [v for v in targets if _is_variable(v)]
        while wanted:
            v = wanted.pop()
            if v not in stop and id(self._producer[v]) not in needed:
                needed.add(id(self._producer[v]))
                wanted.extend(_reads(self._producer[v]))
        return [eqn for eqn in self._eqns if id(eqn) in needed]

    def _choose(self, forward: list, needed: set, given: set) -> list:
        """Which variables to keep so that all of `needed` can be had again cheaply."""
        chosen = [v for v in self._state if v in needed]
        for eqn in forward:
            if eqn.primitive.name not in _CHEAP:
                chosen.extend(v for v in eqn.outvars if v in needed)
        available = given.union(chosen)
        for eqn in forward:
            if eqn.primitive.name in _CHEAP:
                if not available.issuperset(_reads(eqn)):
                    chosen.extend(v for v in eqn.outvars if v in needed)
                    available.update(v for v in eqn.outvars if v in needed)
                else:
                    available.update(eqn.outvars)
        return chosen


def _trace(step, weights, state, x, first):
    """Traces the step with its transpose: equations, constants, input and output variables."""
    is_float = lambda leaf: jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)

    def both(weights, state, x, first, d_state, d_halt):
        def call(float_weights, state, float_x):
            return step(_merge(weights, float_weights), state, _merge(x, float_x), first)

        floats = (
            [leaf for leaf in weights if is_float(leaf)],
            [leaf for leaf in x if is_float(leaf)],
        )
        (new_state, halt), transpose = jax.vjp(call, floats[0], state, floats[1])
        d_weights, d_state, d_x = transpose((d_state, d_halt))
        return new_state, halt, d_weights, d_state, d_x

    def _merge(leaves, floats):
        floats = iter(floats)
        return [next(floats) if is_float(leaf) else leaf for leaf in leaves]

    new_state, halt = jax.eval_shape(step, weights, state, x, first)
    zero = like_inputs(weights, state, x)
    zeros = lambda like: blank(zero, like.shape, like.dtype)
    arguments = (weights, state, x, first, [zeros(s) for s in new_state], zeros(halt))
    traced, shapes = jax.make_jaxpr(both, return_shape=True)(*arguments)
    flat = lambda *leaves: _evaluate_calls(traced.jaxpr, traced.consts, leaves)
    inlined = jax.make_jaxpr(flat)(*jax.tree.leaves(arguments))
    jaxpr = inlined.jaxpr
    inputs = _regroup(jaxpr.invars, [weights, state, x, [first], [*new_state, halt]])
    outputs = _regroup(jaxpr.outvars, list(shapes))
    inputs[3], outputs[1] = inputs[3][0], outputs[1][0]
    consts = dict(zip(jaxpr.constvars, inlined.consts, strict=True))
    return jaxpr.eqns, consts, inputs, outputs


def _alike(eqns, others, invariant=frozenset()) -> bool:
    """Whether two traces, for different numbers of rows, make the same row of what has no rows.

    What comes from arrays without rows, as an iota, noise or a row of a table do, may have rows of
    its own: a shape that differs between the traces. Then all its rows have to be equal.
    """
    invariant = set(invariant)
    if len(eqns) != len(others):
        return False
    for eqn, other in zip(eqns, others, strict=True):
        if eqn.primitive is not other.primitive or _literals(eqn) != _literals(other):
            return False
        pairs = zip(_jaxprs(eqn), _jaxprs(other), strict=True)
        if not all(_alike(a.eqns, b.eqns) for a, b in pairs):
            return False
        if invariant.issuperset(_reads(eqn)):
            invariant.update(eqn.outvars)
            changed = [_changed(*pair) for pair in zip(eqn.invars, other.invars, strict=True)]
            made = [_changed(*pair) for pair in zip(eqn.outvars, other.outvars, strict=True)]
            if any(changed + made) and not (
                eqn.primitive.name in _ROW_BY_ROW
                and set(made) == {(0,)}
                and set(changed) <= {(), (0,)}
                and (eqn.primitive.name != "concatenate" or eqn.params["dimension"] != 0)
            ):
                return False
    return True


def _changed(v, other) -> tuple[int, ...]:
    """The axes along which two variables differ in size."""
    sizes = zip(v.aval.shape, other.aval.shape, strict=True)
    return tuple(axis for axis, (a, b) in enumerate(sizes) if a != b)


def _literals(eqn) -> list[str]:
    return [str(v.val) for v in eqn.invars if not _is_variable(v)]


def _jaxprs(eqn) -> list:
    """The jaxprs among an equation's parameters."""
    found = [getattr(leaf, "jaxpr", leaf) for leaf in jax.tree.leaves(list(eqn.params.values()))]
    return [jaxpr for jaxpr in found if hasattr(jaxpr, "eqns")]


def _regroup(variables, groups):
    variables = iter(variables)
    return [[next(variables) for _ in jax.tree.leaves(group)] for group in groups]


def _evaluate_calls(jaxpr, consts, arguments):
    """Evaluates a jaxpr with the calls it makes written out, so that they can be cut."""
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in _CALLS:
            called = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
            results = _evaluate_calls(called.jaxpr, called.consts, _values(eqn.invars, env))
            env.update(zip(eqn.outvars, results, strict=True))
        else:
            _evaluate([eqn], env)
    return _values(jaxpr.outvars, env)


def _evaluate(eqns, env: dict) -> None:
    for eqn in eqns:
        with eqn.ctx.manager:
            parameters = eqn.primitive.get_bind_params(eqn.params)
            results = eqn.primitive.bind(*_values(eqn.invars, env), **parameters)
        results = results if eqn.primitive.multiple_results else [results]
        env.update(zip(eqn.outvars, results, strict=True))


def _values(variables, env: dict) -> list:
    return [env[v] if _is_variable(v) else v.val for v in variables]


def _is_variable(v) -> bool:
    return not isinstance(v, core.Literal)


def _reads(eqn) -> list:
    return [v for v in eqn.invars if _is_variable(v)]


def _all_reads(eqns, outputs) -> set:
    reads = {v for eqn in eqns for v in _reads(eqn)}
    return reads.union(v for v in outputs if _is_variable(v))


def _results(eqns) -> set:
    return {v for eqn in eqns for v in eqn.outvars}


def _size(v) -> int:
    return v.aval.size * v.aval.dtype.itemsize


def _shape(v) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype)
