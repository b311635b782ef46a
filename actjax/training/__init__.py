"""Training: a pure step, many of them in a dispatch, rows of metrics, and checkpoints."""

from actjax.training.average import averaged_model as averaged_model
from actjax.training.average import keep_average as keep_average
from actjax.training.average import with_average as with_average
from actjax.training.best import Best as Best
from actjax.training.best import keep_best as keep_best
from actjax.training.best import with_best as with_best
from actjax.training.checkpoint import Checkpoints as Checkpoints
from actjax.training.checkpoint import digest as digest
from actjax.training.compiler import gpu_compiler_options as gpu_compiler_options
from actjax.training.ensemble import Sweep as Sweep
from actjax.training.ensemble import stack_states as stack_states
from actjax.training.ensemble import sweep as sweep
from actjax.training.folder import claim_folder as claim_folder
from actjax.training.loop import NonFiniteError as NonFiniteError
from actjax.training.loop import fit as fit
from actjax.training.metrics import read_metrics as read_metrics
from actjax.training.metrics import write_json as write_json
from actjax.training.recycle import init_recycled as init_recycled
from actjax.training.recycle import make_recycled_step as make_recycled_step
from actjax.training.sharding import data_parallel as data_parallel
from actjax.training.sharding import make_mesh as make_mesh
from actjax.training.state import TrainState as TrainState
from actjax.training.state import init_state as init_state
from actjax.training.step import make_chunk as make_chunk
from actjax.training.step import make_train_step as make_train_step

__all__ = [
    "Best",
    "Checkpoints",
    "NonFiniteError",
    "Sweep",
    "TrainState",
    "averaged_model",
    "claim_folder",
    "data_parallel",
    "digest",
    "fit",
    "gpu_compiler_options",
    "init_recycled",
    "init_state",
    "keep_average",
    "keep_best",
    "make_chunk",
    "make_mesh",
    "make_recycled_step",
    "make_train_step",
    "read_metrics",
    "stack_states",
    "sweep",
    "with_average",
    "with_best",
    "write_json",
]
