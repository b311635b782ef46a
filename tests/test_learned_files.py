"""Learned optimizers in files: the same bits back, or one sentence."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from actjax.learned import (
    CoordinatewiseLSTM,
    GroupedLSTM,
    Head,
    HorizonPrior,
    LearnedOptimizer,
    MassRule,
    StickBreaking,
    files,
    load,
    save,
)

RNGS = nnx.Rngs(0)


def lstm(**options):
    return CoordinatewiseLSTM(3, rngs=RNGS, **options)


KINDS = {
    "plain": lambda: LearnedOptimizer(lstm()),
    "settings": lambda: LearnedOptimizer(
        lstm(
            layers=1, preprocess="raw", p=3.0, see_params=True, output_scale=0.5, output_bias=True
        ),
        Head(3, see_globals=False, width=0, bias=-1.0, rngs=RNGS),
        StickBreaking(HorizonPrior(0.9, horizon=7), kl_weight=0.1),
        MassRule(0.75),
    ),
    "moments": lambda: LearnedOptimizer(lstm(layers=1, preprocess="adam", see_scale=True)),
    "groups": lambda: LearnedOptimizer(
        GroupedLSTM([lstm(), lstm()], (2, 3)), Head(3, width=2, rngs=RNGS)
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_loaded_is_what_was_saved(tmp_path, kind):
    learned = KINDS[kind]()
    save(tmp_path / "it.npz", learned)
    found = load(tmp_path / "it.npz")
    assert jax.tree.structure(found) == jax.tree.structure(learned)  # and with it all settings
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(learned), strict=True):
        np.testing.assert_array_equal(a, b)
    state = found.network.initial_state(jnp.zeros(5))
    ones = jnp.ones(5)
    update = found.network(state, ones, ones, ones)[1]
    np.testing.assert_array_equal(update, learned.network(state, ones, ones, ones)[1])
    assert [file.name for file in tmp_path.iterdir()] == ["it.npz"]


def test_a_flipped_byte_is_refused_or_does_nothing(tmp_path):
    path, learned = tmp_path / "it.npz", lstm(layers=1)
    save(path, learned)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 13):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            found = load(path).network
        except ValueError as error:
            refused += 1
            assert str(error).startswith(("path must be a file", "path must be of"))
        else:  # a time stamp, say
            jax.tree.map(np.testing.assert_array_equal, found, learned)
    assert refused > len(whole) / 13 / 3
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"written by learned.save, whole, got .* damaged"):
        load(path)


def rewritten(path, **changes):
    """The file with other entries in its header and a checksum that fits them."""
    with np.load(path) as file:
        header = json.loads(file["header"].tobytes())
        arrays = {name: file[name] for name in file.files if name != "header"}
    header = {**header, **changes}
    header.pop("sha256")
    header["sha256"] = files._digest(header, arrays)
    np.savez(path, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)


def test_refusals(tmp_path):
    path = tmp_path / "it.npz"
    save(path, lstm(layers=1))
    rewritten(path)
    load(path)
    rewritten(path, version=2)
    text = tmp_path / "text.npz"
    text.write_text("no optimizer")
    np.savez(tmp_path / "other.npz", header=np.zeros(3))

    class Mine(CoordinatewiseLSTM):
        pass

    class MyHead(Head):
        pass

    mine, my_head = Mine(3, rngs=RNGS), MyHead(3, rngs=RNGS)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), lstm(layers=1))
    for call, message in (
        (lambda: load(path), "path must be a file of version 1, .* of version 2"),
        (
            lambda: load(tmp_path / "none.npz"),
            r"path must be a file written .* \(mlp, quadratic, regression\)",
        ),
        (lambda: load("no-such-name"), "got 'no-such-name'"),
        (lambda: load(tmp_path), "path must be a file written by learned.save, or the name"),
        (lambda: load(text), "damaged or no such file"),
        (lambda: load(tmp_path / "other.npz"), "damaged or no such file"),
        (lambda: save(tmp_path, lstm()), "path must be a file that can be written"),
        (lambda: save(tmp_path / "a" / "b.npz", lstm()), "path must be a file that can be written"),
        (lambda: save(path, {}), "learned must be a LearnedOptimizer or its network, got dict"),
        *(
            (
                lambda odd=odd: save(path, odd),
                "learned must be made of the library's own .* got M",
            )
            for odd in (
                mine,
                GroupedLSTM([mine, lstm()], (2, 3)),
                LearnedOptimizer(lstm(), my_head),
            )
        ),
        (
            lambda: save(path, LearnedOptimizer(lstm(), stop=lambda belief: True)),
            "learned must have None or one of MassRule, PriceRule, of plain numbers, for its stop",
        ),
        (lambda: save(path, half), "learned must hold float32 or float64 weights, got bfloat16"),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            call()
        assert str(refused.value).endswith(".") and "\n" not in str(refused.value)
    assert {file.name for file in tmp_path.iterdir()} == {"it.npz", "text.npz", "other.npz"}
