"""Sudoku: boards with one solution, symmetries that keep them one, and files good and bad."""

import gzip
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from actjax.tasks import sudoku
from experiments.data import sudoku as files

SOLVED = "1234341221434321"


@pytest.fixture(scope="module")
def puzzles():
    return {size: files.make(size, count, seed=1) for size, count in ((4, 60), (6, 40), (9, 4))}


def slow_solutions(board, size):
    """All solutions of a 4 x 4 board, by trying every order of the digits in every line."""
    lines = [p for p in itertools.permutations(range(1, size + 1))]
    fits = lambda row, line: all(a in (0, b) for a, b in zip(row, line, strict=True))
    rows = [[line for line in lines if fits(row, line)] for row in board.reshape(size, size)]
    return sum(slow_right(np.array(grid), size) for grid in itertools.product(*rows))


def slow_right(grid, size):
    height, width = sudoku.BOXES[size]
    boxes = [
        grid[i : i + height, j : j + width].ravel()
        for i in range(0, size, height)
        for j in range(0, size, width)
    ]
    return all(len(set(unit.tolist())) == size for unit in [*grid, *grid.T, *boxes])


def test_puzzles_have_exactly_one_solution(puzzles):
    for board in puzzles[4].boards[:20]:
        assert slow_solutions(board, 4) == 1
    for size, (boards, solutions) in puzzles.items():
        solver = files.Solver(size)
        for board, solution in zip(boards, solutions, strict=True):
            assert slow_right(solution.reshape(size, size), size)
            assert solver.solutions(board.tolist()) == [solution.tolist()]
    emptied = puzzles[6].boards[0].copy()
    emptied[:24] = 0
    assert len(files.Solver(6).solutions(emptied.tolist())) == 2


@pytest.mark.parametrize("size", sudoku.BOXES)
def test_a_draw_is_a_puzzle_under_a_symmetry(puzzles, size):
    drawn = jax.tree.map(np.asarray, sudoku.sample(jax.random.key(0), 200, puzzles=puzzles[size]))
    known = dict(zip(files.fingerprints(puzzles[size].boards), puzzles[size].boards, strict=True))
    for board, solution, prints in zip(
        drawn.inputs, drawn.targets + 1, files.fingerprints(drawn.inputs), strict=True
    ):
        assert slow_right(solution.reshape(size, size), size)
        assert ((board == 0) | (board == solution)).all()
        assert (board > 0).sum() == (known[prints] > 0).sum()
    assert (drawn.difficulty == (drawn.inputs == 0).sum(1, keepdims=True)).all()
    assert len(np.unique(drawn.inputs, axis=0)) > 150  # few are drawn twice
    same = sudoku.sample(jax.random.key(0), 9, puzzles=puzzles[size], augment=False)
    assert set(map(bytes, np.asarray(same.inputs, np.int8))) <= set(map(bytes, known.values()))


def test_is_solved_agrees_with_a_slow_check(puzzles):
    batch = sudoku.as_batch(puzzles[6])
    answers = np.asarray(batch.targets).copy()
    assert sudoku.is_solved(answers, batch.inputs).all()
    answers[0, np.asarray(batch.inputs[0]).argmin()] += 1  # one digit of a hole is wrong
    answers[1] = (answers[1] + 1) % 6  # a full grid, but of another puzzle
    answers[2, :] = 0
    found = np.asarray(sudoku.is_solved(answers, batch.inputs))
    assert not found[:3].any() and found[3:].all()


def test_training_and_test_puzzles_differ_by_more_than_symmetry(puzzles):
    drawn = sudoku.sample(jax.random.key(1), 300, puzzles=puzzles[6])
    many = sudoku.Puzzles(*(np.asarray(a, np.int8) for a in (drawn.inputs, drawn.targets + 1)))
    train, test = files.split(many, held_out=0.5)
    assert len(train.boards) + len(test.boards) == len(np.unique(files.fingerprints(many.boards)))
    assert not set(files.fingerprints(train.boards)) & set(files.fingerprints(test.boards))
    with pytest.raises(ValueError, match="puzzles must be enough for a part"):
        files.split(sudoku.Puzzles(*(leaf[:1] for leaf in many)))


def test_files_in_the_usual_forms(puzzles, tmp_path):
    files.write(tmp_path / "a.csv.gz", puzzles[9])
    assert jax.tree.all(jax.tree.map(np.array_equal, files.read(tmp_path / "a.csv.gz"), puzzles[9]))
    board = SOLVED.replace("1", "0")
    for text in (
        f"{board},{SOLVED}\n",
        f"{board.replace('0', '.')},{SOLVED}\r\n\r\n",
        f"source,question,answer,rating\nx,{board},{SOLVED},3\n",
    ):
        (tmp_path / "b.csv").write_text(text)
        found = files.read(tmp_path / "b.csv")
        assert "".join(map(str, found.boards[0])) == board


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "got none in '.*'"),
        ("quizzes,solutions\n", "got none in '.*'"),
        (f"{SOLVED}\n", "line 1 of '.*' must hold a puzzle and its solution"),
        (f"12a4,{SOLVED}\n", "line 1 of '.*' must hold a puzzle and its solution"),
        (f"{SOLVED}1,{SOLVED}1\n", "line 1 of '.*' must hold two boards of one size, .* 17 and 17"),
        (f"{SOLVED},{SOLVED}\n{SOLVED[1:]},{SOLVED}\n", "line 2 of '.*' must hold two boards"),
        (f"{SOLVED},{SOLVED[::-1][1:]}1\n", "line 1 of '.*' must hold a solution with every digit"),
        (f"2{SOLVED[1:]},{SOLVED}\n", "line 1 of '.*' must hold a solution that has the puzzle's"),
    ],
)
def test_files_that_cannot_serve_are_refused(tmp_path, text, sentence):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        files.read(tmp_path / "a.csv")


def test_unreadable_files_are_refused(tmp_path):
    for name, data in ("none.csv", None), ("cut.csv.gz", gzip.compress(b"1,2\n" * 99)[:-9]):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(
            ValueError, match=f"puzzles must be a file that can be read, got '.*{name}'"
        ):
            files.read(tmp_path / name)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda p: sudoku.sample(jax.random.key(0), 0, puzzles=p), "batch_size"),
        (
            lambda p: (
                sudoku.as_batch(p) and sudoku.check_puzzles(p._replace(boards=jnp.ones((2, 5))))
            ),
            r"puzzles must hold boards \[P, cells\] of 16, 36, 81 cells, got shape \(2, 5\)",
        ),
        (
            lambda p: sudoku.check_puzzles(p._replace(solutions=p.solutions[:1])),
            "puzzles must hold a solution a board",
        ),
        (lambda p: files.make(5, 1, 0), "size must be one of 4, 6, 9, got 5"),
        (lambda p: files.make(4, 1, 0, holes=(5, 4)), "holes must be a range"),
    ],
)
def test_what_cannot_be_drawn_is_refused(puzzles, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(puzzles[4])
