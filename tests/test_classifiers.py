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
from experiments.__main__ import main
from experiments.learned import baselines, compare, figures
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
    (tmp_path / "learned").mkdir()
    (tmp_path / "run" / "result.json").rename(tmp_path / "learned" / "small.json")
    assert main(["figures", "learned", "--results", str(tmp_path)]) == 0  # from the file alone
    drawn = (tmp_path / "learned" / "small_loss.png").read_bytes()
    assert drawn == (tmp_path / "run" / "loss.png").read_bytes()


def test_a_diverging_baseline_leaves_the_figure_and_does_not_flatten_it(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "save", lambda figure, *_, **__: shown.append(figure))
    steady = np.linspace(2, 1, 20)
    learned = {"mean": steady, "median": steady, "low": steady / 2, "high": steady * 2}
    curves = figures.as_json({"lstm": learned, "sgd": {"mean": 2 * 10.0 ** np.arange(20)}})
    curves["sgd"]["mean"][-1] = None  # as JSON holds what is not finite
    figures.loss_curves(tmp_path / "loss.png", curves, ylabel="loss")
    low, high = shown[0].axes[0].get_ylim()
    assert 0.4 < low < 0.5 and 4 < high < 5  # the band, with a margin
