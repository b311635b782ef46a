"""The network of every experiment: a recurrent core and a linear read-out of its outputs."""

import jax
from flax import nnx
from jax import Array

import actjax
from actjax import Ponder
from actjax.halting import AtLeast, Graves
from actjax.nn.kernel import kernel_supports
from experiments.cells import make_cell
from experiments.options import Architecture, pick

ACTIVATIONS = {"sigmoid": nnx.sigmoid, "tanh": nnx.tanh}


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
            return self.read(layers.deepest), ponder, layers
        _, outputs, ponder = self.core(inputs, lengths=lengths)
        return self.read(outputs), ponder, None

    def read(self, outputs: Array) -> Array:
        """Outputs [..., hidden] to logits [..., out_features]."""
        return self.readout(outputs)


def make_network(
    architecture: Architecture, seed: int | Array, in_features: int, out_features: int
) -> Network:
    """The network that `architecture` describes; its weights are a function of the seed."""
    rngs = nnx.Rngs(jax.random.key(seed))
    network = Network(make_core(architecture, in_features, rngs=rngs), out_features, rngs=rngs)
    if architecture.init == "glorot_all":
        glorot = nnx.initializers.glorot_uniform()
        for _, layer in nnx.iter_graph((getattr(network.core, "halt", None), network.readout)):
            if isinstance(layer, nnx.Linear):
                layer.kernel[...] = glorot(rngs.params(), layer.kernel.shape, layer.kernel.dtype)
    return network


def make_core(architecture: Architecture, in_features: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """The recurrent core that `architecture` describes."""
    sizes = in_features, architecture.hidden
    cell = {"cell": make_cell(architecture.cell, architecture.init), "rngs": rngs}
    halting = pick(architecture, "halt_bias", "lanes") | {"loop": chosen_loop(architecture)}
    match architecture.model:
        case "rnn":
            return actjax.RNN(*sizes, **cell)
        case "repeat":
            return actjax.Repeat(*sizes, repeats=architecture.repeats, **cell)
        case "act":
            rule = Graves(architecture.epsilon)
            if architecture.min_steps > 1:
                rule = AtLeast(architecture.min_steps, rule)
            limits = {"max_steps": architecture.max_steps, "rule": rule}
            return actjax.ACT(*sizes, **limits, **halting, **cell)
        case "lfact":
            return actjax.LFACT(
                *sizes,
                max_layers=architecture.max_steps,
                epsilon=architecture.epsilon,
                activation=ACTIVATIONS[architecture.activation],
                **pick(architecture, "combine", "attend"),
                **halting,
                **cell,
            )
        case "pondernet":  # with an epsilon of its own, a mass
            own = pick(architecture, "max_steps", "prior")
            return actjax.PonderNet(*sizes, **own, **halting, **cell)
        case other:
            allowed = "rnn, act, repeat, lfact or pondernet"
            raise ValueError(f"model must be {allowed}, got {other!r}.")


def chosen_loop(architecture: Architecture) -> str:
    """The loop that `architecture` names, or for "auto" the fastest that its network allows."""
    if architecture.loop != "auto":
        return architecture.loop
    plain = architecture.min_steps == 1 and architecture.lanes is None  # Graves' rule, whole lanes
    if jax.default_backend() != "gpu" or architecture.model != "act" or not plain:
        return "while"
    cell = lambda: make_cell(architecture.cell, architecture.init)(
        1, architecture.hidden, rngs=nnx.Rngs(0)
    )
    return "while" if kernel_supports(nnx.eval_shape(cell)) else "kernel"
