"""Addition (Graves 2016, section 3.3; Fojo 2018, section 6.2.2): running sums of decimal numbers.

Each input vector holds one number of ``D`` digits, ``D`` random from 1 to 5: a one-hot of size ten
for each digit, most significant first, then zeros up to size 50. The target at a step is the sum of
all numbers so far as six 11-way classes: its digits, most significant first, then the end marker
(class 10). The first step has no target.
"""

import jax
import jax.numpy as jnp

from actjax.tasks.batch import Batch, check_range

INPUT_SIZE = 50
CLASSES = 11
SUM_DIGITS = 6
END = 10


def sample(key, batch_size, *, min_length=1, max_length=5, min_digits=1, max_digits=5):
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
      A `Batch` with inputs float32 [B, T, 50], targets int32 [B, T, 6] in 0..10, mask bool [B, T]
      (False at the first step and past the end), lengths int32 [B] and difficulty int32 [B, T], the
      number of digits in each vector. Everything past a sequence's length is zero.

    Example:
      >>> import jax
      >>> batch = sample(jax.random.key(0), 32, min_length=5)
      >>> batch.inputs.shape, batch.targets.shape
      ((32, 5, 50), (32, 5, 6))
    """
    check_range("batch_size", batch_size, 1)
    check_range("min_length", min_length, 1)
    check_range("max_length", max_length, min_length, 10)
    check_range("min_digits", min_digits, 1, 5)
    check_range("max_digits", max_digits, min_digits, 5)
    length_key, count_key, digit_key = jax.random.split(key, 3)
    shape = (batch_size, max_length)
    lengths = jax.random.randint(length_key, (batch_size,), min_length, max_length + 1)
    inside = jnp.arange(max_length) < lengths[:, None]
    counts = jax.random.randint(count_key, shape, min_digits, max_digits + 1) * inside
    digits = jax.random.randint(digit_key, (*shape, 5), 0, 10)
    used = jnp.arange(5) < counts[..., None]

    inputs = (jax.nn.one_hot(digits, 10) * used[..., None]).reshape(*shape, 50)
    sums = jnp.cumsum(value(digits, counts), axis=1)
    mask = inside & (jnp.arange(max_length) > 0)
    targets = jnp.where(mask[..., None], classes(sums), 0)
    return Batch(inputs, targets, mask, lengths, counts)


def value(digits, counts):
    """The number whose first `counts` [...] of `digits` [..., 5] are its decimal digits."""
    place = counts[..., None] - 1 - jnp.arange(digits.shape[-1])
    return jnp.sum(jnp.where(place >= 0, digits * 10 ** jnp.maximum(place, 0), 0), axis=-1)


def classes(sums):
    """The six target classes [..., 6] of non-negative `sums` [...] below a million.

    Example:
      >>> classes(jnp.asarray(123 + 450)).tolist()
      [5, 7, 3, 10, 10, 10]
    """
    count = 1 + sum((sums >= 10**place).astype(jnp.int32) for place in range(1, SUM_DIGITS))
    place = count[..., None] - 1 - jnp.arange(SUM_DIGITS)
    digits = sums[..., None] // 10 ** jnp.maximum(place, 0) % 10
    return jnp.where(place >= 0, digits, END)
