"""`python -m experiments sudoku` and `mazes`, every model and rule for two updates, and how they
stop.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import actjax
from actjax import halting
from actjax.tasks.mazes import fingerprints
from actjax.tasks.puzzles import Puzzles
from experiments import reasoners, stopping, tasks
from experiments.__main__ import main
from experiments.data import sudoku as files
from experiments.puzzles import load, restore
from experiments.show import report
from experiments.tasks import mazes, sudoku
from tests.test_benchmarks import BENCHMARKS

pytestmark = pytest.mark.usefixtures("quick_compilation")
SMALL = ["--hidden", "4", "--heads", "2", "--batch-size", "4", "--max-steps", "3"]
SMALL += ["--steps", "2", "--log-every", "1", "--checkpoint-every", "1", "--warmup", "1"]
FIGURES = {"curves.png", "difficulty.png", "steps_allowed.png", "example.png"}
KINDS = [
    ("recursive", "threshold"),
    ("transformer", "threshold"),
    ("transformer", "pondernet"),
    ("act", "graves"),
    ("pondernet", "pondernet"),
]


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A file of 4 x 4 puzzles."""
    path = tmp_path_factory.mktemp("puzzles") / "four.csv"
    files.write(path, files.make(4, 60, seed=0))
    return path


@pytest.fixture
def own(four):
    """What each task has for its own: options for boards of 4 x 4, and what tells them apart."""
    made = ["--size", "4", "--puzzles", "40", "--test-size", "10"]
    return {
        "sudoku": (sudoku.PUZZLE, ["--data", str(four)], files.fingerprints),
        "mazes": (mazes.PUZZLE, made, fingerprints),
    }


@pytest.mark.parametrize(
    ("task", "model", "rule"),
    [*(("sudoku", *kind) for kind in KINDS), ("mazes", *KINDS[0])],
)
def test_every_model_and_rule_leaves_everything_in_its_folder(
    task, model, rule, own, tmp_path, capsys
):
    out, (puzzle, options, prints_of) = tmp_path / "run", own[task]
    argv = [task, "--model", model, "--rule", rule, *options, *SMALL]
    results = tmp_path / "results" / task / "four.json"
    assert main([*argv, "--out", str(out), "--results", str(results)]) == 0
    assert "test boards" in capsys.readouterr().out
    there = {"config.json", "metrics.jsonl", "evaluation.json", "summary.json", "example.json"}
    assert there | FIGURES <= {path.name for path in out.iterdir()}
    found = json.loads((out / "evaluation.json").read_text())
    assert len(found["by_steps_allowed"]) == 3 and 1 <= found["steps"] <= 3
    assert sum(row["boards"] for row in found["by_difficulty"]) == found["boards"]

    options, _, parts = restore(puzzle, out)  # for the benchmark, and without training
    assert (options.model, parts["train"].size) == (model, 4)
    assert main([*argv, "--out", str(out), "--resume"]) == 0
    assert json.loads((out / "evaluation.json").read_text()) == found
    if (model, rule) == KINDS[0]:  # the others' files are alike
        assert main(["figures", task, "--results", str(tmp_path / "results")]) == 0
        drawn = {path.name for path in results.parent.glob("*.png")}
        assert drawn == {f"demo_4x4_{name}" for name in FIGURES}
        page = report.build({task: tasks.known()[task]}, tmp_path / "results")
        assert page.count("<img") == 4 and "solved, stopped early" in page
    prints = [set(prints_of(part.boards).tolist()) for part in parts.values()]
    assert not (prints[0] & prints[1] or prints[0] & prints[2] or prints[1] & prints[2])


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--held-out", "1", "held_out must be above 0 and below 1, got 1.0"),
        ("--heads", "3", "heads must be a divisor of hidden = 64, got 3"),
        ("--devices", "3", "devices must be a divisor of batch_size = 64, got 3"),
        ("--rule=graves", "--devices=2", "devices must be 1 under rule = 'graves', got 2"),
        ("--explore", "2", "explore must be a share from 0 to 1, got 2.0"),
        ("--size", "2", "size must be at least 3, got 2"),
        ("--rings", "-1", "rings must be a chance from 0 to 1, got -1.0"),
        ("--shortest", "80", "shortest must be a number of moves that mazes of 9 lines have"),
        ("--data", "/nowhere", "puzzles must be a file that can be read, got '/nowhere'"),
    ],
)
def test_wrong_options_are_answered_with_one_sentence(option, value, sentence, capsys):
    task = "mazes" if option in ("--size", "--rings", "--shortest") else "sudoku"
    assert main([task, "--model", "transformer", option, value]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"load": lambda parts: {"train": parts["train"]}}, r"load must be .*, got \('train',\)"),
        ({"solutions": -1}, "solutions must be from 1 to 2, got 0"),
        ({"solutions": 1}, "solutions must be from 1 to 2, got 3"),
        ({"boards": 1}, "boards must be from 0 to 3, got 4"),
    ],
)
def test_puzzles_of_ones_own_that_a_network_cannot_answer_are_refused(change, sentence):
    options = dataclasses.replace(mazes.DEMO, size=4, puzzles=9, test_size=2)
    parts = mazes.load(options)
    if "load" in change:
        parts = change["load"](parts)
    else:
        ((name, more),) = change.items()
        test = parts["test"]
        parts["test"] = test._replace(**{name: getattr(test, name) + more})
    puzzle = dataclasses.replace(mazes.PUZZLE, load=lambda options: parts)
    with pytest.raises(ValueError, match=sentence):
        load(puzzle, options)


def pair(kind, rule):
    """A network of which boards stop at different steps, and boards."""
    options = dataclasses.replace(
        sudoku.PRESETS["demo"], hidden=4, heads=2, model=kind, rule=rule, max_steps=6
    )
    model, puzzles = sudoku.make_model(options, 4), files.make(4, 10, seed=3)
    inner = {"recursive": "recursive", "transformer": "transformer"}.get(kind)
    halt = getattr(model, inner).halt if inner else model.halt
    halt.kernel[...] = 20 * jax.random.normal(jax.random.key(1), halt.kernel.shape)
    q = stopping.trace(model, puzzles, rule="threshold", max_steps=6).confidence
    # a transformer's boards differ by less than its steps: half of them stop at the first
    middle = np.median(q[0]) - LEVELS[rule] if kind == "transformer" else np.median(q)
    halt.bias[...] -= float(middle)
    return options, model, puzzles


RULES = {
    "threshold": halting.Threshold(),
    "graves": halting.Graves(),
    "pondernet": halting.PonderNet(mean=False),
}
LEVELS = {"threshold": 0.0, "graves": np.log(0.99 / 0.01), "pondernet": np.log(0.95 / 0.05)}


@pytest.mark.parametrize(("kind", "rule"), [*KINDS, ("recursive", "graves")])
def test_a_trace_stops_where_the_loop_does(kind, rule):
    """At the rule's own level, with the rule's own answer: the trace is no second definition."""
    _, model, puzzles = pair(kind, rule)
    boards = jnp.asarray(puzzles.boards, jnp.int32)
    state, ponder = actjax.ponder(
        reasoners.step, model, model.start(boards), boards, max_steps=6, rule=RULES[rule], lanes=4
    )
    found = stopping.trace(model, puzzles, rule=rule, max_steps=6, rows=8)
    steps = stopping.stops(found, LEVELS[rule])
    assert len(set(steps)) > 1
    np.testing.assert_array_equal(steps, ponder.steps)
    own = found.answers[steps - 1, np.arange(10)]
    np.testing.assert_array_equal(own, model.read(state).argmax(-1) + 1)
    np.testing.assert_array_equal(found.right, (found.answers == puzzles.solutions).all(-1))


@pytest.mark.parametrize("kind", ["recursive", "transformer"])
def test_boards_in_a_stream_are_answered_as_the_trace_says(kind):
    _, model, puzzles = pair(kind, "threshold")
    found = stopping.trace(model, puzzles, rule="threshold", max_steps=6)
    steps = stopping.stops(found, 0.0)
    boards = [board[None].astype(np.int32) for board in puzzles.boards]
    solver = reasoners.Solver(model, max_steps=6)
    for result in actjax.stream_batch(solver, boards, lanes=3, chunk=1):
        assert result.steps[0] == steps[result.index]
        want = found.answers[result.steps[0] - 1, result.index]
        np.testing.assert_array_equal(result.outputs[0], want)


def test_the_level_is_the_cheapest_that_spares_no_accuracy():
    right = np.array([[0, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]], bool)  # three boards, four steps
    confidence = np.array([[1, 5, 0], [5, 6, 2], [6, 6, 5], [6, 6, 6]], float)
    found = stopping.Trace(np.zeros((4, 3, 16), np.int8), right, confidence)
    assert stopping.choose(found) == 2.0  # below it the third board stops before it is right
    assert stopping.stops(found, 2.0).tolist() == [2, 1, 3]
    assert stopping.choose(found, spare=0.4) < 2
    spoilt = np.array([*right[:3], [False] * 3])  # by a step more than it needs
    assert stopping.choose(found._replace(right=spoilt)) == 2.0
    result = stopping.evaluate(found, found, np.array([3, 3, 5]))
    assert (result["accuracy"], result["steps"], result["level"]) == (1.0, 2.0, 2.0)
    np.testing.assert_allclose(result["by_steps_allowed"], [1 / 3, 2 / 3, 1, 1])
    assert [row["steps"] for row in result["by_difficulty"]] == [1.5, 3.0]
    puzzles = Puzzles(np.zeros((3, 16), np.int8), np.ones((3, 16), np.int8))
    assert len(stopping.example(puzzles, found, 2.0)["answers"]) == 3


def test_the_benchmark_runs_and_its_ways_agree(four, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import recursive

    options, model, puzzles = pair("recursive", "threshold")
    rows = recursive.measure(model, puzzles, 0.0, options, (4, 10), repeats=1)
    assert {row["way"] for row in rows} == set(recursive.WAYS)
    assert all(row["same_answers"] == row["same_steps"] == 1 for row in rows)
    assert all(row["mean_steps"] == 6 for row in rows if row["way"] == recursive.ALWAYS)
    assert all(1 < row["mean_steps"] < 6 for row in rows if row["way"] != recursive.ALWAYS)

    out = tmp_path / "run"
    argv = ["sudoku", "--data", str(four), *SMALL]
    assert main([*argv, "--out", str(out)]) == 0
    recursive.main(["--quick", "--run", str(out), "--out", str(tmp_path / "result.json")])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["training"][0]["contender"] == "actjax" and result["training"][0]["ms"] > 0
    assert set(result["ratios"]) == {"lanes / always", "lanes / until all are done"}
