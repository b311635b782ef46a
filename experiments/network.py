"""The network of every experiment: a recurrent core and a linear read-out of its outputs."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

import actjax
from actjax import Ponder
from experiments.options import Options

CELLS = {"simple": nnx.SimpleCell, "gru": nnx.GRUCell, "lstm": nnx.OptimizedLSTMCell}
ACTIVATIONS = {"sigmoid": nnx.sigmoid, "tanh": nnx.tanh}
GATES = {"simple": 1, "gru": 3, "lstm": 4}


class Network(nnx.Module):
    """A recurrent core and a read-out.

    A linear read-out of the mean state is the mean of the read-outs (Graves 2016, eq 9; Fojo 2018,
    eq 4.11), so it is applied once to each input.
    """

    def __init__(self, core: nnx.Module, out_features: int, *, rngs: nnx.Rngs):
        self.core = core
        self.readout = nnx.Linear(core.hidden_features, out_features, rngs=rngs)

    def __call__(self, inputs: Array, lengths: Array | None = None) -> tuple[Array, Ponder]:
        """Inputs [B, T, D] to logits [B, T, out_features] and the ponder record [B, T]."""
        return self.with_layers(inputs, lengths)[:2]

    def with_layers(
        self, inputs: Array, lengths: Array | None = None
    ) -> tuple[Array, Ponder, actjax.Layers | None]:
        """As `__call__`, and the outputs of all layers [B, T, L, hidden] of a core that has any."""
        if isinstance(self.core, actjax.LFACT):
            _, layers, ponder = self.core.layers(inputs, lengths=lengths)
            return self.readout(layers.deepest), ponder, layers
        _, outputs, ponder = self.core(inputs, lengths=lengths)
        return self.readout(outputs), ponder, None


def make_network(options: Options, in_features: int, out_features: int) -> Network:
    """The network that `options` describes; its weights are a function of the seed."""
    rngs = nnx.Rngs(jax.random.key(options.seed))
    return Network(make_core(options, in_features, rngs=rngs), out_features, rngs=rngs)


def make_core(options: Options, in_features: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """The recurrent core that `options` describes."""
    cell = CELLS[options.cell]
    if options.init == "glorot":
        cell = functools.partial(_glorot_cell, cell, GATES[options.cell])
    shared = {"cell": cell, "rngs": rngs}
    match options.model:
        case "rnn":
            return actjax.RNN(in_features, options.hidden, **shared)
        case "repeat":
            return actjax.Repeat(in_features, options.hidden, repeats=options.repeats, **shared)
        case "act":
            return actjax.ACT(
                in_features,
                options.hidden,
                max_steps=options.max_steps,
                epsilon=options.epsilon,
                halt_bias=options.halt_bias,
                loop=options.loop,
                lanes=options.lanes,
                **shared,
            )
        case "lfact":
            return actjax.LFACT(
                in_features,
                options.hidden,
                max_layers=options.max_steps,
                combine=options.combine,
                attend=options.attend,
                activation=ACTIVATIONS[options.activation],
                epsilon=options.epsilon,
                halt_bias=options.halt_bias,
                loop=options.loop,
                lanes=options.lanes,
                **shared,
            )
        case _:
            raise ValueError(
                f"model is {options.model!r}; it must be one of rnn, act, repeat, lfact"
            )


def _glorot_cell(cell, gates: int, in_features: int, hidden_features: int, **options):
    """A cell whose weights start as one matrix [in + hidden, gates x hidden] would after Glorot.

    Uniform on +-sqrt(6 / (fan in + fan out)), and 1 for the bias of an LSTM's forget gate: how
    TensorFlow 1 starts its cells, and so the code of Fojo 2018. With a bias of 0 an LSTM forgets
    half of its memory at every ponder step.
    """
    limit = math.sqrt(6 / (in_features + (1 + gates) * hidden_features))

    def uniform(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    if gates == GATES["lstm"]:
        options["bias_init"] = _remember
    return cell(
        in_features,
        hidden_features,
        kernel_init=uniform,
        recurrent_kernel_init=uniform,
        **options,
    )


def _remember(key, shape, dtype):
    """Biases of an LSTM's gates [4 * hidden], in, forget, cell and out: 1 to forget, 0 else."""
    return jnp.repeat(jnp.array([0, 1, 0, 0], dtype), shape[0] // 4)
