"""The equations of a trace: what they read and give, whether two are alike, and how they are run.

Small tools for `actjax._loop.transpose`, on jaxprs whose calls are written out.
"""

import math

import jax
from jax import lax
from jax.extend import core

# Arithmetic that costs less to repeat than its result costs to keep.
CHEAP = frozenset(
    "add add_any sub mul neg max min sign select_n convert_element_type broadcast_in_dim reshape "
    "squeeze slice transpose concatenate split iota copy integer_pow one_minus_square square "
    "and or not eq ne lt le gt ge".split()
)
# Arithmetic that makes equal rows of equal rows, where each row comes first and stays what it is.
_ROW_BY_ROW = CHEAP - {"iota"} | frozenset("div exp log tanh logistic sqrt rsqrt pow".split())
# Arithmetic that is finite, with zeros for its arguments.
_FINITE_AT_ZERO = CHEAP | frozenset("dot_general reduce_sum exp tanh logistic sin cos".split())
_CALLS = frozenset(("jit", "pjit", "closed_call"))


def reads(eqn) -> list:
    """The variables that an equation reads."""
    return [v for v in eqn.invars if is_variable(v)]


def all_reads(eqns, outputs) -> set:
    """The variables that the equations read or that are outputs."""
    found = {v for eqn in eqns for v in reads(eqn)}
    return found.union(v for v in outputs if is_variable(v))


def results(eqns) -> set:
    """The variables that the equations give."""
    return {v for eqn in eqns for v in eqn.outvars}


def is_variable(v) -> bool:
    return not isinstance(v, core.Literal)


def size(v) -> int:
    """Bytes."""
    return v.aval.size * v.aval.dtype.itemsize


def shape_of(v) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype)


def regroup(variables, groups):
    """The variables in lists as long as the groups have leaves."""
    variables = iter(variables)
    return [[next(variables) for _ in jax.tree.leaves(group)] for group in groups]


def evaluate(eqns, env: dict, once: frozenset = frozenset()) -> None:
    """Runs the equations in the order given; `env` has the values of variables, and gets theirs.

    Args:
      once: variables that compilers are not to work out again for each that reads them.
    """
    for eqn in eqns:
        with eqn.ctx.manager:
            parameters = eqn.primitive.get_bind_params(eqn.params)
            made = eqn.primitive.bind(*values(eqn.invars, env), **parameters)
        made = made if eqn.primitive.multiple_results else [made]
        if not once.isdisjoint(eqn.outvars):
            made = lax.optimization_barrier(made)
        env.update(zip(eqn.outvars, made, strict=True))


def evaluate_inlined(jaxpr, consts, arguments):
    """Evaluates a jaxpr with the calls it makes written out, so that they can be cut."""
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in _CALLS:
            called = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
            made = evaluate_inlined(called.jaxpr, called.consts, values(eqn.invars, env))
            env.update(zip(eqn.outvars, made, strict=True))
        else:
            evaluate([eqn], env)
    return values(jaxpr.outvars, env)


def values(variables, env: dict) -> list:
    return [env[v] if is_variable(v) else v.val for v in variables]


def alike(eqns, others, invariant=frozenset()) -> bool:
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
        if not all(alike(a.eqns, b.eqns) for a, b in pairs):
            return False
        if invariant.issuperset(reads(eqn)):
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
    return [str(v.val) for v in eqn.invars if not is_variable(v)]


def _jaxprs(eqn) -> list:
    """The jaxprs among an equation's parameters."""
    found = [getattr(leaf, "jaxpr", leaf) for leaf in jax.tree.leaves(list(eqn.params.values()))]
    return [jaxpr for jaxpr in found if hasattr(jaxpr, "eqns")]


def operations(jaxpr) -> int:
    """About how many operations a jaxpr takes: of products two a term, of all else one a number.

    A `while` loop counts as one round, and a `cond` as all its branches.
    """
    return sum(map(_operations, jaxpr.eqns))


def _operations(eqn) -> int:
    inner = sum(map(operations, _jaxprs(eqn)))
    if inner:
        return inner * eqn.params.get("length", 1)  # of a scan
    made = sum(v.aval.size for v in eqn.outvars)
    match eqn.primitive.name:
        case "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            return 2 * made * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        case "conv_general_dilated":
            kernel, (out_axis, *_) = eqn.invars[1].aval, eqn.params["dimension_numbers"].rhs_spec
            return 2 * made * kernel.size // kernel.shape[out_axis]
    return made


def finite_at_zero(eqn) -> bool:
    """Whether an equation gives finite numbers for arguments of zero."""
    positive = eqn.primitive.name != "integer_pow" or eqn.params["y"] >= 0
    return positive and eqn.primitive.name in _FINITE_AT_ZERO
