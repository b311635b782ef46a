"""Sort (Graves 2016, section 3.4): read numbers one at a time, then give their ranking.

A sequence of ``n`` normal numbers, ``n`` random from 2 to 15, takes ``n`` input steps and ``n``
output steps. An input vector is a number and a flag, which is 1 at the last number; both are zero
at the output steps. Output step ``k`` names the position, counted from 0, of the ``k``-th smallest
number: one of 15 classes.
"""

import jax
import jax.numpy as jnp
from jax import Array

from actjax._checks import check_key, check_positive
from actjax.tasks.batch import Batch, check_range

INPUT_SIZE = 2
CLASSES = 15


def sample(key: Array, batch_size: int, *, min_numbers: int = 2, max_numbers: int = 15) -> Batch:
    """Draws sequences of `min_numbers` to `max_numbers` standard normal numbers to sort.

    Args:
      key: a JAX random key.
      batch_size: number of sequences, B.
      min_numbers, max_numbers: range of the count of numbers, at most 15; equal for sequences of
        one length. The time axis T is `2 * max_numbers`.

    Returns:
      Batch: inputs [B, T, 2], targets int32 [B, T] in 0 to 14, mask [B, T] (True at the output
      steps), lengths [B], twice the count of numbers, and difficulty [B, T], the count of numbers
      at every step of the sequence. Past a sequence's length all is zero.

    Raises:
      ValueError: for an empty batch or a range that is empty or out of bounds.

    Example:
      >>> import jax
      >>> batch = jax.eval_shape(lambda key: sample(key, 16), jax.random.key(0))
      >>> batch.inputs.shape, batch.targets.shape
      ((16, 30, 2), (16, 30))
    """
    check_key("key", key)
    check_positive("batch_size", batch_size)
    check_range("numbers", min_numbers, max_numbers, most=CLASSES)
    count_key, number_key = jax.random.split(key)
    counts = jax.random.randint(count_key, (batch_size, 1), min_numbers, max_numbers + 1, jnp.int32)
    step = jnp.arange(2 * max_numbers, dtype=jnp.int32)[None]
    reading, inside = step < counts, step < 2 * counts  # [B, T]
    drawn = jax.random.normal(number_key, (batch_size, max_numbers), jnp.float32)
    numbers = jnp.where(reading, jnp.tile(drawn, (1, 2)), 0.0)
    last = (step == counts - 1).astype(numbers.dtype)

    # Places past the end sort behind every drawn number: the first n ranks are the sequence's own.
    ranking = jnp.argsort(jnp.where(step[:, :max_numbers] < counts, drawn, jnp.inf), axis=1)
    ranking = ranking.astype(jnp.int32)
    rank = jnp.clip(step - counts, 0, max_numbers - 1)
    answering = inside & ~reading
    return Batch(
        inputs=jnp.stack([numbers, last], axis=-1),
        targets=jnp.where(answering, jnp.take_along_axis(ranking, rank, axis=1), 0),
        mask=answering,
        lengths=2 * counts[:, 0],
        difficulty=jnp.where(inside, counts, 0),
    )
