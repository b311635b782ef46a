"""The record that every family of problems is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Family(NamedTuple):
    """A distribution p(f) over functions to minimise, one function at a time.

    Vectorise with `jax.vmap`. Meta-training puts the problems on the *last* axis, so a loss is
    fastest when written with elementwise products and sums rather than small matrix products.

    Attributes:
      sample: `key -> (params, data)`: the starting point and whatever defines the function.
      loss: `(params, data, key) -> scalar`: f; the key draws a minibatch, where there is one.
      difficulty: `data -> scalar`: a measure of how hard the problem is, for tables.
      validation: as `loss` on held-out data where the family has any, otherwise `loss` itself.
    """

    sample: Callable[[jax.Array], tuple[Any, Any]]
    loss: Callable[[Any, Any, jax.Array], jax.Array]
    difficulty: Callable[[Any], jax.Array]
    validation: Callable[[Any, Any, jax.Array], jax.Array]
