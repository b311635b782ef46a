"""The list of claims: every number looked up, every row with a verdict, the page as generated."""

import json
import re

import pytest

from experiments import tasks
from experiments.__main__ import main
from experiments.show import claims, lookup
from experiments.show.lookup import BRACES, Results, filled
from experiments.show.papers import PAPERS, RESULTS


def test_the_page_is_what_the_results_say(monkeypatch, capsys):
    assert main(["claims", "--check"]) == 0
    monkeypatch.setattr(lookup, "number", lambda value, form: "0")
    assert main(["claims", "--check"]) == 2
    assert "docs/results.md must be what python -m experiments claims" in capsys.readouterr().err


def test_every_figure_and_table_of_the_papers_is_in_the_list():
    places = {paper: "" for paper in ("graves", "fojo", "lfact", "sander-may", "sander-june")}
    for claim in claims.DATA["claim"]:
        places[claim["paper"]] += f"{claim['where']} "
    numbers = {
        paper: set(re.findall(r"\b\d[\d.]*[a-e]?\b", text)) for paper, text in places.items()
    }
    assert set(map(str, range(3, 25))) - numbers["graves"] == set()  # 1 and 2 draw the model
    lfact = {"2a", "2b", "2c", "2d", "3a", "3b", "3c", "3e", "4a", "4b", "4c", "6", "7", "8", "9"}
    assert lfact <= numbers["lfact"] and "2" in numbers["sander-june"]
    figures = [f["number"] for t in PAPERS["tasks"].values() for f in t["figures"].values()]
    fojo = {n.removeprefix("Fojo ") for n in figures if n.startswith("Fojo")} | {
        "6.1",
        "6.2",
        "6.3",
    }
    assert fojo <= numbers["fojo"]


def test_a_claim_without_a_verdict_or_a_file_is_refused(monkeypatch):
    for wrong in (
        {"verdict": "perhaps", "ours": "{parity/grid model=rnn evaluation.error pm .3f}"},
        {"verdict": "holds", "ours": "0.401, typed by hand"},
        {"verdict": "not run"},
        {"verdict": "holds", "tests": ["tests/test_of_nothing.py"]},
    ):
        claim = {"paper": "graves", "where": "figure 4", "says": "a number"} | wrong
        monkeypatch.setitem(claims.DATA, "claim", [claim])
        with pytest.raises(ValueError, match="graves, figure 4"):
            claims.rows("graves", Results())


def test_numbers_of_ours_are_looked_up_not_typed():
    """No error stands in a text, and no number of three digits or more but sizes of runs."""
    sizes = {
        "2,000",
        "3,000",
        "6,000",
        "13,000",
        "20,000",
        "10,000",
        "100,000",
        "370,000",
        "400,000",
        "500",
        "600",
        "400",
        "200",
        "128",
        "100",
    }
    for claim in claims.DATA["claim"]:
        text = BRACES.sub("X", claim.get("ours", ""))
        assert not re.search(r"\d ± |± \d", text), claim["where"]
        typed = set(re.findall(r"(?<![.\d])\d{1,3}(?:,\d{3})+|\d\.\d{3,}|(?<![.,\d])\d{3,}", text))
        assert typed <= sizes, claim["where"]


@pytest.fixture
def results(tmp_path):
    members = [
        {"model": "act", "tau": 0.1, "seed": seed, "instance": 0, "solved_at": at, "updates": 90}
        | {"evaluation": {"error": error, "kinds": [{"kind": "a letter", "ponder": 2 + error}]}}
        for seed, at, error in ((1, None, 0.3), (0, 70, 0.1))
    ]
    members.append(members[0] | {"model": "rnn", "tau": None, "seed": 0})
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "sweep.json").write_text(json.dumps({"members": members, "best": 0.5}))
    return Results(tmp_path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{some/sweep model=act evaluation.error pm .2f}", "0.20 ± 0.10"),
        ("{some/sweep tau=1e-1 evaluation.error each .1f}", "0.1; 0.3"),
        ("{some/sweep tau=none evaluation.error mean +.1f}", "+0.3"),
        ("{some/sweep model=act evaluation.kinds.kind:a_letter.ponder mean .1f}", "2.2"),
        ("{some/sweep model=act solved_at count d}", "1 of 2"),
        ("{some/sweep best is .0%}", "50%"),
        ("{=solved some/sweep model=act}", "70; not in 90"),
        ("{=change some/sweep some/sweep evaluation.error act rnn}", "\N{MINUS SIGN}66.7 %"),
    ],
)
def test_lookups(results, text, shown):
    assert filled(text, results) == shown and results.used == ["some/sweep"]


def test_lookups_of_nothing_are_refused(results):
    with pytest.raises(ValueError, match="results must hold a member tau=9, got none"):
        filled("{some/sweep tau=9 evaluation.error mean .1f}", results)
    with pytest.raises(ValueError, match="results must hold every file that is shown"):
        filled("{some/other best is .1f}", results)


def test_the_report_has_the_list():
    page = claims.section(Results(RESULTS))
    assert page.count("<tr>") == len(claims.DATA["claim"]) + len(claims.DATA["paper"])
    assert "these data cannot say" in page and "not run: needs" in page
    assert "{" not in re.sub(r"<code>.*?</code>", "", page)


def test_tables_of_the_thesis_have_both_columns():
    rows = claims.tables.compare(
        tasks.known()["parity"], claims.summaries_by_name("parity", RESULTS)
    )
    third = next(row for row in rows if row["model"] == "Repeat-RNN, ρ = 3")
    assert (third["paper, as printed"], third["paper, from its curve"]) == ("49,000", "860,000")
    assert third["ours: solved at"] == "78,500; 57,900"  # of runs older than some options
