"""The variables of the Flax modules in a pytree: which there are, and what a call does to them.

A loop calls its step again and again with the parameters it was given, so nothing that a call
writes into a variable would be found by the next.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx


class Touched(NamedTuple):
    """What a call did to the variables that it was given.

    Attributes:
      written: path and kind of each variable that was changed or made.
      drawn: of those that are streams of noise, the names, each once and in order.
    """

    written: tuple[tuple[str, str], ...]
    drawn: tuple[str, ...]


def renewed(tree: Any) -> Any:
    """A copy of the modules in `tree` that may be written in the trace at work."""
    return jax.tree.map(lambda leaf: leaf, tree)


def renewing(step: Callable) -> Callable:
    """`step`, which may write the modules in its parameters, each time in a copy of them."""
    return lambda params, *rest: step(renewed(params), *rest)


def variables(tree: Any) -> dict[str, nnx.Variable]:
    """The variables of `tree` by path, as "cell.dense_i.kernel"; one that is shared comes twice."""
    return {path: v for path, v in _nodes(tree, nnx.Variable) if isinstance(v, nnx.Variable)}


def shared_variable(tree: Any) -> tuple[str, str] | None:
    """Two places of one variable, if there is one that has two; streams of noise may."""
    seen: dict[int, str] = {}
    for path, variable in variables(tree).items():
        if not isinstance(variable, nnx.RngState) and seen.setdefault(id(variable), path) != path:
            return seen[id(variable)], path
    return None


def observed(call: Callable, tree: Any) -> tuple[Any, Touched]:
    """``call(tree)`` and what it did to the variables of `tree`, which must be its own to write.

    `nnx.WeightNorm` writes the normalized weights back, which is how it computes, not a state.
    """
    normed = tuple(_inside(p) for p, v in _nodes(tree, nnx.WeightNorm) if type(v) is nnx.WeightNorm)
    before = {path: _contents(variable) for path, variable in variables(tree).items()}
    result = call(tree)
    written: list[tuple[str, str]] = []
    drawn: dict[str, None] = {}
    names = stream_names(tree)
    for path, variable in variables(tree).items():
        if path in before and _same(before[path], _contents(variable)):
            continue
        if isinstance(variable, nnx.RngState):
            drawn[names[path]] = None
        elif not (isinstance(variable, nnx.Param) and path.startswith(normed)):
            written.append((path, type(variable).__name__))
    return result, Touched(tuple(written), tuple(drawn))


def stream_names(tree: Any) -> dict[str, str]:
    """Under what name each stream of noise asks for its keys: its tag, or `nnx.Dropout`'s own.

    (The streams of a module that was made from one default stream all have that one's tag.)
    """
    found = variables(tree).items()
    names = {path: v.tag for path, v in found if isinstance(v, nnx.RngState)}
    for owner, layer in _nodes(tree, nnx.Dropout):
        if isinstance(layer, nnx.Dropout):
            own = [path for path in names if path.startswith(_inside(owner))]
            names.update(dict.fromkeys(own, layer.rng_collection))
    return names


def _nodes(tree: Any, kind: type) -> list[tuple[str, Any]]:
    is_kind = lambda node: isinstance(node, kind)
    found, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_kind)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    return [(name(path), node) for path, node in found]


def _inside(path: str) -> str:
    """How the paths below a path begin."""
    return f"{path}." if path else ""


def _contents(variable: nnx.Variable) -> tuple[list, Any]:
    return jax.tree.flatten(variable.get_raw_value())


def _same(before: tuple[list, Any], after: tuple[list, Any]) -> bool:
    """Whether nothing was written: what is written is another object, even of equal value."""
    (old, old_tree), (new, new_tree) = before, after
    return old_tree == new_tree and all(a is b for a, b in zip(old, new, strict=True))
