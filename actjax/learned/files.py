"""Learned optimizers in files: an npz of weights beside a JSON header, versioned, no pickle."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from actjax.learned.heads import GLOBAL_FEATURES, Graves, Head, Softmax, StickBreaking
from actjax.learned.meta import LearnedOptimizer
from actjax.learned.network import CoordinatewiseLSTM, GroupedLSTM
from actjax.learned.prior import HorizonPrior
from actjax.learned.stopping import MassRule, PriceRule

FORMAT = "actjax learned optimizer"
VERSION = 1
POSTERIORS = {"softmax": Softmax, "stick": StickBreaking, "graves": Graves}
RULES = {"mass": MassRule, "price": PriceRule}
SHIPPED = pathlib.Path(__file__).parent / "weights"


def save(path: str | os.PathLike, learned: LearnedOptimizer | CoordinatewiseLSTM | GroupedLSTM):
    """Writes a learned optimizer to one file, whole or not at all.

    Args:
      path: the file, by custom NAME.npz; one that is there is replaced.
      learned: the optimizer, with its head where it has one, or a network alone.

    Raises:
      ValueError: for anything else, weights that are not real numbers of 32 or 64 bits, or a path
        that cannot be written to.

    Example:
      >>> import tempfile
      >>> from flax import nnx
      >>> from actjax.learned import lstm_optimizer
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/mine.npz", CoordinatewiseLSTM(rngs=nnx.Rngs(0)))
      ...     optimizer = lstm_optimizer(load(f"{folder}/mine.npz").network)
    """
    if isinstance(learned, (CoordinatewiseLSTM, GroupedLSTM)):
        learned = LearnedOptimizer(learned)
    if not isinstance(learned, LearnedOptimizer):
        raise ValueError(
            f"learned must be a LearnedOptimizer or its network, got {type(learned).__name__}."
        )
    network, head = learned.network, learned.head
    inner = network.networks if isinstance(network, GroupedLSTM) else ()
    for part in (learned, network, *inner, *(() if head is None else (head,))):
        if type(part) not in (LearnedOptimizer, CoordinatewiseLSTM, GroupedLSTM, Head):
            raise ValueError(
                "learned must be made of the library's own modules, which is what load gives back, "
                f"got {type(part).__name__}."
            )
    arrays = {name: np.asarray(leaf) for name, leaf in _named(learned).items()}
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float64):
            raise ValueError(
                f"learned must hold float32 or float64 weights, got {array.dtype} at {name}."
            )
    header = {"format": FORMAT, "version": VERSION, "settings": _settings(learned)}
    header = json.loads(json.dumps(header, default=lambda number: number.item()))
    header["sha256"] = _digest(header, arrays)
    content = io.BytesIO()
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(content, header=text, **arrays)  # type: ignore[arg-type]
    path = pathlib.Path(path)
    partial = path.parent / f"{path.name}.partial"
    try:
        partial.write_bytes(content.getvalue())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise ValueError(
            f"path must be a file that can be written, got {str(path)!r} ({error.strerror})."
        ) from None


def load(path: str | os.PathLike) -> LearnedOptimizer:
    """The learned optimizer in a file that `save` wrote.

    Args:
      path: the file, or the name of an optimizer that comes with the library.

    Raises:
      ValueError: there is no such file, it is of another format or version, or it is damaged: the
        checksum covers the settings and every weight.
    """
    where = pathlib.Path(path)
    if not where.exists() and where.parent == pathlib.Path():
        where = SHIPPED / f"{where}.npz"
    if not where.is_file():
        names = sorted(file.stem for file in SHIPPED.glob("*.npz"))
        shipped = ", ".join(names) if names else "none yet"
        raise ValueError(
            f"path must be a file written by learned.save, or the name of an optimizer that comes "
            f"with the library ({shipped}), got {str(path)!r}."
        )
    wanted = f"path must be a file written by learned.save, whole, got {str(path)!r}"
    try:
        with np.load(where, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            arrays = {name: file[name] for name in file.files if name != "header"}
        if header["format"] != FORMAT:
            raise ValueError(wanted)
        version, digest = header["version"], header.pop("sha256")
    except Exception as error:  # whatever zip, NumPy and JSON make of a damaged file
        raise ValueError(f"{wanted}, which is damaged or no such file.") from error
    if version != VERSION:
        raise ValueError(
            f"path must be a file of version {VERSION}, which this actjax reads, "
            f"got {str(path)!r} of version {version!r}."
        )
    if digest != _digest(header, arrays):
        raise ValueError(f"{wanted}, which is damaged: its checksum does not fit.")
    empty = jax.eval_shape(lambda: _build(header["settings"]))
    leaves = [jnp.asarray(arrays[name]) for name in _named(empty)]
    return jax.tree.unflatten(jax.tree.structure(empty), leaves)


def _settings(learned: LearnedOptimizer) -> dict[str, Any]:
    """What the modules must be made with to have the same functions and shapes."""
    network, head = learned.network, learned.head
    networks, sizes = [network], None
    if isinstance(network, GroupedLSTM):
        networks, sizes = list(network.networks), list(network.sizes)
    one = lambda lstm: {
        "hidden_features": lstm.hidden_features,
        "layers": len(lstm.kernels),
        "preprocess": lstm.preprocess,
        "p": lstm.p,
        "see_params": bool(lstm.see_params),
        "see_scale": bool(lstm.see_scale),
        "output_scale": lstm.output_scale,
        "output_bias": lstm.output_bias is not None,
    }
    settings: dict[str, Any] = {"networks": list(map(one, networks)), "sizes": sizes, "head": None}
    if head is not None:
        width = 0 if head.inner is None else head.inner[...].shape[0]
        inputs = (head.kernel if head.inner is None else head.inner)[...].shape[-1]
        settings["head"] = {
            "hidden_features": inputs - (GLOBAL_FEATURES if head.see_globals else 0),
            "see_globals": bool(head.see_globals),
            "width": width,
        }
    settings["posterior"] = _plain("posterior", learned.posterior, POSTERIORS)
    settings["stop"] = _plain("stop", learned.stop, RULES)
    return settings


def _plain(name: str, record: Any, kinds: dict[str, type]) -> dict[str, Any] | None:
    """A record of numbers, those of its prior among them, as JSON can hold it."""
    if record is None:
        return None
    kind = next((kind for kind, known in kinds.items() if type(record) is known), None)
    values = dataclasses.asdict(record) if kind else {}
    if kind is None or any(isinstance(value, jax.Array) for value in values.values()):
        allowed = ", ".join(known.__name__ for known in kinds.values())
        raise ValueError(
            f"learned must have None or one of {allowed}, of plain numbers, for its {name}, "
            f"got {record!r}."
        )
    return {"kind": kind, **values}


def _record(plain: dict[str, Any] | None, kinds: dict[str, type]) -> Any:
    """The inverse of `_plain`."""
    if plain is None:
        return None
    kind, values = kinds[plain["kind"]], {n: v for n, v in plain.items() if n != "kind"}
    if "prior" in values:
        values["prior"] = HorizonPrior(**values["prior"])
    return kind(**values)


def _build(settings: dict[str, Any]) -> LearnedOptimizer:
    rngs = nnx.Rngs(0)
    networks = [CoordinatewiseLSTM(**options, rngs=rngs) for options in settings["networks"]]
    sizes, head = settings["sizes"], settings["head"]
    network = networks[0] if sizes is None else GroupedLSTM(networks, tuple(sizes))
    return LearnedOptimizer(
        network,
        None if head is None else Head(**head, rngs=rngs),
        _record(settings.get("posterior"), POSTERIORS),
        _record(settings.get("stop"), RULES),
    )


def _named(learned: LearnedOptimizer) -> dict[str, Any]:
    """Weights by their places in the module."""
    found = jax.tree_util.tree_flatten_with_path(learned)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in found}


def _digest(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
