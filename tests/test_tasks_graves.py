"""Logic, addition and sort against slow, independent Python, for thousands of draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from actjax.tasks import addition, logic, sort

DRAWS = 4096

# Graves 2016, table 1, as printed: one column a gate, rows (P, Q).
TABLE_1 = """
P Q NOR Xq ABJ XOR NAND AND XNOR if/then then/if OR
T T F   F  F   F   F    T   T    T       T       T
T F F   F  T   T   T    F   F    F       T       T
F T F   T  F   T   T    F   F    T       F       T
F F T   F  F   F   T    F   T    T       T       F
"""


@functools.cache
def draw(task, **options):
    sample = jax.jit(functools.partial(task.sample, batch_size=DRAWS, **options))
    return jax.tree.map(np.asarray, sample(jax.random.key(1)))


def assert_uniform(values, low, high):
    """Every value in range, and each as frequent as a uniform draw allows (5 standard errors)."""
    counts = np.bincount(values.ravel(), minlength=high + 1)
    assert counts[:low].sum() == 0 and len(counts) == high + 1
    share = 1 / (high - low + 1)
    error = np.sqrt(share * (1 - share) / values.size)
    np.testing.assert_allclose(counts[low:] / values.size, share, atol=5 * error)


def assert_clean_padding(batch):
    outside = np.arange(batch.inputs.shape[1]) >= batch.lengths[:, None]
    for part in (batch.inputs, batch.targets, batch.mask, batch.difficulty):
        assert not part[outside].any()


def printed_gates():
    header, *rows = [line.split() for line in TABLE_1.strip().splitlines()]
    return [
        {(p == "T", q == "T"): cells[column] == "T" for p, q, *cells in rows}
        for column in range(len(header[2:]))
    ]


def test_logic_follows_equation_21():
    batch, gates = draw(logic), printed_gates()
    assert batch.inputs.shape == (DRAWS, 10, logic.INPUT_SIZE) == (DRAWS, 10, 102)
    for row in range(DRAWS):
        before = None
        for t in range(batch.lengths[row]):
            b0, b1 = batch.inputs[row, t, :2].astype(bool)
            chunks = batch.inputs[row, t, 2:].reshape(10, 10)
            used = chunks.any(axis=1)
            assert used[: batch.difficulty[row, t]].all() and used.sum() == batch.difficulty[row, t]
            if t > 0:
                assert not b0
                b0 = before
            history = [b0, b1]
            for chunk in chunks[used]:
                (gate,) = np.flatnonzero(chunk)
                history.append(gates[gate][bool(history[-1]), bool(history[-2])])
            before = history[-1]
            assert batch.targets[row, t] == before and batch.mask[row, t] == 1


def test_logic_marginals_and_padding():
    batch = draw(logic)
    inside = batch.mask > 0
    np.testing.assert_array_equal(inside.sum(1), batch.lengths)
    assert_uniform(batch.lengths, 1, 10)
    assert_uniform(batch.difficulty[inside], 1, 10)
    chunks = batch.inputs[..., 2:].reshape(-1, 10)
    assert_uniform(chunks.argmax(1)[chunks.any(1)], 0, 9)
    assert_uniform(batch.inputs[:, 0, :2].astype(int), 0, 1)
    assert_uniform(batch.inputs[:, 1:, 1][inside[:, 1:]].astype(int), 0, 1)
    assert_clean_padding(batch)


def test_logic_of_one_difficulty():
    batch = draw(logic, min_length=5, max_length=5, min_gates=7, max_gates=7)
    assert (batch.lengths == 5).all() and (batch.difficulty == 7).all()


def written(number):
    """Six classes of a number as a person writes it, then end markers."""
    text = str(number)
    return [int(digit) for digit in text] + [10] * (6 - len(text))


@pytest.mark.parametrize("options", [{}, {"min_length": 5}], ids=["graves", "fojo"])
def test_addition_sums(options):
    batch = draw(addition, **options)
    assert batch.inputs.shape == (DRAWS, 5, 50) and batch.targets.shape == (DRAWS, 5, 6)
    for row in range(DRAWS):
        total = 0
        for t in range(batch.lengths[row]):
            digits = batch.inputs[row, t].reshape(5, 10)
            shown = digits.any(axis=1)
            assert shown[: batch.difficulty[row, t]].all()
            assert digits.sum() == batch.difficulty[row, t]
            total += int("".join(str(one_hot.argmax()) for one_hot in digits[shown]))
            assert batch.mask[row, t] == (t > 0)
            if t > 0:
                assert batch.targets[row, t].tolist() == written(total)
    assert not batch.mask[:, 0].any()
    np.testing.assert_array_equal(batch.mask.sum(1), batch.lengths - 1)
    assert_uniform(batch.lengths, options.get("min_length", 1), 5)
    inside = np.arange(5) < batch.lengths[:, None]
    assert_uniform(batch.difficulty[inside], 1, 5)
    digits = batch.inputs.reshape(-1, 10)
    assert_uniform(digits.argmax(1)[digits.any(1)], 0, 9)
    assert_clean_padding(batch)


def test_addition_example_of_fojo_figure_6_3():
    sums = jnp.cumsum(jnp.asarray([123, 450, 6789]))
    assert addition.classes(sums[1]).tolist() == [5, 7, 3, 10, 10, 10]
    assert addition.classes(sums[2]).tolist() == [7, 3, 6, 2, 10, 10]
    edges = [0, 9, 10, 99, 100, 99999, 100000, 499995, 999990]
    assert addition.classes(jnp.asarray(edges)).tolist() == [written(sum_) for sum_ in edges]


def test_sort_ranks_numbers():
    batch = draw(sort)
    assert batch.inputs.shape == (DRAWS, 30, 2) and batch.targets.shape == (DRAWS, 30)
    for row in range(DRAWS):
        count = batch.lengths[row] // 2
        numbers = batch.inputs[row, :count, 0]
        ranking = sorted(range(count), key=lambda place: numbers[place])
        assert batch.targets[row, count : 2 * count].tolist() == ranking
        assert np.flatnonzero(batch.inputs[row, :, 1]).tolist() == [count - 1]
        assert np.flatnonzero(batch.mask[row]).tolist() == list(range(count, 2 * count))
        assert not batch.inputs[row, count:].any()
        assert (batch.difficulty[row, : 2 * count] == count).all()
    assert batch.mask.dtype == bool
    assert_uniform(batch.lengths // 2, 2, 15)
    assert_clean_padding(batch)
    reading = np.arange(30) < batch.lengths[:, None] // 2
    numbers = batch.inputs[..., 0][reading]
    error = 5 / np.sqrt(numbers.size)
    np.testing.assert_allclose([numbers.mean(), numbers.var()], [0, 1], atol=2 * error)
    np.testing.assert_allclose((np.abs(numbers) < 1).mean(), 0.6827, atol=error)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (logic, {"min_length": 0}, "min_length must be an integer of at least 1, got 0"),
        (logic, {"max_gates": 11}, "max_gates must be at most 10, got 11"),
        (
            addition,
            {"min_digits": 4, "max_digits": 3},
            "max_digits must be at least min_digits = 4, got 3",
        ),
        (addition, {"max_length": 11}, "max_length must be at most 10, got 11"),
        (sort, {"max_numbers": 16}, "max_numbers must be at most 15, got 16"),
        (sort, {"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
    ],
)
def test_bad_ranges_are_refused(task, options, message):
    with pytest.raises(ValueError, match=message):
        task.sample(jax.random.key(0), **{"batch_size": 2} | options)
