"""The folder of a run: whose it is, and whether a run may continue in it."""

import json
import os
import pathlib
from typing import Any

from actjax.training.metrics import write_json

CONFIG = "config.json"


def claim_folder(
    directory: str | os.PathLike,
    config: dict[str, Any],
    *,
    resume: bool = False,
    free: tuple[str, ...] = ("steps",),
) -> pathlib.Path:
    """Makes `directory` the folder of the run that `config` describes, and writes config.json.

    Args:
      directory: created where it does not exist.
      config: what the run is a function of, as JSON can hold it.
      resume: whether the folder may hold a run already; it must then have the same `config`.
      free: fields of `config` that may differ on resuming.

    Raises:
      ValueError: where the folder holds a run and `resume` is not set, or one of another `config`.
    """
    directory = pathlib.Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"out is {str(directory)!r}, which is a file; it must be a folder")
    path = directory / CONFIG
    config = json.loads(json.dumps(config))
    if path.exists():
        if not resume:
            raise ValueError(
                f"out is {str(directory)!r}, which holds a run already; "
                "add --resume to continue it or choose another folder"
            )
        _check_same(path, config, free)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(path, config)
    return directory


def _check_same(path: pathlib.Path, config: dict[str, Any], free: tuple[str, ...]):
    try:
        before = json.loads(path.read_text())
        names = sorted((before.keys() | config.keys()) - set(free))
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(
            f"config file {str(path)!r} is damaged: it is not a JSON object"
        ) from error
    for name in names:
        if before.get(name) != config.get(name):
            raise ValueError(
                f"{name} is {config.get(name)!r}, but the run in {str(path.parent)!r} was started "
                f"with {before.get(name)!r}: resume it with that or choose another folder"
            )
