"""Adaptive computation in JAX: networks and optimizers that learn how many steps to take."""

from actjax.halting import (
    HaltingWeights,
    Ponder,
    halting_step,
    halting_weights,
)
from actjax.layers import Layers
from actjax.lfact import LFACT
from actjax.modules import ACT, RNN, Repeat
from actjax.unroll import ponder, repeat, unroll, unroll_layers

__all__ = [
    "ACT",
    "LFACT",
    "RNN",
    "HaltingWeights",
    "Layers",
    "Ponder",
    "Repeat",
    "halting_step",
    "halting_weights",
    "ponder",
    "repeat",
    "unroll",
    "unroll_layers",
]
