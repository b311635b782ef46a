"""Classifiers as problems of a learned optimizer, and the experiment on them, two updates long."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from actjax.learned.problems import Images
from actjax.learned.problems.classifier import _convolve
from experiments.learned import baselines, compare
from experiments.learned.problems import PROBLEMS

pytestmark = pytest.mark.usefixtures("quick_compilation")
SMALL = {
    "steps": 2,
    "horizon": 4,
    "window": 2,
    "validate_every": 1,
    "validation_size": 1,
    "test_size": 2,
    "test_steps": 4,
    "tuning_size": 1,
    "log_every": 1,
    "checkpoint_every": 1,
    "minibatch": 4,
}


def test_a_product_of_patches_is_the_convolution():
    key, other = jax.random.split(jax.random.key(0))
    x, kernel = jax.random.normal(key, (2, 8, 8, 3)), jax.random.normal(other, (3, 3, 3, 5))
    layout = ("NHWC", "HWIO", "NHWC")
    expected = lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=layout)
    np.testing.assert_allclose(_convolve(x, kernel), expected, atol=1e-5)


def test_two_updates_of_the_cifar10_experiment(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "IMAGE_RATES", (1e-2, 1e-1))
    rng = np.random.default_rng(0)
    images = Images(
        jnp.asarray(rng.integers(0, 256, (32, 32, 32, 3)), jnp.uint8),
        jnp.asarray(rng.integers(0, 10, 32), jnp.int32),
    )
    problem = PROBLEMS["cifar10"]
    options = dataclasses.replace(problem.presets["demo"], out=tmp_path / "run", **SMALL)
    compare.compare("cifar10", problem, options, (images, images))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["meta_updates"] == 2 and result["learned"]["sum"] > 0
    assert {"final", "summed"} == result["baselines"]["adam"].keys()
    assert (tmp_path / "run" / "loss.png").stat().st_size > 10_000
