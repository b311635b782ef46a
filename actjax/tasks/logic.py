"""Logic (Graves 2016, section 3.2): apply up to ten binary gates to each vector of a sequence.

An input vector of 102 numbers holds two bits ``b0, b1`` and ten chunks of ten. The first ``B``
chunks, ``B`` random, are one-hot gates of table 1. Each gate reads the two newest bits,
``b[i+1] = T_i(b[i], b[i-1])`` (eq 21), and the target is the last one, ``b[B+1]``. Only the first
vector shows its ``b0``. In every later one ``b0`` is the previous vector's target, which the
network has to remember, and the input shows 0 in its place.
"""

import jax
import jax.numpy as jnp
from jax import Array

from actjax._checks import check_key, check_positive
from actjax.tasks.batch import Batch, check_range

CHUNKS = 10
INPUT_SIZE = 102
GATES = ("NOR", "Xq", "ABJ", "XOR", "NAND", "AND", "XNOR", "if/then", "then/if", "OR")

# Graves 2016, table 1, its rows (P, Q) = TT, TF, FT, FF as columns here: TRUTH_TABLE[gate][1 - P]
# [1 - Q], where P = b[i] is the newer bit and Q = b[i-1] the older.
TRUTH_TABLE = (
    ((0, 0), (0, 1)),  # NOR
    ((0, 0), (1, 0)),  # Xq
    ((0, 1), (0, 0)),  # ABJ
    ((0, 1), (1, 0)),  # XOR
    ((0, 1), (1, 1)),  # NAND
    ((1, 0), (0, 0)),  # AND
    ((1, 0), (0, 1)),  # XNOR
    ((1, 0), (1, 1)),  # if/then
    ((1, 1), (0, 1)),  # then/if
    ((1, 1), (1, 0)),  # OR
)


def sample(
    key: Array,
    batch_size: int,
    *,
    min_length: int = 1,
    max_length: int = 10,
    min_gates: int = 1,
    max_gates: int = 10,
) -> Batch:
    """Draws sequences of `min_length` to `max_length` vectors of `min_gates` to `max_gates` gates.

    Args:
      key: a JAX random key.
      batch_size: number of sequences, B.
      min_length, max_length: range of the number of vectors in a sequence; equal for sequences of
        one length. The time axis T is always `max_length`.
      min_gates, max_gates: range of the number of gates in a vector, at most 10.

    Returns:
      Batch: inputs [B, T, 102], targets float32 [B, T] of 0 and 1, mask [B, T], lengths [B] and
      difficulty [B, T], the number of gates in each vector. Past a sequence's length all is zero.

    Raises:
      ValueError: for an empty batch or a range that is empty or out of bounds.

    Example:
      >>> import jax
      >>> batch = jax.eval_shape(lambda key: sample(key, 16), jax.random.key(0))
      >>> batch.inputs.shape, batch.targets.shape
      ((16, 10, 102), (16, 10))
    """
    check_key("key", key)
    check_positive("batch_size", batch_size)
    check_range("length", min_length, max_length)
    check_range("gates", min_gates, max_gates, most=CHUNKS)
    length_key, count_key, gate_key, bit_key = jax.random.split(key, 4)
    shape = (batch_size, max_length)
    lengths = jax.random.randint(length_key, (batch_size,), min_length, max_length + 1, jnp.int32)
    inside = jnp.arange(max_length, dtype=jnp.int32)[None] < lengths[:, None]  # [B, T]
    counts = jax.random.randint(count_key, shape, min_gates, max_gates + 1, jnp.int32)
    counts = jnp.where(inside, counts, 0)
    gates = jax.random.randint(gate_key, (*shape, CHUNKS), 0, len(GATES), jnp.int32)
    used = jnp.arange(CHUNKS, dtype=jnp.int32)[None, None] < counts[..., None]  # [B, T, chunks]
    bits = jnp.where(
        inside[..., None], jax.random.randint(bit_key, (*shape, 2), 0, 2, jnp.int32), 0
    )

    time_major = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (bits[..., 1], gates, used))
    _, targets = jax.lax.scan(_apply_gates, bits[:, 0, 0], time_major)

    chunks = jnp.where(used[..., None], jax.nn.one_hot(gates, len(GATES), dtype=jnp.float32), 0)
    shown = bits.at[:, 1:, 0].set(0).astype(chunks.dtype)
    return Batch(
        inputs=jnp.concatenate([shown, chunks.reshape(*shape, -1)], axis=-1),
        targets=jnp.where(inside, targets.T, 0).astype(jnp.float32),
        mask=inside,
        lengths=lengths,
        difficulty=counts,
    )


def _apply_gates(older: Array, vector: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    """Eq 21 over the chunks of one vector: b0 [B] and (b1 [B], gates, used [B, chunks]) to bits."""
    table = jnp.asarray(TRUTH_TABLE, jnp.int32)
    newer, gates, used = vector
    for chunk in range(CHUNKS):
        result = table[gates[:, chunk], 1 - newer, 1 - older]
        older = jnp.where(used[:, chunk], newer, older)
        newer = jnp.where(used[:, chunk], result, newer)
    return newer, newer
