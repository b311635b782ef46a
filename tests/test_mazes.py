"""Mazes: one shortest way each, as another count finds too, and symmetries that keep it one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from actjax.tasks import mazes
from actjax.tasks.puzzles import Puzzles
from experiments import puzzles, stopping
from experiments.tasks.mazes import PRESETS, PUZZLE

TWO_WAYS = """
S.#
.G#
###
"""


@pytest.fixture(scope="module")
def made():
    return {size: mazes.make(size, 60, seed=1, rings=0.3) for size in (3, 6, 9)}


def neighbours(free):
    """The graph of the cells of a grid: integers [cells, cells]."""
    places = np.argwhere(np.ones_like(free))
    beside = abs(places[:, None] - places).sum(2) == 1
    return (beside & free.ravel() & free.ravel()[:, None]).astype(int)


def shortest_ways(board):
    """Moves of the shortest way from start to goal, how many there are of it, and the cells that
    are on one: walks of n moves are counted by powers of the graph, and the shortest are ways."""
    size = round(len(board) ** 0.5)
    graph = neighbours(board.reshape(size, size) != mazes.WALL)
    walks = [np.eye(len(board), dtype=int)]
    start, goal = (int(np.flatnonzero(board == mark)[0]) for mark in (mazes.START, mazes.GOAL))
    while not walks[-1][start, goal]:
        walks.append(walks[-1] @ graph)
    n = len(walks) - 1
    on = [
        any(walks[k][start, c] and walks[n - k][c, goal] for k in range(n + 1))
        for c in range(len(board))
    ]
    return n, walks[-1][start, goal], np.array(on)


def check(boards, solutions, difficulty):
    for board, solution, moves in zip(boards, solutions, difficulty, strict=True):
        assert (board == mazes.START).sum() == (board == mazes.GOAL).sum() == 1
        n, count, on = shortest_ways(board)
        assert (n, count) == (moves, 1)
        np.testing.assert_array_equal(solution == mazes.ON, on)


def test_mazes_have_exactly_one_shortest_way(made):
    for some in made.values():
        check(*some, mazes.moves(some))
        assert set(np.unique(some.solutions)) == {mazes.BESIDE, mazes.ON}
    assert len(np.unique(mazes.moves(made[9]))) > 9
    board = np.array(["#.SG".index(cell) for cell in TWO_WAYS if cell != "\n"])
    assert shortest_ways(board)[:2] == (2, 2)
    free = np.pad(board.reshape(1, 3, 3) > 0, ((0, 0), (1, 1), (1, 1)))
    start = np.pad(board.reshape(1, 3, 3) == mazes.START, ((0, 0), (1, 1), (1, 1)))
    moves, ways = mazes.count_ways(free, start)
    assert (moves[0, 2, 2], ways[0, 2, 2]) == (2, 2)


def test_rings_are_what_makes_more_than_one_way():
    rng = np.random.default_rng(0)
    for rings, closed in ((0.0, 0), (0.5, 1)):
        free = mazes.carve(rng, 20, 8, rings)[:, 1:-1, 1:-1]
        for grid in free:
            graph = neighbours(grid)
            # edges that are not needed to hang together what does: cells less the rank
            rank = np.linalg.matrix_rank(np.diag(graph.sum(0)) - graph)
            assert (graph.sum() // 2 - rank > 0) == closed
    assert mazes.carve(rng, 2, 5, 1.0)[:, 1:-1, 1:-1].all()


def test_mazes_are_a_function_of_the_seed():
    one, same, other = (mazes.make(7, 20, seed, shortest=8) for seed in (0, 0, 1))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, same))
    assert not np.array_equal(one.boards, other.boards)
    assert (mazes.moves(one) >= 8).all()


@pytest.mark.parametrize("size", [3, 6])
def test_a_draw_is_a_maze_under_a_symmetry(made, size):
    drawn = mazes.sample(jax.random.key(0), 300, puzzles=made[size])
    drawn = jax.tree.map(np.asarray, drawn)
    check(drawn.inputs[:40], drawn.targets[:40] + 1, drawn.difficulty[:40, 0])
    known = set(mazes.fingerprints(made[size].boards))
    assert set(mazes.fingerprints(drawn.inputs)) <= known
    assert len(np.unique(drawn.inputs, axis=0)) > 2 * len(known)  # few are drawn twice
    same = mazes.sample(jax.random.key(0), 9, puzzles=made[size], augment=False)
    assert set(map(bytes, np.asarray(same.inputs, np.int8))) <= set(map(bytes, made[size].boards))


def test_fingerprints_agree_for_likenesses_alone(made):
    boards = made[6].boards[:9]
    swapped = np.where(boards > mazes.FREE, mazes.START + mazes.GOAL - boards, boards)
    prints = mazes.fingerprints(boards)
    assert len(set(prints)) == 9
    for cells in mazes.symmetries(6):
        np.testing.assert_array_equal(mazes.fingerprints(swapped[:, cells]), prints)
    assert len({tuple(cells) for cells in mazes.symmetries(6)}) == 8


def test_parts_are_as_large_as_asked_and_not_alike():
    options = dataclasses.replace(PRESETS["demo"], size=6, puzzles=200, test_size=30)
    parts = PUZZLE.load(options)
    assert [len(part.boards) for part in parts.values()] == [200, 30, 30]
    prints = np.concatenate([mazes.fingerprints(part.boards) for part in parts.values()])
    assert len(set(prints)) == 260


@pytest.mark.parametrize("model", ["recursive", "transformer", "act"])
def test_every_network_answers_each_cell_of_the_board(made, model):
    options = dataclasses.replace(PRESETS["demo"], model=model, hidden=8)

    def answer(boards):
        network = puzzles.make_model(PUZZLE, options, 6)
        state, q = network.advance(network.start(boards), boards)
        return network.read(state), q

    scores, q = jax.eval_shape(answer, jnp.asarray(made[6].boards[:5], jnp.int32))
    assert (scores.shape, q.shape) == ((5, 36, 2), (5,))


def test_a_network_learns_small_mazes(quick_compilation):
    small = {"hidden": 16, "size": 4, "puzzles": 500, "test_size": 100, "max_steps": 4}
    small |= {"batch_size": 32, "steps": 300, "cooldown": 100, "warmup": 20, "learning_rate": 1e-2}
    options = dataclasses.replace(PRESETS["demo"], **small, average=0.9)
    parts = PUZZLE.load(options)
    model = puzzles.fit(PUZZLE, options, parts["train"], None)
    found = stopping.trace(model, parts["test"], rule="threshold", max_steps=4)
    assert found.right[-1].mean() > 0.15  # untrained it solves none


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: mazes.make(2, 1, 0), "size must be at least 3, got 2"),
        (lambda: mazes.make(5, 0, 0), "count must be"),
        (lambda: mazes.make(5, 1, 0, rings=2), "rings must be a chance from 0 to 1, got 2"),
        (lambda: mazes.make(5, 1, 0, shortest=25), "shortest must be a number of moves that"),
        (
            lambda: mazes.sample(jax.random.key(0), 2, puzzles=Puzzles(*[jnp.ones((2, 5))] * 2)),
            r"puzzles must hold boards \[P, cells\] of a square number of cells, got shape \(2, 5",
        ),
    ],
)
def test_what_cannot_be_made_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
