"""Sort (Graves 2016, section 3.4): read numbers one at a time, then give their ranking.

A sequence of ``n`` normal numbers, ``n`` random from 2 to 15, takes ``n`` input steps and ``n``
output steps. An input vector is a number and a flag, which is 1 at the last number; both are zero
at the output steps. Output step ``k`` names the position, counted from 0, of the ``k``-th smallest
number: one of 15 classes.
"""

import jax
import jax.numpy as jnp

from actjax.tasks.batch import Batch, check_range

INPUT_SIZE = 2
CLASSES = 15


def sample(key, batch_size, *, min_numbers=2, max_numbers=15):
    """Draws sequences of `min_numbers` to `max_numbers` standard normal numbers to sort.

    Args:
      key: a JAX random key.
      batch_size: number of sequences, B.
      min_numbers, max_numbers: range of the count of numbers, at most 15; equal for sequences of
        one length. The time axis T is `2 * max_numbers`.

    Returns:
      A `Batch` with inputs float32 [B, T, 2], targets int32 [B, T] in 0..14, mask bool [B, T] (True
      at the output steps), lengths int32 [B], twice the count of numbers, and difficulty int32
      [B, T], the count of numbers at every step of the sequence. Everything past a sequence's
      length is zero.

    Example:
      >>> import jax
      >>> batch = sample(jax.random.key(0), 16)
      >>> batch.inputs.shape, batch.targets.shape
      ((16, 30, 2), (16, 30))
    """
    check_range("batch_size", batch_size, 1)
    check_range("min_numbers", min_numbers, 1)
    check_range("max_numbers", max_numbers, min_numbers, 15)
    count_key, number_key = jax.random.split(key)
    counts = jax.random.randint(count_key, (batch_size,), min_numbers, max_numbers + 1)
    step = jnp.arange(2 * max_numbers)
    reading = step < counts[:, None]
    mask = ~reading & (step < 2 * counts[:, None])

    drawn = jax.random.normal(number_key, (batch_size, max_numbers))
    numbers = jnp.where(reading, jnp.pad(drawn, ((0, 0), (0, max_numbers))), 0.0)
    flag = step == counts[:, None] - 1
    inputs = jnp.stack([numbers, flag.astype(numbers.dtype)], axis=-1)

    # Unused places sort behind every drawn number, so the first n ranks are those of the sequence.
    ranking = jnp.argsort(jnp.where(reading[:, :max_numbers], drawn, jnp.inf), axis=1)
    output_step = jnp.clip(step - counts[:, None], 0, max_numbers - 1)
    targets = jnp.where(mask, jnp.take_along_axis(ranking, output_step, axis=1), 0)
    difficulty = jnp.where(reading | mask, counts[:, None], 0)
    return Batch(inputs, targets.astype(jnp.int32), mask, 2 * counts, difficulty)
