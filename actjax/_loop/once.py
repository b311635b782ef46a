"""Derivatives that a loop does not have, refused in a sentence.

JAX tells of a `custom_vjp` that stands in the way of forward mode, and of a `while_loop` that
stands in the way of reverse mode, only once it compiles the one and transposes the other: under
`jit` outside of any call of ours, and names neither the function nor the way out. An identity of
which that derivative is a sentence comes first: before the loop for forward mode, and behind it for
reverse mode. Primitives, because no transformation of a function leaves the other mode and `vmap`
as they are.
"""

from typing import Any

import jax
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from actjax._loop.rows import is_float


def in_reverse_only(tree: Any, refusal: str) -> Any:
    """`tree`, the tangents of which may be transposed, but not computed.

    Where reverse mode asks for those of some leaves, forward mode over it may ask for those of all.
    """
    leaves, structure = jax.tree.flatten(tree)
    guarded = iter(_reverse_only.bind(*filter(is_float, leaves), refusal=refusal))
    return structure.unflatten([next(guarded) if is_float(leaf) else leaf for leaf in leaves])


def _to_tangents(primals, tangents, *, refusal: str):
    """The leaves as they are, so that the gradient may be differentiated again."""
    guard = lambda d: d if type(d) is ad.Zero else _tangent.bind(d, refusal=refusal)
    return list(primals), list(map(guard, tangents))


def _refuse_tangent(*_, refusal: str):
    raise TypeError(refusal)


def _known_tangent(tangent, *, refusal: str):
    """Zeros have a derivative: implicit differentiation outside of `jit` computes with them."""
    if np.any(tangent):
        raise TypeError(refusal)
    return tangent


_reverse_only = Primitive("in_reverse_only")
_reverse_only.multiple_results = True
_reverse_only.def_impl(lambda *leaves, refusal: list(leaves))
_reverse_only.def_abstract_eval(lambda *leaves, refusal: list(leaves))
ad.primitive_jvps[_reverse_only] = _to_tangents
batching.primitive_batchers[_reverse_only] = lambda leaves, axes, refusal: (
    _reverse_only.bind(*leaves, refusal=refusal),
    axes,
)
mlir.register_lowering(_reverse_only, lambda _, *leaves, refusal: list(leaves))

# Reverse mode traces it and transposes it, and never computes it.
_tangent = Primitive("tangent_in_reverse_only")
_tangent.def_impl(_known_tangent)
_tangent.def_abstract_eval(lambda tangent, refusal: tangent)
ad.deflinear2(_tangent, lambda cotangent, tangent, refusal: [cotangent])
batching.primitive_batchers[_tangent] = _refuse_tangent
mlir.register_lowering(_tangent, _refuse_tangent)


def in_forward_only(tree: Any, refusal: str) -> Any:
    """`tree`, the tangents of which may be computed, but not transposed."""
    guard = lambda leaf: _forward_only.bind(leaf, refusal=refusal) if is_float(leaf) else leaf
    return jax.tree.map(guard, tree)


def _refuse_transpose(*_, refusal: str):
    raise TypeError(refusal)


_forward_only = Primitive("in_forward_only")
_forward_only.def_impl(lambda leaf, refusal: leaf)
_forward_only.def_abstract_eval(lambda leaf, refusal: leaf)
ad.deflinear2(_forward_only, _refuse_transpose)
batching.defvectorized(_forward_only)
mlir.register_lowering(_forward_only, lambda _, leaf, refusal: [leaf])
