"""Training over many devices: a mesh, and a gradient whose only synchronisation is its reduction.

    mesh axes   "data"      the rows of a batch; parameters are copies
                "members"   the members of an ensemble; see `actjax.training.ensemble`

The loss runs inside `shard_map`: each device runs the adaptive loop on its own rows, which ends
when its own lanes are done, and the devices meet once, where gradients and metrics are averaged.
A batch that is drawn in the same program is drawn where its rows are used: JAX's random bits are a
function of their place, so each device makes its own and all together make what one would.

The devices may be those of many processes; see `actjax.training.distributed`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DATA, MEMBERS = "data", "members"


def make_mesh(
    devices: Sequence[jax.Device] | None = None, *, data: int | None = None, members: int = 1
) -> Mesh:
    """A mesh of `members` x `data` devices.

    Args:
      devices: all there are unless given.
      data: devices that share a batch; unless given, all that `members` leaves.
      members: devices that the members of an ensemble are spread over.

    Raises:
      ValueError: the counts do not give the number of devices.

    >>> dict(make_mesh(jax.devices()[:1]).shape)
    {'members': 1, 'data': 1}
    """
    devices = list(jax.devices() if devices is None else devices)
    data = len(devices) // max(1, members) if data is None else data
    if data < 1 or members < 1 or data * members != len(devices):
        raise ValueError(
            f"data x members must be the number of devices, {len(devices)}, got {data} x {members}."
        )
    return Mesh(np.asarray(devices).reshape(members, data), (MEMBERS, DATA))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of every array on every device of the mesh, all of whose processes must call this."""
    everywhere = NamedSharding(mesh, P())
    if everywhere.is_fully_addressable:
        return jax.device_put(tree, everywhere)
    return jax.jit(lambda tree: tree, out_shardings=everywhere)(tree)  # device_put refuses keys


def spread(tree: Any, mesh: Mesh) -> Any:
    """The rows that every array leads with, shared among the devices of the mesh's data axis."""
    check_mesh(mesh)
    _check_rows(tree, mesh.shape[DATA])
    return jax.device_put(tree, NamedSharding(mesh, P(DATA)))


def one_copy(tree: Any) -> Any:
    """Of every array that `replicate` made, the copy on one device of this process."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def data_parallel(loss_fn: Callable[..., tuple[Array, dict[str, Array]]], mesh: Mesh) -> Callable:
    """The value and gradient of a loss, the rows of its batch spread over the mesh's data axis.

    Args:
      loss_fn: `(model, batch, *rest) -> (loss, metrics)`, loss and metrics being means over rows;
        a metric whose name ends in "_max" is a maximum.
      mesh: with a "data" axis.

    Returns:
      `(model, batch, *rest) -> ((loss, metrics), gradient)`: the numbers of one device to rounding,
      as long as every row weighs the same. A mean over targets of which rows have different numbers
      is a mean of the devices'.

    Raises:
      ValueError: for a mesh without that axis, and when called with a batch whose rows the devices
        cannot share evenly. They are not padded, since padding would count in the means.
    """

    def value_of(model, state, batch, *rest):
        loss, metrics = loss_fn(model, batch, *rest)
        return loss, (metrics, state)

    share = make_shared(value_of, mesh)[0]

    def differentiate(model, batch, *rest):
        (loss, (metrics, _)), gradient = share(model, {}, batch, *rest)
        return (loss, metrics), gradient

    return differentiate


def make_shared(
    value_of: Callable, mesh: Mesh, by_row: tuple[str, ...] = ()
) -> tuple[Callable, Callable]:
    """`jax.value_and_grad(value_of, has_aux=True)` and the value alone, over the devices of a mesh.

    Args:
      value_of: `(params, state, batch, *rest) -> (loss, (metrics, written))`, `written` holding
        what the loss makes of leaves of `state`, by name. Its floats are averaged over the devices,
        each of which draws noise of its own from the keys in `state`.
      mesh: with a "data" axis.
      by_row: names that metrics may have whose arrays lead with rows: these stay where they are.
    """
    check_mesh(mesh)
    shards = mesh.shape[DATA]

    def on_one_device(params, state, batch, *rest):
        # A model that may differ from device to device has a gradient that is each device's own, so
        # that all there is to reduce goes as one vector: one collective an update, not one a leaf.
        params, state = own(params), jax.tree.map(own_noise, own(state))
        (loss, (metrics, written)), gradient = jax.value_and_grad(value_of, has_aux=True)(
            params, state, batch, *rest
        )
        averaged = {name: leaf for name, leaf in written.items() if _is_inexact(leaf)}
        alike = {name: leaf for name, leaf in written.items() if name not in averaged}
        _check_alike(alike)
        rows = {name: metrics[name] for name in by_row if name in metrics}
        metrics = {name: value for name, value in metrics.items() if name not in rows}
        loss, gradient, averaged, metrics = _sum(
            (loss, gradient, averaged, jax.tree.map(in_own_row, metrics))
        )
        metrics = {
            name: values.max(0) if name.endswith("_max") else values.mean(0)
            for name, values in metrics.items()
        }
        mean = lambda tree: jax.tree.map(lambda leaf: leaf / shards, tree)
        return (mean(loss), (metrics, mean(averaged) | alike), mean(gradient)), rows

    def value_on_one_device(params, state, batch, *rest):
        params, state = own(params), jax.tree.map(own_noise, own(state))
        return lax.pmean(value_of(params, state, batch, *rest)[0], DATA)

    def own(tree):
        """The same numbers, as each device's own; counters stay those of all."""
        return jax.tree.map(
            lambda leaf: lax.pcast(leaf, DATA, to="varying") if _is_inexact(leaf) else leaf, tree
        )

    def own_noise(leaf):
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return jax.random.fold_in(leaf, lax.axis_index(DATA))

    def in_own_row(value):
        """Among zeros, so that a sum over the devices is the values of all: [shards, ...]."""
        value = jnp.asarray(value)
        rows = jnp.zeros((shards, *value.shape), value.dtype)
        return rows.at[lax.axis_index(DATA)].set(value)

    def over_devices(call, out_specs):
        def run(params, state, batch, *rest):
            _check_rows(batch, shards)
            if AxisType.Explicit in mesh.axis_types:  # under which nothing moves unless told to
                place = lambda tree, spec: jax.sharding.reshard(tree, NamedSharding(mesh, spec))
                params, state, rest = place((params, state, rest), P())
                batch = place(batch, P(DATA))
            specs = P(), P(), P(DATA), *([P()] * len(rest))
            shared = jax.shard_map(call, mesh=mesh, in_specs=specs, out_specs=out_specs)
            return shared(params, state, batch, *rest)

        return run

    share = over_devices(on_one_device, (P(), P(DATA)))

    def differentiate(params, state, batch, *rest):
        (loss, (metrics, written), gradient), rows = share(params, state, batch, *rest)
        return (loss, (metrics | rows, written)), gradient

    return differentiate, over_devices(value_on_one_device, P())


def _sum(tree: Any) -> Any:
    """Sums over the devices in one collective for each type there is, mostly one."""
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, tree))
    summed = [None] * len(leaves)
    for dtype in {leaf.dtype: None for leaf in leaves}:
        places = [place for place, leaf in enumerate(leaves) if leaf.dtype == dtype]
        flat, restore = ravel_pytree([leaves[place] for place in places])
        for place, total in zip(places, restore(lax.psum(flat, DATA)), strict=True):
            summed[place] = total
    return jax.tree.unflatten(structure, summed)


def check_mesh(mesh: Any):
    """Refuses what is no mesh, or has no axis for the rows of a batch."""
    axes = getattr(mesh, "axis_names", None)
    if axes is None:
        raise ValueError(f"mesh must be a mesh, as make_mesh() is, got {mesh!r}.")
    if DATA not in axes:
        raise ValueError(f"mesh must have an axis {DATA!r}, got {tuple(axes)}.")


def _check_rows(batch: Any, shards: int):
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
    if not shapes or () in shapes or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(
            f"batch must hold arrays that lead with its rows for devices to share, got {shapes}."
        )
    rows = shapes[0][0]
    if rows % shards:
        raise ValueError(f"batch must have rows that {shards} devices can share, got {rows}.")


def _check_alike(leaves: dict[str, Array]):
    for name, leaf in leaves.items():
        kind = jax.typeof(leaf)
        # the name depends on JAX's version; under a third, `shard_map` refuses it in its words
        varying = getattr(getattr(kind, "manual_axis_type", kind), "varying", None)
        if DATA in (varying or getattr(kind, "vma", None) or ()):
            raise ValueError(
                f"model{name} must be of a floating-point type, whose mean over devices is taken, "
                f"or the same on all of them, got {leaf.dtype} written from the rows of a batch."
            )


def _is_inexact(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
