import jax
import pytest


@pytest.fixture(scope="module")
def quick_compilation():
    """For modules in which compiling is most of the time: without most of XLA's optimizations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def float64():
    """Runs a test in double precision."""
    with jax.enable_x64(True):
        yield
