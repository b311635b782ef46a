"""Deep supervision with recycled lanes: training as recursive reasoners do it, in one program.

A lane holds a row of a batch, the state that its last step left, and its count of steps. An update
takes one supervised step on every lane, with a loss and a gradient of its own; the state goes on to
the next update without its gradient. A lane whose network says that it is done, or that is at the
limit, takes a new row. So HRM (Wang et al. 2025) and TRM (Jolicoeur-Martineau 2025) are trained: an
update costs one step whatever the rows need, and rows that are done make place at once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh

from actjax._checks import check_key, check_like, check_positive, check_rows, shown
from actjax._loop.rows import select
from actjax.training.metrics import check_names
from actjax.training.sharding import check_mesh, replicate, spread
from actjax.training.state import TrainState, init_state
from actjax.training.step import NEXT, Sample, TrainStep, make_train_step


class Lanes(NamedTuple):
    """What the lanes are at work on, carried in `TrainState.extra`; ``L`` lanes.

    Attributes:
      batch: pytree of arrays ``[L, ...]``, a row a lane.
      carried: pytree of arrays ``[L, ...]``, what each lane's next step starts from.
      steps: int32 ``[L]``, supervised steps taken on the row.
      least: int32 ``[L]``, steps before which the lane may not be done.
    """

    batch: Any
    carried: Any
    steps: Array
    least: Array


def make_recycled_step(
    sample: Sample,
    loss_fn: Callable[..., tuple[Array, tuple[Any, Array, dict[str, Array]]]],
    optimizer: optax.GradientTransformation,
    *,
    start: Callable[[Any, Any], Any],
    max_steps: int,
    explore: float = 0.0,
    wrt: Any = None,
    mesh: Mesh | None = None,
) -> TrainStep:
    """Builds a training step for `fit` and `make_chunk` in which lanes are recycled.

    Args:
      sample: `(key, data) -> batch`, as many rows as there are lanes; of each draw the rows are
        taken that lanes need.
      loss_fn: `(model, batch, carried) -> (loss, (carried, done, metrics))`: one supervised step on
        every lane; `done` is bool ``[L]``, which lanes say that they are done.
      optimizer, wrt: as in `make_train_step`.
      start: `(model, batch) -> carried`, what the first step on new rows starts from.
      max_steps: the limit on supervised steps a row, N_sup; 16 in the papers.
      explore: share of rows that get a least number of steps, drawn from 2 to `max_steps`, so that
        what comes after a halt is seen too; 0.1 in the papers.
      mesh: devices that share the lanes, each of which keeps its own; as in `make_train_step`.

    Returns:
      `train_step(state, key, data) -> (state, metrics)` for states made by `init_recycled`. Beside
      the metrics of `loss_fn` it gives "recycled", the share of lanes that took a new row: one over
      the mean number of steps a row.

    Raises:
      ValueError: max_steps below 1, explore outside [0, 1], or a mesh without a "data" axis; from
        the step: a state or a batch of other lanes, lanes that the devices cannot share evenly, or
        a `loss_fn` that returns something else.

    >>> from flax import nnx
    >>> sample = lambda key, data: jax.random.normal(key, (8, 3))
    >>> def loss_fn(model, x, y):  # each step is to bring y nearer to x
    ...     y = model(jnp.concatenate([x, y], axis=-1))
    ...     error = ((y - x) ** 2).mean(-1)
    ...     return error.mean(), (y, error < 0.1, {})
    >>> start = lambda model, x: jnp.zeros_like(x)
    >>> model, optimizer = nnx.Linear(6, 3, rngs=nnx.Rngs(0)), optax.adam(0.01)
    >>> step = make_recycled_step(sample, loss_fn, optimizer, start=start, max_steps=4)
    >>> state = init_recycled(model, optimizer, sample, start, jax.random.key(0))
    >>> state, metrics = jax.jit(step)(state, jax.random.key(1))
    >>> sorted(metrics)
    ['gradient_norm', 'loss', 'recycled']
    """
    check_positive("max_steps", max_steps)
    if not isinstance(explore, (int, float)) or not 0 <= explore <= 1:
        raise ValueError(f"explore must be a share from 0 to 1, got {explore!r}.")

    def drawn(key: Array, given: Any):
        data, lanes = given
        batch_key, least_key = jax.random.split(key)
        batch = sample(batch_key, data)
        check_like("batch of sample", batch, lanes.batch)
        return (batch, _draw_least(least_key, _rows(batch), max_steps, explore)), lanes

    def loss_of(model, drawn: tuple):  # fresh rows and lanes as one batch, which devices can share
        fresh, lanes = drawn
        loss, (carried, done, metrics) = _checked(loss_fn(model, lanes.batch, lanes.carried), lanes)
        steps = lanes.steps + 1
        ended = (done & (steps >= lanes.least)) | (steps >= max_steps)
        lanes = lanes._replace(carried=lax.stop_gradient(carried), steps=steps)
        metrics = {**metrics, "recycled": ended.astype(loss.dtype).mean()}
        return loss, metrics | {NEXT: (ended, lanes, fresh)}

    inner = make_train_step(drawn, loss_of, optimizer, wrt=wrt, mesh=mesh)

    def train_step(state: TrainState, key: Array, data: Any = ()):
        if not isinstance(state.extra, Lanes):
            raise ValueError(
                "state must be that of init_recycled, with its lanes in extra, "
                f"got {type(state.extra).__name__}."
            )
        state, metrics = inner(state, key, (data, state.extra))
        ended, lanes, (batch, least) = metrics.pop(NEXT)
        begun = start(state.model, batch)
        check_like("carried of start", begun, lanes.carried)
        fresh = Lanes(batch, begun, jnp.zeros_like(lanes.steps), least)
        return state._replace(extra=select(ended, fresh, lanes)), metrics

    return train_step


def init_recycled(
    model: Any,
    optimizer: optax.GradientTransformation,
    sample: Sample,
    start: Callable[[Any, Any], Any],
    key: Array,
    data: Any = (),
    *,
    wrt: Any = None,
    mesh: Mesh | None = None,
) -> TrainState:
    """The state before the first update of a recycled step: every lane with a row of its own.

    Args:
      model, optimizer, sample, start, wrt, mesh: as `make_recycled_step` has them.
      key: draws the first rows.
      data: what `sample` is given.

    Returns:
      `TrainState` with `Lanes` in `extra`; on the devices of `mesh`, each with lanes of its own,
      and copies of all else.

    Raises:
      ValueError: as `make_recycled_step` does, or for a batch or a start that are not arrays with
        a row a lane.
    """
    check_key("key", key)
    if mesh is not None:
        check_mesh(mesh)
    batch = sample(key, data)
    (rows,) = check_rows("batch of sample", batch, 1)
    carried = start(model, batch)
    check_rows("batch of sample and carried of start", (batch, carried), 1)
    zeros = lambda: jnp.zeros(rows, jnp.int32)  # of its own each, to be donated
    lanes = Lanes(batch, carried, zeros(), zeros())
    state = init_state(model, optimizer, lanes, wrt=wrt)
    if mesh is None:
        return state
    return replicate(state._replace(extra=()), mesh)._replace(extra=spread(lanes, mesh))


def _checked(result: Any, lanes: Lanes) -> Any:
    """What `loss_fn` returned, if it is what it has to be."""
    parts = result[1] if isinstance(result, tuple) and len(result) == 2 else None
    if not isinstance(parts, tuple) or len(parts) != 3 or not isinstance(parts[2], dict):
        raise ValueError(
            "loss_fn must return (loss, (carried, done, metrics)) with a dict of metrics, "
            f"got {shown(result)}."
        )
    carried, done, metrics = parts
    check_like("carried of loss_fn", carried, lanes.carried)
    if jnp.shape(done) != lanes.steps.shape or not jnp.issubdtype(jnp.result_type(done), jnp.bool_):
        raise ValueError(
            f"done of loss_fn must be bools of shape {lanes.steps.shape}, one a lane, "
            f"got shape {jnp.shape(done)} of {jnp.result_type(done)}."
        )
    check_names(metrics, ("recycled", NEXT))
    return result


def _rows(batch: Any) -> int:
    return len(jax.tree.leaves(batch)[0])


def _draw_least(key: Array, rows: int, max_steps: int, explore: float) -> Array:
    draw_key, choose_key = jax.random.split(key)
    least = jax.random.randint(draw_key, (rows,), min(2, max_steps), max_steps + 1, jnp.int32)
    return jnp.where(jax.random.bernoulli(choose_key, explore, (rows,)), least, 0)
