"""The experiments as a user runs them: two steps of each main, and every wrong argument."""

import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest

from actjax import training
from experiments import data, demo, record, run
from experiments.__main__ import main
from experiments.show import figures
from experiments.tasks import parity, wikipedia

SMALL = ["--hidden", "8", "--batch-size", "4", "--log-every", "1", "--checkpoint-every", "1"]
FILES = {"config.json", "metrics.jsonl", "evaluation.json", "summary.json", "curves.png"}


def run_parity(folder, *options):
    return main(["parity", *SMALL, "--bits", "4", "--out", str(folder), *options])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A small text of prose and markup."""
    path = tmp_path_factory.mktemp("corpus") / "small.xml"
    words = "so it goes on and on in plain words until the page comes to its end. " * 4
    path.write_text("".join(f"<page><id>{i}</id>{words}</page>\n" for i in range(30)))
    return path


def test_parity_leaves_everything_in_its_folder(tmp_path, capsys):
    folder = tmp_path / "run"
    assert run_parity(folder, "--model", "act", "--steps", "2", "--max-steps", "5") == 0
    found = {path.name for path in folder.iterdir() if path.name[0] != "."}  # but a lock
    assert found == FILES | {"checkpoints", "difficulty.png"}
    assert [row["step"] for row in training.read_metrics(folder / "metrics.jsonl")] == [1, 2]
    summary = json.loads((folder / "summary.json").read_text())
    evaluation = json.loads((folder / "evaluation.json").read_text())
    levels = evaluation["by_difficulty"]
    assert [level["difficulty"] for level in levels] == [1, 2, 3, 4]
    count = sum(level["count"] for level in levels)
    error = sum(level["count"] * level["error"] for level in levels) / count
    np.testing.assert_allclose(summary["evaluation"]["error"], error, rtol=1e-6)
    assert summary["config"]["bits"] == 4 and summary["steps"] == 2 and summary["seed"] == 0
    assert summary["device"] and summary["versions"]["jax"] and summary["command"]
    printed = capsys.readouterr().out
    assert "act-tau0.001" in printed and str(folder) in printed


def test_a_resumed_experiment_equals_a_whole_one(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_parity(whole, "--model", "rnn", "--steps", "4") == 0
    assert run_parity(parts, "--model", "rnn", "--steps", "2") == 0
    assert run_parity(parts, "--model", "rnn", "--steps", "4", "--resume") == 0
    one, other = (json.loads((f / "evaluation.json").read_text()) for f in (whole, parts))
    assert one == other
    rows = [training.read_metrics(folder / "metrics.jsonl") for folder in (whole, parts)]
    assert [[r["step"], r["loss"]] for r in rows[0]] == [[r["step"], r["loss"]] for r in rows[1]]


def test_wikipedia_leaves_everything_in_its_folder(tmp_path, corpus):
    folder = tmp_path / "run"
    options = ["--data", str(corpus), "--window", "6", "--held-out", "0.2", "--max-steps", "4"]
    assert main(["wikipedia", *SMALL, *options, "--steps", "2", "--out", str(folder)]) == 0
    found = {path.name for path in folder.iterdir() if path.name[0] != "."}  # but a lock
    assert found == FILES | {
        "checkpoints",
        "stretches.json",
        "stretch_prose.png",
        "stretch_markup.png",
    }
    prose, markup = json.loads((folder / "stretches.json").read_text())
    assert b"<" not in bytes(prose["bytes"]) or prose["name"] == "markup"
    assert bytes(markup["bytes"]).startswith(b"<page>")
    for piece in (prose, markup):
        shown = len(piece["bytes"])
        assert all(len(piece[key]) == shown for key in ("ponder", "loss_bits", "entropy_bits"))
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert 7 < evaluation["bits_per_character"] < 9  # all but untrained: near 8
    held_out = corpus.stat().st_size * 0.2
    assert held_out - 6 <= evaluation["characters"] + 1 <= held_out + 1


def test_the_demo_compares_its_runs_and_continues_them(tmp_path, corpus, capsys, monkeypatch):
    monkeypatch.setattr(demo, "MODELS", ("rnn", "act"))
    small = {"hidden": 4, "batch_size": 4, "log_every": 1, "checkpoint_every": 1}
    text = {"window": 6, "held_out": 0.2, "data": str(corpus)}
    for module, options in ((parity, {"bits": 4}), (wikipedia, text)):
        preset = dataclasses.replace(module.PRESETS["demo"], **small, **options)
        monkeypatch.setitem(module.PRESETS, "demo", preset)
    argv = ["--parity-steps", "2", "--wikipedia-steps", "2", "--seeds", "1"]
    assert main(["demo", *argv, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.index("with the options as they were") < printed.index("1 of 4")
    for words in ("Parity of up to 4 bits", "off the budget", "Wikipedia, held-out text", "waits"):
        assert words in printed
    assert {p.name for p in tmp_path.glob("*.png")} == {
        "parity_curves.png",
        "parity_difficulty.png",
        "budget.png",
        "wikipedia_curves.png",
        "ponder_prose.png",
        "ponder_markup.png",
    }
    rows = (tmp_path / "parity" / "rnn" / "metrics.jsonl").read_text()
    monkeypatch.setattr(demo, "hold", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["demo", *argv, "--out", str(tmp_path)]) == 130
    assert (tmp_path / "parity" / "rnn" / "metrics.jsonl").read_text() == rows


def test_the_demo_says_when_a_difference_is_within_noise():
    assert demo.compare([3.0, 3.2], [3.2, 3.4]) == "-0.200 +- 0.000"
    assert demo.compare([3.0, 3.4], [3.2, 3.3]) == "-0.050 +- 0.150, within noise"
    assert demo.compare([3.0], [3.2]) == "-0.200 (one seed: noise unknown)"


def test_a_recorded_command_names_no_folder():
    argv = ["parity", "--out", "/some/where", "--tau", "0.1", "--resume"]
    assert record.command(argv) == "python -m experiments parity --tau 0.1"
    assert record.command(["parity", "--out=/some/where"]) == "python -m experiments parity"


def test_ponder_by_kind_of_byte():
    inputs = np.frombuffer(b"ab c.1", np.uint8).reshape(2, 3)
    ponder = np.array([[2.0, 4.0, 9.0], [3.0, 5.0, 7.0]])
    found = {
        row["kind"]: (row["count"], row["ponder"]) for row in wikipedia.by_kind(inputs, ponder)
    }
    assert found == {
        "a letter": (3, 3.0),
        "a digit": (1, 7.0),
        "a space": (1, 9.0),
        "punctuation": (1, 5.0),
    }


def test_figures_are_drawn_from_the_files_alone(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    row = {"step": 10, "accuracy": 0.5, "ponder_steps": 1.5}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert [path.name for path in figures.draw(folder)] == ["curves.png"]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["nothing"], "NAME must be one of these, got 'nothing'."),
        (["parity", "--preset", "huge"], "preset must be one of demo, fojo, graves, cpu, paper"),
        (["wikipedia", "--preset=fojo"], "preset must be one of demo, lfact, graves, cpu, paper"),
        (["parity", "--tau", "-1"], "tau must be at least 0, got -1.0."),
        (["parity", "--epsilon", "1"], "epsilon must be above 0 and below 1, got 1.0."),
        (
            ["parity", "--ponder-budget", "1.5"],
            "ponder_budget must be above 2, the cost of one step",
        ),
        (
            ["parity", "--model", "pondernet", "--ponder-budget", "3"],
            "ponder_budget must be None for pondernet, which has no ponder cost to hold",
        ),
        (["parity", "--model", "lfact", "--min-steps", "2"], "min_steps must be 1 for lfact"),
        (["parity", "--min-steps", "101"], "min_steps must be at most max_steps = 20, got 101."),
        (["parity", "--tau-warmup", "-1"], "tau_warmup must be at least 0, got -1."),
        (
            ["parity", "--tau-warmup", "9", "--ponder-budget", "3"],
            "tau_warmup must be 0 where a ponder budget moves tau, got 9.",
        ),
        (["parity", "--bits", "4", "--max-bits", "5"], "max_bits must be at most bits = 4, got 5"),
        (["parity", "--steps", "0"], "steps must be an integer of at least 1, got 0."),
        (["parity", "--bits", "0"], "bits "),
        (
            ["parity", "--log-every", "7"],
            "checkpoint_every must be a multiple of log_every = 7, got",
        ),
        (["wikipedia", "--window", "0"], "window "),
        (
            ["wikipedia", "--data", "/nowhere"],
            ".* must be .*, got '/nowhere': No such file",
        ),
        (
            ["wikipedia", "--window", "400000"],
            "held_out must be a part that leaves at least 400001 bytes",
        ),
    ],
)
def test_wrong_arguments_are_answered_with_one_sentence(
    argv, sentence, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert re.match(f"error: {sentence}", error)
    assert not list(tmp_path.iterdir()), "a refused run must leave nothing behind"


def test_a_folder_is_not_taken_over(tmp_path, capsys):
    assert run_parity(tmp_path / "run", "--model", "rnn", "--steps", "1") == 0
    assert run_parity(tmp_path / "run", "--model", "rnn", "--steps", "1") == 2
    assert "a run already" in capsys.readouterr().err
    assert run_parity(tmp_path / "run", "--model", "rnn", "--seed", "1", "--resume") == 2
    assert re.search(r"seed .* 1\b", capsys.readouterr().err)


def test_a_run_that_diverges_says_at_which_step(tmp_path, capsys):
    options = ["--model", "rnn", "--steps", "9", "--learning-rate", "1e38"]
    assert run_parity(tmp_path / "run", *options) == 1
    assert "stopped: the loss or its gradient is not finite at step 2;" in capsys.readouterr().err
    kept = training.Checkpoints(tmp_path / "run" / "checkpoints")
    assert kept.latest() == 1


def test_help_explains_every_option(capsys):
    assert main([]) == 0
    assert "wikipedia" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        main(["parity", "--help"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    for option in ("--model", "--cell", "--tau", "--repeats", "--steps", "--seed", "--preset"):
        assert option in printed
    for option in ("--out", "--resume", "--loop", "--lanes", "--layout"):
        assert option in printed


def test_presets_are_the_papers_settings():
    graves, fojo = parity.PRESETS["graves"], parity.PRESETS["fojo"]
    for preset in (graves, fojo):
        assert (preset.bits, preset.hidden, preset.cell) == (64, 128, "simple")
        assert (preset.batch_size, preset.max_steps, preset.epsilon) == (128, 100, 0.01)
        assert preset.halt_bias == 1.0
    assert (graves.layout, graves.learning_rate, graves.steps) == ("scattered", 1e-4, 16_000_000)
    assert (fojo.layout, fojo.learning_rate, fojo.steps) == ("prefix", 1e-3, 2_000_000)
    assert (graves.over_time, fojo.over_time) == ("sum", "mean")
    text = wikipedia.PRESETS["graves"]
    assert (text.cell, text.hidden, text.window) == ("lstm", 1500, 500)
    assert (text.learning_rate, text.steps, text.max_steps) == (1e-4, 160_000, 100)
    assert text.tau == 6e-3 and text.epsilon == 0.01 and text.over_time == "sum"


def test_the_embedded_text_is_the_one_it_should_be():
    corpus = data.load_text("wikipedia")
    assert corpus.size == 6_089_746
    assert corpus[:10].tobytes() == b"<mediawiki"
    assert "CC BY-SA" in data.EMBEDDED.with_name("ATTRIBUTION.md").read_text()


def test_a_download_is_kept_and_checked(tmp_path):
    source = tmp_path / "web" / "text.xml"
    source.parent.mkdir()
    source.write_bytes(b"some text to read")
    wanted = data.Download(source.as_uri(), "0" * 64)
    with pytest.raises(ValueError, match=r"text must have the sha256 0{64}, got [0-9a-f]{64} of"):
        data.download("text", wanted, tmp_path / "cache")
    kept = tmp_path / "cache" / "text.xml"
    wanted = wanted._replace(sha256=hashlib.sha256(kept.read_bytes()).hexdigest())
    source.unlink()  # it is there already: nothing is fetched
    assert data.download("text", wanted, tmp_path / "cache") == kept
    kept.unlink()
    with pytest.raises(
        ValueError, match=r"text must be within reach of a download, .*pass its path with"
    ):
        data.download("text", wanted, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_without_a_network_the_message_says_what_to_do(tmp_path, monkeypatch, capsys):
    closed = data.Download("http://127.0.0.1:9/enwik8.zip", "0" * 64)
    monkeypatch.setitem(data.DOWNLOADS, "enwik8", closed)
    monkeypatch.setenv("ACTJAX_CACHE", str(tmp_path))
    assert main(["wikipedia", "--data", "enwik8"]) == 2
    assert "fetch it where there is a network and pass its path" in capsys.readouterr().err


@pytest.mark.parametrize("network", [None, 1])
def test_stuck_halting_is_told_once_and_while_it_lasts(network, capsys):
    def row(step, steps):
        return {"step": step, "ponder_steps": steps if network is None else [3.0, steps, None]}

    look = run.adviser(parity.Parity())
    for step in range(100, 1000, 100):
        look(row(step, 1.001))
    look(row(1000, 1.5))  # it was only passing
    assert capsys.readouterr().err == ""
    for step in range(1100, 3000, 100):
        look(row(step, 1.001))
    error = capsys.readouterr().err
    assert error.startswith("warning, at update 2,000: halting has collapsed to one step")
    assert error.count("\n") == 1
    run.adviser(parity.Parity(model="rnn"))(row(100, 1.0))
