"""Sudokus with one solution each: made here, or read from a file.

    python -m experiments.data.sudoku --size 9 --count 1000 --seed 0 --out sudoku9.csv.gz

makes puzzles by digging holes into a full grid in random order, each with the solver's proof that
the solution stays the only one. The files that ship were made by the commands in ATTRIBUTION.md.
"""

import argparse
import csv
import gzip
import io
import pathlib
import random
from collections.abc import Sequence

import numpy as np

from actjax.tasks.puzzles import Puzzles
from actjax.tasks.sudoku import BOXES, units
from experiments.data.held_out import split_alike

BLANKS = "0.*_"  # what files have in the place of a digit


class Solver:
    """Backtracking on the cell with fewest candidates; candidates are the bits of an integer."""

    def __init__(self, size: int):
        self.size, self.full = size, (1 << size) - 1
        self.units = [(r, size + c, 2 * size + b) for r, c, b in np.asarray(units(size)).T.tolist()]

    def solutions(self, board: Sequence[int], limit: int = 2) -> list[list[int]]:
        """Up to `limit` ways to fill the holes of `board`."""
        found: list[list[int]] = []
        self._search(list(board), self._used(board), _holes(board), found, limit)
        return found

    def grid(self, rng: random.Random) -> list[int]:
        """A full grid, drawn at random."""
        board, found = [0] * self.size**2, []
        self._search(board, self._used(board), _holes(board), found, 1, rng)
        return found[0]

    def is_forced(self, board: Sequence[int], cell: int) -> bool:
        """Whether `board`, which has one solution, would still have one with a hole at `cell`."""
        other = list(board)
        other[cell] = 0
        used = self._used(other)
        a, b, c = self.units[cell]
        free = self.full & ~(used[a] | used[b] | used[c]) & ~(1 << (board[cell] - 1))
        for value in range(self.size):
            if free >> value & 1:
                other[cell] = value + 1
                if self.solutions(other, limit=1):
                    return False
        return True

    def _used(self, board):
        """The digits that each row, column and box has."""
        used = [0] * (3 * self.size)
        for value, places in zip(board, self.units, strict=True):
            if value:
                for unit in places:
                    used[unit] |= 1 << (value - 1)
        return used

    def _search(self, board, used, empty, found, limit, rng=None):
        if not empty:
            found.append(list(board))
            return
        fewest, best, candidates = self.size + 1, 0, 0
        for place, cell in enumerate(empty):
            a, b, c = self.units[cell]
            free = self.full & ~(used[a] | used[b] | used[c])
            count = free.bit_count()
            if count < fewest:
                fewest, best, candidates = count, place, free
                if count < 2:
                    break
        cell, rest = empty[best], empty[:best] + empty[best + 1 :]
        values = [value for value in range(self.size) if candidates >> value & 1]
        if rng:
            rng.shuffle(values)
        for value in values:
            for unit in self.units[cell]:
                used[unit] |= 1 << value
            board[cell] = value + 1
            self._search(board, used, rest, found, limit, rng)
            for unit in self.units[cell]:
                used[unit] &= ~(1 << value)
            if len(found) >= limit:
                break
        board[cell] = 0


def _holes(board):
    return [cell for cell, value in enumerate(board) if not value]


def make(size: int, count: int, seed: int, holes: tuple[int, int] | None = None) -> Puzzles:
    """Makes puzzles with one solution each.

    Holes are dug until a number drawn from `holes` is reached or no more cell can be emptied, so
    that a high number gives puzzles from which nothing can be taken away.

    Args:
      size: 4, 6 or 9.
      count: how many.
      seed: the puzzles are a function of it and of the other arguments.
      holes: fewest and most holes wanted; from a third of the cells to all of them unless given.

    Example:
      >>> puzzles = make(4, 3, seed=0)
      >>> puzzles.boards.shape, puzzles.solutions.min()
      ((3, 16), np.int8(1))
    """
    if size not in BOXES:
        raise ValueError(f"size must be one of {', '.join(map(str, BOXES))}, got {size!r}.")
    low, high = (size * size // 3, size * size) if holes is None else holes
    if not 1 <= low <= high:
        raise ValueError(f"holes must be a range that begins at 1 or above, got {low} to {high}.")
    solver, rng = Solver(size), random.Random(seed)
    boards, solutions = [], []
    for _ in range(count):
        solution = solver.grid(rng)
        board, wanted = list(solution), rng.randint(low, high)
        for cell in rng.sample(range(size * size), size * size):
            if board.count(0) >= wanted:
                break
            if solver.is_forced(board, cell):
                board[cell] = 0
        boards.append(board)
        solutions.append(solution)
    return Puzzles(np.array(boards, np.int8), np.array(solutions, np.int8))


def fingerprints(boards: np.ndarray) -> np.ndarray:
    """A number for each board that no symmetry changes, uint64 [P].

    Colours of cells are refined by the sums of the colours in their row, column and box and of the
    cells with the same digit; boards of different numbers are different up to symmetry.
    """
    parts = np.array_split(boards, max(1, len(boards) // 1024))  # [cells, cells] a board at work
    return np.concatenate([_fingerprints(part) for part in parts])


def _fingerprints(boards: np.ndarray) -> np.ndarray:
    size = int(np.sqrt(boards.shape[1]))
    row, column, box = np.asarray(units(size))
    lines = (row[:, None] == row).astype(np.uint64) + (column[:, None] == column).astype(np.uint64)
    square = (box[:, None] == box).astype(np.uint64)
    alike = ((boards[:, :, None] == boards[:, None]) & (boards[:, :, None] > 0)).astype(np.uint64)
    with np.errstate(over="ignore"):
        colour = _mix((boards > 0).astype(np.uint64), 1)
        for _ in range(5):
            same = np.einsum("pij,pj->pi", alike, colour)
            colour = _mix(
                _mix(colour, 2) + colour @ lines + _mix(colour @ square, 3) + _mix(same, 4), 5
            )
        return _mix(colour, 6).sum(1)


def _mix(values: np.ndarray, salt: int) -> np.ndarray:
    values = (values + np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15)
    values ^= values >> np.uint64(29)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    return values ^ (values >> np.uint64(32))


def split(puzzles: Puzzles, held_out: float = 0.2) -> tuple[Puzzles, Puzzles]:
    """Splits puzzles in two: (to train on, to test on), no two alike by symmetry across or within.

    Args:
      held_out: about which part of them is for the test, above 0 and below 1.

    Raises:
      ValueError: where either part would be empty.
    """
    return split_alike(puzzles, fingerprints(puzzles.boards), held_out)


def read(path: str | pathlib.Path) -> Puzzles:
    """Reads puzzles from a CSV file, plain or gzip, in the usual form.

    A line is a puzzle and its solution, cells line by line; holes are 0 or a dot. Columns may be
    called quizzes or puzzle or question, solutions or solution or answer; the first two are taken
    unless there is such a header.

    Raises:
      ValueError: where the file cannot be read, holds no puzzles, or a line is not a board of the
        others' size with the digits of its solution.
    """
    path = pathlib.Path(path)
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        rows = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"))) if row]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"puzzles must be a file that can be read, got {str(path)!r}: {error}."
        ) from error
    names = [cell.strip().lower() for cell in rows[0]] if rows else []
    header = bool(names) and not names[0][:1].isdigit() and names[0][:1] not in BLANKS
    columns = [
        next((place for place, name in enumerate(names) if name.startswith(known)), default)
        for known, default in ((("quiz", "puzzle", "question"), 0), (("solution", "answer"), 1))
    ]
    boards = [
        [_cells(row, place, number, path) for place in columns]
        for number, row in enumerate(rows[header:], 1 + header)
    ]
    if not boards:
        raise ValueError(f"puzzles must be one or more lines of a file, got none in {str(path)!r}.")
    found = _checked(boards, path, 1 + header)
    return Puzzles(found[:, 0], found[:, 1])


def _cells(row: list[str], place: int, number: int, path: pathlib.Path) -> list[int]:
    text = row[place].strip() if place < len(row) else ""
    if not text or not all(letter.isdigit() or letter in BLANKS for letter in text):
        raise ValueError(
            f"line {number} of {str(path)!r} must hold a puzzle and its solution, digits and 0 or "
            f". for holes, got {','.join(row)[:60]!r}."
        )
    return [0 if letter in BLANKS else int(letter) for letter in text]


def _checked(boards: list, path: pathlib.Path, first: int) -> np.ndarray:
    """The boards and solutions as one array ``[P, 2, cells]``."""
    size = next((size for size in BOXES if size * size == len(boards[0][0])), None)
    for number, (board, solution) in enumerate(boards, first):
        where = f"line {number} of {str(path)!r}"
        if size is None or len(board) != size * size or len(solution) != size * size:
            raise ValueError(
                f"{where} must hold two boards of one size, 16, 36 or 81 cells, "
                f"got {len(board)} and {len(solution)}."
            )
    found = np.array(boards, np.int8)
    each = np.arange(1, size + 1)
    for places in np.asarray(units(size)):
        for unit in range(size):
            full = (np.sort(found[:, 1, places == unit], axis=1) == each).all(1)
            if not full.all():
                raise ValueError(
                    f"line {first + int(full.argmin())} of {str(path)!r} must hold a solution with "
                    "every digit once in each row, column and box."
                )
    agrees = ((found[:, 0] == 0) | (found[:, 0] == found[:, 1])).all(1)
    if not agrees.all():
        raise ValueError(
            f"line {first + int(agrees.argmin())} of {str(path)!r} must hold a solution that has "
            "the puzzle's digits."
        )
    return found


def write(path: str | pathlib.Path, puzzles: Puzzles):
    """Writes a CSV file that `read` reads, packed if its name ends in .gz."""
    text = lambda cells: "".join(map(str, cells.tolist()))
    lines = [f"{text(b)},{text(s)}\n" for b, s in zip(*map(np.asarray, puzzles), strict=True)]
    data = ("quizzes,solutions\n" + "".join(lines)).encode()
    path = pathlib.Path(path)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def main():
    parser = argparse.ArgumentParser(description="Makes Sudokus with one solution each.")
    parser.add_argument("--size", type=int, default=6, choices=sorted(BOXES))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--holes", type=int, nargs=2, metavar=("FEWEST", "MOST"))
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a .csv or .csv.gz file")
    options = parser.parse_args()
    holes = None if options.holes is None else tuple(options.holes)
    write(options.out, make(options.size, options.count, options.seed, holes))


if __name__ == "__main__":
    main()
