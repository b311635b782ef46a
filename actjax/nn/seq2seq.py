"""Encoder and decoder over the networks (LFACT 2020, section 3.2).

The encoder reads a sequence; what it carries after the last input is where the decoder starts. The
paper's decoder is fed the last ground truth, the encoder's last input, at every step; for use
without it, `Seq2Seq.generate` feeds the decoder what it said itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from actjax._checks import check_key, check_lengths, check_positive, check_unshared
from actjax._layers import Layers
from actjax._loop.rows import last_inputs
from actjax.halting import Ponder
from actjax.nn.cells import Recurrent
from actjax.nn.noise import fold


class Decoded(NamedTuple):
    """What a decoder says of a batch.

    Attributes:
      outputs: float ``[B, S, hidden_features]``, for S decoder steps.
      encoder: the `Ponder` record of the encoder, ``[B, T]``.
      decoder: the `Ponder` record of the decoder, ``[B, S]``.
      layers: the outputs of all of the decoder's layers, `Layers` of ``[B, S, L,
        hidden_features]``; None unless it has layers.
    """

    outputs: Array
    encoder: Ponder
    decoder: Ponder
    layers: Layers | None = None

    @property
    def ponder(self) -> Ponder:
        """Both records, one behind the other, ``[B, T + S]``."""
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), self.encoder, self.decoder)


class Seq2Seq(nnx.Module):
    """A network that reads a sequence and one that writes the next.

    Args:
      encoder: `RNN`, `Repeat`, `ACT` or `LFACT`.
      decoder: one whose initial state has the structure and shapes of the encoder's, so that it can
        go on from there: ACT, Repeat and RNN with cells alike, or LFACT with LFACT of the same
        limit. It reads inputs of the encoder's size.

    Raises:
      ValueError: the decoder does not fit the encoder, or shares variables with it.

    >>> import actjax
    >>> make = lambda: actjax.ACT(3, 8, max_steps=5, rngs=nnx.Rngs(0))
    >>> model = Seq2Seq(make(), make())
    >>> decode = jax.jit(lambda xs: model(xs, steps=4))
    >>> decoded = decode(jnp.ones((2, 7, 3)))
    >>> decoded.outputs.shape, decoded.encoder.steps.shape, decoded.ponder.cost.shape
    ((2, 4, 8), (2, 7), (2, 11))
    """

    def __init__(self, encoder: Recurrent, decoder: Recurrent):
        shape = lambda m: jax.tree.map(lambda leaf: leaf.shape, m.initial_state(1))
        if shape(encoder) != shape(decoder) or encoder.in_features != decoder.in_features:
            raise ValueError(
                "decoder must read and carry on what the encoder does, "
                f"{encoder.in_features} features into {shape(encoder)}, "
                f"got {decoder.in_features} into {shape(decoder)}."
            )
        self.encoder, self.decoder = encoder, decoder
        self._check_unshared()
        self.hidden_features = decoder.hidden_features

    def _check_unshared(self) -> None:
        check_unshared("model", {"encoder": self.encoder, "decoder": self.decoder})

    def __call__(
        self, xs: Array, *, steps: int, lengths: Array | None = None, rngs: Any = None
    ) -> Decoded:
        """Decodes with the last ground truth as the input of every step, as in the paper.

        Args:
          xs: float ``[B, T, in_features]``.
          steps: S, how many steps to decode.
          lengths: int ``[B]``, how many inputs of each sequence are real, at least 1; all by
            default. The last real one is fed to the decoder.
          rngs: what noise is drawn from, as in `ACT`; encoder and decoder draw apart.
        """
        check_positive("steps", steps)
        noise, own = _part(rngs)
        state, last, encoder = self._encode(xs, lengths, **noise)
        fed = jnp.broadcast_to(last[:, None], (len(xs), steps, *last.shape[1:]))
        if hasattr(self.decoder, "layers"):
            _, layers, decoder = self.decoder.layers(fed, initial_state=state, **own)
            return Decoded(layers.deepest, encoder, decoder, layers)
        _, outputs, decoder = self.decoder(fed, initial_state=state, **own)
        return Decoded(outputs, encoder, decoder)

    def generate(
        self,
        xs: Array,
        feed: Callable[[Array, Array], Array],
        *,
        steps: int,
        key: Array | None = None,
        lengths: Array | None = None,
        rngs: Any = None,
    ) -> tuple[Array, Decoded]:
        """Decodes freely: what the decoder says at one step is its input at the next.

        Args:
          xs, steps, lengths, rngs: as in `__call__`. The first step is fed the last ground truth.
          feed: ``(outputs, key) -> inputs``: from the decoder's outputs ``[B, hidden_features]``
            to its next inputs ``[B, in_features]``, the sampled or the likeliest prediction.
            Outside of `jit` it is called at every step.
          key: PRNG key; step s gets ``fold_in(key, s)``. A fixed one by default, for a `feed`
            that draws nothing.

        Returns:
          ``(inputs, decoded)``: what was fed after each step, ``[B, S, in_features]``, the
          predictions, and the `Decoded` record, without layers.
        """
        check_positive("steps", steps)
        key = jax.random.key(0) if key is None else key
        check_key("key", key)
        noise, own = _part(rngs)
        state, last, encoder = self._encode(xs, lengths, **noise)

        def one_step(carry, s):
            state, fed = carry
            state, outputs, ponder = _decode_one(self.decoder, state, fed, own, s)
            fed = feed(outputs, jax.random.fold_in(key, s)).astype(fed.dtype)
            return (state, fed), (fed, outputs, ponder)

        known = jax.tree.leaves((self.decoder, state, last, own, key))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in known):
            _, records = lax.scan(one_step, (state, last), jnp.arange(steps))
            records = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), records)
        else:
            # A scan would be compiled with `feed`, which may have closed over what has changed.
            records = _in_turn(one_step, (state, last), jnp.arange(steps))
        inputs, outputs, decoder = records
        return inputs, Decoded(outputs, encoder, decoder)

    def _encode(self, xs: Array, lengths: Array | None, **noise) -> tuple[Any, Array, Ponder]:
        """The encoder's last state, each sequence's last input, and the encoder's record."""
        self._check_unshared()
        xs = jnp.asarray(xs)
        if lengths is None:
            state, _, ponder = self.encoder(xs, **noise)
            return state, xs[:, -1], ponder
        given, lengths = lengths, check_lengths(lengths, *xs.shape[:2])
        if not isinstance(given, jax.core.Tracer) and (least := np.asarray(given).min()) < 1:
            raise ValueError(f"lengths must be at least 1 to decode from, got {least}.")
        state, _, ponder = self.encoder(xs, lengths=lengths, **noise)
        return state, last_inputs(xs, lengths), ponder


@jax.jit
def _decode_one(decoder: Recurrent, state: Any, fed: Array, own: dict, s: Array):
    """Step s of a decoder, ``(state, outputs [B, ...], ponder [B])``, compiled once."""
    noise = {name: fold(rngs, s) for name, rngs in own.items()}
    state, outputs, ponder = decoder(fed[:, None], initial_state=state, **noise)
    return state, *jax.tree.map(lambda leaf: leaf[:, 0], (outputs, ponder))


def _in_turn(step: Callable, carry: Any, numbers: Array) -> Any:
    """What `lax.scan` stacks, with the batch first; `step` is called in turn, as it is."""
    records = []
    for number in numbers:
        carry, record = step(carry, number)
        records.append(record)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, 1), *records)


def _part(rngs: Any) -> tuple[dict, dict]:
    """What encoder and decoder are given to draw from; nothing where nothing is."""
    return ({}, {}) if rngs is None else ({"rngs": fold(rngs, 0)}, {"rngs": fold(rngs, 1)})
