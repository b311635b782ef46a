"""Forecasts without a network, and the made series whose best forecast is known."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.__main__ import main
from experiments.data import intraday
from experiments.show import finance as show
from experiments.tasks import finance, floors, prices

PERIODS = {"train": 1400, "validation": 200, "test": 400, "instances": 1}


@pytest.fixture(scope="module")
def made():
    return intraday.draw(2000)


@pytest.fixture(scope="module", params=["rnn", "seq2seq"])
def measured(request, made):
    """How windows are cut, the instance, and the scores of each floor on it."""
    windows = {"window": 4, "mode": request.param, "horizon": 2}
    found = prices.Prices(made.dates, intraday.NAMES, made.values)
    (split,) = prices.walk_forward(found, **PERIODS)
    instance = prices.prepare(found, split, **windows)
    rows = floors.members(found, split, instance, prices.THRESHOLDS, made, **windows)
    return windows, instance, {row["model"]: row["evaluation"] for row in rows}


def macro_f1(predictions, targets):
    """Plain: the mean over classes of the F1 of each, 0 where there is none."""
    scores = []
    for kind in range(5):
        right = np.sum((predictions == kind) & (targets == kind))
        both = np.sum(predictions == kind) + np.sum(targets == kind)
        scores.append(2 * right / both if both else 0)
    return np.mean(scores)


def test_floors_are_those_of_a_plain_loop(measured):
    windows, instance, found = measured
    mode = windows["mode"]
    classes = np.asarray(instance.test.classes)
    lead, count = prices.steps(**windows)
    starts = range(len(classes) - lead - count + 1)
    steps = []
    for step in range(count):
        last = [classes[s + (step if mode == "rnn" else lead - 1), 0] for s in starts]
        steps.append((np.array(last), np.array([classes[s + lead + step, 0] for s in starts])))
    for name, change in (("repeat", lambda x: x), ("opposite", lambda x: 4 - x)):
        plain = np.mean([macro_f1(change(last), target) for last, target in steps])
        np.testing.assert_allclose(found[name]["test"]["f1_by_instrument"][0], plain, rtol=1e-5)


def test_who_knows_the_hidden_states_forecasts_best(made, measured):
    windows, _, found = measured
    if windows["mode"] == "seq2seq":  # of later rows it knows what no forecaster can
        return
    others = [found[name]["test"]["f1"] for name in ("usual", "repeat", "opposite")]
    assert found["knowing"]["test"]["f1"] > max(others)
    best = intraday.forecast(made, np.full((4, 1), 1.0))  # borders that no return reaches
    assert best.shape == made.mean.shape and (best == 0).all()


def test_the_made_series_is_a_function_of_its_seed_with_clustered_volatility(made):
    assert (intraday.draw(2000).values == made.values).all()
    assert (intraday.draw(2000, seed=1).values != made.values).any()
    moves = np.abs(np.diff(np.log(intraday.draw(20_000).values[:, 0])))
    assert np.corrcoef(moves[:-10], moves[10:])[0, 1] > 0.05
    assert (np.diff(made.dates) > np.timedelta64(0)).all() and (made.values > 0).all()


def test_the_command_measures_them_and_the_table_shows_them(tmp_path, capsys):
    path = tmp_path / "finance" / "floors.json"
    options = ["--model", "floors", "--preset", "cpu", "--window", "4", "--results", str(path)]
    assert main(["finance", *options, "--out", str(tmp_path / "run")]) == 0
    assert "opposite" in capsys.readouterr().out
    members = json.loads(path.read_text())["members"]
    assert {m["model"] for m in members} == {"usual", *show.FLOORS} and len(members) == 9
    assert show.table(members) == []  # nothing to be compared with
    network = dict(members[0], model="rnn", mu=None)
    test = dict(members[0]["evaluation"]["test"], usual_f1=0.2, usual_accuracy=0.5)
    network["evaluation"] = members[0]["evaluation"] | {"test": test | {"ponder_steps": 1.0}}
    rows = show.table([*members, network])
    assert [row["model"] for row in rows] == ["RNN", *show.FLOORS.values()]
    assert jnp.isfinite(jnp.array([float(row["mean of the instances"]) for row in rows])).all()
    assert finance.PERIODS == floors.PERIODS
