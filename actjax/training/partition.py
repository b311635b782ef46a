"""What of a model is trained, and what it only carries.

    model --split--> params   the leaves that are differentiated and updated; None for the others
                     rest     the others: statistics, keys, counters, frozen parts, integers
    params, rest --merge--> model

Both have the structure of the model, so that an optimizer's masks and labels follow its paths, and
a model of which everything is trained is its own `params`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from actjax.training.metrics import OF_ROWS, check_names


def split(model: Any, wrt: Any = None) -> tuple[Any, Any]:
    """The trained leaves of `model` and the others, each with None in the place of the other's.

    Args:
      model: any pytree of arrays, functions and NNX modules.
      wrt: an NNX filter, by which a leaf is trained: a kind of `nnx.Variable`, a function
        `(path, value) -> bool`, `nnx.Not(...)` and so on. Unless given, `nnx.Param` inside modules
        and every array outside. What is not a floating-point (or complex) array is never trained.

    Example:
      >>> params, rest = split({"w": jnp.ones(2), "ids": jnp.arange(2), "activation": jnp.tanh})
      >>> {name: leaf is not None for name, leaf in params.items()}
      {'activation': False, 'ids': False, 'w': True}
    """
    chosen = nnx.filterlib.to_predicate(nnx.Param if wrt is None else wrt)

    def mark(path, node, bare):
        trained = (bare and not _is_variable(node)) or chosen(tuple(map(_key, path)), node)
        return jax.tree.map(lambda leaf: bool(trained) and _is_inexact(leaf), node)

    def mark_part(path, node):
        if not isinstance(node, nnx.Pytree):
            return mark(path, node, bare=wrt is None)
        inside = lambda end, node: mark(path + end, node, bare=False)
        return jax.tree_util.tree_map_with_path(inside, node, is_leaf=_is_variable)

    is_part = lambda node: isinstance(node, nnx.Pytree) or _is_variable(node)
    marks = jax.tree_util.tree_map_with_path(mark_part, model, is_leaf=is_part)
    params = jax.tree.map(lambda leaf, trained: leaf if trained else None, model, marks)
    rest = jax.tree.map(lambda leaf, trained: None if trained else leaf, model, marks)
    return params, rest


def merge(params: Any, rest: Any) -> Any:
    """The model that `split` took apart: new modules, which may be written to."""
    pick = lambda param, other: other if param is None else param
    return jax.tree.map(pick, params, rest, is_leaf=lambda leaf: leaf is None)


def writes(params: Any, rest: Any, model: Any) -> dict[str, Array]:
    """What was written to `model`, that is `merge(params, rest)`: leaves of `rest`, by their path.

    What was written to parameters is dropped, and so is what was sown (`nnx.Intermediate`).

    Raises:
      ValueError: the model has other state than before.
    """
    before = named(rest)
    after = named(model)
    new = after.keys() - before.keys() - named(params).keys()
    if new:
        sown = [name for name, value in _variables(model) if isinstance(value, nnx.Intermediate)]
        new = {name for name in new if not name.startswith(tuple(f"{s}." for s in sown))}
    if new:
        raise ValueError(
            f"model must hold all its state before it is trained, got {', '.join(sorted(new))} "
            "new from loss_fn."
        )
    return {
        name: after[name]
        for name, leaf in before.items()
        if name in after and after[name] is not leaf
    }


def rewrite(rest: Any, written: dict[str, Array]) -> Any:
    """`rest` with what was written to it, in the types it has."""

    def put(path, leaf):
        new = written.get(jax.tree_util.keystr(path))
        if new is None:
            return leaf
        if jnp.shape(new) != jnp.shape(leaf):
            raise ValueError(
                f"model{jax.tree_util.keystr(path)} must keep its shape {jnp.shape(leaf)}, "
                f"got {jnp.shape(new)} from loss_fn."
            )
        dtype = jnp.result_type(leaf)
        return new if getattr(new, "dtype", None) == dtype else jnp.asarray(new).astype(dtype)

    return jax.tree_util.tree_map_with_path(put, rest)


def check_unshared(model: Any):
    """Refuses a model with one variable in two places, which would come apart as it is trained."""
    places: dict[int, str] = {}
    for name, variable in _variables(model):
        first = places.setdefault(id(variable), name)
        if first != name:
            raise ValueError(
                f"model must hold every variable in one place, got one at both {first} and {name}."
            )


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Static:
    """A leaf that JAX cannot carry, such as an activation function, as a part of the structure."""

    value: Any


def hide(tree: Any) -> Any:
    """`tree` with every leaf that is no array in a `Static`: what compiled loops can carry."""
    return jax.tree.map(lambda leaf: leaf if _is_array(leaf) else Static(leaf), tree)


def show(tree: Any) -> Any:
    """What `hide` hid."""
    is_static = lambda node: isinstance(node, Static)
    return jax.tree.map(
        lambda leaf: leaf.value if is_static(leaf) else leaf, tree, is_leaf=is_static
    )


def carried(step: Callable) -> Callable:
    """A training step for the states that `hide` made, with metrics for rows to hold."""

    def on_hidden(state, *rest):
        state, metrics = step(show(state), *rest)
        check_names(metrics, OF_ROWS)
        return hide(state), metrics

    return on_hidden


def named(tree: Any) -> dict[str, Any]:
    """The leaves by their path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _variables(model: Any) -> list[tuple[str, nnx.Variable]]:
    nodes = jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_variable)
    return [(jax.tree_util.keystr(path), node) for path, node in nodes if _is_variable(node)]


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (bool, int, float, complex)) or hasattr(leaf, "dtype")


def _is_inexact(leaf: Any) -> bool:
    return _is_array(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _key(entry: Any) -> str | int:
    """An entry of JAX's paths as NNX has it in its own."""
    for name in ("key", "idx", "name"):
        if hasattr(entry, name):
            return getattr(entry, name)
    return str(entry)
