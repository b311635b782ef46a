"""The networks that solve puzzles step by step, and what each halting rule trains them by.

A `Reasoner` goes on from its last answer, in whole boards: any of the cores below, under any rule.

    core          one step                                             from
    recursive     z = net(x + y + z) n times, then y = net(y + z)      TRM, Jolicoeur-Martineau 2025
    transformer   a block over all cells                               Dehghani et al. 2019
    cell          a GRU that is shown the board as one vector          Graves 2016

    rule          trained by
    threshold     deep supervision: a loss at every step, by recycled lanes  (HRM, TRM)
    graves        the loss of the mean answer and a time penalty             (Graves 2016)
    pondernet     the mean of the losses and KL(p || geometric)              (Banino et al. 2021)
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array, lax

import actjax
from actjax import halting
from actjax.tasks.batch import Batch

HALT_BIAS = {"threshold": -5.0, "graves": -1.0, "pondernet": -1.0}  # nothing halts too early


@dataclasses.dataclass(frozen=True)
class Board:
    """What networks must know of the boards of a task.

    Attributes:
      size: lines of a board.
      symbols: what a cell may show, counted from 0.
      classes: answers for a cell, counted from 0.
      places: `size -> ` lines that each cell is in, say its row and its column, each counted from
        0: int32 ``[kinds, cells]``.
    """

    size: int
    symbols: int
    classes: int
    places: Callable[[int], Array]

    @property
    def cells(self) -> int:
        return self.size**2


# --- Cores: start(boards) -> state, advance(state, boards) -> (state, q), read(state) -> logits --


class SwiGLU(nnx.Module):
    """Two dense layers, `expand` times as wide, one gating the other, and one back."""

    def __init__(self, features: int, expand: int, *, rngs: nnx.Rngs):
        self.into = nnx.Linear(features, 2 * expand * features, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(expand * features, features, use_bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return _on_rows(self._rows, x)

    def _rows(self, x):
        gate, value = jnp.split(self.into(x), 2, axis=-1)
        return self.out(nnx.silu(gate) * value)


def _on_rows(call, x: Array) -> Array:
    """`call` of the last axis, on `x` as one matrix.

    Of more axes the gradient of a kernel, a sum over all but the last, is a product for which XLA
    copies its operands on a CPU: it takes twice as long.
    """
    return call(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


class Mixer(nnx.Module):
    """A mix over cells and one over features, each added and normalised after, as TRM's."""

    def __init__(self, board: Board, features: int, expand: int, *, rngs: nnx.Rngs):
        self.cells = SwiGLU(board.cells, expand, rngs=rngs)
        self.features = SwiGLU(features, expand, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = _normalised(x + self.cells(x.swapaxes(1, 2)).swapaxes(1, 2))
        return _normalised(x + self.features(x))


class NearMixer(nnx.Module):
    """The same where a cell is mixed with the eight around it, by a depthwise 3 x 3 convolution."""

    def __init__(self, board: Board, features: int, expand: int, *, rngs: nnx.Rngs):
        self.size = board.size
        # of unit variance for one of unit variance, as Lecun's are
        self.cells = nnx.Param(jax.random.normal(rngs.params(), (3, 3, features)) / 3)
        self.features = SwiGLU(features, expand, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = _normalised(x + self._mixed(x))
        return _normalised(x + self.features(x))

    def _mixed(self, x: Array) -> Array:
        # nine shifts, which fuse: a grouped convolution is several times as slow on a CPU
        size, weights = self.size, self.cells[...]
        grids = jnp.pad(x.reshape(len(x), size, size, -1), ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = lambda i, j: grids[:, i : i + size, j : j + size] * weights[i, j]
        return sum(shifted(i, j) for i in range(3) for j in range(3)).reshape(x.shape)


def _normalised(x: Array) -> Array:
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)


class RecursiveCore(nnx.Module):
    """`actjax.Recursive` around mixers, with the limits of its own."""

    def __init__(
        self,
        board: Board,
        hidden: int,
        *,
        layers: int,
        expand: int,
        mixer: Callable[..., nnx.Module] = Mixer,
        bias: float,
        rngs: nnx.Rngs,
        **limits: int,
    ):
        mixers = [mixer(board, hidden, expand, rngs=rngs) for _ in range(layers)]
        network = nnx.Sequential(*mixers)
        self.embed = _embed(board, hidden, rngs)
        self.recursive = actjax.Recursive(network, hidden, halt_bias=bias, rngs=rngs, **limits)
        self.digits = nnx.Linear(hidden, board.classes, use_bias=False, rngs=rngs)

    def start(self, boards: Array) -> Any:
        return self.recursive.start(self.embed(boards))

    def advance(self, state: Any, boards: Array) -> tuple[Any, Array]:
        state = self.recursive(self.embed(boards), state)
        return state, self.recursive.logit(state)

    def read(self, state: Any) -> Array:
        return _on_rows(self.digits, state.answer)


class NormedBlock(nnx.Module):
    """A transformer's block, normalised after, so that what goes round stays in bounds."""

    def __init__(self, hidden: int, heads: int, *, rngs: nnx.Rngs):
        self.block = actjax.nn.Block(hidden, heads, rngs=rngs)

    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        return _normalised(self.block(x, mask))


class TransformerCore(nnx.Module):
    """The step of `actjax.UniversalTransformer`, of which a board halts as a whole.

    It is shown the board anew at every step, as looped transformers are.
    """

    def __init__(self, board: Board, hidden: int, heads: int, bias: float, *, rngs: nnx.Rngs):
        self.board = board
        self.embed = _embed(board, hidden, rngs)
        kinds = len(board.places(board.size))
        self.places = nnx.Embed(kinds * board.size, hidden, rngs=rngs)
        self.transformer = actjax.UniversalTransformer(
            hidden,
            heads,
            max_steps=1,
            halt="sequence",
            halt_bias=bias,
            block=NormedBlock(hidden, heads, rngs=rngs),
            rngs=rngs,
        )
        self.digits = nnx.Linear(hidden, board.classes, use_bias=False, rngs=rngs)

    def start(self, boards: Array) -> Any:
        zeros = jnp.zeros((*boards.shape, self.transformer.features))
        return zeros, jnp.zeros(len(boards), jnp.int32)

    def advance(self, state: Any, boards: Array) -> tuple[Any, Array]:
        x, n = state
        places = self.board.places(self.board.size)
        places += self.board.size * jnp.arange(len(places))[:, None]
        x = x + self.embed(boards) + self.places(places).sum(0)[None]
        x, logits = self.transformer.apply(x, n + 1, jnp.ones(boards.shape, bool))
        return (x, n + 1), logits.mean(1)

    def read(self, state: Any) -> Array:
        return self.digits(state[0])


class CellCore(nnx.Module):
    """A GRU that sees the whole board at every step."""

    def __init__(self, board: Board, hidden: int, bias: float, *, rngs: nnx.Rngs):
        self.board = board
        self.cell = nnx.GRUCell(board.cells * board.symbols, hidden, rngs=rngs)
        self.halt = nnx.Linear(hidden, 1, bias_init=nnx.initializers.constant(bias), rngs=rngs)
        self.digits = nnx.Linear(hidden, board.cells * board.classes, rngs=rngs)

    def start(self, boards: Array) -> Any:
        return jnp.zeros((len(boards), self.cell.hidden_features))

    def advance(self, state: Any, boards: Array) -> tuple[Any, Array]:
        x = jax.nn.one_hot(boards, self.board.symbols).reshape(len(boards), -1)
        state, _ = self.cell(state, x)
        return state, self.halt(state)[:, 0]

    def read(self, state: Any) -> Array:
        return self.digits(state).reshape(len(state), self.board.cells, self.board.classes)


def _embed(board: Board, hidden: int, rngs: nnx.Rngs) -> nnx.Embed:
    """Of what a cell shows."""
    return nnx.Embed(board.symbols, hidden, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solver:
    """A core as `actjax.stream` runs it: sequences of one board, its answer for output.

    Attributes:
      model: a core.
      max_steps: the limit on steps.
      level: a board stops once its q is over it.
    """

    model: nnx.Module
    max_steps: int = dataclasses.field(metadata={"static": True})
    level: float = dataclasses.field(default=0.0, metadata={"static": True})

    def for_stream(self, xs: Array) -> actjax.Prepared:
        step, boards = AnswerStep(self.level), xs[:, 0]
        state = self.model.start(boards), boards
        read = lambda state: (state, state[1])
        rule = halting.Threshold()
        return actjax.Prepared(step, self.model, state, xs, self.max_steps, read, rule=rule)


@dataclasses.dataclass(frozen=True)
class AnswerStep:
    """A core's step that keeps its answer, counted from 1, and says 1 once q is over a level."""

    level: float

    def __call__(self, model, state, boards, first):
        state, q = model.advance(state[0], boards)
        answers = model.read(state).argmax(-1).astype(boards.dtype) + 1
        return (state, answers), (q > self.level).astype(halting.halting_dtype(q.dtype))


# --- What each rule trains by: loss_fn(model, batch, ...) -----------------------------------------


def step(model: nnx.Module, state: Any, boards: Array, first: Array) -> tuple[Any, Array]:
    """A core as a ponder step of `actjax.ponder`."""
    state, q = model.advance(state, boards)
    return state, jax.nn.sigmoid(q.astype(halting.halting_dtype(q.dtype)))


def supervised(model: nnx.Module, batch: Batch, state: Any):
    """One supervised step on every lane, as `training.make_recycled_step` wants it."""
    state, q = model.advance(state, batch.inputs)
    entropy, right, metrics = _measured(model.read(state), batch)
    halt = optax.sigmoid_binary_cross_entropy(q, right.astype(q.dtype)).mean()
    agrees = ((q > 0) == right).mean()
    return entropy.mean() + 0.5 * halt, (state, q > 0, {**metrics, "halting_accuracy": agrees})


def make_pondered(rule: str, *, max_steps: int, weight: float, lanes: int | None):
    """`loss_fn(model, batch)` through the whole loop.

    Args:
      rule: "graves" or "pondernet".
      weight: of the ponder cost, or of the divergence.
    """
    of_loss = halting.PonderNet(mean=(False, True)) if rule == "pondernet" else halting.Graves()

    def with_loss(model, state, inputs, first):
        boards, targets = inputs
        state, halt = step(model, state[0], boards, first)
        return (state, _entropy(model.read(state), targets).astype(halt.dtype)), halt

    def loss_fn(model: nnx.Module, batch: Batch):
        start = model.start(batch.inputs), jnp.zeros(len(batch.inputs))
        (state, expected), ponder = actjax.ponder(
            with_loss,
            model,
            start,
            (batch.inputs, batch.targets),
            max_steps=max_steps,
            rule=of_loss,
            lanes=lanes,
        )
        entropy, _, metrics = _measured(model.read(state), batch)
        if rule == "pondernet":
            loss = expected.mean() + weight * ponder.extra["kl"].mean()
        else:
            loss = entropy.mean() + weight * ponder.cost.mean()
        return loss, {**metrics, "ponder_steps": ponder.steps.mean(dtype=loss.dtype)}

    return loss_fn


def _entropy(logits: Array, targets: Array) -> Array:
    """The mean over a board's cells: [rows]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean(-1)


def _measured(logits: Array, batch: Batch):
    entropy = _entropy(logits, batch.targets)
    right = (logits.argmax(-1) == batch.targets).all(-1)
    return entropy, right, {"cross_entropy": entropy.mean(), "accuracy": right.mean()}


# --- What its answer is if it ends at a step, and how sure it is ----------------------------------


def judge(rule: str, registers: tuple[Array, Array], logits: Array, q: Array):
    """The scores that a board is answered by if step n is its last, and whether it should be.

    The answer of Graves' rule is the mean, with what is left of 1 for the last step; of the others
    the last step's.

    Args:
      registers: from `start_judging` and the steps before.
      logits: of step n, ``[rows, cells, classes]``.
      q: the halting unit's logit, ``[rows]``.

    Returns:
      ``(registers, scores, confidence)``; confidence ``[rows]`` is q under a threshold, and the
      logit of the probability to have stopped under the other rules.
    """
    if rule == "threshold":
        return registers, logits, q
    gone, mean = registers
    halt = jax.nn.sigmoid(q)
    scores, share = logits, (1 - gone) * halt
    if rule == "graves":
        scores, share = mean + (1 - gone)[:, None, None] * logits, jnp.minimum(halt, 1 - gone)
    mean = mean + share[:, None, None] * logits
    gone = gone + share
    tiny = jnp.finfo(gone.dtype).eps
    return (gone, mean), scores, jax.scipy.special.logit(gone.clip(tiny, 1 - tiny))


def start_judging(logits: Array) -> tuple[Array, Array]:
    """The registers of `judge` before the first step."""
    return jnp.zeros_like(logits[:, 0, 0]), jnp.zeros_like(logits)
