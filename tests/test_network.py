"""The network of the experiments: its loop and its first weights, as the options say."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.network import chosen_loop, make_network
from experiments.options import Options
from experiments.run import FREE

SMALL = Options(hidden=8, max_steps=4)


@pytest.mark.parametrize(
    ("backend", "changes", "expected"),
    [
        ("cpu", {}, "while"),
        ("gpu", {}, "kernel"),
        ("gpu", {"cell": "lstm", "hidden": 256, "init": "glorot"}, "kernel"),
        ("gpu", {"cell": "gru", "hidden": 300}, "while"),
        ("gpu", {"model": "lfact"}, "while"),
        ("gpu", {"min_steps": 2}, "while"),
        ("gpu", {"lanes": 4}, "while"),
        ("gpu", {"loop": "scan"}, "scan"),
        ("cpu", {"loop": "kernel"}, "kernel"),
    ],
)
def test_a_network_takes_the_kernel_where_it_can(monkeypatch, backend, changes, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert chosen_loop(dataclasses.replace(SMALL, **changes)) == expected


def test_a_run_may_go_on_with_another_loop():
    assert "loop" in FREE


@pytest.mark.parametrize("model", ["act", "lfact", "repeat"])
def test_glorot_all_starts_halting_unit_and_read_out_after_glorot_too(model):
    make = lambda init: make_network(
        dataclasses.replace(SMALL, model=model, init=init, hidden=40), 0, 3, 2
    )
    every, cell = make("glorot_all"), make("glorot")
    changed = []
    for (path, one), (_, other) in zip(nnx.iter_graph(every), nnx.iter_graph(cell), strict=True):
        if isinstance(one, nnx.Linear):
            fan = sum(one.kernel.shape)
            if not np.array_equal(one.kernel[...], other.kernel[...]):
                changed.append(path)
                limit = np.sqrt(6 / fan)
                assert 0.8 * limit < np.abs(one.kernel[...]).max() <= limit
    names = {str(path[-1]) for path in changed}
    expected = {"act": {"halt", "readout"}, "repeat": {"readout"}}
    assert names == expected.get(model, {"primary", "transmitted", "readout"})
