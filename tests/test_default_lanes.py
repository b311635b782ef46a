"""How many lanes a loop has where nobody says: by the rows, the inputs and what a step costs."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from actjax._loop import plan, trace


def cost(function, *shapes):
    return trace.operations(jax.make_jaxpr(function)(*map(jnp.ones, shapes)).jaxpr)


def test_operations_are_those_of_the_products_in_whatever_calls_and_loops():
    product = 2 * 5 * 3 * 4
    assert cost(jnp.dot, (5, 3), (3, 4)) == product
    assert cost(jax.jit(lambda x, w: jnp.tanh(x @ w)), (5, 3), (3, 4)) == product + 5 * 4
    again = lambda x, w: lax.scan(lambda x, _: (x @ w, None), x, length=7)[0]
    assert cost(again, (5, 4), (4, 4)) == 7 * 2 * 5 * 4 * 4
    image = lambda x, kernel: lax.conv(x, kernel, (1, 1), "SAME")
    assert cost(image, (2, 3, 8, 8), (7, 3, 5, 5)) == 2 * (2 * 7 * 8 * 8) * 3 * 5 * 5


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere all rows are at work")
@pytest.mark.parametrize(
    ("batch", "time", "operations", "lanes"),
    [
        (1024, 1, 50_000, 256),  # an RNN of 128 units
        (1024, 1, 1_000_000, 134),
        (1024, 1, 8_000_000, 16),  # a recursive network on a board
        (1024, 8, 50_000, 512),
        (1024, 16, 8_000_000, 1024),
        (12, 1, 8_000_000, 12),
        (1024, 1, 0, 256),
    ],
)
def test_fewer_lanes_the_more_a_step_costs(batch, time, operations, lanes):
    assert plan.lanes_of(None, batch, batch, time, operations) == lanes


def test_lanes_that_are_given_are_what_they_are():
    assert plan.lanes_of(40, 1024, 1024, 1, 10**9) == 40
    assert plan.lanes_of(40, 1024, 512, 1, 10**9) == 20  # on one of two devices
