"""The benchmark of the loops runs, and its loops agree; how fast they are is not tested.

So does the conformance table of `peers.py`, for this package: PyTorch is not needed here.
"""

import json
import os
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import OPTAX

BENCHMARKS = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch, quick_compilation):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ponder

    return ponder


@pytest.mark.not_in(*OPTAX)
def test_quick_run(bench, tmp_path, capsys):
    out = tmp_path / "results" / "ponder.json"
    bench.main(["--quick", "--setting", "parity", "--out", str(out)])
    result = json.loads(out.read_text())
    assert {"device", "versions", "cpu", "load_average", "commit", "settings"} <= set(result)

    rows = [row for row in result["rows"] if row["contender"] != "plain"]
    names = {"while, 8 lanes", "scan", "scan+cond", "nested while"}
    assert {(row["level"], row["contender"]) for row in rows} == {
        (level, name) for level in ("2", "M") for name in names
    }
    for level in ("2", "M"):
        same = [row for row in rows if row["level"] == level]
        np.testing.assert_allclose([row["loss"] for row in same], same[0]["loss"], rtol=1e-5)
        assert len({row["mean_ponder"] for row in same}) == 1
    full = {row["contender"]: row for row in rows if row["level"] == "M"}
    assert full["scan"]["mean_ponder"] == 10
    assert full["while, 8 lanes"]["iterations"] == 10
    assert full["while, 8 lanes"]["iterations_over_floor"] == 1
    for row in rows:
        for key in ("forward_ms", "train_ms", "first_call_s", "memory_mb"):
            assert row[key] > 0
        assert ("floor_ms" in row) == row["contender"].startswith("while")
        assert row["train_over_plain_steps"] > 0
    figures = " ".join(figure["figure"] for figure in result["ratios"])
    for words in ("scan / while", "while / scan", "iterations / floor", "first training"):
        assert words in figures
    assert "Figures asked" in capsys.readouterr().out


def test_schedule(bench):
    steps = np.array([[4], [1], [1], [3]])
    assert bench.schedule(steps, 4) == 4
    assert bench.schedule(steps, 2) == 5  # the second lane takes the last three
    assert bench.schedule(steps, 1) == 9


def test_a_file_that_cannot_be_written_is_refused_before_the_work(bench, tmp_path, capsys):
    with pytest.raises(SystemExit):
        bench.main(["--quick", "--out", str(tmp_path)])
    assert "out must be a file, not a folder, got '" in capsys.readouterr().err


def test_unknown_setting(bench, capsys):
    with pytest.raises(SystemExit):
        bench.main(["--setting", "parities"])
    assert "parities" in capsys.readouterr().err


def test_conformance(bench):
    import conformance

    cases = {"bias 1": 1.0, "at M": -10.0}
    ordinary, limit = conformance.conformance("rnn", cases)
    for row in (ordinary, limit):
        for key in ("remainder", "weights", "outputs", "cost"):
            assert row[key] < 1e-5
        assert row["steps"] == 0
        assert min(row["cosine_ponder"], row["cosine_task"]) > 0.99999
    assert limit["steps_max"] == limit["weights_max"] == conformance.LIMITS["max_steps"]
    assert 1 < ordinary["steps_max"] < limit["steps_max"]

    # What stops a step early is told from what is right.
    found = conformance.Result(*np.ones((2, 1, 1, 1)), *np.ones((2, 1, 1, 2)), *np.ones((3, 1)))
    other = found._replace(steps=2 * found.steps, task_gradient=-found.task_gradient)
    row = conformance.compare(other, found)
    assert row["steps"] == 1 and row["cosine_task"] == -1 and row["weights"] == 0


def test_peers_without_pytorch(bench, monkeypatch):
    import peers

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match=r"torch>=2.5.*--no-deps.*torch\w* is missing"):
        peers.main(["--quick"])


@pytest.mark.not_in(*OPTAX)
@pytest.mark.not_in("x64", "what it measures is float32: it counts bytes")
def test_a_loop_moves_the_rows_that_it_writes(bench):
    """Not the buffer that they are written into, nor one that a row is read of."""
    import hlo

    def fill(rows):
        def put(carry):
            i, row, buffer = carry
            row = jnp.tanh(row + rows[i])
            return i + 1, row, jax.lax.dynamic_update_index_in_dim(buffer, row, i, 0)

        busy = lambda carry: (carry[0] < 100) & (carry[1][0] < 9)
        return jax.lax.while_loop(busy, put, (0, rows[0], rows * 0))[2]

    text = jax.jit(fill).lower(jnp.ones((100, 1 << 16))).compile().as_text()
    [loop] = hlo.loops(text)
    row = 4e-6 * (1 << 16)
    assert 2 <= loop.launches <= 8 and not loop.inside
    assert 3 * row <= loop.megabytes <= 12 * row
    assert hlo.size("(f32[2,3]{1,0}, bf16[4]{0}, /*index=5*/pred[])") == 24 + 8 + 1


def test_launches_are_counted_where_jax_can_compile_for_a_card(bench, monkeypatch, capsys):
    monkeypatch.setattr(os, "environ", dict(os.environ))  # which it writes to
    import launches

    def none(*given, **settings):
        raise NotImplementedError("topology not implemented for cuda")  # as JAX without the plugin

    monkeypatch.setattr(launches.topologies, "get_topology_desc", none)
    for argv, sentence in (
        ([], "JAX must have its plugin for CUDA (pip install"),
        (["nothing"], "SETTING must be one of text-lstm, addition"),
        (["addition", "--ways", "scan"], "invalid choice: 'scan'"),
    ):
        with pytest.raises(SystemExit):
            launches.main(argv)
        assert sentence in capsys.readouterr().err


def test_accelerator(bench, tmp_path, capsys):
    import accelerator
    import kernel_check

    out = tmp_path / "accelerator.json"
    accelerator.main(["--quick", "--only", "small", "optimizer", "--out", str(out)])
    result = json.loads(out.read_text())
    assert {"device", "driver", "versions", "commit", "ceilings", "rows"} <= set(result)
    parts = result["parts"]
    assert [part["part"] for part in parts] == ["small", "optimizer"]
    assert parts[0]["given_s"] < parts[1]["given_s"] < 330 and not parts[0]["left_out"]
    rows = {(row["group"], row.get("way")): row for row in result["rows"]}
    for way in accelerator.ALL:
        row = rows["training", way]
        assert "error" not in row and row["ms"] > 0 and row["launches_in_loops"]
        assert way == "plain" or row["over_plain"] > 0
    losses = [rows["training", way]["loss"] for way in ("while", "kernel")]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert rows["optimizer", "learned"]["bytes_a_parameter"] == pytest.approx(640, rel=0.01)

    accelerator.main(
        ["--quick", "--only", "stream", "optimizer", "--budget", "0", "--out", str(out)]
    )
    result = json.loads(out.read_text())
    assert {row["group"] for row in result["rows"]} == {"ceilings"}
    assert [len(part["left_out"]) for part in result["parts"]] == [2, 1]
    assert "not reached: all that was not compiled" in capsys.readouterr().out

    out = tmp_path / "check.json"
    kernel_check.main(["--check", "--tune", "--quick", "--out", str(out)])
    result = json.loads(out.read_text())
    assert [row["loop"] for row in result["check"]] == ["scan", "kernel"]
    assert max(row["gradients"] for row in result["check"]) < 1e-5
    assert [row["way"] for row in result["tune"]] == ["while", "default"]
    assert [row["loop"] for row in result["optimizer"]] == 2 * ["plain, highest", "kernel, highest"]
    assert max(row["memory"] for row in result["optimizer"]) < 1e-2  # a rounding to bfloat16
    assert max(row["updates"] for row in result["optimizer"][:2]) < 1e-5
    assert not [row for row in result["tune"] + result["tune_optimizer"] if "error" in row]


def test_benchmarks_run_from_a_clone():
    """Where nothing is installed, a script must find the packages beside it before it asks."""
    ways = {"sys.path.insert", "timing", "ponder", "card", "accelerator_rows", "hlo"}
    for path in BENCHMARKS.glob("*.py"):
        if "__main__" not in path.read_text():
            continue  # imported by others
        statement = re.compile(r"^(?:from|import)? ?([\w.]+)", re.MULTILINE)
        names = [match.group(1) for match in statement.finditer(path.read_text())]
        own = [n for n, name in enumerate(names) if name.partition(".")[0] in ("actjax", "tests")]
        own += [n for n, name in enumerate(names) if name.startswith("experiments")]
        assert not own or ways.intersection(names[: min(own)]), path.name
