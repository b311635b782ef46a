"""A gradient that may be differentiated forward, but not in reverse, and says so.

JAX tells of a `while_loop` that stands in the way of reverse mode only once it transposes it, under
`jit` outside of any call of ours, and names neither the function nor the way out. An identity whose
transpose is a sentence comes first, since it stands behind the loop. A primitive, because no
transformation of a function leaves both forward mode and `vmap` as they are.
"""

from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from actjax._loop.rows import is_float


def differentiated_once(tree: Any) -> Any:
    """`tree`, which refuses to be differentiated in reverse mode."""
    return jax.tree.map(lambda leaf: _once.bind(leaf) if is_float(leaf) else leaf, tree)


def _refuse(*_):
    raise TypeError(
        "loop='while' has no reverse-mode derivative of its gradient: use loop='scan', or forward "
        "over reverse, as jax.hessian does."
    )


_once = Primitive("differentiated_once")
_once.def_impl(lambda leaf: leaf)
_once.def_abstract_eval(lambda leaf: leaf)
ad.deflinear2(_once, _refuse)
batching.defvectorized(_once)
mlir.register_lowering(_once, lambda _, leaf: [leaf])
