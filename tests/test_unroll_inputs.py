"""What `unroll` and its kin are given: any integer lengths, padding, keys, numbers, empty leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import actjax

pytestmark = pytest.mark.usefixtures("quick_compilation")
LOOPS = ("scan", "while")


def step(w, state, x, first):
    state = jnp.tanh(w * state + x)
    return state, jax.nn.sigmoid(state[:, 0])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, list])
@pytest.mark.parametrize("time", [5, 200])
def test_lengths_of_any_integers(dtype, time):
    """Among them those that cannot hold T or a negative number, with lanes served from a queue."""
    lengths = [0, 5, 0, 2]
    given = lengths if dtype is list else np.array(lengths, dtype)
    run = lambda lengths: actjax.unroll(  # noqa: E731
        step, 0.5, jnp.zeros((4, 2)), jnp.ones((4, time, 2)), max_steps=4, lengths=lengths, lanes=2
    )
    _, states, ponder = run(given) if dtype is list else jax.jit(run)(given)
    live = np.arange(time) < np.array(lengths)[:, None]
    np.testing.assert_array_equal(ponder.steps > 0, live)
    np.testing.assert_array_equal(np.any(states, -1), live)
