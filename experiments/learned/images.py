"""MNIST and CIFAR-10 from a folder, from the subset shipped with the repository, or downloaded."""

import gzip
import json
import pathlib
import tarfile

import jax.numpy as jnp
import numpy as np

from actjax.learned.problems import Images
from experiments.data import Download, cache_folder, download
from experiments.options import require

MNIST_SMALL = pathlib.Path(__file__).parent.parent / "data" / "mnist_small.npz"
MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_FILES = {  # name -> SHA-256 of the compressed file
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
CIFAR10 = Download(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)


def mnist(source: str) -> tuple[Images, Images]:
    """Training and test images.

    Args:
      source: "small" for the 4000 + 1000 images shipped, "download", or a folder that holds the
        four canonical IDX files, compressed or not.

    Raises:
      ValueError: where a file is missing, is not IDX or is short.
    """
    if source == "small":
        held = np.load(MNIST_SMALL)
        return tuple(_images(held[f"{p}_images"], held[f"{p}_labels"]) for p in ("train", "test"))
    if source == "download":
        wanted = {f"{name}.gz": sha256 for name, sha256 in MNIST_FILES.items()}
        links = {name: Download(MNIST_URL + name, sha256) for name, sha256 in wanted.items()}
        paths = [download(name, link, cache_folder()) for name, link in links.items()]
    else:
        paths = [_present(pathlib.Path(source), name) for name in MNIST_FILES]
    arrays = [read_idx(path) for path in paths]
    return _images(arrays[0], arrays[1]), _images(arrays[2], arrays[3])


def read_idx(path: pathlib.Path) -> np.ndarray:
    """An IDX file of bytes, compressed or not: uint8 of the shape it says."""
    raw = path.read_bytes()
    try:
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError) as error:
        raise ValueError(f"data file must be a whole gzip file, got {str(path)!r}.") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"data file must be an IDX file of bytes, got {str(path)!r}.")
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", rank, 4).astype(int) if len(raw) >= 4 + 4 * rank else None
    if shape is None or len(raw) - 4 - 4 * rank != np.prod(shape):
        raise ValueError(f"data file must hold what its header says, got {str(path)!r}.")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def cifar10(source: str) -> tuple[Images, Images]:
    """Training and test images.

    Args:
      source: "download", or a folder with either the canonical binary batches (*.bin) or
        data_batch_N.png, test_batch.png, each row of pixels an image, and their _labels.json.

    Raises:
      ValueError: where no file or a damaged one is found.
    """
    if source == "download":
        path = download("cifar-10-binary.tar.gz", CIFAR10, cache_folder())
        with tarfile.open(path) as archive:
            files = [member for member in archive if member.name.endswith(".bin")]
            read = lambda member: archive.extractfile(member).read()
            batches = {pathlib.Path(member.name).name: read(member) for member in files}
    else:
        folder = pathlib.Path(source)
        if list(folder.glob("*.png")):
            return _cifar10_png(folder)
        batches = {path.name: path.read_bytes() for path in folder.glob("*_batch*.bin")}
    train = [batches[name] for name in sorted(batches) if name.startswith("data_batch")]
    there = bool(train) and "test_batch.bin" in batches
    require(there, "data", "a folder with CIFAR-10's data and test batches", source)
    return _cifar10_binary(b"".join(train)), _cifar10_binary(batches["test_batch.bin"])


def _cifar10_binary(raw: bytes) -> Images:
    require(len(raw) % 3073 == 0, "a CIFAR-10 batch", "3073 bytes an image", len(raw))
    rows = np.frombuffer(raw, np.uint8).reshape(-1, 3073)
    return _images(rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0])


def _cifar10_png(folder: pathlib.Path) -> tuple[Images, Images]:
    from PIL import Image  # comes with matplotlib

    def read(name):
        with Image.open(folder / f"{name}.png") as picture:
            images = np.asarray(picture).reshape(-1, 32, 32, 3)
        return images, np.array(json.loads((folder / f"{name}_labels.json").read_text()))

    train = [read(path.stem) for path in sorted(folder.glob("data_batch_*.png"))]
    there = bool(train) and (folder / "test_batch.png").exists()
    allowed = "a folder with data_batch_*.png and test_batch.png"
    require(there, "data", allowed, str(folder))
    images, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
    return _images(images, labels), _images(*read("test_batch"))


def _images(images: np.ndarray, labels: np.ndarray) -> Images:
    found = len(images), len(labels)
    require(found[0] == found[1], "images and labels", "as many", found)
    return Images(jnp.asarray(images), jnp.asarray(labels, int))


def _present(folder: pathlib.Path, name: str) -> pathlib.Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise ValueError(f"data must be a folder with {name} or {name}.gz, got {str(folder)!r}.")
