"""Linear regression scored by its negative log-likelihood (Sander 2017, eqs 18 to 20)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from actjax._checks import check_key, check_positive
from actjax.learned.problems.family import Family
from actjax.learned.problems.quadratic import conditioned


class Regression(NamedTuple):
    """One data set: inputs [N, dim], targets [N] and log10 of the inputs' condition number."""

    inputs: jax.Array
    targets: jax.Array
    log_condition: jax.Array


def regression(
    dim: int = 10,
    *,
    observations: int = 100,
    alpha: float = 1.0,
    beta: float = 2.0,
    max_condition: float = 1.0,
    start_sd: float = 0.01,
) -> Family:
    """Find the parameters of a linear function from noisy observations of it.

    True parameters are drawn from N(0, 1/alpha) and observed with noise N(0, 1/beta). The loss is
    the negative log-likelihood of eq 20 *per observation*,

        beta/2 mean_n (theta . x_n - y_n)^2 - log(beta)/2 + log(2 pi)/2,

    since a sum over N would only rescale the price of a step.

    Args:
      dim: number of parameters (M in the text): 10, or 2 for the small one.
      observations: N.
      alpha: precision of the true parameters.
      beta: precision of the noise.
      max_condition: 1 draws the inputs from a standard normal. Above, their singular values are
        spread geometrically from 1 down to 1/kappa (times sqrt(N)), with log kappa uniform up to
        log `max_condition`, and the targets vary as much along each of them: the
        mixed-conditioning family, on which the steps needed differ.
      start_sd: standard deviation of the starting point.
    """
    check_positive("dim", dim)
    check_positive("observations", observations)
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not value > 0:
            raise ValueError(f"{name} must be a number above 0, got {value!r}.")
    if not max_condition >= 1:
        raise ValueError(f"max_condition must be a number of at least 1, got {max_condition!r}.")

    def sample(key):
        check_key("key", key)
        key_x, key_true, key_noise, key_start, key_condition = jax.random.split(key, 5)
        log_condition = jax.random.uniform(key_condition) * math.log10(max_condition)
        if max_condition > 1:
            inputs, targets = conditioned(key_x, observations, dim, log_condition)
            inputs, targets = (math.sqrt(observations) * both for both in (inputs, targets))
            targets = targets / math.sqrt(alpha)
        else:
            inputs = jax.random.normal(key_x, (observations, dim))
            true = jax.random.normal(key_true, (dim,)) / math.sqrt(alpha)
            targets = jnp.sum(inputs * true[None], axis=-1)
        targets = targets + jax.random.normal(key_noise, (observations,)) / math.sqrt(beta)
        start = start_sd * jax.random.normal(key_start, (dim,))
        return start, Regression(inputs, targets, log_condition)

    constant = 0.5 * math.log(2 * math.pi / beta)

    def loss(theta, data, key=None):
        del key
        residual = jnp.sum(data.inputs * theta[None], axis=-1) - data.targets
        return 0.5 * beta * jnp.mean(residual * residual) + constant

    return Family(sample, loss, lambda data: data.log_condition, loss)
