"""Parity of a vector of bits shown all at once (Graves 2016, section 3.1; Fojo 2018, 6.2.1)."""

import jax
import jax.numpy as jnp
from jax import Array

from actjax._checks import check_choice, check_key, check_positive
from actjax.tasks.batch import Batch

LAYOUTS = ("prefix", "scattered")


def sample(
    key: Array,
    batch_size: int,
    *,
    bits: int = 64,
    min_bits: int = 1,
    max_bits: int | None = None,
    layout: str = "scattered",
) -> Batch:
    """Draws vectors of `bits` elements and the parity of their ones.

    In each vector n elements, n uniform on `min_bits` to `max_bits`, are 1 or -1 with equal chance
    and the others are 0. The target is 1 where the number of ones is odd. One input step, so T = 1.

    Args:
      key: PRNG key.
      batch_size: B, the number of vectors.
      bits: D, the number of elements of a vector.
      min_bits, max_bits: the smallest n and the largest, 1 and `bits` unless given.
      layout: which elements are not 0: "scattered" takes n at random (Graves 2016), "prefix" the
        first n (the worked examples of both papers and the code of Fojo 2018).

    Returns:
      Batch: inputs float32 [B, 1, bits], targets float32 [B, 1], mask [B, 1], lengths [B],
      difficulty [B, 1] = n, "the number of bits whose parity must be determined".

    Raises:
      ValueError: for a size below 1, limits that are no range within `bits`, or an unknown layout.

    Example:
      >>> draw = jax.jit(lambda key: sample(key, 4, bits=8, layout="prefix"))
      >>> batch = draw(jax.random.key(0))
      >>> batch.inputs.shape, batch.targets.shape
      ((4, 1, 8), (4, 1))
      >>> bool(((batch.inputs != 0).sum(-1) == batch.difficulty).all())
      True
    """
    check_key("key", key)
    check_positive("batch_size", batch_size)
    check_positive("bits", bits)
    max_bits = bits if max_bits is None else max_bits
    check_positive("max_bits", max_bits)
    if max_bits > bits:
        raise ValueError(f"max_bits must be at most bits = {bits}, got {max_bits!r}.")
    check_positive("min_bits", min_bits)
    if min_bits > max_bits:
        raise ValueError(f"min_bits must be at most max_bits = {max_bits}, got {min_bits!r}.")
    check_choice("layout", layout, LAYOUTS)

    count_key, sign_key, place_key = jax.random.split(key, 3)
    shape = (batch_size, 1)
    count = jax.random.randint(count_key, shape, min_bits, max_bits + 1, jnp.int32)
    place = jnp.broadcast_to(jnp.arange(bits, dtype=jnp.int32), (batch_size, bits))
    if layout == "scattered":
        place = _random_order(place_key, batch_size, bits)
    positive = jax.random.bernoulli(sign_key, jnp.float32(0.5), (batch_size, bits))
    sign = jnp.where(positive, 1.0, -1.0).astype(jnp.float32)
    vector = jnp.where(place < count, sign, 0.0)  # [B, bits]
    ones = (vector > 0).sum(-1, keepdims=True)
    return Batch(
        inputs=vector[:, None, :],
        targets=(ones % 2).astype(jnp.float32),
        mask=jnp.ones_like(count, bool),
        lengths=jnp.ones_like(count[:, 0]),
        difficulty=count,
    )


def _random_order(key: Array, rows: int, size: int) -> Array:
    """A uniformly random permutation of 0 to size - 1 in each row: int32 [rows, size].

    Ranks of random words, counted pair by pair: for rows of this length it vectorises, where a
    sort does not. Equal words are told apart by their index, so it is a permutation always.
    """
    word = jax.random.bits(key, (rows, size), jnp.uint32)
    index = jnp.arange(size, dtype=jnp.int32)[None]
    smaller = word[:, None, :] < word[:, :, None]
    tied_before = (word[:, None, :] == word[:, :, None]) & (index[:, None] < index[..., None])
    return (smaller | tied_before).sum(-1, dtype=jnp.int32)
