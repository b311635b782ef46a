"""Quadratic functions f(theta) = ||W theta - y||^2 (Sander 2017, eq 17)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from actjax._checks import check_choice, check_key, check_positive
from actjax.learned.problems.family import Family

DRAWS = ("uniform", "gaussian", "mixed")


class Quadratic(NamedTuple):
    """One function: W [dim, dim], y [dim] and log10 of W's condition number where it was set."""

    W: jax.Array
    y: jax.Array
    log_condition: jax.Array


def quadratic(
    dim: int = 10,
    draw: str = "uniform",
    *,
    start_sd: float = 0.01,
    max_condition: float = 10.0,
) -> Family:
    """Quadratics in `dim` parameters that start near the origin.

    Args:
      dim: number of parameters.
      draw: how W and y are drawn. "uniform": entries uniform on [0, 1). "gaussian": standard
        normal. "mixed": W has singular values spread geometrically from 1 down to 1/kappa, with
        log kappa uniform up to log `max_condition`, and y is as large along each of them, so that
        every problem starts alike and the right stopping time differs.
      start_sd: standard deviation of the starting point.
      max_condition: largest condition number of "mixed".
    """
    check_positive("dim", dim)
    check_choice("draw", draw, DRAWS)
    if not max_condition >= 1:
        raise ValueError(f"max_condition must be a number of at least 1, got {max_condition!r}.")

    def sample(key):
        check_key("key", key)
        key_w, key_y, key_start, key_condition = jax.random.split(key, 4)
        start = start_sd * jax.random.normal(key_start, (dim,))
        if draw == "uniform":
            W, y = jax.random.uniform(key_w, (dim, dim)), jax.random.uniform(key_y, (dim,))
            return start, Quadratic(W, y, jnp.zeros(()))
        if draw == "gaussian":
            W, y = jax.random.normal(key_w, (dim, dim)), jax.random.normal(key_y, (dim,))
            return start, Quadratic(W, y, jnp.zeros(()))
        log_condition = jax.random.uniform(key_condition) * math.log10(max_condition)
        W, y = conditioned(key_w, dim, dim, log_condition)
        y = y + 0.1 * jax.random.normal(key_y, (dim,))
        return start, Quadratic(W, y, log_condition)

    def loss(theta, data, key=None):
        del key
        residual = jnp.sum(data.W * theta[None], axis=-1) - data.y
        return jnp.sum(residual * residual)

    return Family(sample, loss, lambda data: data.log_condition, loss)


def conditioned(key, rows: int, columns: int, log_condition) -> tuple[jax.Array, jax.Array]:
    """A matrix of set condition number and a target in its column space.

    The singular values of the matrix [rows, columns] go geometrically from 1 down to
    10^-log_condition. The target [rows] has unit variance along every singular direction, so that
    all of them matter alike to the loss and only the distance to go grows as they flatten.
    """
    key_left, key_right, key_target = jax.random.split(key, 3)
    rank = min(rows, columns)
    values = 10.0 ** (-log_condition * jnp.linspace(0.0, 1.0, rank))
    left, right = reflected(key_left, rows, rank), reflected(key_right, columns, rank)
    return (left * values[None]) @ right.T, left @ jax.random.normal(key_target, (rank,))


def reflected(key, rows: int, columns: int) -> jax.Array:
    """Random orthonormal columns [rows, columns]: the identity's, reflected `columns` times.

    LAPACK's QR is no choice here: called from inside a loop on the CPU it can wait for ever for
    the threads that run the loop.
    """
    normals = jax.random.normal(key, (columns, rows))
    normals = normals / jnp.linalg.norm(normals, axis=-1, keepdims=True)

    def reflect(matrix, normal):
        along = jnp.sum(normal[:, None] * matrix, axis=0)
        return matrix - 2 * normal[:, None] * along[None], None

    return jax.lax.scan(reflect, jnp.eye(rows, columns) + 0 * normals[0, 0], normals)[0]
