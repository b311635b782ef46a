"""The recurrent cells that `--cell` knows: an entry of `CELLS` is all that a new one needs.

A cell is any `(in_features, hidden_features, *, rngs, **options) -> nnx.Module` with the calls of
Flax's own, `cell(carry, x) -> (carry, y)` and `initialize_carry(shape, rngs=...)`.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx


class Cell(NamedTuple):
    """A kind of cell.

    Attributes:
      make: the cell's class.
      gates: how many products of its input it takes, by which its weights can start after Glorot;
        None where they start in the cell's own way alone.
      bias_init: how its biases then start; zeros unless given.
    """

    make: Callable[..., nnx.Module]
    gates: int | None = None
    bias_init: Callable | None = None


def remember(key, shape, dtype):
    """Biases of an LSTM's gates [4 * hidden], in, forget, cell and out: 1 to forget, 0 else."""
    return jnp.repeat(jnp.array([0, 1, 0, 0], dtype), shape[0] // 4)


CELLS = {
    "simple": Cell(nnx.SimpleCell, gates=1),
    "gru": Cell(nnx.GRUCell, gates=3),
    "lstm": Cell(nnx.OptimizedLSTMCell, gates=4, bias_init=remember),
}


def make_cell(name: str, init: str) -> Callable[..., nnx.Module]:
    """The class of a cell whose weights start as `init` says: "flax", "glorot" or "glorot_all"."""
    kind = CELLS[name]
    if init == "flax":
        return kind.make
    if kind.gates is None:
        raise ValueError(f"init must be 'flax' for the cell {name!r}, got {init!r}.")
    return functools.partial(_after_glorot, kind)


def _after_glorot(kind: Cell, in_features: int, hidden_features: int, **options) -> nnx.Module:
    """A cell whose weights start as one matrix [in + hidden, gates x hidden] would after Glorot.

    Uniform on +-sqrt(6 / (fan in + fan out)), and 1 for the bias of an LSTM's forget gate: how
    TensorFlow 1 starts its cells, and so the code of Fojo 2018. With a bias of 0 an LSTM forgets
    half of its memory at every ponder step.
    """
    limit = math.sqrt(6 / (in_features + (1 + kind.gates) * hidden_features))
    uniform = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)
    if kind.bias_init is not None:
        options["bias_init"] = kind.bias_init
    inits = {"kernel_init": uniform, "recurrent_kernel_init": uniform}
    return kind.make(in_features, hidden_features, **inits, **options)
