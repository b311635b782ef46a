"""Fixtures, and the modes that users debug in: ``ACTJAX_TEST_MODE=strict pytest`` and so on."""

import functools
import os

import jax
import pytest

MODES = {
    "nans": functools.partial(jax.debug_nans, True),
    "rank": functools.partial(jax.numpy_rank_promotion, "raise"),
    "strict": functools.partial(jax.numpy_dtype_promotion, "strict"),
    "leaks": jax.checking_leaks,
    "x64": functools.partial(jax.enable_x64, True),
}
_SETTINGS = {
    "nans": ("jax_debug_nans", True),
    "rank": ("jax_numpy_rank_promotion", "raise"),
    "strict": ("jax_numpy_dtype_promotion", "strict"),
    "leaks": ("jax_check_tracer_leaks", True),
    "x64": ("jax_enable_x64", True),
}


OPTAX = "strict", "Optax mixes types in its own arithmetic"
MODE = os.environ.get("ACTJAX_TEST_MODE")


def pytest_configure(config):
    """Sets the mode of the whole run, before any test module makes an array."""
    config.addinivalue_line("markers", "not_in(mode, reason): what cannot hold in a mode of JAX")
    if MODE is not None:
        if MODE not in _SETTINGS:
            modes = ", ".join(_SETTINGS)
            raise pytest.UsageError(f"ACTJAX_TEST_MODE must be one of {modes}, got {MODE!r}.")
        name, value = _SETTINGS[MODE]
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for the processes that tests start


def pytest_runtest_setup(item):
    for mark in item.iter_markers("not_in"):
        mode, reason = mark.args
        if mode == MODE:
            pytest.skip(f"not in mode {mode}: {reason}")


@pytest.fixture(scope="module")
def quick_compilation():
    """For modules in which compiling is most of the time: without most of XLA's optimizations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # or small programs stay as they are, with other bits than elsewhere


@pytest.fixture
def float64():
    """Runs a test in double precision."""
    with jax.enable_x64(True):
        yield
