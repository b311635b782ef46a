"""Adaptive computation in JAX: networks and optimizers that learn how many steps to take."""

from actjax import budget, halting, learned, losses, nn, steps, tasks, training
from actjax._layers import Layers
from actjax._stream import Result, stream, stream_batch
from actjax._streamable import Prepared, StepModel, Streamable
from actjax._unroll import LayerStep, Step, ponder, repeat, unroll, unroll_layers
from actjax.halting import (
    HaltingWeights,
    Ponder,
    halting_step,
    halting_weights,
)
from actjax.nn import (
    ACT,
    LFACT,
    RNN,
    Decoded,
    PonderNet,
    Recurrent,
    Recursive,
    Repeat,
    Seq2Seq,
    UniversalTransformer,
)

__version__ = "0.1.0"

__all__ = [
    "ACT",
    "LFACT",
    "RNN",
    "Decoded",
    "HaltingWeights",
    "LayerStep",
    "Layers",
    "Ponder",
    "PonderNet",
    "Prepared",
    "Recurrent",
    "Recursive",
    "Repeat",
    "Result",
    "Seq2Seq",
    "Step",
    "StepModel",
    "Streamable",
    "UniversalTransformer",
    "budget",
    "halting",
    "halting_step",
    "halting_weights",
    "learned",
    "losses",
    "nn",
    "ponder",
    "repeat",
    "steps",
    "stream",
    "stream_batch",
    "tasks",
    "training",
    "unroll",
    "unroll_layers",
]


def __dir__():
    return [*__all__, "__version__"]
