"""One update as a pure function, and many updates in one dispatch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh

from actjax.tasks.batch import Batch
from actjax.training.compiler import jit_by_model
from actjax.training.sharding import data_parallel
from actjax.training.state import TrainState

# sample(key, data) -> batch; loss_fn(model, batch) -> (scalar, metrics)
Sample = Callable[[Array, Any], Batch]
LossFn = Callable[..., tuple[Array, dict[str, Array]]]
# train_step(state, key, data) -> (state, metrics), metrics holding "loss" and "gradient_norm"
TrainStep = Callable[[TrainState, Array, Any], tuple[TrainState, dict[str, Array]]]


def make_train_step(
    sample: Sample,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    control: Callable[[Any, dict[str, Array]], Any] | None = None,
    mesh: Mesh | None = None,
) -> TrainStep:
    """Builds `train_step(state, key, data) -> (state, metrics)`: draw a batch, descend once.

    Args:
      sample: `(key, data) -> batch`; `data` is whatever array or pytree the run trains on, passed
        through so that it is never a constant of the program; `()` for a generated task.
      loss_fn: `(model, batch) -> (loss, metrics)` with a scalar loss and a dict of float arrays.
      optimizer: an Optax transformation, applied to the gradient of the loss in the model.
      control: `(extra, metrics) -> extra`, where the step carries a state besides the parameters
        (`TrainState.extra`), say a ponder budget's. With it `loss_fn` is called as
        `(model, batch, extra)`, and `extra` is updated from the metrics of each step.
      mesh: devices that share each batch; see `actjax.training.sharding`. One unless given.

    Returns:
      A pure `train_step`. Its metrics are those of `loss_fn` and "loss" and "gradient_norm". It may
      be passed to `jax.vmap` over an ensemble of states.
    """

    if mesh is None:
        differentiate = jax.value_and_grad(loss_fn, has_aux=True)
    else:
        differentiate = data_parallel(loss_fn, mesh)

    def train_step(state: TrainState, key: Array, data: Any = ()):
        batch = sample(key, data)
        arguments = (batch,) if control is None else (batch, state.extra)
        (loss, metrics), gradient = differentiate(state.model, *arguments)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.model)
        model = optax.apply_updates(state.model, updates)
        metrics = {"loss": loss, **metrics, "gradient_norm": optax.tree.norm(gradient)}
        extra = state.extra if control is None else control(state.extra, metrics)
        return TrainState(state.step + 1, model, opt_state, extra), metrics

    return train_step


def make_chunk(train_step: TrainStep, length: int):
    """Builds `chunk(state, key, data) -> (state, bad_step, metrics)`: `length` updates, compiled.

    The key of an update is `fold_in(key, state.step)`, so a run continues from any step as if it
    had never stopped. `state` is donated. `bad_step` is the number, counted from 1, of the first
    update whose loss or gradient was not finite, or 0; after one the updates are not to be used.
    `metrics` are the means over the chunk, for keys that end in "_max" the largest values.
    """

    def chunk(state: TrainState, key: Array, data: Any):
        def body(carry, _):
            state, bad_step = carry
            after, metrics = train_step(state, jax.random.fold_in(key, state.step), data)
            finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
            bad_here = (bad_step == 0) & ~finite.all()
            return (after, jnp.where(bad_here, after.step, bad_step)), metrics

        (state, bad_step), metrics = lax.scan(
            body, (state, jnp.zeros_like(state.step)), length=length
        )
        return state, bad_step, {name: reduce_metrics(name, rows) for name, rows in metrics.items()}

    return jit_by_model(chunk, donate_argnums=0)


def reduce_metrics(name: str, rows: Array) -> Array:
    """One row of a metric out of many updates' [updates, ...]: the mean, or the largest."""
    return rows.max(0) if name.endswith("_max") else rows.mean(0)
