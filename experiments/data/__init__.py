"""The data to train on: shipped with the repository, downloaded, or any file."""

import hashlib
import os
import pathlib
import urllib.error
import urllib.request
from typing import NamedTuple

import numpy as np

from actjax.tasks import text

EMBEDDED = pathlib.Path(__file__).with_name("enwiki.xml.bz2")
DAILY_CLOSES = pathlib.Path(__file__).with_name("etf_daily_closes.csv.gz")


class Download(NamedTuple):
    """A file on the web, and the SHA-256 of what must arrive."""

    url: str
    sha256: str


DOWNLOADS = {
    "enwik8": Download(
        "https://mattmahoney.net/dc/enwik8.zip",
        "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
    )
}


def load_text(source: str) -> np.ndarray:
    """The bytes of a text, uint8 [n].

    Args:
      source: "wikipedia" for the text shipped with the repository, "enwik8" for the Hutter prize
        file, downloaded once, or the path of a file, plain or packed.

    Raises:
      ValueError: where the file cannot serve, the download fails or its checksum is wrong.
    """
    if source == "wikipedia":
        return text.read(EMBEDDED)
    if source in DOWNLOADS and not pathlib.Path(source).exists():
        return text.read(download(source, DOWNLOADS[source], cache_folder()))
    try:
        return text.read(source)
    except ValueError as error:  # which calls it path, as the library does
        raise ValueError(f"data{str(error).removeprefix('path')}") from error


def cache_folder() -> pathlib.Path:
    """Where downloads are kept: $ACTJAX_CACHE, or actjax in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(os.environ.get("ACTJAX_CACHE") or pathlib.Path(cache) / "actjax")


def download(name: str, wanted: Download, folder: pathlib.Path) -> pathlib.Path:
    """Fetches a file into `folder`, unless it is there, and checks it: the path of the file.

    Raises:
      ValueError: where the file cannot be fetched, or is not the one that is wanted.
    """
    path = folder / pathlib.PurePosixPath(wanted.url).name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        try:
            with urllib.request.urlopen(wanted.url, timeout=30) as response:
                partial.write_bytes(response.read())
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise ValueError(
                f"{name} must be within reach of a download, got {reason} at {wanted.url!r}: "
                "fetch it where there is a network and pass its path with --data, or leave --data "
                "out for what is shipped with the repository."
            ) from error
        partial.replace(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != wanted.sha256:
        raise ValueError(
            f"{name} must have the sha256 {wanted.sha256}, got {found} of {str(path)!r}: "
            "delete it to download it again."
        )
    return path
