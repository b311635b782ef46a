"""Addition (Graves 2016, section 3.3; Fojo 2018, section 6.2.2): running sums of decimal numbers.

Each input vector holds one number of ``D`` digits, ``D`` random from 1 to 5: a one-hot of size ten
for each digit, most significant first, then zeros up to size 50. The target at a step is the sum of
all numbers so far as six 11-way classes: its digits, most significant first, then the end marker
(class 10). The first step has no target.
"""

import jax
import jax.numpy as jnp
from jax import Array

from actjax._checks import check_key, check_positive
from actjax.tasks.batch import Batch, check_range

DIGITS = 5
INPUT_SIZE = 50
CLASSES = 11
SUM_DIGITS = 6
END = 10


def sample(
    key: Array,
    batch_size: int,
    *,
    min_length: int = 1,
    max_length: int = 5,
    min_digits: int = 1,
    max_digits: int = 5,
) -> Batch:
    """Draws sequences of `min_length` to `max_length` numbers of `min_digits` to `max_digits`.

    Graves draws 1 to 5 numbers, the default. Fojo always takes five: `min_length=5`. A sequence of
    one number has no target at all, so its mask is all False.

    Args:
      key: a JAX random key.
      batch_size: number of sequences, B.
      min_length, max_length: range of the count of numbers in a sequence, at most 10, so that a sum
        fits in six digits; equal for sequences of one length. The time axis T is `max_length`.
      min_digits, max_digits: range of the number of digits of a number, at most 5. Every digit is
        drawn from 0 to 9, so that leading zeros occur in the inputs, as in the paper. Sums are
        written without leading zeros.

    Returns:
      Batch: inputs [B, T, 50], targets int32 [B, T, 6] in 0 to 10, mask [B, T] (False at the first
      step and past the end), lengths [B] and difficulty [B, T], the number of digits in each
      vector. Past a sequence's length all is zero.

    Raises:
      ValueError: for an empty batch or a range that is empty or out of bounds.

    Example:
      >>> import jax
      >>> draw = lambda key: sample(key, 32, min_length=5)
      >>> batch = jax.eval_shape(draw, jax.random.key(0))
      >>> batch.inputs.shape, batch.targets.shape
      ((32, 5, 50), (32, 5, 6))
    """
    check_key("key", key)
    check_positive("batch_size", batch_size)
    check_range("length", min_length, max_length, most=10)
    check_range("digits", min_digits, max_digits, most=DIGITS)
    length_key, count_key, digit_key = jax.random.split(key, 3)
    shape = (batch_size, max_length)
    lengths = jax.random.randint(length_key, (batch_size,), min_length, max_length + 1, jnp.int32)
    place = jnp.arange(max_length, dtype=jnp.int32)[None]
    inside = place < lengths[:, None]  # [B, T]
    counts = jax.random.randint(count_key, shape, min_digits, max_digits + 1, jnp.int32)
    counts = jnp.where(inside, counts, 0)
    digits = jax.random.randint(digit_key, (*shape, DIGITS), 0, 10, jnp.int32)
    used = jnp.arange(DIGITS, dtype=jnp.int32)[None, None] < counts[..., None]  # [B, T, digits]
    counted = inside & (place > 0)
    sums = jnp.cumsum(_value(digits, counts), axis=1, dtype=jnp.int32)
    return Batch(
        inputs=jnp.where(used[..., None], jax.nn.one_hot(digits, 10, dtype=jnp.float32), 0).reshape(
            *shape, -1
        ),
        targets=jnp.where(counted[..., None], classes(sums), 0),
        mask=counted,
        lengths=lengths,
        difficulty=counts,
    )


def classes(sums: Array) -> Array:
    """The six target classes [..., 6] of non-negative `sums` [...] below a million.

    Example:
      >>> jax.jit(classes)(123 + 450).tolist()
      [5, 7, 3, 10, 10, 10]
    """
    count = 1 + sum((sums >= 10**place).astype(jnp.int32) for place in range(1, SUM_DIGITS))
    place = _places(count, SUM_DIGITS).astype(sums.dtype)
    digits = sums[..., None] // 10 ** jnp.maximum(place, 0) % 10
    return jnp.where(place >= 0, digits, END)


def _value(digits: Array, counts: Array) -> Array:
    """The number whose first `counts` [...] of `digits` [..., 5] are its decimal digits."""
    place = _places(counts, DIGITS)
    shifted = jnp.where(place >= 0, digits * 10 ** jnp.maximum(place, 0), 0)
    return jnp.sum(shifted, axis=-1, dtype=digits.dtype)


def _places(counts: Array, most: int) -> Array:
    """The decimal place of each of `counts` [...] digits, most significant first: [..., most]."""
    place = jnp.arange(most, dtype=jnp.int32).reshape((1,) * counts.ndim + (most,))
    return counts[..., None] - 1 - place
