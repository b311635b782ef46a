"""Checkpoints of any pytree of arrays, with Orbax: written whole or not at all."""

import hashlib
import os
import pathlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from actjax.training.partition import hide, named, show


class Checkpoints:
    """The checkpoints of one run: `directory/STEP`, the newest `keep` of them.

    A checkpoint holds every leaf under its path in the tree, and a seal: the type and shape of each
    leaf and a digest of them all, so that a damaged or foreign checkpoint is noticed. Orbax writes
    into a temporary folder and renames it when it is whole. Processes that train together write it
    together, into a folder that all of them share, and any other number of them can read it.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
        import orbax.checkpoint as ocp  # here: the library core runs without the extra

        self._ocp = ocp
        self.directory = pathlib.Path(directory).resolve()
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"checkpoints must be a folder, got the file {str(directory)!r}.")
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
            ),
        )

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def path(self, step: int) -> pathlib.Path:
        """The folder of the checkpoint at `step`."""
        return self.directory / str(step)

    def save(self, step: int, tree: Any):
        """Writes a checkpoint, and removes the oldest where there are more than `keep`.

        Raises:
          OSError: where it cannot be written. What was written before is kept.
        """
        leaves = _named_leaves(tree)
        seal = {"leaves": _kinds(leaves), "digest": digest(tree)}
        args = self._ocp.args
        both = args.Composite(state=args.StandardSave(_filled(leaves)), seal=args.JsonSave(seal))
        try:
            self._manager.save(step, args=both)
        except (OSError, ValueError) as error:  # Orbax's own, and TensorStore's
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            path = str(self.path(step))
            raise OSError(f"checkpoint {path!r} could not be written: {reason}") from error

    def restore(self, step: int, like: Any) -> Any:
        """The tree saved at `step`, in the structure, types and shardings of `like`.

        Raises:
          ValueError: where the checkpoint cannot be read, is damaged, or has other leaves.
        """
        seal = self._read(step, seal=self._ocp.args.JsonRestore())
        leaves = _named_leaves(like)
        try:
            here, there, sealed = _kinds(leaves), dict(seal["leaves"]), seal["digest"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(self._damaged(step)) from error
        for name in sorted(here.keys() | there.keys()):
            if here.get(name) != there.get(name):
                raise ValueError(
                    f"checkpoint {str(self.path(step))!r} must fit this run, whose {name} is "
                    f"{here.get(name, 'absent')}, got {there.get(name, 'absent')}."
                )
        self._read_through(step)
        abstract = {name: _abstract(leaf) for name, leaf in _filled(leaves).items()}
        arrays = self._read(step, state=self._ocp.args.StandardRestore(abstract))
        tree = _with_leaves(like, leaves | arrays)
        if digest(tree) != sealed:
            raise ValueError(self._damaged(step))
        return tree

    def _read(self, step: int, **item: Any) -> Any:
        try:
            return self._manager.restore(step, args=self._ocp.args.Composite(**item))[
                next(iter(item))
            ]
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
            raise ValueError(self._damaged(step)) from error

    def _read_through(self, step: int):
        """Reads all that the arrays' database holds, one entry after the other.

        Orbax reads them side by side, and of several that cannot be read it reports one and leaves
        the others to print their traces; here the first ends it.
        """
        import tensorstore  # Orbax's storage

        folder = f"{self.path(step) / 'state'}/"
        spec = {"driver": "ocdbt", "base": {"driver": "file", "path": folder}}
        try:
            store = tensorstore.KvStore.open(spec).result()
            for name in store.list().result():
                store.read(name).result()
        except ValueError as error:
            raise ValueError(self._damaged(step)) from error

    def _damaged(self, step: int) -> str:
        return (
            f"checkpoint {str(self.path(step))!r} is damaged and cannot be read; "
            "delete that folder to continue from the checkpoint before it."
        )

    def close(self):
        self._manager.close()


def digest(tree: Any) -> str:
    """SHA-256 over the paths, types, shapes and bytes of all leaves: equal for identical trees.

    Where the leaves are does not matter; if over several processes, all of them must call this.

    Example:
      >>> digest({"a": np.zeros(2)}) == digest({"a": np.zeros(2)})
      True
      >>> digest({"a": np.zeros(2)}) == digest({"a": -np.zeros(2)})
      False
    """
    total = hashlib.sha256()
    for name, leaf in sorted(_named_leaves(tree).items()):
        total.update(f"{name} {leaf.dtype} {leaf.shape}\n".encode())
        if not getattr(leaf, "is_fully_addressable", True) and not leaf.is_fully_replicated:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()


def _named_leaves(tree: Any) -> dict[str, Any]:
    return {name: _raw(leaf) for name, leaf in named(hide(tree)).items()}


def _filled(leaves: dict[str, Any]) -> dict[str, Any]:
    """Those with any numbers in them; Orbax refuses the others, and the seal has all they are."""
    return {name: leaf for name, leaf in leaves.items() if leaf.size}


def _with_leaves(like: Any, arrays: dict[str, Any]) -> Any:
    def pick(path, leaf):
        array = arrays[jax.tree_util.keystr(path)]
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
        return array

    return show(jax.tree_util.tree_map_with_path(pick, hide(like)))


def _raw(leaf: Any) -> Any:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


def _kinds(leaves: dict[str, Any]) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()}
