"""Stopping rules at thresholds chosen on validation problems."""

import numpy as np
import pytest

from actjax.learned import HorizonPrior
from actjax.learned.heads import make_posterior
from experiments.learned import evaluate, thresholds

H, PRICE = 12, 0.01


@pytest.fixture(params=["stick", "softmax", "graves"])
def recorded(request, monkeypatch):
    """Curves of validation and test problems that fall at rates the scores follow."""
    monkeypatch.setattr(thresholds, "SETTINGS", 9)
    costs = {"kl_weight": 0.02, "time_penalty": PRICE}
    belief = make_posterior(request.param, HorizonPrior(0.8, horizon=H), **costs)

    def draw(seed):
        rate = np.random.default_rng(seed).uniform(0.1, 2.0, (200, 1)).astype(np.float32)
        losses = np.exp(-rate * np.arange(1, H + 1, dtype=np.float32))
        norms = rate * losses
        return thresholds.recorded(
            belief, {"losses": losses, "norms": norms, "scores": -np.log(norms)}, H
        )

    return draw(0), draw(1)


def plain_cost(curves, rule, level):
    steps = np.asarray(rule.steps(curves, level))
    losses = np.asarray(curves.losses)
    return np.mean([row[n - 1] + PRICE * n for row, n in zip(losses, steps, strict=True)])


def test_each_rule_is_at_its_best_threshold_on_validation(recorded):
    validation, test = recorded
    found = thresholds.compare(validation, test, PRICE)
    assert set(found) == {*thresholds.RULES, "oracle"}
    for name, rule in thresholds.RULES.items():
        levels = rule.settings(validation)
        costs = [plain_cost(validation, rule, level) for level in levels]
        row = found[name]
        assert plain_cost(validation, rule, row["threshold"]) == pytest.approx(min(costs))
        assert row["cost"] == pytest.approx(plain_cost(test, rule, row["threshold"]), rel=1e-5)
    constant = found["constant"]
    assert constant["over_constant"] == constant["over_constant_standard_error"] == 0
    assert found["oracle"]["cost"] == min(row["cost"] for row in found.values())
    assert found["gradient_norm"]["over_constant"] < 0  # it knows the problem's rate


def test_ties_with_the_constant_step_count_as_neither():
    fixed = [{"steps": float(t), "loss": 1.0 / t} for t in range(1, 101)]
    rows = [{"steps": 20.0, "loss": 1 / 20 - 6e-8}, {"steps": 40.0, "loss": 1 / 40 - 1e-3}]
    found = evaluate.dominance({"fixed": fixed, "mass": rows}, "mass")
    assert (found["settings"], found["better"], found["tied"]) == (2, 1, 1)


def test_paired_differences_are_of_the_same_problems():
    ours, others = np.array([1.0, 2.0, 4.0]), np.array([2.0, 3.0, 5.5])
    found = evaluate.paired(ours, others)
    assert found["mean"] == pytest.approx(-7 / 6)
    assert found["standard_error"] == pytest.approx(np.std([1, 1, 1.5], ddof=1) / np.sqrt(3))
