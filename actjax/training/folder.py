"""The folder of a run: whose it is, whether a run may go on in it, and that no other is in it."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from actjax.training.metrics import write_json

try:
    import fcntl
except ImportError:  # not on Windows, where a folder is not guarded against a second run
    fcntl = None  # type: ignore[assignment]

CONFIG = "config.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"


def claim_folder(
    directory: str | os.PathLike,
    config: dict[str, Any],
    *,
    resume: bool = False,
    free: tuple[str, ...] = ("steps",),
    defaults: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Makes `directory` the folder of the run that `config` describes, and writes config.json.

    Args:
      directory: created where it does not exist.
      config: what the run is a function of, as JSON can hold it.
      resume: whether the folder may hold a run already; it must then have the same `config`.
      free: fields of `config` that may differ on resuming.
      defaults: what fields are where the config.json of an older version lacks them; None unless
        given.

    Raises:
      ValueError: where the folder holds a run and `resume` is not set, or one of another `config`,
        or of which nothing is known, or that another process is at work on; and where it cannot be
        written to.
    """
    directory = pathlib.Path(directory)
    path = directory / CONFIG
    config = json.loads(json.dumps(config))
    with writing_to(directory):
        if path.exists():
            if not resume:
                raise ValueError(
                    f"out must be a new folder, got {str(directory)!r}, which holds a run already; "
                    "add --resume to continue it or choose another folder."
                )
            _check_same(path, config, free, defaults or {})
        elif _holds_a_run(directory):
            raise ValueError(
                f"out must be a new folder or hold the {CONFIG} of its run, got {str(directory)!r} "
                "with metrics or checkpoints alone."
            )
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory):
            write_json(path, config)
    return directory


@contextlib.contextmanager
def writing_to(directory: pathlib.Path) -> Iterator[None]:
    """Refuses, before a run, a folder that cannot be made or written to, in one sentence."""
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"out must be a folder, got the file {str(directory)!r}.")
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"out must be a folder that can be written to, got {str(directory)!r}: "
            f"{error.strerror or str(error).rstrip('.')}."
        ) from error


@contextlib.contextmanager
def locked(directory: pathlib.Path) -> Iterator[None]:
    """A block of code that no other process (or thread) runs in this folder at the same time.

    The lock is the operating system's, so that it ends with the process, however that dies.

    Raises:
      ValueError: another does.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"out must be a folder that no other run is at work in, got {str(directory)!r}."
            ) from error
        except OSError:  # of file systems without locks
            pass
        yield
    finally:
        os.close(handle)


def _holds_a_run(directory: pathlib.Path) -> bool:
    checkpoints = directory / CHECKPOINTS
    return (directory / METRICS).exists() or (checkpoints.is_dir() and any(checkpoints.iterdir()))


def _check_same(
    path: pathlib.Path, config: dict[str, Any], free: tuple[str, ...], defaults: Mapping[str, Any]
):
    try:
        before = json.loads(path.read_bytes())
        names = sorted((before.keys() | config.keys()) - set(free))
    except (ValueError, AttributeError) as error:  # of JSON, of UTF-8, and no object
        raise ValueError(f"{str(path)!r} must be a JSON object, got a damaged file.") from error
    defaults = json.loads(json.dumps(dict(defaults)))
    for name in names:
        was, now = (values.get(name, defaults.get(name)) for values in (before, config))
        if was != now:
            raise ValueError(
                f"{name} must be {was!r}, with which the run in {str(path.parent)!r} was started, "
                f"got {now!r}: resume it with that or choose another folder."
            )
