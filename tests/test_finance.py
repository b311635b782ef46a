"""The finance experiment: two steps of it, its best weights, its figures, wrong arguments."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from actjax import LFACT
from experiments import tasks
from experiments.__main__ import main
from experiments.show import finance as lfact
from experiments.show import papers, report
from experiments.task import make_layered_objective
from experiments.tasks import finance, forecast, prices

SMALL = (
    "--hidden 4 --batch-size 4 --steps 6 --log-every 2 --checkpoint-every 2 --learning-rate 0.1 "
    "--window 4 --max-steps 3 --train 30 --validation 10 --test 10 --loop scan"
).split()


@pytest.fixture(scope="module")
def closes(tmp_path_factory):
    """A file of 90 daily closes of 2 instruments."""
    walk = np.exp(np.random.default_rng(0).normal(0, 0.01, (90, 2)).cumsum(0))
    days = np.datetime64("2020-01-01") + np.arange(90)
    rows = [f"{day},{a},{b}\n" for day, (a, b) in zip(days, walk, strict=True)]
    path = tmp_path_factory.mktemp("prices") / "closes.csv"
    path.write_text("Date,AAA,BBB\n" + "".join(rows))
    return path


def run(closes, folder, *options):
    return main(["finance", *SMALL, "--prices", str(closes), "--out", str(folder), *options])


@pytest.fixture(scope="module")
def results(closes, tmp_path_factory, quick_compilation):
    """The folder of the results of two runs, and of two made of them at other settings."""
    folder = tmp_path_factory.mktemp("results")
    for model, other in (("rnn", {"train_on": 20, "training_rows": 20}), ("lfact", {"mu": 0})):
        path = folder / "finance" / f"{model}.json"
        options = ["--model", model, "--preset", "cpu", "--seeds", "2", "--results", str(path)]
        assert run(closes, folder / "runs" / model, *options) == 0
        summary = json.loads(path.read_text())
        summary["members"] = [member | other for member in summary["members"]]
        path.with_stem(f"{model}-other").write_text(json.dumps(summary))
    return folder


def test_every_instance_and_seed_is_measured(results):
    summary = json.loads((results / "finance" / "lfact.json").read_text())
    members = summary["members"]
    pairs = [(m["instance"], m["seed"]) for m in members]
    assert pairs == [(i, seed) for i in range(3) for seed in (0, 1)]
    assert {"device", "versions", "config", "wall_time_seconds", "command"} <= summary.keys()
    assert summary["instruments"] == ["AAA", "BBB"]
    tests = [m["periods"]["test"] for m in members[::2]]
    assert tests[0][1] < tests[1][0] < tests[1][1] < tests[2][0]
    for member in members:
        curve = member["curve"]
        assert curve["step"] == [2, 4, 6]
        best = int(np.argmax(curve["validation_f1_max"]))  # the first of them, if several
        assert member["best_update"] == curve["step"][best]
        best = curve["validation_f1_max"][best]
        np.testing.assert_allclose(member["validation_f1"], best, rtol=1e-4)
        found = member["evaluation"]
        np.testing.assert_allclose(found["validation"]["f1"], member["validation_f1"], rtol=1e-4)
        for period in finance.PERIODS:
            record = found[period]
            assert len(record["f1_by_step"]) == 4 and len(record["f1_by_instrument"]) == 2
            np.testing.assert_allclose(np.mean(record["f1_by_step"]), record["f1"], rtol=1e-3)
            steps = record["steps_by_step"]
            for least, mean, most in zip(
                steps["percentile_90"], steps["mean"], steps["maximum"], strict=True
            ):
                assert 1 <= mean <= most <= 3 and least <= most


def test_figures_and_report(results):
    assert main(["figures", "finance", "--results", str(results)]) == 0
    drawn = {path.stem for path in (results / "finance").glob("*.png")}
    assert drawn == set(lfact.FIGURES)
    page = report.build(tasks.known(), results)
    assert page.count("<img") == len(lfact.FIGURES) and "<h2 id=finance>" in page
    assert "python -m experiments finance" in page and "+14.1 %" in page


def test_comparisons_take_members_of_equal_settings(results):
    members = papers.members("finance", results)
    usual = lfact.usual(members)
    assert len(members) == 4 * 6 and len(usual) == 12
    assert {(m["model"], m["mu"]) for m in usual} == {("rnn", None), ("lfact", 0.1)}
    ratio, error = lfact.change([0.3, 0.5], [0.2, 0.2])
    np.testing.assert_allclose([ratio, error], [1.0, 0.5])


def test_layers_that_ran_are_in_the_loss_and_no_others():
    core = LFACT(2, 4, max_layers=3, halt_bias=-1.0, loop="scan", rngs=nnx.Rngs(0))
    network = forecast.Forecaster(core, 2, 5, horizon=1, rngs=nnx.Rngs(1))
    key = jax.random.key(0)
    rows = jax.random.normal(key, (30, 2))
    batch = prices.sample(key, 3, series=prices.Series(rows, jnp.int32(rows > 0)), window=4)

    @jax.jit
    def apply(network):
        _, _, layers = network.with_layers(batch.inputs)
        weights = ((0.0, "sum"), (0.5, "sum"), (0.5, "mean"))
        objectives = [make_layered_objective(mu, kind, lambda *_: {}) for mu, kind in weights]
        values = [objective(network, batch, 0.0)[0] for objective in objectives]
        log_p = jax.nn.log_softmax(network.read(layers.states))
        return values, log_p, layers.count

    (plain, weighed, averaged), log_p, count = apply(network)
    by_layer = np.zeros((3, 4, 3))
    for b, t, n, k in np.ndindex(3, 4, 3, 2):
        by_layer[b, t, n] -= log_p[b, t, n, k, batch.targets[b, t, k]]
    ran = np.arange(3) < np.asarray(count)[..., None]
    deepest = np.take_along_axis(by_layer, np.asarray(count)[..., None] - 1, axis=-1)
    assert set(ran.sum(-1).ravel().tolist()) != {1}
    np.testing.assert_allclose(plain, deepest.sum() / 3, rtol=1e-5)
    np.testing.assert_allclose(weighed, (deepest.sum() + 0.5 * by_layer[ran].sum()) / 3, rtol=1e-5)
    np.testing.assert_allclose(averaged, weighed / 4, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--instance", "3"], "instance must be 'all' or '0' or '1' or '2', got '3'."),
        (["--steps", "9"], "steps must be at least log_every = 50, after which"),
        (["--seeds", "0"], "seeds must be an integer of at least 1, got 0."),
        (["--mu", "-1"], "mu must be at least 0, got -1.0."),
        (["--train-on", "20"], "train_on must be 21 to 1000 rows, got 20."),
        (["--train", "5000"], "prices must be at least 5500 rows of returns"),
        (["--thresholds", "1", "0"], "thresholds must be ascending, at least one, got (1.0, 0.0)."),
        (["--prices", "nowhere.csv"], ", got 'nowhere.csv': No such file"),
        (["--test", "10"], "test must be at least 20 rows, as a window needs, got 10."),
    ],
)
def test_wrong_arguments_are_refused(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["finance", *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
