"""Adaptive computation in JAX: networks and optimizers that learn how many steps to take."""

from actjax.halting import (
    HaltingWeights,
    Ponder,
    halting_step,
    halting_weights,
)
from actjax.modules import ACT, RNN, Repeat
from actjax.unroll import ponder, repeat, unroll

__all__ = [
    "ACT",
    "RNN",
    "HaltingWeights",
    "Ponder",
    "Repeat",
    "halting_step",
    "halting_weights",
    "ponder",
    "repeat",
    "unroll",
]
