"""`python -m experiments sweep` from start to report: text, budgets, retiring, diverging."""

import json

import numpy as np
import pytest

from experiments import collapse, tasks
from experiments.__main__ import main
from experiments.show import report

pytestmark = pytest.mark.usefixtures("quick_compilation")
SIZES = "--preset cpu --hidden 4 --batch-size 4 --max-steps 3 --loop scan".split()
SIZES += "--log-every 1 --seeds 1".split()
SORT = ["sort", *SIZES, "--max-numbers", "2"]


def sweep(folder, *arguments, code=0):
    """The summary of a sweep; of the same folder it is the same sweep, resumed."""
    results = folder / arguments[0] / "s.json"
    resume = ["--resume"] if (folder / "runs").exists() else []
    where = ["--out", str(folder / "runs"), "--results", str(results)]
    assert main(["sweep", *arguments, *where, *resume]) == code
    return json.loads(results.read_text(), parse_constant=pytest.fail)  # NaN is no JSON


def test_text_is_swept_with_its_figures_and_tied_to_its_bytes(tmp_path, capsys):
    data = tmp_path / "text"
    data.write_bytes(b"The cat sat on the mat, and the dog did not. " * 100)
    size = ["--window", "8", "--steps", "2"]
    arguments = ["wikipedia", *SIZES, *size, "--data", str(data), "--models", "rnn,act"]
    summary = sweep(tmp_path, *arguments)
    assert len(summary["data_sha256"]) == 64
    for member in summary["members"]:
        assert member["evaluation"]["bits_per_character"] > 0
    assert main(["figures", "wikipedia", "--results", str(tmp_path)]) == 0
    drawn = {path.stem for path in (tmp_path / "wikipedia").glob("*.png")}
    assert {"s_errors", "s_curves", "s_stretches"} <= drawn  # Graves 21 to 24
    page = report.build(tasks.known(), tmp_path)
    assert page.count("<img") >= 3 and "bits per character" in page
    data.write_bytes(b"Some other text that nobody has trained anything on before now. " * 100)
    sweep(tmp_path, *arguments, code=2)
    assert "data_sha256" in capsys.readouterr().err


def test_a_budget_goes_on_where_it_was(tmp_path):
    arguments = [*SORT, "--ponder-budget", "2.5", "--tau", "1e-2,1e-1"]
    first = sweep(tmp_path, *arguments, "--steps", "2")["members"]
    then = sweep(tmp_path, *arguments, "--steps", "4")["members"]
    assert [member["ponder_budget"] for member in then] == [2.5, 2.5]
    for start, one, other in zip((1e-2, 1e-1), first, then, strict=True):
        taus = other["curve"]["tau"]
        np.testing.assert_allclose(taus[:2], one["curve"]["tau"], rtol=1e-6)
        np.testing.assert_allclose(taus[0], start, rtol=1e-4)
        assert len(taus) == 4 and taus[2] != taus[0]  # on from there, not from the start again
    page = report.build(tasks.known(), tmp_path)
    assert ">Ponder budget</h3>" in page and "off the budget" in page


def test_a_solved_member_retires(tmp_path):
    arguments = ["parity", *SIZES, "--bits", "4", "--models", "rnn", "--solved", "0.01"]
    (member,) = sweep(tmp_path, *arguments, "--steps", "120", "--retire")["members"]
    assert member["solved_at"] == 36  # the first row that can count, known 35 rows later
    assert member["updates"] == 80  # at the end of a dispatch of ten


@pytest.mark.not_in("nans", "its run is to diverge")
def test_a_diverged_member_is_told_and_left_out(tmp_path):
    arguments = [*SORT, "--models", "act", "--learning-rate", "1e38", "--steps", "20"]
    (member,) = sweep(tmp_path, *arguments)["members"]
    assert member["diverged"] and member["advice"] is None and member["updates"] == 0
    page = report.build(tasks.known(), tmp_path)
    assert "<td>0, 1 diverged</td>" in page and "nan" not in page.lower().split("<h2")[1]
    assert "<img" not in page


def test_pondernet_beside_act_with_a_warm_up_a_minimum_and_bits_unseen(tmp_path):
    size = ["--bits", "4", "--max-bits", "2", "--steps", "4", "--checkpoint-every", "1"]
    cures = ["--tau", "0.4,0.8", "--tau-warmup", "4", "--min-steps", "2"]
    members = sweep(tmp_path, "parity", *SIZES, *size, *cures, "--models", "act,pondernet")
    members = members["members"]
    assert [member["model"] for member in members] == 2 * ["act"] + 2 * ["pondernet"]
    assert members[0]["evaluation"]["ponder_steps"] >= 2
    for member in members:
        risen = member["tau"] * np.arange(4) / 4
        np.testing.assert_allclose(member["curve"]["tau"], risen, rtol=1e-4)
        levels = [row["difficulty"] for row in member["evaluation"]["by_difficulty"]]
        assert levels == [1, 2, 3, 4]  # of which training saw two
    assert main(["figures", "parity", "--results", str(tmp_path)]) == 0


def test_cures_of_collapse_are_compared(tmp_path, monkeypatch, capsys):
    some = {name: collapse.CURES[name] for name in ("none", "at least 2 steps")}
    monkeypatch.setattr(collapse, "CURES", some)
    results = tmp_path / "c.json"
    argv = ["collapse", "--steps", "2", "--hidden", "4", "--seeds", "1", "--out", str(tmp_path)]
    assert main([*argv, "--results", str(results)]) == 0
    members = json.loads(results.read_text())["members"]
    assert [member["cure"] for member in members] == list(some)
    assert members[1]["evaluation"]["ponder_steps"] >= 2
    assert "0 of 1" in capsys.readouterr().out
