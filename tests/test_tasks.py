"""Parity against slow independent Python, over thousands of draws."""

import jax
import numpy as np
import pytest

from actjax.tasks import parity

DRAWS = 4000


def _draw(**options):
    return jax.tree.map(np.asarray, parity.sample(jax.random.key(1), DRAWS, **options))


@pytest.mark.parametrize("layout", parity.LAYOUTS)
def test_every_target_is_the_parity_of_its_ones(layout):
    batch = _draw(bits=12, layout=layout)
    assert set(np.unique(batch.inputs)) == {-1.0, 0.0, 1.0}
    for vector, target, bits in zip(
        batch.inputs[:, 0], batch.targets[:, 0], batch.difficulty[:, 0], strict=True
    ):
        ones = sum(1 for element in vector.tolist() if element == 1.0)
        assert target == ones % 2
        assert bits == sum(1 for element in vector.tolist() if element != 0.0)
    assert batch.mask.all() and (batch.lengths == 1).all()


def test_prefix_fills_the_first_places_and_scattered_any():
    used = _draw(bits=12, layout="prefix").inputs[:, 0] != 0
    assert (np.diff(used.astype(int), axis=1) <= 0).all()

    batch = _draw(bits=12, layout="scattered")
    used = batch.inputs[:, 0] != 0
    for bits in (1, 6, 11):  # each place is used as often as any other, given the number of bits
        rows = used[batch.difficulty[:, 0] == bits]
        expected = bits / 12
        error = np.sqrt(expected * (1 - expected) / len(rows))
        assert np.abs(rows.mean(0) - expected).max() < 5 * error


def test_counts_are_uniform_and_signs_fair():
    three = _draw(bits=10, max_bits=4, min_bits=2)
    assert set(three.difficulty[:, 0]) == {2, 3, 4}
    batch = _draw(bits=10, max_bits=4)
    counts = np.bincount(batch.difficulty[:, 0], minlength=5)
    assert counts[0] == 0 and counts.size == 5
    assert np.abs(counts[1:] / DRAWS - 1 / 4).max() < 5 * np.sqrt(3 / 16 / DRAWS)
    signs = batch.inputs[batch.inputs != 0]
    assert abs(signs.mean()) < 5 / np.sqrt(signs.size)


def test_a_key_decides_the_batch():
    one, same = (parity.sample(jax.random.key(3), 8) for _ in range(2))
    other = parity.sample(jax.random.key(4), 8)
    assert (one.inputs == same.inputs).all() and (one.inputs != other.inputs).any()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"bits": 0}, "bits must be an integer of at least 1, got 0"),
        ({"bits": 8, "max_bits": 9}, "max_bits must be at most bits = 8, got 9"),
        ({"bits": 8, "max_bits": 2, "min_bits": 3}, "min_bits must be at most max_bits = 2, got 3"),
        ({"layout": "suffix"}, "layout must be 'prefix' or 'scattered', got 'suffix'"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
    ],
)
def test_options_out_of_range_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        parity.sample(jax.random.key(0), **{"batch_size": 2, **options})
