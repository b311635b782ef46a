"""Classes of price changes (LFACT 2020, section 4.1): what moves how far, for many instruments.

The way of the data: `read` a file, take `walk_forward` splits of it, `prepare` one of them, then
`sample` windows to train on and take all `windows` of a period to measure.

    prices [n + 1, K] -> returns [n, K] -> standardised with the training part's mean and deviation
        inputs  float32 [n, K]: the standardised returns z of all K instruments
        classes int32   [n, K]: where z lies among the thresholds, -2, -1, 1 and 2 deviations

Nothing looks ahead: a mean or deviation knows the training part alone, a window's inputs end
before the first change it predicts, and no training window reaches into a later period.
"""

import csv
import datetime
import io
import itertools
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from actjax._checks import check_choice, check_positive
from actjax.tasks import text
from actjax.tasks.batch import Batch
from experiments.options import require

MODES = ("rnn", "seq2seq")
UNITS = ("rows", "weeks")
THRESHOLDS = (-2.0, -1.0, 1.0, 2.0)


class Prices(NamedTuple):
    """A file of prices.

    Attributes:
      dates: datetime64[s] [n + 1], ascending.
      names: the K instruments.
      values: float64 [n + 1, K], above 0.
    """

    dates: np.ndarray
    names: tuple[str, ...]
    values: np.ndarray


class Split(NamedTuple):
    """One instance of the walk forward: places of returns; return i is that of `dates[i + 1]`."""

    train: range
    validation: range
    test: range


class Series(NamedTuple):
    """Consecutive returns as a network sees them.

    Attributes:
      inputs: float32 [n, K], standardised returns.
      classes: int32 [n, K], 0 to the number of thresholds.
    """

    inputs: Array
    classes: Array


class Instance(NamedTuple):
    """A split ready to train on; validation and test begin with the rows their first target needs.

    Attributes:
      train, validation, test: `Series`.
      mean: float64 [K], of the training returns.
      deviation: float64 [K], their standard deviation.
    """

    train: Series
    validation: Series
    test: Series
    mean: np.ndarray
    deviation: np.ndarray


def sample(key: Array, batch_size: int, *, series: Series, **window_options: Any) -> Batch:
    """Draws B windows at uniformly random places of `series`; options and result as of `windows`.

    Example:
      >>> rows = jnp.arange(30)[:, None]
      >>> series = Series(inputs=rows.astype(jnp.float32), classes=rows % 5)
      >>> batch = sample(jax.random.key(0), 2, series=series, window=4, mode="seq2seq", horizon=3)
      >>> batch.inputs.shape, batch.targets.shape
      ((2, 4, 1), (2, 3, 1))
      >>> bool((batch.targets[:, 0] == (batch.inputs[:, -1] + 1) % 5).all())
      True
    """
    check_positive("batch_size", batch_size)
    places = _places(series, *steps(**window_options))
    start = jax.random.randint(key, (batch_size,), 0, places)
    return windows(series, start, **window_options)


def windows(
    series: Series,
    start: Array | None = None,
    *,
    window: int = 20,
    mode: str = "rnn",
    horizon: int = 10,
) -> Batch:
    """Windows of `series`, one a row: all of them in their order, for evaluation, or some.

    Args:
      series: what to draw from; on the device already, it stays there.
      start: int [B], their first rows, which the caller keeps inside `series`.
      window: T, the input steps of a window.
      mode: "rnn" to predict the next row's classes at every input step, "seq2seq" to predict those
        of the `horizon` rows behind the window.
      horizon: rows to predict in mode "seq2seq".

    Returns:
      Batch: inputs [B, T, K]; targets int32 [B, S, K] and mask [B, S] all ones, for the S
      prediction steps, T in mode "rnn" and `horizon` in mode "seq2seq"; lengths [B] = T;
      difficulty [B, T] zero (prices have none).

    Raises:
      ValueError: for a size below 1, an unknown mode, or a series shorter than a window.

    Example:
      >>> rows = jnp.arange(8)[:, None]
      >>> batch = windows(Series(inputs=rows * 1.0, classes=rows), window=3)
      >>> batch.inputs[:, :, 0].tolist()[:2], batch.targets[:, :, 0].tolist()[:2]
      ([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]], [[1, 2, 3], [2, 3, 4]])
    """
    lead, count = steps(window, mode, horizon)
    start = jnp.arange(_places(series, lead, count)) if start is None else start
    targets = series.classes[start[:, None] + lead + jnp.arange(count)[None]]
    none = jnp.zeros((len(start), window), jnp.int32)
    return Batch(
        inputs=series.inputs[start[:, None] + jnp.arange(window)[None]],
        targets=targets,
        mask=jnp.ones(targets.shape[:2], bool),
        lengths=none[:, 0] + window,
        difficulty=none,
    )


def steps(window: int = 20, mode: str = "rnn", horizon: int = 10) -> tuple[int, int]:
    """Rows from a window's first input to its first target, and its number of targets."""
    check_choice("mode", mode, MODES)
    check_positive("window", window)
    check_positive("horizon", horizon)
    return (1, window) if mode == "rnn" else (window, horizon)


def walk_forward(
    prices: Prices,
    *,
    train: int = 1000,
    validation: int = 125,
    test: int = 125,
    instances: int = 3,
    unit: str = "rows",
) -> list[Split]:
    """Instances that move forward: train, the validation right after it, the test right after that.

    Each begins a test period later than the one before, so that no row is tested twice, and the
    last ends with the file. The defaults are for daily data: four years to train on, half a year
    each to validate and to test. The paper's, for 5-minute data, are 50, 1 and 1 weeks.

    Args:
      prices: n + 1 rows.
      train, validation, test: lengths of the periods.
      instances: how many.
      unit: what lengths count: "rows" (returns), or "weeks" from Monday to Sunday that have any.

    Raises:
      ValueError: for a length below 1, an unknown unit, or too few rows.

    Example:
      >>> ten = Prices(np.arange(10).astype("datetime64[D]"), ("A",), np.ones((10, 1)))
      >>> for split in walk_forward(ten, train=4, validation=1, test=2, instances=2):
      ...     print(*split)
      range(0, 4) range(4, 5) range(5, 7)
      range(2, 6) range(6, 7) range(7, 9)
    """
    lengths = {"train": train, "validation": validation, "test": test, "instances": instances}
    for name, value in lengths.items():
        check_positive(name, value)
    check_choice("unit", unit, UNITS)
    size = len(prices.dates) - 1
    edges = np.arange(size + 1)
    if unit == "weeks":
        monday = np.datetime64("1969-12-29")
        week = (prices.dates[1:].astype("datetime64[D]") - monday).astype(int) // 7
        edges = np.array([0, *(np.flatnonzero(np.diff(week)) + 1), size])
    have, need = len(edges) - 1, train + validation + instances * test
    allowed = f"at least {need} {unit} of returns for {instances} instances of {train = }, "
    require(have >= need, "prices", f"{allowed}{validation = } and {test = }", have)
    splits = []
    for later in reversed(range(instances)):
        end = have - later * test
        places = [end - test - validation - train, end - test - validation, end - test, end]
        splits.append(
            Split(*(range(*edges[list(pair)].tolist()) for pair in itertools.pairwise(places)))
        )
    return splits


def prepare(
    prices: Prices,
    split: Split,
    *,
    thresholds: tuple[float, ...] = THRESHOLDS,
    **window_options: Any,
) -> Instance:
    """Standardises and classifies the returns of one split.

    A return is the logarithm of the ratio of two consecutive prices. Each instrument's mean and
    standard deviation come from the training rows alone. A class is the number of thresholds at or
    below the standardised return: with the default ones 2 is a change of less than one deviation
    from the mean, 3 and 4 are rises of at least one and two, 1 and 0 falls of more than one and
    two. (The paper says five classes, one of which is "within one standard deviation".)

    All targets of a window of validation and test lie in their period; its inputs may begin before
    it, as a forecast's would.

    Args:
      prices, split: from `read` and `walk_forward`.
      thresholds: in standard deviations, ascending.
      window_options: as of `windows`.

    Raises:
      ValueError: for thresholds that do not ascend, a period shorter than a window's targets, or an
        instrument whose price does not change during training.
    """
    lead, count = steps(**window_options)
    ascend = all(low < high for low, high in itertools.pairwise(thresholds))
    require(ascend and len(thresholds) > 0, "thresholds", "ascending, at least one", thresholds)
    for name, rows, least in zip(Split._fields, split, (lead + count, count, count), strict=True):
        require(len(rows) >= least, name, f"at least {least} rows, as a window needs", len(rows))
    returns = np.diff(np.log(prices.values), axis=0)
    training = returns[split.train.start : split.train.stop]
    mean, deviation = training.mean(0), training.std(0)
    still = prices.names[int(np.argmin(deviation))]
    require((deviation > 0).all(), "prices", "changing during training in every column", still)

    def series(rows: range, history: int) -> Series:
        z = (returns[rows.start - history : rows.stop] - mean) / deviation
        classes = np.searchsorted(thresholds, z, side="right")
        return Series(z.astype(np.float32), classes.astype(np.int32))

    later = (series(rows, lead) for rows in split[1:])
    return Instance(series(split.train, 0), *later, mean, deviation)


def read(path: str | pathlib.Path) -> Prices:
    """Reads a CSV file of prices: plain, or packed as `actjax.tasks.text.read` knows.

    The first row names the columns, the first of which needs no name and holds ISO 8601 dates or
    timestamps in ascending order, all of them with a time zone or none; each other column holds
    the prices of one instrument.

    Raises:
      ValueError: where the file cannot be read or a cell cannot serve; it names the row, counting
        the header as row 1, and the column.
    """
    (_, header), *body = _rows(path)
    names = [name.strip() for name in header]
    _check_header(path, names)
    if len(body) < 2:
        _refuse(path, 1, "hold at least 2 rows of prices", len(body))
    dates, values = [], np.empty((len(body), len(names) - 1))
    for place, (number, cells) in enumerate(body):
        if len(cells) != len(names):
            _refuse(path, number, f"have {len(names)} cells in a row, as the header", len(cells))
        dates.append(_date(path, number, names[0], cells[0]))
        if place:
            _check_order(path, number, names[0], dates, cells[0])
        values[place] = _prices(path, number, names[1:], cells[1:])
    utc = lambda date: date.astimezone(datetime.UTC).replace(tzinfo=None) if date.tzinfo else date
    return Prices(np.array([*map(utc, dates)], "datetime64[s]"), tuple(names[1:]), values)


def _rows(path: str | pathlib.Path) -> list[tuple[int, list[str]]]:
    """The rows of a file that are not blank, at least one, each with its number."""
    try:
        plain = text.read(path).tobytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        allowed, got = f"text in UTF-8, got {error.reason}", str(path)
        raise ValueError(f"data file must be {allowed} in {got!r}.") from error
    reader = csv.reader(io.StringIO(plain, newline=""), strict=True)
    try:
        rows = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        _refuse(path, reader.line_num, "be CSV", str(error))
    return rows or [(1, [])]


def _check_header(path: str | pathlib.Path, names: list[str]):
    if len(names) < 2:
        other = next((sign for sign in ";\t|" if sign in "".join(names)), None)
        if other:
            _refuse(path, 1, "separate its columns by commas", other)
        _refuse(path, 1, "have a column of dates and one an instrument", names)
    if _as_date(names[0]):
        _refuse(path, 1, "name its columns in the first row", names[0])
    for place, name in enumerate(names[1:], 2):
        if not name:
            _refuse(path, 1, "name every instrument", name, place)
        if name in names[: place - 1]:
            _refuse(path, 1, "name every column once", name, place)


def _date(path: str | pathlib.Path, row: int, column: str, cell: str) -> datetime.datetime:
    date = _as_date(cell)
    return date or _refuse(path, row, "hold dates such as 2008-01-02 09:35", cell, column)


def _as_date(cell: str) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(cell.strip())
    except ValueError:
        return None


def _check_order(path, row: int, column: str, dates: list[datetime.datetime], cell: str):
    *_, before, date = dates
    if (date.tzinfo is None) != (before.tzinfo is None):
        _refuse(path, row, "give a time zone with every date or with none", cell, column)
    if date <= before:
        fault = "for the second time" if date == before else "after a later one"
        _refuse(path, row, "hold dates that ascend", cell, column, fault)


def _prices(path, row: int, names: list[str], cells: list[str]) -> list[float]:
    values = [_number(cell) for cell in cells]
    for name, cell, value in zip(names, cells, values, strict=True):
        if value is None or not 0 < value < math.inf:
            _refuse(path, row, "hold a price above 0 in every cell", cell, name)
    return values


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _refuse(path, row: int, allowed: str, got: Any, column: Any = None, fault: str = ""):
    place = f"row {row}" if column is None else f"row {row}, column {column!r}"
    fault = f" {fault}" if fault else ""
    raise ValueError(f"data file must {allowed}, got {got!r}{fault} in {place} of {str(path)!r}.")


def _places(series: Series, lead: int, count: int) -> int:
    """The number of windows with their targets that start at different places."""
    rows, span = len(series.classes), lead + count
    require(rows >= span, "series", f"at least {span} rows, a window with its targets", rows)
    return rows - span + 1
