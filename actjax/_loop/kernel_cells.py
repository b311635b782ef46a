"""The recurrent cells that `kernel` knows, as arithmetic on tiles ``[lanes, units]`` in float32.

A cell is what `flax.nnx` computes with its default options. Its gates are ``x_g + h W_g`` but for
the GRU, whose last has the reset gate between the two. The biases are part of x.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Cell(NamedTuple):
    """A cell, tile by tile; lists are over gates, over the leaves of its state or over `kept`.

    Attributes:
      name: for messages.
      gates: how many products ``h W_g`` a step takes.
      leaves: arrays of the state, of which the last is h, the output.
      kept: arrays that `forward` leaves for the backward pass.
      forward: ``(x, products, state) -> (new_state, kept)``.
      renew: ``(kept, state) -> new_state``, without the products.
      backward: ``(kept, state, d_new) -> (d_x, d_products, d_state)``, the last without what comes
        through the products.
    """

    name: str
    gates: int
    leaves: int
    kept: int
    forward: Callable[..., Any]
    renew: Callable[..., Any]
    backward: Callable[..., Any]


def _tanh(x: jax.Array) -> jax.Array:
    """From one exponential, as the units that have it are many times faster than a tanh."""
    return 2 * jax.nn.sigmoid(2 * x) - 1


def _simple_forward(x, products, state):
    h = _tanh(x[0] + products[0])
    return [h], [h]


def _simple_backward(kept, state, d_new):
    d = d_new[0] * (1 - kept[0] * kept[0])
    return [d], [d], [jnp.zeros_like(d)]


def _gru_forward(x, products, state):
    r = jax.nn.sigmoid(x[0] + products[0])
    z = jax.nn.sigmoid(x[1] + products[1])
    n = _tanh(x[2] + r * products[2])
    kept = [r, z, n, products[2]]
    return _gru_renew(kept, state), kept


def _gru_renew(kept, state):
    _, z, n, _ = kept
    return [(1 - z) * n + z * state[0]]


def _gru_backward(kept, state, d_new):
    r, z, n, product = kept
    d_z = d_new[0] * (state[0] - n) * z * (1 - z)
    d_n = d_new[0] * (1 - z) * (1 - n * n)
    d_r = d_n * product * r * (1 - r)
    return [d_r, d_z, d_n], [d_r, d_z, d_n * r], [d_new[0] * z]


def _lstm_forward(x, products, state):
    i, f, g, o = (a + b for a, b in zip(x, products, strict=True))
    kept = [jax.nn.sigmoid(i), jax.nn.sigmoid(f), _tanh(g), jax.nn.sigmoid(o)]
    return _lstm_renew(kept, state), kept


def _lstm_renew(kept, state):
    i, f, g, o = kept
    c = f * state[0] + i * g
    return [c, o * _tanh(c)]


def _lstm_backward(kept, state, d_new):
    i, f, g, o = kept
    squashed = _tanh(f * state[0] + i * g)
    d_c = d_new[0] + d_new[1] * o * (1 - squashed * squashed)
    d_i, d_f = d_c * g * i * (1 - i), d_c * state[0] * f * (1 - f)
    d_g, d_o = d_c * i * (1 - g * g), d_new[1] * squashed * o * (1 - o)
    d = [d_i, d_f, d_g, d_o]
    return d, d, [d_c * f, jnp.zeros_like(d_c)]


SIMPLE = Cell("simple", 1, 1, 1, _simple_forward, lambda kept, state: kept, _simple_backward)
GRU = Cell("gru", 3, 1, 4, _gru_forward, _gru_renew, _gru_backward)
LSTM = Cell("lstm", 4, 2, 4, _lstm_forward, _lstm_renew, _lstm_backward)
