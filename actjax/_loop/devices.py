"""What a loop has to know of the devices that it runs on.

Explicit sharding: where arrays say how they lie on a mesh, each device loops over its own rows.

A loop gathers rows, and JAX does not guess how the result of a gather is to be sharded. Rows do not
interact, so there is nothing to guess here: inside `jax.shard_map` every device runs the loop on
the rows it has and stops when they are done; devices meet where the weights' cotangents are summed.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def accelerated() -> bool:
    """Whether what an iteration launches costs more than what it copies."""
    return jax.default_backend() != "cpu"


def by_device(
    function: Callable[[Any, Any], Any], shared: Any, rows: Any, *, check_vma: bool = True
) -> Any:
    """``function(shared, rows)``, each device of an explicit mesh doing its own rows.

    Args:
      function: gives arrays that lead with the row axis, as all of `rows` do.
      shared, rows: pytrees of arrays; what the devices share is copied to all of them.
    """
    mesh = _explicit_mesh((shared, rows))
    if mesh is None:
        return function(shared, rows)
    manual = {
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    }
    split = P(_row_axes(rows, manual))
    run = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(P(), split),
        out_specs=split,
        axis_names=manual,
        check_vma=check_vma,
    )
    return jax.jit(run)(_placed(shared, mesh, P()), _placed(rows, mesh, split))


def beside(rows: Any, shared: Any) -> Any:
    """`shared` with a copy on every device of the explicit mesh that `rows` lie on, if they do.

    The gradient of a product of sharded rows with an array that lies on no mesh is refused by JAX.
    """
    mesh = _explicit_mesh(rows)
    return shared if mesh is None else _placed(shared, mesh, P())


def _placed(tree: Any, mesh: Any, spec: P) -> Any:
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda leaf: jax.sharding.reshard(leaf, sharding), tree)


def _explicit_mesh(tree: Any):
    """The mesh with explicit axes that some array lies on, or None."""
    for leaf in jax.tree.leaves(tree):
        mesh = jax.typeof(leaf).sharding.mesh
        if AxisType.Explicit in mesh.axis_types:
            return mesh
    return None


def _row_axes(rows: Any, names: set[str]) -> Any:
    """The mesh axes that the rows are spread over, as an entry of a `PartitionSpec`."""
    for leaf in jax.tree.leaves(rows):
        axes = jax.typeof(leaf).sharding.spec[0]
        if axes is not None and names.intersection((axes,) if isinstance(axes, str) else axes):
            return axes
    return None
