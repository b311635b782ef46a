"""What a stranger adds: a task in one file, a cell in one place; and places that cannot serve."""

import dataclasses
import json
import pathlib
import re
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from actjax import training
from experiments import cells, run, tasks
from experiments.__main__ import main
from experiments.network import make_network
from experiments.options import Options
from experiments.show import report
from experiments.tasks import parity

pytestmark = pytest.mark.usefixtures("quick_compilation")
TOY = '''
"""Copy: say which of four symbols was shown."""

import dataclasses

import jax
import jax.numpy as jnp

from actjax import losses
from actjax.tasks.batch import Batch
from experiments.options import Options
from experiments.task import Task, classes, generated, make_objective


@dataclasses.dataclass(frozen=True)
class Copy(Options):
    """Say which symbol was shown."""

    symbols: int = 4
    """How many there are."""


def sample(key, batch_size, *, symbols):
    shown = jax.random.randint(key, (batch_size, 2), 0, symbols)
    ones = jnp.ones_like(shown)
    return Batch(jax.nn.one_hot(shown, symbols), shown, ones > 0, 2 * ones[:, 0], 1 + shown)


TASK = Task(
    name="copy",
    what="say what was shown",
    presets={"demo": Copy(hidden=4, batch_size=4, max_steps=3, log_every=1, loop="scan")},
    features=lambda options: (options.symbols, options.symbols),
    sampler=generated(sample, "symbols"),
    objective=lambda options: make_objective(
        options.over_time, losses.softmax_cross_entropy, classes
    ),
    predict=classes,
    unit="symbols",
)
'''
SMALL = "--hidden 4 --batch-size 4 --bits 4 --log-every 1 --checkpoint-every 1 --model rnn".split()


def test_a_task_is_one_file_and_known_to_every_command(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "copy.py").write_text(TOY)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(folder)])
    assert main([]) == 0
    assert re.search(r"finance .*\n  copy +say what was shown\n", capsys.readouterr().out)
    steps = ["--steps", "2"]
    assert main(["copy", *steps, "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["experiment"] == "copy"
    results, where = tmp_path / "results", ["--out", str(tmp_path / "sweep")]
    where += ["--results", str(results / "copy" / "tiny.json")]
    assert main(["sweep", "copy", *steps, "--models", "rnn,act", "--seeds", "1", *where]) == 0
    assert main(["figures", "copy", "--results", str(results)]) == 0
    drawn = {path.stem.removeprefix("tiny_") for path in (results / "copy").glob("*.png")}
    assert {"errors", "curves", "difficulty", "act", "by_step"} <= drawn
    page = tmp_path / "page.html"
    assert main(["report", "--results", str(results), "--out", str(page)]) == 0
    section = page.read_text().split("<h2 id=copy>")[1].split("<h2")[0]
    assert ">Accuracy and ponder with ACT</h3>" in section
    assert section.count("<img") == len(drawn) and "missing" not in section
    assert "copy" not in report.build({"parity": parity.TASK}, results)


@pytest.mark.parametrize("cell", cells.CELLS)
def test_a_cell_of_the_list_is_on_the_command_line_and_in_every_network(cell):
    choices = {field.name: field.type for field in dataclasses.fields(Options)}["cell"]
    assert typing.get_args(choices) == tuple(cells.CELLS)
    xs = jax.ShapeDtypeStruct((2, 3, 5), jnp.float32)
    for model in ("rnn", "repeat", "act", "lfact"):
        for init in ("flax", "glorot") if cells.CELLS[cell].gates else ("flax",):
            options = Options(model=model, cell=cell, init=init, hidden=4, max_steps=2)
            network = jax.eval_shape(lambda o=options: make_network(o, 0, 5, 7))
            assert jax.eval_shape(lambda n, x: n(x)[0], network, xs).shape == (2, 3, 7)


def test_a_cell_that_starts_in_its_own_way_alone_says_so(monkeypatch):
    own = cells.Cell(cells.CELLS["gru"].make)
    monkeypatch.setitem(cells.CELLS, "own", own)
    assert cells.make_cell("own", "flax") is own.make
    with pytest.raises(ValueError, match=r"init must be 'flax' for the cell 'own', got 'glorot'\."):
        cells.make_cell("own", "glorot")


def test_figures_of_what_was_not_swept_says_where_a_sweep_would_leave_it(tmp_path, capsys):
    assert main(["figures", "sort", "--results", str(tmp_path)]) == 2
    command = f"python -m experiments sweep sort --results {tmp_path}/sort/NAME.json"
    assert f"results must be a folder with what {command} writes, got" in capsys.readouterr().err


def folders(tmp_path):
    """Places that cannot serve: under a file, and where nothing can be written."""
    (tmp_path / "file").write_text("")
    return [str(tmp_path / "file" / "run"), "/proc/nowhere/run"]


@pytest.mark.parametrize("place", [0, 1], ids=["under a file", "in /proc"])
@pytest.mark.parametrize(
    ("argv", "option"),
    [
        (["parity"], "out"),
        (["sweep", "parity"], "out"),
        (["sweep", "parity"], "results"),
        (["finance"], "out"),
        (["finance"], "results"),
        (["quadratic"], "out"),
        (["demo"], "out"),
        (["report"], "out"),
        (["figures", "parity"], "results"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    argv, option, place, tmp_path, monkeypatch, capsys
):
    bad = folders(tmp_path)[place]
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    assert main([*argv, f"--{option}", bad]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {option} must be a place to write to, and ") and bad in error
    assert error.count("\n") == 1 and set(tmp_path.rglob("*")) == before


def test_a_report_into_a_folder_or_of_nothing_is_refused(tmp_path, capsys):
    assert main(["report", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: out must be a file, not a folder, got '")
    out = tmp_path / "page.html"
    for results in (tmp_path, tmp_path / "nowhere"):
        assert main(["report", "--results", str(results), "--out", str(out)]) == 2
        assert capsys.readouterr().err.startswith("error: results must be a folder with a folder a")
    assert not out.exists()


@pytest.mark.parametrize("argv", [["parity"], ["sweep", "parity"], ["finance"], ["quadratic"]])
def test_what_is_not_there_is_not_resumed(argv, tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert main([*argv, "--out", str(folder), "--resume"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: out must be the folder of a run for --resume, got '")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_says_whether_there_is_something_to_go_on_from(
    tmp_path, monkeypatch, capsys
):
    fit = training.fit

    def interrupted(*arguments, **options):
        if options["steps"] > 1:
            fit(*arguments, **options | {"steps": 1})
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "fit", interrupted)
    for steps, place in ((1, "from the start: no checkpoint was written"), (2, "from the last")):
        assert (
            main(["parity", *SMALL, "--steps", str(steps), "--out", f"{tmp_path}/{steps}"]) == 130
        )
        error = capsys.readouterr().err
        assert error.startswith(f"interrupted: add --resume to continue {place}")
    monkeypatch.setattr(training, "fit", fit)
    assert main(["parity", *SMALL, "--steps", "1", "--out", f"{tmp_path}/1", "--resume"]) == 0


def test_a_disk_that_fails_is_told_in_one_sentence(monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr(run, "train", full)
    assert main(["parity", *SMALL]) == 1
    assert capsys.readouterr().err == "stopped: No space left on device ('metrics.jsonl')\n"


def test_an_older_run_takes_the_default_of_an_option_it_does_not_know(tmp_path, capsys):
    argv = ["parity", *SMALL, "--out", str(tmp_path)]
    assert main([*argv, "--steps", "1"]) == 0
    path = tmp_path / "config.json"
    older = json.loads(path.read_text())
    del older["attend"]
    path.write_text(json.dumps(older))
    assert main([*argv, "--steps", "2", "--resume", "--attend", "lower"]) == 2
    assert "attend" in capsys.readouterr().err
    assert main([*argv, "--steps", "2", "--resume"]) == 0
    assert json.loads(path.read_text())["attend"] == "all"
    rows = training.read_metrics(tmp_path / "metrics.jsonl")
    np.testing.assert_array_equal([row["step"] for row in rows], [1, 2])


@pytest.mark.parametrize("top", ["actjax", "experiments"])
def test_no_file_is_longer_than_a_reader_likes_and_no_import_runs_in_a_circle(top):
    root = pathlib.Path(run.__file__).parent.parent / top
    uses, names = {}, {}
    for path in root.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
        module = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        names[module.removesuffix(".__init__")] = path
    for name, path in names.items():
        found = re.findall(rf"^from ({top}[\w.]*) import ([\w, (\n]+)", path.read_text(), re.M)
        uses[name] = set()
        for package, what in found:
            parts = {f"{package}.{word}" for word in re.findall(r"\w+", what)}
            uses[name] |= (parts & names.keys()) or {package}
    while uses:
        free = {name for name, used in uses.items() if not used & (uses.keys() - {name})}
        assert free, f"a circle among {sorted(uses)}"
        uses = {name: used for name, used in uses.items() if name not in free}
