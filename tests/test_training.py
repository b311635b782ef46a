"""Training: the step, resumption after a kill, rows, checkpoints and refusals.

`python tests/test_training.py FOLDER` trains the small run of this file in FOLDER: what the test
with SIGKILL starts, kills and starts again.
"""

import json
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from actjax import training
from actjax.training import metrics as metrics_files
from actjax.training.progress import describe

OPTIMIZER = optax.adam(0.05)
STEPS = 60


def sample(key, data):
    x = jax.random.normal(key, (16, 3))
    return x, jnp.sin(x @ data.astype(x.dtype))


def loss_fn(model, batch):
    x, y = batch
    error = jnp.tanh(x @ model["w"] + model["b"][None]).sum(-1) - y
    return (error**2).mean(), {"error": jnp.abs(error).mean(), "error_max": jnp.abs(error).max()}


TRAIN_STEP = training.make_train_step(sample, loss_fn, OPTIMIZER)
DATA = jnp.array([1.0, -2.0, 0.5])
KEY = jax.random.key(7)


def first_state():
    model = {"w": jax.random.normal(jax.random.key(1), (3, 4)), "b": jnp.zeros(4)}
    return training.init_state(model, OPTIMIZER)


def fit(directory, *, steps=STEPS, step=TRAIN_STEP, data=DATA, checkpoint_every=10):
    return training.fit(
        step,
        first_state(),
        key=KEY,
        steps=steps,
        data=data,
        directory=directory,
        log_every=5,
        checkpoint_every=checkpoint_every,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted: its folder and its final state."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(folder)


def figures(folder):
    """The rows of a run without their times."""
    rows = training.read_metrics(folder / "metrics.jsonl")
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "updates_per_second")} for row in rows
    ]


def test_fit_equals_a_loop_of_optax_updates(float64, tmp_path):
    state = fit(tmp_path)
    model, opt_state = first_state().model, first_state().opt_state
    gradient_of = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    update = jax.jit(OPTIMIZER.update)
    rows = []
    for step in range(STEPS):
        batch = sample(jax.random.fold_in(KEY, step), DATA)
        (loss, metrics), gradient = gradient_of(model, batch)
        with jax.numpy_dtype_promotion("standard"):  # Optax's own arithmetic mixes types
            updates, opt_state = update(gradient, opt_state)
        model = optax.apply_updates(model, updates)
        norm = np.sqrt(sum((np.asarray(leaf) ** 2).sum() for leaf in jax.tree.leaves(gradient)))
        rows.append((loss, metrics["error_max"], norm))
    assert int(state.step) == STEPS
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {np.dtype("float64")}
    assert_close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    jax.tree.map(assert_close, state.model, model)
    found = figures(tmp_path)
    assert [row["step"] for row in found] == list(range(5, STEPS + 1, 5))
    loss, largest, norm = np.array(rows).reshape(-1, 5, 3).transpose(2, 0, 1)
    assert_close([r["loss"] for r in found], loss.mean(1))
    assert_close([r["error_max"] for r in found], largest.max(1))
    assert_close([r["gradient_norm"] for r in found], norm.mean(1))


def test_a_run_continued_ends_with_the_same_bits(whole, tmp_path):
    fit(tmp_path, steps=30)
    state = fit(tmp_path)
    assert training.digest(state) == training.digest(whole[1])
    assert figures(tmp_path) == figures(whole[0])


def test_a_run_that_went_further_is_not_cut_short(whole):
    with pytest.raises(
        ValueError, match="steps must be at least 60, which the run has done already, got 30"
    ):
        fit(whole[0], steps=30)
    assert len(figures(whole[0])) == STEPS // 5


def test_a_run_killed_at_any_moment_ends_with_the_same_bits(tmp_path):
    folder, alone = tmp_path / "run", tmp_path / "alone"
    moments = [
        lambda: (folder / "config.json").exists(),  # before anything is compiled
        lambda: _rows(folder) >= 1,  # before there is a checkpoint
        lambda: _saving(folder, 10),  # in the middle of writing the first
        lambda: _saving(folder, 40),
    ]
    for moment in moments:
        process = subprocess.Popen([sys.executable, __file__, str(folder)])
        _wait_until(moment, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    digests = []
    for place in (folder, alone):  # both by processes of their own, which compile alike
        subprocess.run([sys.executable, __file__, str(place)], check=True)
        checkpoints = training.Checkpoints(place / "checkpoints")
        assert checkpoints.latest() == STEPS
        digests.append(training.digest(checkpoints.restore(STEPS, first_state())))
    assert digests[0] == digests[1]
    assert figures(folder) == figures(alone)


def _wait_until(happened, process):
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def _rows(folder):
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def _saving(folder, step):
    return any((folder / "checkpoints").glob(f"{step}?*"))  # Orbax's name until it is whole


def test_rows_behind_the_checkpoint_and_a_torn_row_are_removed(whole, tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = (whole[0] / "metrics.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join(rows[:4]) + rows[4][:20])
    assert [row["step"] for row in training.read_metrics(path)] == [5, 10, 15, 20]
    metrics_files.MetricsFile(path, step=10).close()
    assert path.read_text() == "".join(rows[:2])
    path.write_text(rows[0] + "not json\n" + rows[1])
    with pytest.raises(ValueError, match="got a damaged line 2"):
        training.read_metrics(path)


@pytest.mark.not_in("nans", "JAX stops the run before we do")
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, whole, where):
    def spoiled(state, key, data):
        state, metrics = TRAIN_STEP(state, key, data)
        name = "loss" if where == "loss" else "gradient_norm"
        broken = jnp.where(state.step >= 33, jnp.nan, metrics[name])
        return state, {**metrics, name: broken}

    with pytest.raises(training.NonFiniteError, match=r"at step 33; .*/30' is kept") as e:
        fit(tmp_path, step=spoiled)
    assert e.value.step == 33
    assert figures(tmp_path) == figures(whole[0])[:6]
    state = fit(tmp_path)  # what was kept serves a run without the fault
    assert training.digest(state) == training.digest(whole[1])


@pytest.mark.not_in("nans", "JAX stops the run before we do")
def test_a_real_overflow_is_named_before_any_checkpoint(tmp_path):
    with pytest.raises(training.NonFiniteError, match="at step 1; no checkpoint was written"):
        fit(tmp_path, data=DATA * jnp.inf)


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path, capfd):
    fit(tmp_path, steps=20)
    checkpoints = training.Checkpoints(tmp_path / "checkpoints")
    other = first_state()._replace(model={"w": jnp.zeros((3, 5)), "b": jnp.zeros(4)})
    dtype = other.model["w"].dtype
    with pytest.raises(ValueError, match=rf"whose .*'w'\] is {dtype}\[3, 5\], got {dtype}\[3, 4\]"):
        checkpoints.restore(20, other)
    folder = tmp_path / "checkpoints" / "20"
    seal = next((folder / "seal").glob("metadata"))
    record = json.loads(seal.read_text())
    other_digest = json.dumps({**record, "digest": "0" * 64}).encode()  # as if an array had changed
    manifest = folder / "state" / "manifest.ocdbt"
    refusal = r"checkpoint .*20' is damaged and cannot be read"
    for path, damage in [
        (seal, lambda whole: other_digest),
        (seal, lambda whole: whole[:10]),
        (manifest, lambda whole: whole[: len(whole) // 2]),
        (manifest, lambda whole: b""),
    ]:
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        with pytest.raises(ValueError, match=refusal):
            fit(tmp_path)
        path.write_bytes(whole)
    for file in [file for part in (folder / "state").rglob("d") for file in part.glob("*")]:
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=refusal):
        fit(tmp_path)
    assert capfd.readouterr().err == ""


def test_the_states_given_and_returned_stay_valid():
    state = first_state()
    after = training.fit(TRAIN_STEP, state, key=KEY, steps=5, data=DATA)
    again = training.fit(TRAIN_STEP, state, key=KEY, steps=5, data=DATA)
    assert training.digest(after) == training.digest(again)


def test_a_state_with_its_best_can_be_donated():
    step = training.keep_best(TRAIN_STEP, lambda model, data: -model["b"].sum(), every=1)
    state, bad_step, _ = training.make_chunk(step, 2)(training.with_best(first_state()), KEY, DATA)
    assert int(state.step) == 2 and int(bad_step) == 0


def test_nothing_is_traced_again_from_chunk_to_chunk():
    traces = []

    def counting(model, batch):
        traces.append(1)
        return loss_fn(model, batch)

    step = training.make_train_step(sample, counting, OPTIMIZER)
    for steps in (1, 30):
        traces.clear()
        training.fit(step, first_state(), key=KEY, steps=steps, data=DATA, log_every=1)
        assert len(traces) == 1, steps


def test_a_controller_reads_and_moves_what_the_state_carries():
    step = training.make_train_step(
        sample,
        lambda model, batch, scale: (scale * loss_fn(model, batch)[0], {"scale": scale}),
        OPTIMIZER,
        control=lambda scale, metrics: scale * 2,
    )
    state = training.init_state(first_state().model, OPTIMIZER, extra=jnp.ones(()))
    state, metrics = step(state, KEY, DATA)
    state, metrics = step(state, KEY, DATA)
    assert float(metrics["scale"]) == 2.0 and float(state.extra) == 4.0


def test_a_folder_serves_one_run(tmp_path):
    config = {"tau": 0.1, "steps": 10, "cell": "gru"}
    folder = training.claim_folder(tmp_path / "run", config)
    assert json.loads((folder / "config.json").read_text()) == config
    with pytest.raises(ValueError, match="holds a run already; add --resume"):
        training.claim_folder(folder, config)
    training.claim_folder(folder, {**config, "steps": 20}, resume=True)
    with pytest.raises(ValueError, match=r"tau must be 0\.1, .* got 0\.2: resume it"):
        training.claim_folder(folder, {**config, "tau": 0.2}, resume=True)
    (folder / "config.json").write_text("{")
    with pytest.raises(
        ValueError, match=r"config\.json' must be a JSON object, got a damaged file"
    ):
        training.claim_folder(folder, config, resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="out must be a folder, got the file"):
        training.claim_folder(tmp_path / "file", config)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"log_every": 0}, "log_every must be an integer of at least 1, got 0"),
        ({"checkpoint_every": 7}, "checkpoint_every must be a multiple of log_every = 5, got 7"),
    ],
)
def test_counts_out_of_range_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        training.fit(TRAIN_STEP, first_state(), key=KEY, **{"steps": 10, "log_every": 5, **options})


def test_without_a_checkpoint_every_any_log_every_will_do(tmp_path):
    training.fit(
        TRAIN_STEP, first_state(), key=KEY, steps=1010, data=DATA, log_every=7, directory=tmp_path
    )
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert steps == [1001, 1010]


def test_what_a_state_carries_may_be_python_numbers():
    control = lambda extra, metrics: extra * 0.5
    step = training.make_train_step(
        sample, lambda model, batch, extra: loss_fn(model, batch), OPTIMIZER, control=control
    )
    state = first_state()._replace(extra=0.5)
    after = training.fit(step, state, key=KEY, steps=2, data=DATA, log_every=1)
    assert float(after.extra) == 0.125


def test_progress_is_silent_away_from_a_terminal(capsys):
    training.fit(TRAIN_STEP, first_state(), key=KEY, steps=5, data=DATA)
    assert capsys.readouterr() == ("", "")
    row = {"loss": [1.0, 3.0], "bits_per_character": 2.5, "ponder": 3.25, "ponder_max": 9.0}
    assert describe(row) == "loss 2.0000  bits/char 2.500  ponder 3.25  max 9.0"


if __name__ == "__main__":
    fit(training.claim_folder(pathlib.Path(sys.argv[1]), {"steps": STEPS}, resume=True))


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        ({"a": "much"}, "metrics must hold arrays and numbers, got str at 'a'"),
        ({"a": {"b": 1.0}}, "metrics must hold arrays and numbers, got dict at 'a'"),
        ({1: 1.0}, "metrics must have strings for names, got 1"),
        (None, r"loss_fn must return \(loss, metrics\) with a dict of metrics, got \(.*NoneType\)"),
    ],
)
def test_metrics_that_are_none_are_refused(metrics, sentence):
    step = training.make_train_step(sample, lambda *a: (loss_fn(*a)[0], metrics), OPTIMIZER)
    model = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    state = training.init_state(model, OPTIMIZER)
    with pytest.raises(ValueError, match=sentence):
        jax.eval_shape(step, state, jax.random.key(0), jnp.ones(3))
