"""What a run keeps in its folder: rows of metrics and checkpoints, and where they stand."""

import contextlib
import os
import pathlib
from typing import Any

from actjax.training.checkpoint import Checkpoints
from actjax.training.distributed import check_alike, on_first
from actjax.training.folder import CHECKPOINTS, METRICS, locked, writing_to
from actjax.training.metrics import MetricsFile
from actjax.training.state import TrainState, own_state


class RunFiles:
    """The metrics and checkpoints in the folder of a run, as a context manager.

    Every process of a run has one; the first writes the metrics, and keeps other runs out.

    Attributes:
      seconds: the training time before, in the first process.

    Raises:
      ValueError: on entering: the folder is another run's at this moment, cannot be written to, or
        holds files that are damaged or do not go together.
    """

    def __init__(self, directory: str | os.PathLike):
        self._directory = pathlib.Path(directory)
        self._step = 0
        self._metrics: MetricsFile | None = None
        self.seconds = 0.0

    def __enter__(self):
        with contextlib.ExitStack() as opened:
            on_first(lambda: self._lock(opened))
            with writing_to(self._directory):
                self._checkpoints = Checkpoints(self._directory / CHECKPOINTS)
            opened.callback(self._checkpoints.close)
            self._step = self._checkpoints.latest() or 0
            check_alike(f"the checkpoints in {str(self._directory)!r}", self._step)
            on_first(lambda: self._open_metrics(opened))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_):
        self._opened.close()

    def restore(self, state: TrainState) -> TrainState:
        """The state of the newest checkpoint, or `state` where there is none."""
        return own_state(self._checkpoints.restore(self._step, state)) if self._step else state

    def append(self, row: dict[str, Any]):
        if self._metrics:
            self._metrics.append(row)

    def save(self, step: int, state: TrainState):
        if self._metrics:
            self._metrics.sync()  # a checkpoint never goes before its rows
        self._checkpoints.save(step, state)
        self._step = step

    @property
    def saved(self) -> str:
        """Where the newest checkpoint is, in words."""
        if not self._step:
            return "no checkpoint was written before it"
        return f"the last good checkpoint {str(self._checkpoints.path(self._step))!r} is kept"

    def _lock(self, opened: contextlib.ExitStack):
        with writing_to(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            opened.enter_context(locked(self._directory))

    def _open_metrics(self, opened: contextlib.ExitStack):
        with writing_to(self._directory):
            self._metrics = MetricsFile(self._directory / METRICS, step=self._step)
            opened.callback(self._metrics.close)
            self.seconds = self._metrics.seconds
