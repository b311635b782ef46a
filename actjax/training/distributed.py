"""Training over many processes: how they meet, agree, and end.

A mesh over the devices of all processes serves as one over the devices of a single process does
(`actjax.training.sharding`): every process makes the same calls with the same arguments, every
device draws and computes its own rows of a batch, and gradients are averaged among all. What that
leaves to do is in this file.
"""

import contextlib
import hashlib
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

AUTO = "auto"
MEETING_SECONDS = 300  # in which all processes must have started
SILENT_SECONDS = 30  # after which a process that shows no sign of life is given up
# JAX's runtime aborts a process that has lost another, so that somebody else must say so: a shell
# that waits for two lines, after the meeting and at the end, and speaks up where the pipe is closed
WATCH = 'read _ || { echo "$0" >&2; exit; }; read _ || echo "$1" >&2'


@contextlib.contextmanager
def joined(
    coordinator: str | None, *, process_id: int | None = None, num_processes: int | None = None
) -> Iterator[None]:
    """A block of code that many processes run together, each begun before any other use of JAX.

    They end together too. Where one is killed, fails, or shows no sign of life for
    `SILENT_SECONDS`, the others end with a sentence on standard error and an exit status other than
    0; the run can then be continued from its last checkpoint. Only `ValueError` and
    `NonFiniteError`, which are the same in all, leave the block.

    Args:
      coordinator: "HOST:PORT" of process 0, or "auto" where JAX can ask the cluster for all three
        (Slurm, Open MPI, TPU and others), or None for a run of one process.
      process_id: the number of this process, from 0.
      num_processes: how many there are.

    Raises:
      ValueError: as `check` does, and for "auto" where JAX finds no cluster.
    """
    check(coordinator, process_id, num_processes)
    if coordinator is None:
        yield
        return
    watch = _start_watch(coordinator, process_id, num_processes)
    jax.config.update("jax_enable_preemption_service", False)  # which would not let SIGTERM end us
    try:
        jax.distributed.initialize(
            None if coordinator == AUTO else coordinator,
            num_processes,
            process_id,
            initialization_timeout=MEETING_SECONDS,
            heartbeat_timeout_seconds=SILENT_SECONDS,
        )
    except ValueError as error:
        watch.communicate(b"\n\n")
        raise ValueError(
            f"coordinator is {coordinator!r}, but JAX finds no cluster that tells it the rest; "
            "give HOST:PORT of process 0, and process_id and num_processes"
        ) from error
    assert watch.stdin is not None
    watch.stdin.write(b"\n")
    try:
        with contextlib.suppress(_Others):
            yield
        multihost_utils.sync_global_devices("all is done")
    except BaseException as error:
        if _of_runtime(error) or not isinstance(error, (ValueError, RuntimeError)):
            _end(error)  # of this process alone; the others are shared, being raised on purpose
        raise
    finally:
        jax.distributed.shutdown()
        watch.communicate(b"\n")


def check(coordinator: str | None, process_id: int | None, num_processes: int | None):
    """Refuses what `joined` cannot be called with, with one sentence.

    Example:
      >>> check("localhost:1234", process_id=2, num_processes=2)
      Traceback (most recent call last):
      ValueError: process_id must be from 0 to num_processes - 1 = 1, got 2.
    """
    given = {"process_id": process_id, "num_processes": num_processes}
    for name, value in given.items():
        if coordinator is None and value is not None:
            raise ValueError(
                f"{name} must come with coordinator, HOST:PORT of process 0, got {value}."
            )
        if coordinator not in (None, AUTO) and value is None:
            raise ValueError(f"coordinator must come with {name}, got {coordinator!r}.")
    if coordinator not in (None, AUTO) and not re.fullmatch(r"\S+:\d{1,5}", coordinator):
        raise ValueError(f"coordinator must be HOST:PORT or {AUTO}, got {coordinator!r}.")
    if num_processes is not None and num_processes < 1:
        raise ValueError(f"num_processes must be at least 1, got {num_processes}.")
    if process_id is not None and num_processes is not None and not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id must be from 0 to num_processes - 1 = {num_processes - 1}, "
            f"got {process_id}."
        )


def leave_to_first():
    """Ends the `joined` block of every process but the first, which goes on alone.

    What comes next must not use the devices of others; they wait for its end.
    """
    if jax.process_index():
        raise _Others


def on_first(call: Callable[[], object]):
    """Calls `call` in the first process alone; all have the `ValueError` it may raise."""
    refusal = np.zeros(4096, np.uint8)
    if jax.process_index() == 0:
        try:
            call()
        except ValueError as error:
            text = np.frombuffer(str(error).encode()[: refusal.size], np.uint8)
            refusal[: text.size] = text
    sentence = multihost_utils.broadcast_one_to_all(refusal).tobytes().rstrip(b"\0")
    if sentence:
        raise ValueError(sentence.decode(errors="ignore"))


def check_alike(name: str, value: object):
    """Refuses, in all processes, a value that is not the same in all of them."""
    digest = np.frombuffer(hashlib.sha256(repr(value).encode()).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest).reshape(-1, digest.size)
    others = np.flatnonzero((digests != digests[0]).any(1))
    if others.size:
        raise ValueError(
            f"{name} must be the same in all processes, got others in {others.tolist()}."
        )


class _Others(Exception):
    """Raised in all processes but the first, where that one goes on alone."""


def _start_watch(
    coordinator: str, process_id: int | None, num_processes: int | None
) -> subprocess.Popen:
    who = "this process" if process_id is None else f"process {process_id} of {num_processes}"
    alone = (
        f"stopped: {who} has not met the others; all must be started within {MEETING_SECONDS} s, "
        f"and the coordinator, {coordinator}, must be a free port of process 0's machine"
    )
    dead = (
        f"stopped: {who} ended before the run, since it or another has failed or was killed; "
        "start all again with --resume to continue from the last checkpoint"
    )
    return subprocess.Popen(
        ["sh", "-c", WATCH, alone, dead], stdin=subprocess.PIPE, bufsize=0, start_new_session=True
    )


def _of_runtime(error: BaseException) -> bool:
    """Whether JAX's runtime raised it, a status code first; lost connections come as ValueError."""
    return re.match("[A-Z_]+: ", str(error)) is not None


def _end(error: BaseException):
    """Ends this process at once, so that the others notice; a polite exit would wait for them."""
    if _of_runtime(error):
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
    elif isinstance(error, Exception):
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
