"""Training: a pure step, many of them in a dispatch, rows of metrics, and checkpoints."""

from actjax.training.best import Best as Best
from actjax.training.best import keep_best as keep_best
from actjax.training.best import with_best as with_best
from actjax.training.checkpoint import Checkpoints as Checkpoints
from actjax.training.checkpoint import digest as digest
from actjax.training.fit import NonFiniteError as NonFiniteError
from actjax.training.fit import fit as fit
from actjax.training.folder import claim_folder as claim_folder
from actjax.training.metrics import read_metrics as read_metrics
from actjax.training.metrics import write_json as write_json
from actjax.training.state import TrainState as TrainState
from actjax.training.state import init_state as init_state
from actjax.training.step import make_chunk as make_chunk
from actjax.training.step import make_train_step as make_train_step

__all__ = [
    "Best",
    "Checkpoints",
    "NonFiniteError",
    "TrainState",
    "claim_folder",
    "digest",
    "fit",
    "init_state",
    "keep_best",
    "make_chunk",
    "make_train_step",
    "read_metrics",
    "with_best",
    "write_json",
]
