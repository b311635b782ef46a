"""Next-byte prediction on raw text (Graves 2016, section 3.5)."""

import bz2
import gzip
import io
import lzma
import pathlib
import zipfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from actjax._checks import check_choice, check_key, check_positive
from actjax.tasks.batch import Batch

SYMBOLS = 256
ENCODINGS = ("one_hot", "index")

# What a file begins with that is packed in a way that Python does not unpack.
_NOT_UNPACKED = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"\x04\x22\x4d\x18": "lz4",
    b"Rar!\x1a\x07": "rar",
}
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


def sample(
    key: Array, batch_size: int, *, text: Array, window: int = 50, encoding: str = "one_hot"
) -> Batch:
    """Draws windows of consecutive bytes at uniformly random places of `text`.

    The target of each byte is the byte after it, so a window takes `window` + 1 bytes.

    Args:
      key: PRNG key.
      batch_size: B, the number of windows.
      text: uint8 [n], the training split (see `split`); on the device already, it stays there.
      window: T, the input steps of a window.
      encoding: "one_hot" for float32 inputs [B, T, 256], "index" for int32 inputs [B, T].

    Returns:
      Batch: inputs as above, targets int32 [B, T], mask [B, T] all ones, lengths [B] = T,
      difficulty [B, T] zero (text has none).

    Raises:
      ValueError: for a size below 1, an unknown encoding, or a text shorter than a window.

    Example:
      >>> batch = sample(jax.random.key(0), 2, text=jnp.arange(100, dtype=jnp.uint8), window=5)
      >>> batch.inputs.shape
      (2, 5, 256)
      >>> bool((batch.targets == batch.inputs.argmax(-1) + 1).all())
      True
    """
    check_key("key", key)
    check_positive("batch_size", batch_size)
    _check_window(text.size, window)
    start = jax.random.randint(key, (batch_size, 1), 0, text.size - window, jnp.int32)
    pieces = text[start + jnp.arange(window + 1, dtype=jnp.int32)[None]]  # [B, T + 1]
    return as_batch(pieces, encoding=encoding)


def windows(text: Array, window: int, *, encoding: str = "one_hot") -> Batch:
    """Cuts `text` into consecutive windows that together predict each byte once, for evaluation.

    Args:
      text: uint8 [n].
      window: T; up to T bytes at the end that fill no window are left out.
      encoding: as in `sample`.

    Returns:
      Batch with B = (n - 1) // T windows in the order of the text.

    Raises:
      ValueError: for an unknown encoding, or a text shorter than one window.

    Example:
      >>> batch = windows(np.arange(11, dtype=np.uint8), 5, encoding="index")
      >>> batch.inputs.tolist(), batch.targets.tolist()
      ([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    """
    _check_window(text.size, window)
    start = np.arange((text.size - 1) // window)[:, None] * window
    return as_batch(jnp.asarray(text[start + np.arange(window + 1)]), encoding=encoding)


def split(text: np.ndarray, held_out: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Splits a text in two: (the part to train on, the last `held_out` of it, never trained on).

    Raises:
      ValueError: where `held_out` is not between 0 and 1.

    Example:
      >>> training, rest = split(np.arange(100, dtype=np.uint8))
      >>> training.size, rest.tolist()
      (95, [95, 96, 97, 98, 99])
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must be above 0 and below 1, got {held_out!r}.")
    cut = text.size - round(text.size * held_out)
    return text[:cut], text[cut:]


def read(path: str | pathlib.Path) -> np.ndarray:
    """Reads a file of text as bytes: uint8 [n].

    The file may be plain, or packed as bzip2, gzip, xz or a zip of one file: its first bytes
    decide, not its name.

    Raises:
      ValueError: where the file is missing, unreadable, empty, truncated, damaged, or packed in
        another way.
    """
    path = pathlib.Path(path)
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"path must be a file that can be read, got {str(path)!r}: {error.strerror or error}."
        ) from error
    for magic, kind in _NOT_UNPACKED.items():
        if packed.startswith(magic):
            raise ValueError(
                "path must be a plain file or packed as bzip2, gzip, xz or zip, "
                f"got {str(path)!r}, which is packed as {kind}."
            )
    try:
        plain = _unpack(packed)
    except _DAMAGE as error:
        raise ValueError(
            f"path must be a whole file, got {str(path)!r}, which is truncated or damaged: {error}."
        ) from error
    if not plain:
        raise ValueError(f"path must be a file of text, got {str(path)!r}, which is empty.")
    return np.frombuffer(plain, np.uint8)


def _unpack(packed: bytes) -> bytes:
    if packed.startswith(b"BZh"):
        return bz2.decompress(packed)
    if packed.startswith(b"\x1f\x8b"):
        return gzip.decompress(packed)
    if packed.startswith(b"\xfd7zXZ\x00"):
        return lzma.decompress(packed)
    if packed.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            if len(names) != 1:
                raise zipfile.BadZipFile(f"it holds {len(names)} files where one is expected")
            return archive.read(names[0])
    return packed


def draw(key: Array, count: int, *, text: np.ndarray, window: int, apart: bool) -> np.ndarray:
    """Draws pieces of `text` once, for a training or test set of fixed size (LFACT 2020, 4.2).

    Args:
      key: PRNG key; the pieces are a function of it.
      count: how many.
      text: uint8 [n].
      window: T.
      apart: whether no two pieces may share a byte to predict; otherwise they may overlap.

    Returns:
      uint8 [count, T + 1]; see `as_batch`.

    Raises:
      ValueError: for a text that is too short for so many pieces.

    Example:
      >>> pieces = draw(jax.random.key(0), 2, text=np.arange(11), window=5, apart=True)
      >>> sorted(pieces.tolist())
      [[0, 1, 2, 3, 4, 5], [5, 6, 7, 8, 9, 10]]
    """
    check_key("key", key)
    _check_window(text.size, window)
    if apart:
        room = (text.size - 1) // window
        if room < count:
            raise ValueError(
                f"text must have room for {count} windows of {window} bytes that lie apart, "
                f"got {text.size} bytes, room for {room}."
            )
        start = np.asarray(jax.random.permutation(key, room)[:count]) * window
    else:
        start = np.asarray(jax.random.randint(key, (count,), 0, text.size - window, jnp.int32))
    return text[start[:, None] + np.arange(window + 1)]


def as_batch(pieces: Array, *, encoding: str = "one_hot") -> Batch:
    """Inputs and targets from pieces of T + 1 bytes: uint8 [B, T + 1]."""
    check_choice("encoding", encoding, ENCODINGS)
    symbols = pieces.astype(jnp.int32)
    inputs, targets = symbols[:, :-1], symbols[:, 1:]
    return Batch(
        inputs=jax.nn.one_hot(inputs, SYMBOLS, dtype=jnp.float32)
        if encoding == "one_hot"
        else inputs,
        targets=targets,
        mask=jnp.ones_like(targets, bool),
        lengths=jnp.full_like(targets[:, 0], targets.shape[1]),
        difficulty=jnp.zeros_like(targets),
    )


def _check_window(size: int, window: int):
    check_positive("window", window)
    if size < window + 1:
        raise ValueError(
            f"text must have at least {window + 1} bytes for a window of {window}, "
            f"a byte and the one after it for each step, got {size}."
        )
