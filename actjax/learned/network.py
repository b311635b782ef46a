"""The optimizer's network: one small LSTM applied to every coordinate alike.

Layout: the coordinates are the columns. A layer's hidden state is float [hidden, N], N being all
coordinates of all parameters (and, in meta-training, of all problems). Inputs, hidden state and a
row of ones lie on top of each other, so that a layer's gates are one product, bias included, and
each gate is a contiguous block of its rows.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from actjax._checks import check_choice, check_positive, check_rngs
from actjax.learned.features import MOMENT_ROWS, PREPROCESS, adam, log_sign, raw


class LSTMState(NamedTuple):
    """Recurrent state, one entry a layer."""

    cell: tuple[jax.Array, ...]  # each [hidden, N]
    hidden: tuple[jax.Array, ...]  # each [hidden, N]
    moments: Any = ()  # [rows, N] of the gradient where the network keeps them


class CoordinatewiseLSTM(nnx.Module):
    """Maps the gradient of a coordinate to its update (Andrychowicz 2016; Sander 2017, eq 2).

    Args:
      hidden_features: units of a layer; 20 in the papers.
      layers: LSTM layers; 2 in the papers.
      preprocess: what the network sees of a gradient: "log_sign" or "raw", as in the papers; or
        "adam", `features.adam`, and then its update is Adam's changed by two read-outs a and b of
        the last layer, -output_scale exp(a) (m / sqrt(v) + b). That does not depend on the scale of
        the loss, as `adam` does not, and an untrained network is Adam at about the rate
        `output_scale`.
      p: the argument of "log_sign".
      see_params: also feed the raw value of the parameter.
      see_scale: also feed how large the parameters of its leaf are, `features.leaf_scales`.
      output_scale: the update is this times the read-out of the last layer.
      output_bias: give the read-out a bias; without one a coordinate has no drift of its own.
      rngs: `nnx.Rngs` for the initial weights.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> network = CoordinatewiseLSTM(rngs=nnx.Rngs(0))
      >>> state = network.initial_state(jnp.zeros(7))
      >>> state, update = jax.jit(network.__call__)(state, jnp.ones(7))
      >>> update.shape, state.hidden[-1].shape
      ((7,), (20, 7))
    """

    def __init__(
        self,
        hidden_features: int = 20,
        *,
        layers: int = 2,
        preprocess: str = "log_sign",
        p: float = 10.0,
        see_params: bool = False,
        see_scale: bool = False,
        output_scale: float = 0.1,
        output_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        check_positive("hidden_features", hidden_features)
        check_positive("layers", layers)
        check_choice("preprocess", preprocess, tuple(PREPROCESS))
        self.hidden_features = hidden_features
        self.preprocess = preprocess
        self.p = p
        self.see_params = see_params
        self.see_scale = see_scale
        self.output_scale = output_scale
        inputs = PREPROCESS[preprocess] + see_params + see_scale
        bound = 1 / math.sqrt(hidden_features)

        def uniform(*shape):
            return jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)

        forget = jnp.repeat(jnp.array([0.0, 1.0, 0.0, 0.0]), hidden_features)[:, None]
        # A layer's columns: its inputs, its own hidden state, the bias (1 for the forget gate).
        self.kernels: nnx.List[nnx.Param] = nnx.List()
        for size in [inputs] + [hidden_features] * (layers - 1):
            weights = uniform(4 * hidden_features, size + hidden_features)
            self.kernels.append(nnx.Param(jnp.concatenate([weights, forget], axis=1)))
        outputs = (2,) if preprocess == "adam" else ()
        self.output_kernel = nnx.Param(uniform(*outputs, hidden_features))
        self.output_bias = nnx.Param(jnp.zeros(())) if output_bias else None

    def initial_state(self, like: jax.Array) -> LSTMState:
        """Zeros for the coordinates `like`, [N], from which sharding and device are taken."""
        # Each in a buffer of its own, so that all can be donated.
        zeros = lambda: tuple(zero_rows(self, like, self.hidden_features) for _ in self.kernels)
        moments = zero_rows(self, like, self.moment_rows) if self.moment_rows else ()
        return LSTMState(zeros(), zeros(), moments)

    @property
    def moment_rows(self) -> int:
        """Rows of a coordinate's memory that hold moments of its gradient."""
        return MOMENT_ROWS if self.preprocess == "adam" else 0

    @property
    def dtype(self) -> jnp.dtype:
        """Of weights and state: float32 unless the network was made under x64."""
        return self.output_kernel[...].dtype

    def runs(self, count: int) -> list[tuple["CoordinatewiseLSTM", int, int]]:
        """Which network steps which of `count` coordinates: (network, first, last + 1)."""
        return [(self, 0, count)]

    def __call__(
        self,
        state: LSTMState,
        gradient: jax.Array,
        params: jax.Array | None = None,
        scale: jax.Array | None = None,
    ) -> tuple[LSTMState, jax.Array]:
        """One step for all coordinates.

        Args:
          state: of these N coordinates.
          gradient: float [N].
          params: float [N], needed where the network was made with `see_params`.
          scale: float [N], of `features.leaf_scales`, needed where it was made with `see_scale`.

        Returns:
          The next state and the update, float [N], to be added to the parameters.
        """
        moments = state.moments
        gradient = gradient.astype(self.dtype)
        if self.preprocess == "adam":
            moments, x = adam(moments, gradient)
        else:
            x = log_sign(gradient, self.p) if self.preprocess == "log_sign" else raw(gradient)
        direction = x[1] if self.preprocess == "adam" else None
        for name, shown, values in (
            ("params", self.see_params, params),
            ("scale", self.see_scale, scale),
        ):
            if shown:
                if values is None:
                    raise ValueError(
                        f"{name} must be given to a network made with see_{name}, got None."
                    )
                x = jnp.concatenate([x, values[None].astype(self.dtype)])
        one = jnp.ones_like(x[:1])
        cells, hiddens = [], []
        for kernel, cell, hidden in zip(self.kernels, state.cell, state.hidden, strict=True):
            z = kernel[...] @ jnp.concatenate([x, hidden, one])
            cell, x = lstm_gates(z, cell)
            cells.append(cell)
            hiddens.append(x)
        update = self.output_kernel[...] @ hiddens[-1]
        if direction is not None:
            update = -jnp.exp(update[0]) * (direction + update[1])
        if self.output_bias is not None:
            update = update + self.output_bias[...]
        return LSTMState(tuple(cells), tuple(hiddens), moments), self.output_scale * update


class GroupedLSTM(nnx.Module):
    """Several networks, each for its own run of coordinates (Andrychowicz 2016, 3.3).

    The coordinates of a problem are laid out leaf by leaf, so a group is a run of whole leaves:
    convolutions first and dense layers after them, say. In a training loop `optax.partition` with
    one `lstm_optimizer` a group does the same.

    Args:
      networks: of equal size.
      sizes: coordinates of a problem that belong to each.
    """

    def __init__(self, networks: list[CoordinatewiseLSTM], sizes: tuple[int, ...]):
        if len(networks) != len(sizes):
            raise ValueError(
                f"sizes must hold one size for each of {len(networks)} networks, got {sizes!r}."
            )
        for size in sizes:
            check_positive("sizes", size)
        kinds = {
            (
                lstm.hidden_features,
                len(lstm.kernels),
                lstm.see_params,
                lstm.see_scale,
                lstm.moment_rows,
            )
            for lstm in networks
        }
        if len(kinds) != 1:
            raise ValueError(
                "networks must agree in hidden_features, layers, what they see and moments, "
                f"got {sorted(kinds)}."
            )
        self.networks = nnx.List(networks)
        self.sizes = tuple(sizes)
        self.hidden_features = networks[0].hidden_features
        self.see_params = networks[0].see_params
        self.see_scale = networks[0].see_scale

    def initial_state(self, like: jax.Array) -> LSTMState:
        """Zeros for the coordinates `like`, [N]."""
        return self.networks[0].initial_state(like)

    @property
    def moment_rows(self) -> int:
        """Rows of a coordinate's memory that hold moments of its gradient."""
        return self.networks[0].moment_rows

    @property
    def dtype(self) -> jnp.dtype:
        """Of weights and state."""
        return self.networks[0].dtype

    @property
    def kernels(self):
        """The layers of the first network, which has as many as the others."""
        return self.networks[0].kernels

    def runs(self, count: int) -> list[tuple[CoordinatewiseLSTM, int, int]]:
        """Which network steps which of `count` coordinates: (network, first, last + 1)."""
        if count % sum(self.sizes):
            raise ValueError(
                f"params must hold the {sum(self.sizes)} coordinates of the network's groups "
                f"{self.sizes}, or a multiple of them, got {count}."
            )
        problems, runs, first = count // sum(self.sizes), [], 0
        for network, size in zip(self.networks, self.sizes, strict=True):
            runs.append((network, first, first + problems * size))
            first += problems * size
        return runs

    def __call__(
        self,
        state: LSTMState,
        gradient: jax.Array,
        params: jax.Array | None = None,
        scale: jax.Array | None = None,
    ) -> tuple[LSTMState, jax.Array]:
        """One step for all coordinates; see `CoordinatewiseLSTM`."""
        found = []
        for network, first, end in self.runs(gradient.shape[-1]):
            cut = lambda array, first=first, end=end: array[..., first:end]
            found.append(network(*jax.tree.map(cut, (state, gradient, params, scale))))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=-1), *found)


def zero_rows(network, like: jax.Array, rows: int, dtype=None) -> jax.Array:
    """Zeros [rows, N] for the coordinates `like`, [N], with their sharding and device."""
    dtype = network.dtype if dtype is None else dtype
    return jnp.zeros_like(like, dtype)[None] + jnp.zeros((rows, 1), dtype)


@jax.custom_jvp
def lstm_gates(z: jax.Array, cell: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The elementwise half of an LSTM: gates z [4 hidden, N] in the order i, f, o, g -> (c, h).

    All four gates come from one tanh, sigmoid(z) being (1 + tanh(z / 2)) / 2, which is one pass
    over z. Its derivative keeps z and c alone and works the gates out again.
    """
    return _lstm_gates(z, cell)[0]


def _lstm_gates(z, cell):
    half = np.repeat([0.5, 1.0], np.array([3, 1]) * cell.shape[0])[:, None]
    t = jnp.tanh(z * half.astype(z.dtype))
    i, f, o, g = jnp.split(t, 4)
    i, f, o = 0.5 + 0.5 * i, 0.5 + 0.5 * f, 0.5 + 0.5 * o
    after = f * cell + i * g
    squashed = jnp.tanh(after)
    return (after, o * squashed), (i, f, o, g, squashed)


@lstm_gates.defjvp
def _lstm_gates_jvp(primals, tangents):
    # What comes of no tangent is not kept for reverse mode, but made of z and c again.
    return lstm_gates(*primals), _lstm_gates_tangent(*primals, *tangents)


@partial(jax.checkpoint, prevent_cse=False)
def _lstm_gates_tangent(z, cell, d_z, d_cell):
    _, (i, f, o, g, squashed) = _lstm_gates(z, cell)
    d_i, d_f, d_o, d_g = jnp.split(d_z, 4)
    d_after = (
        d_cell * f + d_i * (g * i * (1 - i)) + d_f * (cell * f * (1 - f)) + d_g * (i * (1 - g * g))
    )
    d_hidden = d_after * (o * (1 - squashed * squashed)) + d_o * (squashed * o * (1 - o))
    return d_after, d_hidden
