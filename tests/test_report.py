"""Two-step sweeps of every task from the command line, their figures, and the report on them."""

import json
import re

import numpy as np
import pytest
import scipy.signal
import scipy.stats

from experiments import tasks
from experiments.__main__ import main
from experiments.evaluation import slope
from experiments.members import curve, looked_at
from experiments.options import as_json
from experiments.show import fojo, report, tables
from experiments.show.papers import PAPERS
from experiments.show.pool import pooled
from experiments.show.style import mean_and_error, plus_minus
from experiments.smoothing import best, solved_at
from experiments.sweep import taus
from experiments.tasks import parity

SMALL = {
    "parity": ("--bits", "4"),
    "logic": ("--max-length", "2", "--max-gates", "2"),
    "addition": ("--min-length", "2", "--max-length", "2", "--max-digits", "2"),
    "sort": ("--max-numbers", "3"),
}
SIZES = "--hidden 4 --batch-size 4 --steps 2 --log-every 1 --max-steps 3 --seeds 1".split()
TABLES = [
    paper["table"] for paper in PAPERS["tasks"].values() if "number" in paper.get("table", {})
]
FASTER_TO_COMPILE = ("--loop", "scan")


def build(results):
    return report.build(tasks.known(), results)


def sweep(task, folder, *options):
    preset = {"parity": "fojo", "addition": "fojo"}.get(task, "cpu")
    arguments = [task, *SIZES, *FASTER_TO_COMPILE, "--preset", preset, *SMALL[task], *options]
    where = ("--out", str(folder / "runs" / task), "--results", str(folder / task / "tiny.json"))
    return main(["sweep", *arguments, *where])


@pytest.fixture(scope="module")
def results(tmp_path_factory, quick_compilation):
    folder = tmp_path_factory.mktemp("results")
    grid = ("--models", "rnn,repeat,act", "--tau", "1e-1,1e-2", "--seeds", "2")
    assert sweep("parity", folder, *grid) == 0
    for task in ("logic", "addition", "sort"):
        assert sweep(task, folder) == 0
    return folder


def test_every_member_of_the_grid_is_measured(results):
    summary = json.loads((results / "parity" / "tiny.json").read_text())
    members = [(m["model"], m["tau"], m["seed"]) for m in summary["members"]]
    grid = [("act", tau, seed) for tau in (0.01, 0.1) for seed in (0, 1)]
    others = [(model, None, seed) for model in ("rnn", "repeat-2") for seed in (0, 1)]
    assert members == [*others, *grid]
    for member in summary["members"]:
        assert member["updates"] == 2 and member["curve"]["step"] == [1, 2]
        assert 0 <= member["evaluation"]["error"] <= 1
        assert [r["difficulty"] for r in member["evaluation"]["by_difficulty"]] == [1, 2, 3, 4]
    assert summary["command"].startswith("python -m experiments sweep parity")
    assert {"device", "versions", "config", "wall_time_seconds"} <= summary.keys()


@pytest.mark.parametrize("task", SMALL)
def test_every_task_has_its_figures(task, results):
    assert main(["figures", task, "--results", str(results)]) == 0
    drawn = {path.stem.removeprefix("tiny_") for path in (results / task).glob("*.png")}
    wanted = set(PAPERS["tasks"][task]["figures"])
    if task != "parity":
        wanted -= {"errors", "repeat"}  # one model alone has nothing to be compared with
    assert drawn == wanted


def test_report_of_nothing_says_so(tmp_path):
    page = build(tmp_path)
    assert page.count("Not run.") > 20 and "<img" not in page
    assert page.count("not run") == sum(len(table["rows"]) for table in TABLES)
    assert page.count("one for an accelerator") == len(TABLES)


def test_report_of_some_and_of_all(results, tmp_path):
    (tmp_path / "logic").mkdir()
    (tmp_path / "logic" / "tiny.json").write_text((results / "logic" / "tiny.json").read_text())
    some, all_of_it = build(tmp_path), build(results)
    assert 0 < some.count("<img") < all_of_it.count("<img")
    assert "python -m experiments sweep logic" in some and "<h2 id=sort>" in some
    # at no paper's size, whatever their preset is called: no row of tables 6.1 and 6.2
    assert all_of_it.count("not run") == some.count("not run")
    assert "http" not in all_of_it.replace("data:image", "")  # nothing is loaded from elsewhere


def test_the_page_links_its_parts_and_names_its_pictures(results):
    text = build(results)
    links = re.findall(r"<a href='#([^']+)'", text)
    places = re.findall(r"<h[23] id=([\w-]+)>", text)
    assert links == places and len(set(places)) == len(places) > 20
    assert "alt=''" not in text and "alt='Parity: Graves 4: error by time penalty'" in text
    assert text.count("<table>") == text.count("<div class=wide><table>")  # which scrolls


def test_single_inputs_are_shown_of_a_network_that_ponders():
    rows = [(1.02, 0.1), (3.0, 0.3), (2.5, 0.2), (2.0, 0.2)]
    found = [{"ponder_steps": steps, "ponder": steps + 1, "error": error} for steps, error in rows]
    assert looked_at(found) == 3  # of equal error the one with fewer steps
    assert looked_at(found[:1] * 2) == 0  # none does


def test_report_of_learned_optimizers(tmp_path):
    (tmp_path / "learned").mkdir()
    loss = {"mean": 0.12345, "standard_error": 0.011}
    run = {
        "experiment": "mnist",
        "config": {"horizon": 100},
        "command": "python -m experiments mnist",
        "device": "1 x cpu",
        "versions": {"jax": "0.10.2"},
        "meta_updates": 40,
        "training_seconds": 60.0,
        "learned": {"10": loss, "100": loss, "sum": 51.04},
        "baselines": {"adam": {"final": {"learning_rate": 0.03, "10": loss, "sum": 61.0}}},
        "halting": {
            "steps": {"mean": 34.4, "sd": 0.7},
            "test_accuracy": {"mean": 0.849, "sd": 0.01},
            "test_accuracy_at_horizon": {"mean": 0.882, "sd": 0.01},
        },
    }
    path = tmp_path / "learned" / "mnist_act.json"
    path.write_text(json.dumps(run))
    page = build(tmp_path)
    assert "<td>0.1235 ± 0.011</td>" in page and "<td>51.0</td>" in page
    assert "Adam, rate 0.03, tuned for the final loss" in page
    assert "Stops after 34.4 ± 0.7 steps (sd) at a test accuracy of 0.849" in page
    assert "Not run. <code>python -m experiments cifar10</code>" in page
    path.write_text("{}")
    with pytest.raises(
        ValueError, match=r"results of learned-optimizer experiments, got .*mnist_act\.json'"
    ):
        build(tmp_path)


def test_report_refuses_a_file_that_is_no_summary(tmp_path):
    (tmp_path / "sort").mkdir()
    (tmp_path / "sort" / "broken.json").write_text('{"experiment": "so')
    with pytest.raises(ValueError, match=r"summaries of sweeps of sort, got .*broken\.json'"):
        build(tmp_path)


def test_table_6_1_tells_solved_from_unsolved_and_not_run():
    member = {
        "model": "act",
        "tau": 0.01,
        "repeats": None,
        "ponder_budget": None,
        "updates": 9000,
        "diverged": False,
        "mean_ponder_steps": 2.5,
        "smoothed_accuracy": 0.99,
        "evaluation": {"ponder_steps": 3.0, "ponder": 3.6},
    }
    members = [member | {"seed": 0, "solved_at": 7000}, member | {"seed": 1, "solved_at": None}]
    settings = as_json("parity", parity.PRESETS["fojo"])

    def compare(*found, solved=0.98, **changed):
        config = settings | {"steps": 400_000, "log_every": 50} | changed
        summaries = [{"config": config, "solved": solved, "members": members} for members in found]
        return tables.compare(parity.TASK, [("a", summary) for summary in summaries])

    rows = compare(members)
    by_model = {row["model"]: row["ours: solved at"] for row in rows}
    assert by_model["ACT-RNN, τ = 0.01"] == "7,000; not in 9,000"
    assert rows[2]["ours: N - 1 + R at the end"] == "2.600; 2.600"
    assert by_model["RNN"] == "not run"
    longer = [member | {"seed": 1, "solved_at": None, "updates": 40_000}]
    assert compare(longer, members)[2]["ours: solved at"] == "7,000; not in 40,000"
    diverged = [members[0], members[1] | {"diverged": True}]
    assert compare(diverged)[2]["ours: solved at"] == "7,000"
    for other in ({"hidden": 4}, {"layout": "scattered"}, {"solved": 0.6}):
        assert {row["ours: solved at"] for row in compare(members, **other)} == {"not run"}


def test_one_seed_is_told_without_an_error():
    assert plus_minus([1.0, 3.0], 2) == "2.00 ± 1.00" and plus_minus([1.0], 2) == "1.00"
    mean, error = mean_and_error([0.25])
    assert mean == 0.25 and np.isnan(error)


def test_slope_of_ponder_in_difficulty_with_its_standard_error():
    def rows(*ponders):
        return [
            {"difficulty": d, "steps": p, "steps_standard_error": 0.3}
            for d, p in enumerate(ponders, 1)
        ]

    fit = scipy.stats.linregress([1, 2, 3, 4], [2.0, 3.5, 4.0, 6.0])
    found = slope(rows(2.0, 3.5, 4.0, 6.0))
    np.testing.assert_allclose(found["value"], fit.slope)
    np.testing.assert_allclose(found["standard_error"], fit.stderr)
    found = slope(rows(2.0, 3.5))  # no residual: the error of the two means
    np.testing.assert_allclose([found["value"], found["standard_error"]], [1.5, 0.3 * 2**0.5])
    assert slope(rows(2.0)) is None


def test_grids_of_time_penalties():
    assert len(taus("1e-4:1:log")) == 37  # i x 10^-j with i to 10 and j to 4, as in Graves 2016
    assert len(taus("1e-4:1e-1:log")) == 28
    assert taus("3e-2,1e-3") == [0.001, 0.03]
    np.testing.assert_allclose(np.diff(np.log(taus("1e-4:1e-1:12"))), np.log(1e3) / 11, rtol=1e-3)


def test_solved_needs_a_full_window_above_the_threshold():
    step = np.arange(100, 20_100, 100)
    accuracy = np.where(step < 10_000, 0.5, 1.0)
    assert abs(solved_at(step, accuracy) - 10_000) < 2000
    assert solved_at(step, np.full(200, 0.97)) is None
    assert solved_at(step[:70], np.ones(70)) is None
    ran = np.where(np.arange(200) < 160, accuracy, np.nan)  # retired members have no more rows
    assert solved_at(step, ran) == solved_at(step, accuracy)


def test_accuracy_is_smoothed_over_all_rows_before_a_curve_is_thinned():
    noise = np.random.default_rng(0).normal(0, 0.05, 1000)
    accuracy = np.clip(np.linspace(0.5, 1.2, 1000), 0, 0.97) + noise
    filtered = scipy.signal.savgol_filter(accuracy, 71, 3)
    step = np.arange(1000)
    assert (
        accuracy[35:300].max() > 0.75
        and solved_at(step, accuracy, 0.75) == 35 + np.flatnonzero(filtered[35:-35] >= 0.75)[0]
    )
    np.testing.assert_allclose(best(accuracy), filtered[35:-35].max(), atol=1e-4)
    assert best(np.ones(70)) is None
    thinned = curve({"step": step, "accuracy": accuracy, "ponder": accuracy, "other": accuracy})
    parts = np.array_split(filtered, 120)
    np.testing.assert_allclose(thinned["smoothed_accuracy"], [p.mean() for p in parts], rtol=1e-4)
    assert thinned["smoothed_ponder"] == thinned["smoothed_accuracy"] and "other" not in thinned


def test_figures_of_training_show_the_smoothed_curves(results, monkeypatch, tmp_path):
    summary = json.loads((results / "parity" / "tiny.json").read_text())
    shown = []
    monkeypatch.setattr(fojo, "save", lambda figure, path: shown.append(figure) or True)
    for member in summary["members"]:
        member["curve"]["smoothed_accuracy"] = [0.25, 1.02]  # a filter overshoots
    assert fojo.act(summary, tmp_path) and fojo.repeat(summary, tmp_path)
    labelled = (["without ACT", "ACT τ 0.1", "ACT τ 0.01"], ["without ACT", "repeat 2"])
    for figure, labels in zip(shown, labelled, strict=True):
        bold = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
        assert [line.get_label() for line in bold] == labels
        assert all(line.get_ydata().tolist() == [0.25, 1.0] for line in bold)


def test_sweeps_at_the_same_settings_share_their_figures():
    def found(name, updates, **config):
        member = {"model": "rnn", "tau": None, "repeats": None, "ponder_budget": None, "seed": 0}
        members = [member | {"updates": updates, "diverged": updates == 7}]
        return name, {"config": {"hidden": 4} | config, "members": members}

    sweeps = [found("fojo_act", 5, steps=5), found("fojo_rnn", 9, steps=9), found("x", 7, hidden=5)]
    sweeps += [found("y", 3, hidden=6, newer=1), found("z", 2, hidden=6)]  # older than an option
    pools = pooled(sweeps, {"newer": 1})
    assert [name for name, _ in pools] == ["fojo", "x", "y-z"]
    assert [[m["updates"] for m in pool["members"]] for _, pool in pools] == [[9], [], [3]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["sweep", "parity", "--model", "rnn"],
            "a sweep's option must be --models, got --model",
        ),
        (
            ["sweep", "parity", "--models", "act,act"],
            "models and repeats must be named once each, got 'act'",
        ),
        (["sweep", "parity", "--tau", "1e-2,-1"], "tau must be at least 0, got -1.0"),
        (
            ["sweep", "parity", "--batching", "loop"],
            "batching must be 'vmap' or 'map', got 'loop'",
        ),
        (["sweep", "addition", "--max-length", "0"], "max_length .* at least"),
        (["sweep", "parity", "--ponder-budget", "3", "--tau", "1e-2,5"], "tau .* 5.0"),
        (
            ["parity", "--model", "rnn", "--ponder-budget", "3"],
            "rnn, which has no halting to hold, got 3.0",
        ),
        (
            ["parity", "--ponder-budget", "21"],
            "must be above 2, .* below max_steps . 1 = 21, got 21.0",
        ),
        (
            ["sweep", "chess"],
            r"sweep must name one of parity, logic, addition, sort, wikipedia, got",
        ),
        (["sweep", "parity", "--tau", "1:0:log"], "tau must be low:high:log or .*, got '1:0:log'"),
        (
            ["sweep", "parity", "--models", "gru"],
            "models must each be one of rnn, act, repeat, lfact, pondernet, got 'gru'",
        ),
        (
            ["sweep", "sort", "--models", "act,pondernet"],
            "models must each be one of rnn, act, repeat, lfact, got 'pondernet'",
        ),
        (
            ["sweep", "parity", "--models", "repeat", "--repeats", "two"],
            "repeats must be numbers separated by commas, got 'two'",
        ),
        (["sweep", "parity", "--seeds", "0"], "seeds must be an integer of at least 1, got 0"),
        (["figures", "chess"], "figures must name one of parity, .*, got 'chess'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
