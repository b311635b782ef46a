"""``loop="kernel"`` for `ACT`: which networks it takes, and what of them it is given.

The kernels are written in Pallas for Triton, which JAX says it will remove (it warns as they are
lowered, from 0.12 on). So they are imported where they are asked for, and nothing else needs them.
"""

import importlib
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from actjax._checks import check_closed, check_lengths
from actjax._loop import kernel_cells as cells
from actjax._loop.devices import by_device
from actjax._loop.plan import share_of
from actjax.halting import Graves
from actjax.nn.cells import CellStep

MOST_UNITS = 256
DTYPES = (jnp.dtype("float32"), jnp.dtype("bfloat16"))

# Each of Flax's cells: what it computes, its input layers and its recurrent ones.
_CELLS: dict[type, tuple[cells.Cell, tuple[str, ...], tuple[str, ...]]] = {
    nnx.SimpleCell: (cells.SIMPLE, ("dense_i",), ("dense_h",)),
    nnx.GRUCell: (cells.GRU, ("dense_i",), ("dense_h",)),
    nnx.OptimizedLSTMCell: (cells.LSTM, ("dense_i",), ("dense_h",)),
    nnx.LSTMCell: (cells.LSTM, ("ii", "if_", "ig", "io"), ("hi", "hf", "hg", "ho")),
}
_ALLOWED = (
    "a SimpleCell, GRUCell, LSTMCell or OptimizedLSTMCell of flax.nnx with its default functions, "
    f"nnx.Linear layers and at most {MOST_UNITS} units in float32 or bfloat16"
)


def _kernels() -> ModuleType | None:
    """The module of the kernels; None where JAX is without what they are written in."""
    try:
        return importlib.import_module("actjax._loop.kernel")
    except ImportError as error:
        if not (error.name or "").startswith("jax"):
            raise
        return None


def _without_kernels() -> str | None:
    """That JAX has no Pallas for Triton, as one sentence; None if it has."""
    if _kernels() is not None:
        return None
    known = "must have Pallas for Triton, as 0.10 to 0.12 do,"
    return f"jax {known} for loop='kernel', got {jax.__version__}."


def check_rule(rule: Any):
    """Refuses any rule but Graves', which is what the kernels compute."""
    if not isinstance(rule, Graves):
        raise ValueError(f"rule must be Graves for loop='kernel', got {rule!r}.")


def kernel_supports(cell: nnx.Module) -> str | None:
    """Why ``loop="kernel"`` does not take a cell, as one sentence; None if it does.

    It may also be JAX that is without what the kernels are written in.

    Args:
      cell: the cell itself, such as ``model.cell`` of an `ACT`.

    >>> kernel_supports(nnx.GRUCell(3, 100, rngs=nnx.Rngs(0)))
    >>> print(kernel_supports(nnx.GRUCell(3, 300, rngs=nnx.Rngs(0))).split(", got ")[1])
    300 units.
    """
    found = _other(cell)
    if found is not None:
        return f"cell must be {_ALLOWED} for loop='kernel', got {found}."
    return _without_kernels()


def _other(cell: Any) -> str | None:
    """What `cell` is, if it is none of those that are allowed."""
    kind = type(cell)
    if kind not in _CELLS:
        return kind.__name__
    if cell.hidden_features > MOST_UNITS:
        return f"{cell.hidden_features} units"
    functions = {"activation_fn": (nnx.tanh, jnp.tanh, lax.tanh)}
    functions["gate_fn"] = (nnx.sigmoid, jax.nn.sigmoid, lax.logistic)
    for name, known in functions.items():
        given = getattr(cell, name, known[0])
        if given not in known:
            return f"{name}={getattr(given, '__name__', given)}"
    if getattr(cell, "residual", False):
        return "residual=True"
    for name in (*_CELLS[kind][1], *_CELLS[kind][2]):
        layer = getattr(cell, name)
        if type(layer) is not nnx.Linear or layer.dot_general is not lax.dot_general:
            return f"{name}={type(layer).__name__}"
        dtype = jnp.dtype(layer.kernel.dtype if layer.dtype is None else layer.dtype)
        if dtype not in DTYPES:
            return dtype.name
    return None


def run(step: CellStep, params, state, inputs, *, kind: type, lengths, lanes, **options):
    """Ponders what `Recurrent.prepare` has prepared: ``(carry, outputs, ponder)``.

    Args:
      step, params, state, inputs: as `prepare` gives them.
      kind: the class of the cell.
      lengths, lanes, options: as in `actjax._loop.kernel.kernel`.

    Raises:
      ValueError: inputs or a state that are not of float32 or bfloat16, or of open shapes, or a JAX
        without Pallas for Triton.
    """
    kernels = _kernels()
    if kernels is None:
        raise ValueError(_without_kernels())
    batch, time = inputs.shape[:2]
    check_closed("kernel", batch, time)
    cell, flags, halt = params
    what, _, recurrent = _CELLS[kind]
    leaves, tree = jax.tree.flatten(state)
    for name, leaf in (("xs", inputs), *(("initial_state", leaf) for leaf in leaves)):
        if leaf.dtype not in DTYPES:
            allowed = "of float32 or bfloat16 for loop='kernel'"
            raise ValueError(f"{name} must be {allowed}, got {leaf.dtype.name}.")
    layers = [getattr(cell, name) for name in recurrent]
    weights = jnp.concatenate([layer.kernel[...] for layer in layers], axis=1)
    biases = [layer.bias[...] for layer in layers if layer.bias is not None]
    if biases:
        inputs = inputs + jnp.concatenate(biases).astype(inputs.dtype)[None, None]
    halting = halt.kernel[...][:, 0], halt.bias[...][0]
    lengths = None if lengths is None else check_lengths(lengths, batch, time)

    def own_rows(shared, rows):
        (flags, weights, *halting), (inputs, leaves, lengths) = shared, rows
        network = kernels.Network(inputs, flags, weights, *halting, leaves)
        own = lanes if lanes is None else share_of(lanes, batch, inputs.shape[0])
        return kernels.kernel(what, network, lengths, lanes=own, **options)

    shared = flags, weights, *halting
    final, outputs, ponder = by_device(own_rows, shared, (inputs, leaves, lengths), check_vma=False)
    return step.read(jax.tree.unflatten(tree, final))[0], outputs, ponder
