"""All that learns and halts, in the modes of JAX that people debug in."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from actjax.learned import (
    Graves,
    LearnedOptimizer,
    meta,
    minimize,
)
from actjax.learned.problems import (
    Images,
    classifier,
    convolutional,
    mlp,
    quadratic,
    regression,
)
from actjax.learned.stopping import first_step, halting_states, oracle_steps, plateau_steps
from actjax.learned.training import halting_objective, init_meta, make_meta_step
from tests.learned_parts import (
    PARAMS,
    POSTERIORS,
    act,
    head,
    network,
    updates_of,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


MODES = {
    "nans": lambda: jax.debug_nans(True),
    "ranks": lambda: jax.numpy_rank_promotion("raise"),
    "dtypes": lambda: jax.numpy_dtype_promotion("strict"),
    "leaks": jax.checking_leaks,
    "x64": lambda: jax.enable_x64(True),
}


IMAGES = Images(np.zeros((5, 32, 32, 3), np.uint8), np.arange(5, dtype=np.uint8))
FAMILIES = (
    quadratic(2, "mixed"),
    regression(2, observations=3, max_condition=5.0),
    classifier(mlp((32 * 32 * 3, 2, 5)), IMAGES, batch_size=2),
    classifier(convolutional((2,), classes=5), IMAGES, batch_size=2),
)


def everything(families):
    """A few steps of all that learns and halts, and one of learning it."""
    scores, gain = jnp.zeros((2, 3), jnp.float32), -jnp.ones((2, 3), jnp.float32)
    for posterior in POSTERIORS:
        loss = lambda p: p["b"] ** 2 + p["w"].sum() ** 2
        found = minimize(act(posterior), loss, PARAMS, max_steps=2)
        assert int(found.steps) == 2
        assert np.isfinite(posterior.objective(scores, gain)).all()
        assert np.isfinite(posterior.log_posterior(scores)[..., 0]).all()
        assert int(first_step(halting_states(posterior, scores).mass > 2)[0]) == 3
        if not isinstance(posterior, Graves):
            assert np.isfinite(posterior.gap(scores, gain)).all()
    assert list(oracle_steps(-gain, 0.1)) == [1, 1] and list(plateau_steps(gain, 0.1, 1)) == [2, 2]
    half = jnp.ones(2, jnp.bfloat16)
    updates_of(act(Graves(), state_dtype=jnp.bfloat16), half, half)
    learned, options = LearnedOptimizer(network(layers=1), head()), {"horizon": 2, "window": 1}
    for family in families:
        begin = lambda key, family=family: meta.start(learned.network, family, key, 2)
        step = lambda rollout, family=family: meta.unroll(learned, family, rollout, 2)
        jax.eval_shape(step, jax.eval_shape(begin, jax.random.key(0)))
    objective = halting_objective(POSTERIORS[0], horizons="sample", gap_weight=0.1)
    step = make_meta_step(
        lambda data: FAMILIES[0],
        objective,
        optax.sgd(0.1),
        batch_size=2,
        validate_every=1,
        validation_size=2,
        **options,
    )
    state = init_meta(learned, optax.sgd(0.1), lambda data: FAMILIES[0], batch_size=2)
    state, metrics = jax.jit(step)(state, jax.random.key(0))
    assert np.isfinite(metrics["validation_loss"])


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_everything_holds_in_the_modes_of_jax(mode):
    with mode():
        # Every trace is searched for leaks, which takes minutes for networks of images.
        everything(FAMILIES[:1] if jax.config.jax_check_tracer_leaks else FAMILIES)
