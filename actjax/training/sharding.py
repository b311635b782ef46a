"""Training over many devices: a mesh, and a gradient whose only synchronisation is its reduction.

    mesh axes   "data"      the rows of a batch; parameters are copies
                "members"   the members of an ensemble; see `actjax.training.sweep`

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
from jax.sharding import Mesh, NamedSharding
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
      `(model, batch, *rest) -> ((loss, metrics), gradient)`, for the `differentiate` of
      `make_train_step`: the numbers of one device to rounding, as long as every row weighs the
      same. A mean over targets of which rows have different numbers is a mean of the devices'.

    Raises:
      ValueError: when called with a batch whose rows the devices cannot share evenly. They are not
        padded, since padding would count in the means.
    """
    shards = mesh.shape[DATA]

    def on_one_device(model, batch, *rest):
        # A model that may differ from device to device has a gradient that is each device's own, so
        # that all there is to reduce goes as one vector: one collective an update, not one a leaf.
        model = jax.tree.map(lambda leaf: lax.pcast(leaf, DATA, to="varying"), model)
        (loss, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(model, batch, *rest)
        flat, restore = ravel_pytree((loss, gradient, jax.tree.map(in_own_row, metrics)))
        loss, gradient, metrics = restore(lax.psum(flat, DATA))
        metrics = {
            name: rows.max(0) if name.endswith("_max") else rows.mean(0)
            for name, rows in metrics.items()
        }
        return (loss / shards, metrics), jax.tree.map(lambda leaf: leaf / shards, gradient)

    def in_own_row(value):
        """Among zeros, so that a sum over the devices is the values of all: [shards, ...]."""
        rows = jnp.zeros((shards, *value.shape), value.dtype)
        return rows.at[lax.axis_index(DATA)].set(value)

    def differentiate(model, batch, *rest):
        rows = jax.tree.leaves(batch)[0].shape[0]
        if rows % shards:
            raise ValueError(
                f"batch has {rows} rows; {shards} devices share it only if their number divides it."
            )
        specs = P(), P(DATA), *([P()] * len(rest))
        run = jax.shard_map(on_one_device, mesh=mesh, in_specs=specs, out_specs=P())
        return run(model, batch, *rest)

    return differentiate
