"""The prices task: files good and bad, the walk forward, no look-ahead, and F1."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from actjax import losses
from experiments.tasks import prices
from experiments.tasks.finance import load_prices

NAMES = ("AAA", "BBB", "CCC")


def random_prices(rows=120, seed=0):
    walk = np.random.default_rng(seed).normal(0, 0.01, (rows, len(NAMES))).cumsum(0)
    days = np.datetime64("2020-01-01T00:00:00") + np.arange(rows) * np.timedelta64(1, "D")
    return prices.Prices(days, NAMES, np.exp(walk))


def write(path, rows):
    path.write_text("".join(",".join(row) + "\n" for row in rows))
    return path


def table(rows=5):
    days = [f"2020-01-{day:02}" for day in range(1, rows + 1)]
    return [["Date", *NAMES], *([day, "1.5", "2", "3e1"] for day in days)]


def test_the_prices_shipped_are_22_etfs_without_gaps():
    found = load_prices("etf")
    assert found.values.shape == (2141, 22) and len(set(found.names)) == 22
    assert str(found.dates[0])[:10] == "2008-01-02" and str(found.dates[-1])[:10] == "2016-07-01"
    assert (np.diff(found.dates) > np.timedelta64(0)).all() and (found.values > 0).all()
    splits = prices.walk_forward(found)
    assert [len(part) for part in splits[0]] == [1000, 125, 125]


def test_plain_and_packed_files_and_timestamps(tmp_path):
    rows = table()
    for minute, row in enumerate(rows[1:]):
        row[0] = f"2020-01-01 09:{minute * 5:02}:00"
    plain = write(tmp_path / "a.csv", rows)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    for found in (prices.read(plain), prices.read(tmp_path / "a.csv.gz")):
        assert found.names == NAMES
        np.testing.assert_array_equal(found.values, [[1.5, 2, 30]] * 5)
        np.testing.assert_array_equal(np.diff(found.dates).astype(int), 300)


def test_what_pandas_writes_is_read_whatever_the_instruments_are_called(tmp_path):
    names = ("600519", "NAN", "INF", "1e5")
    rows = [["", *names], ["2020-01-01", *"1234"], ["2020-01-02", *"5678"]]
    found = prices.read(write(tmp_path / "p.csv", rows))
    assert found.names == names
    np.testing.assert_array_equal(found.values, [[1, 2, 3, 4], [5, 6, 7, 8]])


def test_timestamps_of_several_zones_are_put_in_order(tmp_path):
    rows = table(2)
    rows[1][0], rows[2][0] = "2020-01-01T09:00:00+08:00", "2020-01-01T09:00:00+05:00"
    found = prices.read(write(tmp_path / "a.csv", rows))
    assert np.diff(found.dates).astype(int).tolist() == [3 * 3600]
    with pytest.raises(
        ValueError, match=r"must hold dates that ascend, .* after a later one in row 3"
    ):
        prices.read(write(tmp_path / "b.csv", [rows[0], rows[2], rows[1]]))


@pytest.mark.parametrize(
    ("row", "column", "cell", "sentence"),
    [
        (3, 2, "", "a price above 0 in every cell, got '' in row 3, column 'BBB' of"),
        (3, 2, "n/a", "a price above 0 in every cell, got 'n/a' in row 3, column 'BBB' of"),
        (2, 1, "0", "a price above 0 in every cell, got '0' in row 2, column 'AAA' of"),
        (6, 3, "-1.5", "a price above 0 in every cell, got '-1.5' in row 6, column 'CCC' of"),
        (4, 1, "nan", "a price above 0 in every cell, got 'nan' in row 4, column 'AAA' of"),
        (
            4,
            0,
            "2020-01-02",
            "ascend, got '2020-01-02' for the second time in row 4, column 'Date'",
        ),
        (5, 0, "2020-01-02", "ascend, got '2020-01-02' after a later one in row 5, column 'Date'"),
        (4, 0, "soon", "dates such as 2008-01-02 09:35, got 'soon' in row 4, column 'Date' of"),
        (4, 0, "2020-01-03T00:00Z", "a time zone with every date or with none, got '2020-01-03T00"),
        (1, 2, "AAA", "name every column once, got 'AAA' in row 1, column 3 of"),
        (1, 2, "", "name every instrument, got '' in row 1, column 3 of"),
        (1, 0, "2020-01-01", "name its columns in the first row, got '2020-01-01' in row 1 of"),
        (4, 3, "1,2", "have 4 cells in a row, as the header, got 5 in row 4 of"),
    ],
)
def test_a_cell_that_cannot_serve_is_refused_by_row_and_column(
    tmp_path, row, column, cell, sentence
):
    rows = table()
    rows[row - 1][column] = cell
    with pytest.raises(ValueError) as refusal:
        prices.read(write(tmp_path / "p.csv", rows))
    said = str(refusal.value)
    assert said.startswith("data file must ") and sentence in said and "p.csv" in said


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "empty"),
        (b"\n\n", r"a column of dates and one an instrument, got \[\] in row 1"),
        (b"Date;A;B\n2020-01-01;1;2\n", "separate its columns by commas, got ';' in row 1"),
        (b"Date\tA\n2020-01-01\t1\n", r"separate its columns by commas, got '\\t' in row 1"),
        (b"Date,A\n2020-01-01,1\n", "hold at least 2 rows of prices, got 1 in"),
        (b"Date,\xff\n", "must be text in UTF-8"),
        (b'Date,A\n2020-01-01,"1\n', "must be CSV, got 'unexpected end of data' in row 2"),
        (gzip.compress(b"Date,A\n" * 50)[:-9], "truncated or damaged"),
    ],
    ids=["empty", "blank", "semicolons", "tabs", "short", "latin", "quote", "cut-gzip"],
)
def test_a_file_that_cannot_serve_is_refused(tmp_path, content, sentence):
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        prices.read(tmp_path / "p.csv")


def test_instances_move_forward_and_no_row_is_tested_twice():
    splits = prices.walk_forward(random_prices(), train=40, validation=10, test=15)
    for split in splits:
        assert [len(part) for part in split] == [40, 10, 15]
        assert split.train.stop == split.validation.start
        assert split.validation.stop == split.test.start
    assert [split.test for split in splits] == [range(74, 89), range(89, 104), range(104, 119)]


def test_instances_in_weeks_begin_on_mondays():
    found = random_prices(91)  # 90 daily returns from Thursday 2020-01-02 on: 13 weeks and a bit
    (split,) = prices.walk_forward(found, train=4, validation=1, test=2, instances=1, unit="weeks")
    assert [len(part) for part in split] == [28, 7, 9]  # the last week has 2 days
    for part in split:
        assert found.dates[part.start + 1].astype("datetime64[D]").astype(object).weekday() == 0
    with pytest.raises(
        ValueError, match=r"prices must be at least 53 weeks of returns for 3 instances .*, got 14"
    ):
        prices.walk_forward(found, train=49, validation=1, test=1, unit="weeks")


def test_too_few_rows_are_refused():
    with pytest.raises(
        ValueError, match=r"at least 1500 rows of returns for 3 instances of .*, got 119"
    ):
        prices.walk_forward(random_prices())
    split = prices.Split(range(20), range(20, 29), range(29, 60))
    with pytest.raises(
        ValueError, match="train must be at least 21 rows, as a window needs, got 20"
    ):
        prices.prepare(random_prices(), split)
    split = split._replace(train=range(30))
    with pytest.raises(
        ValueError, match="validation must be at least 10 rows, as a window needs, got 9"
    ):
        prices.prepare(random_prices(), split, mode="seq2seq")
    still = random_prices()
    still.values[:31, 1] = 1.5
    with pytest.raises(ValueError, match="changing during training in every column, got 'BBB'"):
        prices.prepare(still, split, window=5)


@pytest.mark.parametrize("mode", prices.MODES)
def test_nothing_looks_ahead(mode):
    found = random_prices()
    split = prices.walk_forward(found, train=60, validation=20, test=20, instances=1)[0]
    options = {"window": 6, "mode": mode, "horizon": 3}
    whole = prices.prepare(found, split, **options)
    lead, _ = prices.steps(**options)
    for boundary in (split.train.stop, split.validation.stop):
        values = found.values.copy()  # prices[boundary] closes the last return before it
        values[boundary + 1 :] = np.random.default_rng(1).permutation(values[boundary + 1 :])
        shuffled = prices.prepare(found._replace(values=values), split, **options)
        np.testing.assert_array_equal(shuffled.mean, whole.mean)
        np.testing.assert_array_equal(shuffled.deviation, whole.deviation)
        for name, rows in zip(split._fields, split, strict=True):
            known = max(0, boundary - rows.start + (0 if name == "train" else lead))
            for before, after in zip(getattr(whole, name), getattr(shuffled, name), strict=True):
                np.testing.assert_array_equal(before[:known], after[:known])
                assert known >= len(before) or (before[known:] != after[known:]).any()


@pytest.mark.parametrize("mode", prices.MODES)
def test_windows_end_before_what_they_predict_and_targets_lie_in_their_period(mode):
    rows = np.arange(40)[:, None]
    series = prices.Series(jnp.asarray(rows, jnp.float32), jnp.asarray(rows))
    options = {"window": 5, "mode": mode, "horizon": 3}
    batch = prices.windows(series, **options)
    inputs, targets = np.asarray(batch.inputs)[..., 0], np.asarray(batch.targets)[..., 0]
    assert targets.max() == 39 and inputs.min() == 0
    if mode == "rnn":
        np.testing.assert_array_equal(targets, inputs + 1)
    else:
        np.testing.assert_array_equal(targets, inputs[:, -1:] + [1, 2, 3])
    drawn = prices.sample(jax.random.key(0), 2000, series=series, **options)
    assert set(np.asarray(drawn.inputs)[:, 0, 0].tolist()) == set(inputs[:, 0].tolist())
    lead, _ = prices.steps(**options)
    assert targets.min() == lead  # so that `lead` rows before a period put its first row there


def test_thresholds_are_deviations_of_the_training_rows():
    found = random_prices()
    split = prices.walk_forward(found, train=60, validation=20, test=20, instances=1)[0]
    instance = prices.prepare(found, split, thresholds=(-1.5, 0.0))
    for k in range(len(NAMES)):
        p = found.values[:, k]
        change = [float(np.log(p[i + 1] / p[i])) for i in range(len(p) - 1)]
        training = [change[i] for i in split.train]
        mean = sum(training) / 60
        deviation = (sum((r - mean) ** 2 for r in training) / 60) ** 0.5
        for place, i in enumerate(split.test):
            z = (change[i] - mean) / deviation
            assert instance.test.classes[place + 1, k] == (z >= -1.5) + (z >= 0)
            np.testing.assert_allclose(instance.test.inputs[place + 1, k], z, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"thresholds must be ascending"):
        prices.prepare(found, split, thresholds=(1.0, -1.0))


def slow_f1(predictions, targets, classes):
    scores = []
    for c in range(classes):
        pairs = list(zip(predictions, targets, strict=True))
        right = sum(p == c and t == c for p, t in pairs)
        claimed, there = sum(p == c for p, _ in pairs), sum(t == c for _, t in pairs)
        if claimed + there == 0:
            continue
        precision = right / claimed if claimed else 0.0
        recall = right / there if there else 0.0
        both = precision + recall
        scores.append(2 * precision * recall / both if both else 0.0)
    return sum(scores) / len(scores)


def test_f1_equals_a_slow_reference():
    rng = np.random.default_rng(0)
    targets = rng.choice(5, (40, 3, 4), p=[0.02, 0.1, 0.76, 0.1, 0.02])
    predictions = np.where(rng.random(targets.shape) < 0.5, targets, 2)
    targets[:, 0, 0] = predictions[:, 0, 0] = 2  # one class alone, always right
    predictions[:, 1, 1] = 4  # never right
    targets[:, 1, 1] = 2
    mask = rng.random((40, 3)) < 0.8
    halves = [
        losses.confusion(*map(jnp.asarray, (predictions[h], targets[h], mask[h])), classes=5)
        for h in (slice(15), slice(15, None))
    ]
    found = losses.f1(halves[0] + halves[1])
    for s in range(3):
        for k in range(4):
            here = mask[:, s]
            expected = slow_f1(predictions[here, s, k], targets[here, s, k], 5)
            np.testing.assert_allclose(found[s, k], expected, rtol=1e-6)
    assert found[0, 0] == 1 and found[1, 1] == 0
    with pytest.raises(ValueError, match="predictions, targets and mask must have"):
        losses.confusion(jnp.zeros((2, 3)), jnp.zeros((2, 3, 1)), jnp.ones((2, 3), bool), classes=5)
