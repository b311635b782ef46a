import os

# Compiling is most of the time of these tests, and of the processes that they start; the loops
# themselves are tested with all optimizations (`optimized`).
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax
import pytest


@pytest.fixture(scope="module")
def optimized():
    """Compiles the tests of a module as users' programs are compiled."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def float64():
    """Runs a test in double precision."""
    with jax.enable_x64(True):
        yield
