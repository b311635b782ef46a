"""The folder of a run: one run's at a time, whole or refused in one sentence."""

import contextlib
import json
import os
import pathlib
import re
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from actjax import training
from actjax.training.files import RunFiles

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY = jax.random.key(0)
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
CONFIG = {"tau": 0.1, "steps": 10}


def loss_fn(model, batch):
    return ((batch @ model["w"]) ** 2).mean(), {}


STEP = training.make_train_step(
    lambda key, data: jax.random.normal(key, (4, 3)), loss_fn, OPTIMIZER
)


def first_state():
    # with a leaf without elements, which Orbax does not store, and a key
    model = {"w": jnp.ones((3, 2)), "none": jnp.zeros((0, 3)), "noise": jax.random.key(5)}
    return training.init_state(model, OPTIMIZER)


def fit(folder, steps=4, **options):
    options = {"log_every": 1, "checkpoint_every": 2} | options
    return training.fit(STEP, first_state(), key=KEY, steps=steps, directory=folder, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = training.claim_folder(tmp_path_factory.mktemp("runs") / "whole", CONFIG)
    return folder, training.digest(fit(folder))


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run, to do harm to."""
    return shutil.copytree(run[0], tmp_path / "copy")


def refused(call, error=ValueError) -> str:
    with pytest.raises(error) as refusal:
        call()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def claim(folder, **options):
    return training.claim_folder(folder, CONFIG, **{"resume": True} | options)


def test_an_empty_array_is_kept_as_it_is(run):
    checkpoints = training.Checkpoints(run[0] / "checkpoints")
    state = checkpoints.restore(4, first_state())
    assert state.model["none"].shape == (0, 3) and training.digest(state) == run[1]
    other = first_state()
    other.model["none"] = jnp.zeros((0, 4))
    dtype = other.model["none"].dtype
    assert f"none'] is {dtype}[0, 4], got {dtype}[0, 3]" in refused(
        lambda: checkpoints.restore(4, other)
    )


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("left", ["metrics.jsonl", "checkpoints"])
def test_a_run_of_which_nothing_is_known_is_not_continued(copy, left, resume):
    for path in copy.iterdir():
        if path.name != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    sentence = refused(lambda: claim(copy, resume=resume))
    assert "must be a new folder or hold the config.json of its run" in sentence


def test_an_option_that_was_added_later_has_its_default_there(copy):
    later = {**CONFIG, "loop": "while", "size": [2, 3]}
    claim = lambda config, **options: training.claim_folder(copy, config, resume=True, **options)
    defaults = {"loop": "while", "size": (2, 3), "tau": 0.5}
    assert "loop must be None, " in refused(lambda: claim(later))
    assert "loop must be 'while', " in refused(
        lambda: claim({**later, "loop": "scan"}, defaults=defaults)
    )
    claim(later, defaults=defaults)
    assert json.loads((copy / "config.json").read_text()) == later
    claim(CONFIG, defaults=defaults)  # and one that is no more


def test_a_folder_is_one_runs_at_a_time(copy):
    with RunFiles(copy):
        for call in (lambda: fit(copy), lambda: claim(copy)):
            assert "must be a folder that no other run is at work in" in refused(call)
    claim(copy)
    with contextlib.suppress(ZeroDivisionError):  # a run that fails leaves it free
        fit(copy, steps=6, on_row=lambda row: 1 / 0)
    fit(copy, steps=6)


def rows(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


@pytest.mark.parametrize(
    ("keep", "reached"), [(lambda lines: [], 0), (lambda lines: lines[:3], 3), (None, 0)]
)
def test_metrics_behind_the_checkpoint_are_missed(copy, keep, reached):
    path = copy / "metrics.jsonl"
    path.unlink() if keep is None else path.write_text("\n".join([*keep(rows(copy)), ""]))
    before = path.read_bytes() if path.exists() else None
    sentence = refused(lambda: fit(copy, steps=6))
    assert re.search(f"jsonl' must have a row for update 4, .* got rows up to {reached}", sentence)
    assert (path.read_bytes() if path.exists() else None) == before
    shutil.rmtree(copy / "checkpoints")  # what the sentence says helps
    fit(copy, steps=6)
    assert [json.loads(line)["step"] for line in rows(copy)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "line",
    [
        b"[1, 2]",
        b"3",
        b"null",
        b'{"step": 2, "seconds": 0.1',
        b'{"step": "2", "seconds": 0.1}',
        b'{"step": 2, "secands": 0.1}',
        b'{"step": 9, "seconds": 0.1}',
        b'{"step": 2, "s\xffconds": 0.1}',
    ],
)
def test_a_damaged_row_is_told_by_its_line(copy, line):
    lines = (copy / "metrics.jsonl").read_bytes().splitlines()
    (copy / "metrics.jsonl").write_bytes(b"\n".join([lines[0], line, *lines[2:], b""]))
    number = 3 if b"9" in line else 2  # a row from the future is one, until the next
    sentence = refused(lambda: fit(copy, steps=6))
    assert f"metrics.jsonl' must hold a row of metrics a line, got a damaged line {number}." in (
        sentence
    )


@pytest.mark.parametrize("text", [b"[]", b"3", b"", b'{"tau": 0.1', b'{"tau": "\xff"}'])
def test_a_damaged_config_is_told(copy, text):
    (copy / "config.json").write_bytes(text)
    assert "config.json' must be a JSON object, got a damaged file." in refused(lambda: claim(copy))


@pytest.mark.parametrize("call", [claim, fit])
def test_what_is_in_the_way_is_told_before_the_work(call, tmp_path):
    (tmp_path / "file").touch()
    assert "out must be a folder, got the file" in refused(lambda: call(tmp_path / "file"))
    below = refused(lambda: call(tmp_path / "file" / "below"))
    assert "out must be a folder that can be written to, got " in below and "directory" in below
    if os.geteuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(0o500)
        assert "that can be written to, got " in refused(lambda: call(tmp_path / "locked"))


def test_checkpoints_that_are_a_file_are_told(tmp_path):
    (tmp_path / "checkpoints").touch()
    assert "checkpoints must be a folder, got the file" in refused(lambda: fit(tmp_path))


@contextlib.contextmanager
def full_disk(size: int):
    """No file may grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("size", "name"), [(10, "metrics.jsonl"), (200, "checkpoint .*/2")], ids=["rows", "checkpoint"]
)
def test_a_full_disk_is_told_and_the_run_goes_on_later(run, tmp_path, size, name):
    folder = tmp_path / "full"
    with full_disk(size), pytest.raises(OSError, match=f"{name}' could not be written: ") as full:
        fit(folder, log_every=2)
    assert "\n" not in str(full.value)
    # as another process finds it: in this one, threads of Orbax are still at what they could not do
    left = shutil.copytree(folder, tmp_path / "left", ignore=shutil.ignore_patterns("*-tmp*"))
    assert training.digest(fit(left)) == run[1]


def harm(file: pathlib.Path, kind: str, random: np.random.Generator):
    whole = bytearray(file.read_bytes())
    if kind == "missing":
        file.unlink()
    elif kind == "truncated":
        file.write_bytes(whole[: random.integers(len(whole) + 1)])
    else:
        for place in random.integers(len(whole), size=3) if whole else ():
            whole[place] ^= 1 << random.integers(8)
        file.write_bytes(whole)


@pytest.mark.parametrize("kind", ["missing", "truncated", "flipped"])
def test_a_damaged_checkpoint_never_gives_a_wrong_result(run, tmp_path, kind):
    """Either the state that was saved, or an older one that is right, or one sentence."""
    random = np.random.default_rng(len(kind))
    files = sorted(p.relative_to(run[0]) for p in run[0].rglob("4/**/*") if p.is_file())
    files = [file for file in files if (run[0] / file).stat().st_size]
    for number, file in enumerate(random.permutation(files)[:6]):
        copy = shutil.copytree(run[0], tmp_path / str(number))
        harm(copy / file, kind, random)
        checkpoints = training.Checkpoints(copy / "checkpoints")
        try:
            found = checkpoints.restore(checkpoints.latest(), first_state())
        except ValueError as error:
            assert "checkpoint" in str(error) and "\n" not in str(error), file
            continue
        finally:
            checkpoints.close()
        assert int(found.step) == 2 or training.digest(found) == run[1], file
