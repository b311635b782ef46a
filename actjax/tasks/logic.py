"""Logic (Graves 2016, section 3.2): apply up to ten binary gates to each vector of a sequence.

An input vector of 102 numbers holds two bits ``b0, b1`` and ten chunks of ten. The first ``B``
chunks, ``B`` random, are one-hot gates of table 1. Each gate reads the two newest bits,
``b[i+1] = T_i(b[i], b[i-1])`` (eq 21), and the target is the last one, ``b[B+1]``. Only the first
vector shows its ``b0``. In every later one ``b0`` is the previous vector's target, which the
network has to remember, and the input shows 0 in its place.
"""

import jax
import jax.numpy as jnp

from actjax.tasks.batch import Batch, check_range

INPUT_SIZE = 102
GATES = ("NOR", "Xq", "ABJ", "XOR", "NAND", "AND", "XNOR", "if/then", "then/if", "OR")

# Graves 2016, table 1. TRUTH_TABLE[gate][P][Q], with P = b[i] the newer bit and Q = b[i-1].
TRUTH_TABLE = (
    ((1, 0), (0, 0)),  # NOR
    ((0, 1), (0, 0)),  # Xq
    ((0, 0), (1, 0)),  # ABJ
    ((0, 1), (1, 0)),  # XOR
    ((1, 1), (1, 0)),  # NAND
    ((0, 0), (0, 1)),  # AND
    ((1, 0), (0, 1)),  # XNOR
    ((1, 1), (0, 1)),  # if/then
    ((1, 0), (1, 1)),  # then/if
    ((0, 1), (1, 1)),  # OR
)


def sample(key, batch_size, *, min_length=1, max_length=10, min_gates=1, max_gates=10):
    """Draws sequences of `min_length` to `max_length` vectors of `min_gates` to `max_gates` gates.

    Args:
      key: a JAX random key.
      batch_size: number of sequences, B.
      min_length, max_length: range of the number of vectors in a sequence; equal for sequences of
        one length. The time axis T is always `max_length`.
      min_gates, max_gates: range of the number of gates in a vector, at most 10.

    Returns:
      A `Batch` with inputs float32 [B, T, 102], targets float32 [B, T, 1] of 0 and 1, mask bool
      [B, T], lengths int32 [B] and difficulty int32 [B, T], the number of gates in each vector.
      Everything past a sequence's length is zero.

    Example:
      >>> import jax
      >>> batch = sample(jax.random.key(0), 16)
      >>> batch.inputs.shape, batch.targets.shape
      ((16, 10, 102), (16, 10, 1))
    """
    check_range("batch_size", batch_size, 1)
    check_range("min_length", min_length, 1)
    check_range("max_length", max_length, min_length)
    check_range("min_gates", min_gates, 1, 10)
    check_range("max_gates", max_gates, min_gates, 10)
    length_key, count_key, gate_key, bit_key = jax.random.split(key, 4)
    shape = (batch_size, max_length)
    lengths = jax.random.randint(length_key, (batch_size,), min_length, max_length + 1)
    mask = jnp.arange(max_length) < lengths[:, None]
    counts = jax.random.randint(count_key, shape, min_gates, max_gates + 1) * mask
    gates = jax.random.randint(gate_key, (*shape, 10), 0, 10)
    used = jnp.arange(10) < counts[..., None]
    bits = jax.random.randint(bit_key, (*shape, 2), 0, 2) * mask[..., None]
    bits = bits.at[:, 1:, 0].set(0)

    table = jnp.asarray(TRUTH_TABLE, jnp.int32)

    def vector(carried, at):
        bits, gates, used = at  # [B, 2], [B, 10], [B, 10]
        older, newer = jnp.where(carried < 0, bits[:, 0], carried), bits[:, 1]
        for chunk in range(10):
            value = table[gates[:, chunk], newer, older]
            older = jnp.where(used[:, chunk], newer, older)
            newer = jnp.where(used[:, chunk], value, newer)
        return newer, newer

    along_time = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (bits, gates, used))
    unset = jnp.full_like(lengths, -1)  # the first vector takes b0 from its own input
    _, targets = jax.lax.scan(vector, unset, along_time)

    chunks = jax.nn.one_hot(gates, 10) * used[..., None]
    inputs = jnp.concatenate([bits.astype(jnp.float32), chunks.reshape(*shape, 100)], axis=-1)
    targets = jnp.where(mask, targets.T, 0).astype(jnp.float32)
    return Batch(inputs, targets[..., None], mask, lengths, counts)
