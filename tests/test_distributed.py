"""Many processes: real ones, on this machine's CPU, with real collectives between them.

`python tests/test_distributed.py FOLDER JOB ADDRESS ID OF` is one of the processes.
"""

import functools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import actjax
from actjax import losses, training
from actjax.tasks import parity
from actjax.training import distributed, files, loop
from actjax.training.sharding import make_mesh, replicate

STEPS = 6
OPTIMIZER = optax.sgd(0.1, momentum=0.9)  # Adam makes steps of what is rounding in a gradient
SMALL = ["parity", "--model", "rnn", "--hidden", "6", "--bits", "4", "--batch-size", "8"]
SMALL += ["--log-every", "1", "--checkpoint-every", "2"]


def sample(key, data):
    return parity.sample(key, 8, bits=6)


def loss_fn(model, batch):
    _, outputs, ponder = model(batch.inputs)
    error = ((outputs.mean(-1) - batch.targets) ** 2).mean()
    return error + 0.01 * ponder.cost.mean(), losses.ponder_metrics(ponder)


@functools.cache
def train_step(mesh):
    return training.make_train_step(sample, loss_fn, OPTIMIZER, mesh=mesh)


def fit(folder, *, mesh=None, steps=STEPS):
    """A small run: its state at the end."""
    state, key = first_state(), jax.random.key(3)
    if mesh is not None:
        state, key = replicate((state, key), mesh)
    options = {"steps": steps, "log_every": 1, "checkpoint_every": 2}
    return training.fit(train_step(mesh), state, key=key, directory=folder, **options)


@jax.jit
def first_state():
    options = {"cell": nnx.SimpleCell, "max_steps": 5, "halt_bias": -0.5, "rngs": nnx.Rngs(0)}
    model = actjax.ACT(6, 5, **options)
    return training.init_state(model, OPTIMIZER)


def digest_of_a_sharded_array(mesh=None):
    array = np.arange(8, dtype=np.float32)
    if mesh is not None:
        sharding = NamedSharding(mesh, PartitionSpec("data"))
        array = jax.make_array_from_callback((8,), sharding, lambda place: array[place])
    return training.digest({"array": array})


def work(folder: pathlib.Path, job: str):
    """What each of the processes does."""
    loop.make_chunk = functools.cache(loop.make_chunk)  # compile once
    mesh = make_mesh()
    if job == "resume":
        fit(folder / "killed", mesh=mesh)
        return
    fit(folder / f"whole{mesh.size}", mesh=mesh)
    if mesh.size == 2:
        fit(folder / "begun_by_one", mesh=mesh)
        assert digest_of_a_sharded_array(mesh) == digest_of_a_sharded_array()
        with pytest.raises(ValueError, match=r"numbers must be the same .* got others in \[1\]"):
            distributed.check_alike("numbers", jax.process_index())
        with pytest.raises(ValueError, match=r"out must be .*, which holds a run already"):
            distributed.on_first(lambda: [training.claim_folder(folder, {}) for _ in range(2)])
        save = files.RunFiles.save

        def save_and_die(kept, step, state):
            save(kept, step, state)
            if step == 4 and jax.process_index() == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        files.RunFiles.save = save_and_die
        fit(folder / "killed", mesh=mesh)


def start(count: int, *command: str) -> list[subprocess.Popen]:
    """Processes that are to meet: `command`, in which {address}, {id} and {of} are filled in."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    return [
        subprocess.Popen(
            [sys.executable, *(w.format(address=address, id=number, of=count) for w in command)],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


def wait(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit status, standard output and standard error of each."""
    ended = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=300)
            ended.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return ended


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What one process, two and four left behind, and in "killed" two, one of which was killed."""
    folder = tmp_path_factory.mktemp("runs")
    fit(folder / "begun_by_one", steps=2)
    here = [__file__, str(folder)]
    two = start(2, *here, "whole", "{address}", "{id}", "{of}")
    four = start(4, *here, "whole", "{address}", "{id}", "{of}")
    fit(folder / "whole1")
    yield folder, wait(two), wait(four)


def final_state(folder):
    return training.Checkpoints(folder / "checkpoints").restore(STEPS, first_state())


def assert_same(one, other, **tolerance):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def losses_of(folder):
    return [row["loss"] for row in training.read_metrics(folder / "metrics.jsonl")]


@pytest.mark.parametrize("run", ["whole2", "whole4", "begun_by_one"])
def test_processes_train_as_one_does(folder, run):
    folder, _, four = folder
    assert [status for status, _, _ in four] == [0] * 4, four[0][2][-2000:]
    whole = final_state(folder / "whole1")
    assert_same(final_state(folder / run), whole, atol=1e-6)
    np.testing.assert_allclose(losses_of(folder / run), losses_of(folder / "whole1"), rtol=1e-5)


def test_the_death_of_one_process_ends_all_and_the_run_goes_on_from_its_checkpoint(folder):
    folder, two, _ = folder
    (status, _, error), (killed, _, last_words) = two
    assert killed == -signal.SIGKILL and status not in (0, 2), error[-2000:]
    for number, said in enumerate((error, last_words)):
        assert f"stopped: process {number} of 2 ended before the run, since it or another" in said
    assert training.Checkpoints(folder / "killed" / "checkpoints").latest() == 4
    shutil.copytree(folder / "killed", folder / "killed_for_one")
    again = wait(start(2, __file__, str(folder), "resume", "{address}", "{id}", "{of}"))
    assert [status for status, _, _ in again] == [0, 0], again[0][2][-2000:]
    whole = final_state(folder / "whole2")
    assert training.digest(final_state(folder / "killed")) == training.digest(whole)
    assert losses_of(folder / "killed") == losses_of(folder / "whole2")
    fit(folder / "killed_for_one")
    assert_same(final_state(folder / "killed_for_one"), whole, atol=1e-6)


def test_an_experiment_of_two_processes_is_written_once_and_one_can_go_on(tmp_path):
    folder = tmp_path / "run"
    flags = ["--coordinator", "{address}", "--process-id", "{id}", "--num-processes", "{of}"]
    two = wait(start(2, "-m", "experiments", *SMALL, "--steps", "2", "--out", str(folder), *flags))
    assert [status for status, _, _ in two] == [0, 0], two[0][2][-2000:]
    assert "sequence error rate" in two[0][1] and "Parity" not in two[1][1]
    assert [row["step"] for row in training.read_metrics(folder / "metrics.jsonl")] == [1, 2]
    assert {"summary.json", "evaluation.json", "curves.png"} <= {p.name for p in folder.iterdir()}
    summary, config = (
        json.loads((folder / f"{n}.json").read_text()) for n in ("summary", "config")
    )
    assert "coordinator" not in json.dumps([summary, config]) and "process_id" not in config
    for options in (["--out", str(folder), "--resume"], ["--out", str(tmp_path / "alone")]):
        train_here([*SMALL, "--steps", "3", *options])
    np.testing.assert_allclose(losses_of(folder), losses_of(tmp_path / "alone"), rtol=1e-5)


def train_here(argv):
    """The experiment's training alone, in this process."""
    from experiments import run  # here: the processes of this file start sooner without
    from experiments.options import check, parse
    from experiments.tasks import parity

    options = parse("parity", parity.PRESETS, argv[1:], check)
    run.fit(parity.TASK, options, run.load(parity.TASK, options))


def experiment(argv):
    from experiments.__main__ import main

    return main(argv)


AT = ["--coordinator", "localhost:1"]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--num-processes", "2"], "num_processes must come with coordinator, HOST:PORT of"),
        ([*AT, "--process-id", "1"], "coordinator must come with num_processes, got 'local"),
        ([*AT, "--num-processes", "2"], "coordinator must come with process_id, got 'localhost"),
        ([*AT, "--process-id", "2", "--num-processes", "2"], "process_id must be from 0 to"),
        ([*AT, "--process-id", "0", "--num-processes", "0"], "num_processes must be at"),
        (
            [*AT, "--process-id", "0", "--num-processes", "3"],
            "devices x num_processes must be a divisor of",
        ),
        (["--coordinator", "here"], "coordinator must come with process_id, got 'here'"),
    ],
)
def test_wrong_flags_are_answered_with_one_sentence(argv, sentence, capsys, tmp_path):
    assert experiment([*SMALL, "--out", str(tmp_path / "run"), *argv]) == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
    assert not list(tmp_path.iterdir())


def test_what_runs_in_one_process_says_so(capsys):
    where = [*AT, "--process-id", "0", "--num-processes", "2"]
    for name in (["sweep", "parity"], ["finance"]):
        assert experiment([*name, *where]) == 2
        assert f"{name[0]} runs in one process" in capsys.readouterr().err


def test_a_cluster_that_is_not_there_is_not_waited_for(tmp_path):
    ((status, _, error),) = wait(start(1, __file__, str(tmp_path), "none", "auto", "{id}", "{of}"))
    assert status == 1 and "coordinator is 'auto', but JAX finds no cluster" in error
    assert "stopped:" not in error


if __name__ == "__main__":
    place, job, address, number, count = sys.argv[1:]
    with distributed.joined(address, process_id=int(number), num_processes=int(count)):
        work(pathlib.Path(place), job)
