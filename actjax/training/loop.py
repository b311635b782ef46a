"""The training loop: chunks of updates on the device, and between them rows and checkpoints."""

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from actjax._checks import check_key, check_positive
from actjax.training.files import RunFiles
from actjax.training.metrics import plain
from actjax.training.partition import hide, show
from actjax.training.progress import Progress
from actjax.training.state import TrainState, own_state
from actjax.training.step import TrainStep, finish_of, make_chunk, make_finish

OnRow = Callable[[dict[str, Any]], None]
CHECKPOINT_EVERY = 1000  # or, of a `log_every` that does not divide it, the next multiple


class NonFiniteError(RuntimeError):
    """A loss or a gradient was not finite; `step` is the number of the update, counted from 1."""

    def __init__(self, step: int, saved: str):
        super().__init__(f"the loss or its gradient is not finite at step {step}; {saved}")
        self.step = step


def fit(
    train_step: TrainStep,
    state: TrainState,
    *,
    key: Array,
    steps: int,
    data: Any = (),
    directory: str | os.PathLike | None = None,
    log_every: int = 100,
    checkpoint_every: int | None = None,
    on_row: OnRow | None = None,
    description: str = "training",
) -> TrainState:
    """Trains until `steps` updates are done, `log_every` of them in each dispatch.

    With a `directory` the run writes there and continues what it finds there: a row of metrics
    every `log_every` updates (metrics.jsonl), a checkpoint every `checkpoint_every` and at the end
    (checkpoints/STEP). Killed at any moment and called again with the same arguments, it ends with
    the same bits as if it had not been. See `claim_folder` for a guard against other settings.

    Of many processes (`actjax.training.distributed`) all make the same call, with `state`, `key`
    and `data` replicated over their mesh and a folder that they share; the first writes the rows.

    Args:
      train_step: `(state, key, data) -> (state, metrics)`; see `make_train_step`.
      state: where to begin; copied, so that the caller's arrays stay valid.
      key: PRNG key of the run; update n uses `fold_in(key, n)`, n from 0.
      steps: the number of updates in the whole run, those before a resumption included.
      data: pytree of arrays handed to `train_step`.
      directory: the folder of the run, or None to write nothing.
      log_every: updates in one compiled dispatch, and between rows of metrics.
      checkpoint_every: updates between checkpoints, a multiple of `log_every`; unless given the
        first one from 1000 on.
      on_row: called with each row of metrics, once it is written.
      description: shown beside the progress bar.

    Returns:
      The state after `steps` updates.

    Raises:
      ValueError: for counts below 1, fewer `steps` than are done, a folder that another run is at
        work in or that cannot be written to, or files in it that are damaged or do not fit.
      OSError: where a row or a checkpoint cannot be written, as on a full disk.
      NonFiniteError: at the first loss or gradient that is not finite. The last checkpoint from
        before it is kept.
    """
    _check_counts(steps, log_every, checkpoint_every)
    check_key("key", key)
    checkpoint_every = checkpoint_every or -(-CHECKPOINT_EVERY // log_every) * log_every
    state = own_state(state)
    with contextlib.ExitStack() as open_files:
        files = None
        if directory is not None:
            files = open_files.enter_context(RunFiles(directory))
            state = files.restore(state)
        done = int(state.step)
        if done > steps:
            raise ValueError(
                f"steps must be at least {done}, which the run has done already, got {steps}."
            )
        seconds = files.seconds if files else 0.0
        progress = open_files.enter_context(Progress(description, total=steps, done=done))
        chunks = {}  # by length: only the last one may be shorter
        while done < steps:
            began = time.perf_counter()
            length = min(log_every - done % log_every, steps - done)
            if length not in chunks:
                chunks[length] = make_chunk(train_step, length)
            state, bad_step, metrics = chunks[length](state, key, data)
            if bad_step > 0:
                raise NonFiniteError(int(bad_step), files.saved if files else "nothing is saved")
            done += length
            row = {"step": done, **{name: plain(value) for name, value in metrics.items()}}
            passed = time.perf_counter() - began
            seconds += passed
            row["seconds"] = round(seconds, 3)
            row["updates_per_second"] = round(length / passed, 1)
            if files:
                files.append(row)
                if done % checkpoint_every == 0 or done == steps:
                    files.save(done, state)
            progress.update(done, row)
            if on_row:
                on_row(row)
        return finished(train_step, state, data)


def finished(train_step: TrainStep, state: TrainState, data: Any) -> TrainState:
    """The state that a run leaves, once all else that it writes is written."""
    finish = finish_of(train_step)
    if finish is not None and finish.due(int(state.step)):
        state = jax.jit(make_finish(train_step))(hide(state), data)
    return show(state)


def _check_counts(steps: int, log_every: int, checkpoint_every: int | None):
    check_positive("steps", steps)
    check_positive("log_every", log_every)
    if checkpoint_every is not None:
        check_multiple("checkpoint_every", checkpoint_every, log_every, "log_every")


def check_multiple(name: str, value: int, of: int, of_name: str):
    check_positive(name, value)
    if value % of:
        raise ValueError(f"{name} must be a multiple of {of_name} = {of}, got {value}.")
