"""Recurrent cells as ponder steps: what the modules make of any cell of `flax.nnx`'s shape.

The input of a step does not change while it is pondered, so `Recurrent.prepare` takes the products
of all inputs of a sequence at once and hands the loops a `CellStep` over the rest of the cell. What
it takes is exactly what the cell would compute, and what is not known to be is left to the cell.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax import lax

from actjax import _checks as checks
from actjax import _contracts as contracts
from actjax._loop.devices import beside
from actjax._loop.rows import fill_padding, per_row
from actjax._variables import observed, renewed
from actjax.halting import halting_dtype
from actjax.nn.noise import by_row, input_keys

# The layers through which the input enters each of Flax's cells, as `input_layers` of a cell.
_FLAX_INPUT_LAYERS: dict[type, tuple[str, ...]] = {
    nnx.SimpleCell: ("dense_i",),
    nnx.GRUCell: ("dense_i",),
    nnx.OptimizedLSTMCell: ("dense_i",),
    nnx.LSTMCell: ("ii", "if_", "ig", "io"),
}


class Recurrent(nnx.Module):
    """A network around a recurrent cell: the base of `ACT`, `Repeat`, `RNN` and `LFACT`.

    A network of your own derives from it, makes its parts in ``__init__``, and in its methods takes
    from `prepare` what `actjax.unroll`, `actjax.repeat` or a loop of its own runs.

    Args:
      in_features: size of an input.
      hidden_features: size of the cell's output.
      cell: a cell class or factory ``cell(in_features, hidden_features, rngs=...)`` that makes an
        `nnx.Module` with Flax's two methods: ``initialize_carry(input_shape, rngs)``, and
        ``cell(carry, inputs) -> (carry, output)`` on rows ``[rows, features]`` that do not
        interact. Its call may change none of its variables (see `prepare` for noise).
      flag: whether the cell's input has one more feature, the flag of the first step (Graves 2016,
        eq 3).
      dtype: the cell's compute dtype, handed to `cell` if it is given.
      rngs: `nnx.Rngs`.

    A cell's ``input_layers``, a tuple of attribute names such as ``("dense_i",)``, says through
    which of its layers alone its input enters; names may be dotted. Their products are then taken
    for all inputs at once, if each is a plain `nnx.Linear`. Flax's own cells and their subclasses
    have them; a class with a ``__call__`` of its own says them again, or goes without.

    >>> class LastLogit(Recurrent):  # reads a sequence, and says one number of it
    ...     def __init__(self, in_features, hidden_features, *, rngs):
    ...         super().__init__(in_features, hidden_features, rngs=rngs)
    ...         self.out = nnx.Linear(hidden_features, 1, rngs=rngs)
    ...     def __call__(self, xs):
    ...         step, params, state, inputs = self.prepare(xs)
    ...         final, _, _ = actjax.repeat(step, params, state, inputs, repeats=2)
    ...         return self.out(step.read(final)[1])
    >>> import actjax
    >>> LastLogit(3, 8, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 3))).shape
    (2, 1)
    """

    def __init__(
        self, in_features, hidden_features, *, cell=nnx.GRUCell, flag=False, dtype=None, rngs
    ):
        checks.check_rngs(rngs)
        checks.check_positive("in_features", in_features)
        checks.check_positive("hidden_features", hidden_features)
        self.in_features, self.hidden_features, self.flag = in_features, hidden_features, flag
        self.dtype = dtype
        options = {} if dtype is None else {"dtype": dtype}
        if isinstance(cell, nnx.Module):
            raise ValueError(
                "cell must be a class or a factory, which is told the sizes, "
                f"got a {type(cell).__name__} that is made already."
            )
        if not callable(cell):
            raise ValueError(
                f"cell must be a class or a factory, nnx.GRUCell for one, got {cell!r}."
            )
        made = cell(in_features + flag, hidden_features, rngs=rngs, **options)
        if not isinstance(made, nnx.Module) or not hasattr(made, "initialize_carry"):
            raise ValueError(
                "cell must make an nnx.Module with a method initialize_carry, "
                f"got {type(made).__name__}."
            )
        checks.check_unshared("cell", made)
        self.cell = made

    def initial_carry(self, batch_size: int):
        """The cell's carry before the first input, ``[batch_size, ...]`` each, all rows alike."""
        carry = self.cell.initialize_carry((1, self.in_features + self.flag), rngs=nnx.Rngs(0))
        rows = lambda leaf: jnp.broadcast_to(leaf, (batch_size, *leaf.shape[1:]))
        return jax.tree.map(rows, carry)

    def initial_state(self, batch_size: int):
        """What the network starts from unless it is told: the cell's initial carry."""
        return self.initial_carry(batch_size)

    def prepare(self, xs, carry=None, halt=None, lengths=None, rngs=None):
        """What a loop over ponder steps of the cell is given.

        Args:
          xs: ``[B, T, in_features]``.
          carry: the cell's carry to start from, ``[B, ...]`` each; its initial one by default.
          halt: the halting unit, a module from the cell's output ``[rows, hidden_features]`` to
            logits ``[rows, 1]``; without one the step's halting probability is 0.
          lengths: int ``[B]``, how many inputs of each sequence are real.
          rngs: what the cell's noise is drawn from, as in `ACT`.

        Returns:
          ``(step, params, state, inputs)`` for `actjax.unroll` or `actjax.repeat`: a `CellStep`,
          whose `read` gives carry and output back from the states, and what it runs on.

        Raises:
          ValueError: an argument of the wrong shape, a cell that writes to its variables or that
            draws noise without `rngs`.
        """
        step, (cell, flag_weights), state, xs = self._enter(xs, carry, lengths)
        halt = beside(xs, halt)
        params = cell, flag_weights, halt
        first = jax.ShapeDtypeStruct(xs.shape[:1], bool)

        def call(modules, *rows):
            return step.apply((modules["cell"], flag_weights, modules["halt"]), *rows)

        noise = check_call(call, {"cell": cell, "halt": halt}, rngs, state, xs[:, 0], first)
        if not noise:
            return step, params, state, xs
        step = dataclasses.replace(step, noise=noise)
        counted = state, jnp.zeros_like(xs[:, 0, 0], jnp.float32)
        return step, params, counted, (xs, input_keys(rngs, noise, *xs.shape[:2]))

    def _enter(self, xs, carry, lengths):
        """The cell's step without halting and noise, its parameters, state and inputs."""
        xs = jnp.asarray(xs)
        if xs.ndim != 3 or xs.shape[-1] != self.in_features or 0 in xs.shape:
            raise ValueError(
                f"xs must have shape [batch, time, {self.in_features}] with no empty axis, "
                f"got {xs.shape}."
            )
        checks.check_unshared("cell", self.cell)
        self = beside(xs, self)
        if lengths is not None:
            xs = fill_padding(xs, checks.check_lengths(lengths, *xs.shape[:2]))
        if carry is not None:
            like = jax.eval_shape(lambda: self.initial_carry(xs.shape[0]))
            checks.check_like("initial_state", carry, like)
        else:
            carry = self.initial_carry(xs.shape[0])
            zero = lambda c: per_row(jnp.zeros_like(xs[:, 0, 0], c.dtype), c)
            carry = jax.tree.map(lambda c: c + zero(c), carry)
        if self.dtype is not None:
            carry = jax.tree.map(lambda c: c.astype(self.dtype), carry)
        cell, flag_weights, inputs, hoisted = self._project(xs)

        found = []

        def trace(params, carry, x, first):
            step = CellStep(self.flag, hoisted, None)
            (carry, y), _ = step(params, (carry, None), x, first)
            found.extend(i for i, leaf in enumerate(jax.tree.leaves(carry)) if leaf is y)
            return carry, y

        first = jax.ShapeDtypeStruct(xs.shape[:1], bool)
        params = cell, flag_weights, None
        try:
            # A carry of another dtype takes the cell's, below.
            with contracts.own_variables("cell"), jax.numpy_dtype_promotion("standard"):
                new, y = jax.eval_shape(trace, params, carry, inputs[:, 0], first)
        except (AttributeError, TypeError) as error:
            if _Products.__name__ not in str(error):
                raise
            raise ValueError(
                "input_layers must name all that the inputs of the cell enter, "
                f"got {type(self.cell).__name__}, which reads them elsewhere too."
            ) from error
        if y.shape != (xs.shape[0], self.hidden_features):
            raise ValueError(
                "cell must return a carry and an output of shape "
                f"{(xs.shape[0], self.hidden_features)}, got {y.shape}."
            )
        checks.check_like("cell's carry", new, carry)
        carry = jax.tree.map(lambda old, new: old.astype(new.dtype), carry, new)
        step = CellStep(self.flag, hoisted, found[0] if found else None)
        return step, (cell, flag_weights), step.state(carry, jnp.zeros_like(y)), inputs

    def _project(self, xs):
        """Takes the products of all inputs: the rest of the cell, the flag's weights, these."""
        layers = _input_layers(self.cell, self.in_features + self.flag)
        if not layers:
            return self.cell, None, xs, False
        cell = renewed(self.cell)
        products, flag_weights, start = [], [], 0
        for name in layers:
            owner, name = _owner(cell, name)
            layer = getattr(owner, name)
            if self.flag:
                kernel = layer.kernel[...]
                layer.kernel = nnx.Param(kernel[:-1])
                flag_weights.append(kernel[-1])
            products.append(layer(xs))
            stop = start + products[-1].shape[-1]
            setattr(owner, name, _Projected(start, stop))
            start = stop
        inputs = jnp.concatenate(products, axis=-1)
        flag_weights = jnp.concatenate(flag_weights).astype(inputs.dtype) if self.flag else None
        return cell, flag_weights, inputs, True


@dataclasses.dataclass(frozen=True)
class CellStep:
    """A ponder step of a recurrent cell, as `unroll` wants it; equal settings are equal steps.

    Its parameters are the cell with the products of its inputs taken, the flag's weights in them
    and the halting unit, the latter two None where there is none.

    Attributes:
      flag: whether the input is augmented by a flag of the first step (Graves 2016, eq 3).
      hoisted: whether the products of the inputs have been taken.
      output: which leaf of the carry is the cell's output; None if the output is kept beside it.
      noise: the streams that the modules draw from. With any, an input is ``(x, keys)``, and the
        state has the number of the ponder step beside it.
    """

    flag: bool
    hoisted: bool
    output: int | None
    noise: tuple[str, ...] = ()

    def __call__(self, params, state, x, first):
        if not self.noise:
            return self.apply(renewed(params), state, x, first)
        (state, n), (x, keys) = state, x
        n = jnp.where(first, 1, n + 1)
        state, h = by_row(self.apply, params, self.noise, keys, n, state, x, first)
        return (state, n), h

    def apply(self, params, state, x, first):
        """The step itself, with modules that it may write."""
        cell, flag_weights, halt = params
        if self.flag and flag_weights is None:
            x = jnp.concatenate([x, first[:, None].astype(x.dtype)], axis=-1)
        elif self.flag:
            x = x + first[:, None].astype(x.dtype) * flag_weights[None]
        carry, y = self.advance(cell, state if self.output is not None else state[0], x)
        if halt is None:
            h = jnp.zeros(first.shape, halting_dtype(y.dtype))
        else:
            h = jax.nn.sigmoid(halt(y)[:, 0].astype(halting_dtype(y.dtype)))
        return self.state(carry, y), h

    def advance(self, cell, carry, x):
        """Calls the cell: ``(carry, output)``."""
        result = cell(carry, _Products(x) if self.hoisted else x)
        pair = isinstance(result, tuple) and len(result) == 2
        if not pair or not hasattr(result[1], "dtype"):
            got = f"output {type(result[1]).__name__}" if pair else type(result).__name__
            raise ValueError(f"cell must return (carry, output), a tree and an array, got {got}.")
        return result

    def state(self, carry, y):
        """The cell's carry and its output as the state that the loop carries."""
        return carry if self.output is not None else (carry, y)

    def read(self, state) -> tuple[Any, jax.Array]:
        """Returns the cell's carry and its output."""
        state = state[0] if self.noise else state
        return (state, jax.tree.leaves(state)[self.output]) if self.output is not None else state


def refuse_epsilon(_, value):
    """The setter of ``model.epsilon``, which would change nothing."""
    raise ValueError(
        "epsilon must be set with the rule, as in model.rule = actjax.halting.Graves(epsilon), "
        f"got model.epsilon = {value!r}."
    )


def check_call(call, modules, rngs, *rows) -> tuple[str, ...]:
    """Traces ``call(modules, *rows)`` and refuses what it may not do to the modules' variables.

    Args:
      modules: dict of modules by the names under which a message is to speak of them.
      rngs: where noise may be drawn from, or None.

    Returns:
      The names of the streams that the modules draw from.
    """
    touched = []

    def trace(modules, *rows):
        result, found = observed(lambda modules: call(modules, *rows), modules)
        touched.append(found)
        return result

    jax.eval_shape(trace, modules, *rows)
    (found,) = touched[-1:]
    if found.written:
        contracts.check_written(found.written[0][0].split(".")[0], found)
    if found.drawn and rngs is None:
        raise ValueError(
            "rngs must be nnx.Rngs or a PRNG key for a model that draws noise (or switch the noise "
            f"off by model.eval()), got None for the stream {found.drawn[0]!r}."
        )
    return found.drawn


class _Products:
    """The products of the inputs, in the place of an input: nothing but `_Projected` can read it,
    so that a cell which reads its input elsewhere fails instead of reading these."""

    def __init__(self, array: jax.Array):
        self.array = array


class _Projected(nnx.Module):
    """Stands in a cell for an input layer whose product has been taken already."""

    def __init__(self, start: int, stop: int):
        self.start, self.stop = start, stop

    def __call__(self, products: _Products) -> jax.Array:
        return products.array[..., self.start : self.stop]


def _input_layers(cell, features: int) -> tuple[str, ...]:
    """The layers whose products can be taken beforehand: all through which the input enters."""
    names: tuple[str, ...] = ()
    for kind in type(cell).__mro__:
        declared = vars(kind).get("input_layers", _FLAX_INPUT_LAYERS.get(kind))
        if declared is not None:
            names = declared
            break
        if "__call__" in vars(kind):
            break
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"input_layers must be a tuple of attribute names, got {names!r}.")
    layers = [getattr(*_owner(cell, name)) for name in names]
    return names if all(_is_plain(layer, features) for layer in layers) else ()


def _is_plain(layer, features: int) -> bool:
    """Whether a layer's output is, for certain, the product of its input with its kernel."""
    return (
        type(layer) is nnx.Linear
        and isinstance(layer.kernel, nnx.Variable)
        and layer.kernel.shape == (features, layer.out_features)
        and layer.dot_general is lax.dot_general
        and layer.promote_dtype is promote_dtype
    )


def _owner(cell, name: str):
    """The module that has the layer of a dotted name, and its name there."""
    *path, name = name.split(".")
    for part in path:
        cell = getattr(cell, part)
    return cell, name
