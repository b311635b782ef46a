"""Recycled lanes: what the step is handed, in a sentence where it is not what it has to be."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from actjax import training

ADAM = optax.adam(0.1)


def sample(key, data):
    return jax.random.normal(key, (8, 3))


def start(model, x):
    return jnp.zeros_like(x)


def good(model, x, y):
    y = model(jnp.concatenate([x, y], axis=-1))
    return (y**2).mean(), (y, y[:, 0] > 0, {})


def with_parts(change):
    def loss_fn(model, x, y):
        loss, parts = good(model, x, y)
        return loss, change(*parts)

    return loss_fn


def run(loss_fn, init=training.init_recycled, drawing=sample, starting=start, **options):
    step = training.make_recycled_step(
        drawing, loss_fn, ADAM, start=starting, **{"max_steps": 3} | options
    )
    model = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
    state = training.init_recycled(model, ADAM, sample, start, jax.random.key(0))
    if init is training.init_state:
        state = training.init_state(model, ADAM)
    return jax.eval_shape(step, state, jax.random.key(1))


def begin(drawing=sample, starting=start, mesh=None):
    model = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
    training.init_recycled(model, ADAM, drawing, starting, jax.random.key(0), mesh=mesh)


def mesh_of(name):
    return jax.make_mesh((1,), (name,), devices=jax.devices()[:1])


WRONG = {
    "parts": (
        lambda: run(with_parts(lambda y, done, metrics: metrics)),
        "loss_fn must return (loss, (carried, done, metrics)) with a dict of metrics, got",
    ),
    "done-dtype": (
        lambda: run(with_parts(lambda y, done, metrics: (y, done.astype(jnp.float32), metrics))),
        "done of loss_fn must be bools of shape (8,), one a lane, got shape (8,) of float32",
    ),
    "done-shape": (
        lambda: run(with_parts(lambda y, done, metrics: (y, done.all(), metrics))),
        "done of loss_fn must be bools of shape (8,), one a lane, got shape () of bool",
    ),
    "carried": (
        lambda: run(with_parts(lambda y, done, metrics: (y[:, :2], done, metrics))),
        "carried of loss_fn must hold arrays of shapes (8, 3), got (8, 2)",
    ),
    "metrics": (
        lambda: run(with_parts(lambda y, done, metrics: (y, done, {"recycled": y.mean()}))),
        "metrics must have other names than recycled, next, which are written",
    ),
    "state": (
        lambda: run(good, training.init_state),
        "state must be that of init_recycled, with its lanes in extra, got tuple",
    ),
    "explore": (lambda: run(good, explore=None), "explore must be a share from 0 to 1, got None"),
    "rows": (
        lambda: run(good, drawing=lambda key, data: sample(key, data)[:4]),
        "batch of sample must hold arrays of shapes (8, 3), got (4, 3)",
    ),
    "started": (
        lambda: run(good, starting=lambda model, x: x[:, :1]),
        "carried of start must hold arrays of shapes (8, 3), got (8, 1)",
    ),
    "no-rows": (
        lambda: begin(lambda key, data: {}),
        "batch of sample must hold at least one array of shape [batch, ...], got none",
    ),
    "scalar": (
        lambda: begin(lambda key, data: jnp.ones(())),
        "batch of sample must hold arrays of shape [batch, ...], got shape ()",
    ),
    "begun": (
        lambda: begin(starting=lambda model, x: x[:4]),
        "batch of sample and carried of start must agree on the leading axes [batch, ...], got",
    ),
    "axis": (lambda: run(good, mesh=mesh_of("rows")), "mesh must have an axis 'data', got ('rows"),
    "axis-begun": (lambda: begin(mesh=mesh_of("rows")), "mesh must have an axis 'data', got ('ro"),
    "mesh": (lambda: run(good, mesh=2), "mesh must be a mesh, as make_mesh() is, got 2"),
    "mesh-begun": (lambda: begin(mesh=2), "mesh must be a mesh, as make_mesh() is, got 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_is_refused_in_a_sentence(name):
    call, beginning = WRONG[name]
    with pytest.raises(ValueError) as raised:
        call()
    sentence = str(raised.value)
    assert sentence.startswith(beginning)
    assert sentence.endswith(".")
    assert "Tracer" not in sentence and "Traced" not in sentence


def test_what_is_right_passes():
    _, metrics = run(good)
    assert sorted(metrics) == ["gradient_norm", "loss", "recycled"]
