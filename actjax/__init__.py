"""Adaptive computation in JAX: networks and optimizers that learn how many steps to take."""

from actjax import attention, budget, f1, learned, losses, tasks, training
from actjax.halting import (
    HaltingWeights,
    Ponder,
    halting_step,
    halting_weights,
)
from actjax.layers import Layers
from actjax.lfact import LFACT
from actjax.modules import ACT, RNN, Repeat
from actjax.seq2seq import Decoded, Seq2Seq
from actjax.stream import Result, stream, stream_batch
from actjax.unroll import ponder, repeat, unroll, unroll_layers

__all__ = [
    "ACT",
    "LFACT",
    "RNN",
    "Decoded",
    "HaltingWeights",
    "Layers",
    "Ponder",
    "Repeat",
    "Result",
    "Seq2Seq",
    "attention",
    "budget",
    "f1",
    "halting_step",
    "halting_weights",
    "learned",
    "losses",
    "ponder",
    "repeat",
    "stream",
    "stream_batch",
    "tasks",
    "training",
    "unroll",
    "unroll_layers",
]
