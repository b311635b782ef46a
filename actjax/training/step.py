"""One update as a pure function, and many updates in one dispatch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.sharding import Mesh

from actjax._checks import check_key, shown
from actjax.training.compiler import jit_by_model
from actjax.training.metrics import OF_ROWS, check_names
from actjax.training.partition import carried, hide, merge, named, rewrite, show, split, writes
from actjax.training.sharding import make_shared
from actjax.training.state import TrainState, apply_updates, as_transformation

# sample(key, data) -> batch: any pytree of arrays that lead with its rows
Sample = Callable[[Array, Any], Any]
# loss_fn(model, batch) -> (scalar, metrics)
LossFn = Callable[..., tuple[Array, dict[str, Array]]]
# train_step(state, key, data) -> (state, metrics), metrics holding "loss" and "gradient_norm"; it
# may have an attribute `finish`, a `Finish`
TrainStep = Callable[[TrainState, Array, Any], tuple[TrainState, dict[str, Array]]]
_NUMBERS = (bool, int, float, np.generic, np.ndarray, Array)
NEXT = "next"  # among the metrics, where a recycled step's new lanes travel
OF_STEPS = ("loss", "gradient_norm")  # what a step tells beside the metrics of its loss


@dataclasses.dataclass(frozen=True)
class Finish:
    """What a training step has `fit` and `sweep` do, once, to the state that they return.

    Attributes:
      due: `step -> bool`, whether there is anything to do after so many updates.
      run: `(state, data) -> state`.
    """

    due: Callable[[Any], Any]
    run: Callable[[TrainState, Any], TrainState]


def make_train_step(
    sample: Sample,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    wrt: Any = None,
    control: Callable[[Any, dict[str, Array]], Any] | None = None,
    mesh: Mesh | None = None,
) -> TrainStep:
    """Builds `train_step(state, key, data) -> (state, metrics)`: draw a batch, descend once.

    What of the model is not trained is carried: statistics, counters and keys go on as `loss_fn`
    leaves them in the model that it is given, and all else stays. Values that it sows
    (`nnx.Intermediate`) are dropped; those to look at belong in the metrics.

    Args:
      sample: `(key, data) -> batch`; `data` is whatever array or pytree the run trains on, passed
        through so that it is never a constant of the program; `()` for a generated task.
      loss_fn: `(model, batch) -> (loss, metrics)` with a scalar loss and a dict of float arrays.
        The model is its own to write to.
      optimizer: an Optax transformation, applied to the gradient of the loss in the parameters
        (for complex ones its conjugate, the direction of steepest ascent, as Optax expects). It is
        also given `value`, `grad` and `value_fn`, the loss as a function of the parameters on this
        batch, for optimizers that look at the loss, such as `optax.lbfgs` and `act_optimizer`.
      wrt: an NNX filter, which of the model is trained, `nnx.LoRAParam` say, or `nnx.Not(...)` of
        what is frozen. Unless given, `nnx.Param` inside NNX modules and every array of another
        pytree. Integers and functions never are. `init_state` must be given the same.
      control: `(extra, metrics) -> extra`, where the step carries a state besides the model
        (`TrainState.extra`), say a ponder budget's. With it `loss_fn` is called as
        `(model, batch, extra)`, and `extra` is updated from the metrics of each step.
      mesh: devices that share each batch; see `actjax.training.sharding`. One unless given. What
        each device makes of the model's statistics is averaged (`nnx.BatchNorm` takes those of the
        whole batch with `axis_name="data"`), and each draws noise of its own.

    Returns:
      A pure `train_step`. Its metrics are those of `loss_fn`, under names of their own, and "loss"
      and "gradient_norm". It may be passed to `jax.vmap` over an ensemble of states.

    Raises:
      ValueError: from the step: the loss is not a float scalar with a dict of metrics, the state is
        that of another optimizer or `wrt`, or `loss_fn` gives the model new state.
    """
    optimizer = as_transformation(optimizer)

    def value_of(params, rest, batch, *extra):
        rest = show(rest)
        model = merge(params, rest)
        loss, metrics = _checked(loss_fn(model, batch, *extra))
        return loss, (metrics, writes(params, rest, model))

    if mesh is None:
        differentiate = jax.value_and_grad(value_of, has_aux=True)
        value_alone = lambda *arguments: value_of(*arguments)[0]
    else:
        differentiate, value_alone = make_shared(value_of, mesh, by_row=(NEXT,))

    def train_step(state: TrainState, key: Array, data: Any = ()):
        check_key("key", key)
        params, rest = split(state.model, wrt)
        _check_opt_state(optimizer, params, state.opt_state)
        extra = () if control is None else (state.extra,)
        arguments = hide(rest), sample(key, data), *extra
        (loss, (metrics, written)), gradient = differentiate(params, *arguments)
        gradient = jax.tree.map(lambda g: g.conj() if jnp.iscomplexobj(g) else g, gradient)
        updates, opt_state = optimizer.update(
            gradient,
            state.opt_state,
            params,
            value=loss,
            grad=gradient,
            value_fn=lambda params: value_alone(params, *arguments),
        )
        params = apply_updates(params, updates)
        model = merge(params, rewrite(rest, written))
        metrics = {"loss": loss, **metrics, "gradient_norm": optax.tree.norm(gradient)}
        extra = state.extra if control is None else control(state.extra, metrics)
        return TrainState(state.step + 1, model, opt_state, extra), metrics

    return train_step


def _checked(result: Any) -> tuple[Array, dict[str, Array]]:
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
        raise ValueError(
            f"loss_fn must return (loss, metrics) with a dict of metrics, got {shown(result)}."
        )
    for name, value in result[1].items():
        if not isinstance(name, str):
            raise ValueError(f"metrics must have strings for names, got {name!r}.")
        if name != NEXT and not isinstance(value, _NUMBERS):
            raise ValueError(
                f"metrics must hold arrays and numbers, got {type(value).__name__} at {name!r}."
            )
    loss = result[0]
    if jnp.shape(loss) or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        raise ValueError(
            "loss_fn must return a loss that is a float scalar, "
            f"got {jnp.result_type(loss)} of shape {jnp.shape(loss)}."
        )
    check_names(result[1], OF_STEPS + OF_ROWS)
    return result


def _check_opt_state(optimizer: optax.GradientTransformation, params: Any, opt_state: Any):
    shapes = lambda tree: {name: jnp.shape(leaf) for name, leaf in named(tree).items()}
    fresh = shapes(jax.eval_shape(optimizer.init, params))
    given = shapes(opt_state)
    odd = sorted(name for name in fresh.keys() | given.keys() if fresh.get(name) != given.get(name))
    if odd:
        raise ValueError(
            "state must be that of init_state with make_train_step's optimizer and wrt, got "
            f"opt_state{odd[0]} of shape {given.get(odd[0])} instead of {fresh.get(odd[0])}."
        )


def make_chunk(train_step: TrainStep, length: int):
    """Builds `chunk(state, key, data) -> (state, bad_step, metrics)`: `length` updates, compiled.

    The key of an update is `fold_in(key, state.step)`, so a run continues from any step as if it
    had never stopped. `state` is donated. `bad_step` is the number, counted from 1, of the first
    update whose loss or gradient was not finite, or 0; after one the updates are not to be used.
    `metrics` are the means over the chunk, for keys that end in "_max" the largest values.
    """

    train_step = carried(train_step)

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

    compiled = jit_by_model(chunk, donate_argnums=0)

    def run(state: TrainState, key: Array, data: Any):
        check_key("key", key)
        state, bad_step, metrics = compiled(hide(state), key, data)
        return show(state), bad_step, metrics

    return run


def with_finish(train_step: TrainStep, finish: Finish) -> TrainStep:
    """`train_step` itself, with `finish` for its attribute."""
    train_step.finish = finish  # type: ignore[attr-defined]
    return train_step


def finish_of(train_step: TrainStep) -> Finish | None:
    """The attribute `finish` of a training step, if it has one."""
    return getattr(train_step, "finish", None)


def make_finish(train_step: TrainStep):
    """`(state, data) -> state`, what is left to do for a state after its last update, or None."""
    finish = finish_of(train_step)
    if finish is None:
        return None

    def run(state: TrainState, data: Any):
        ended = lambda state: hide(finish.run(show(state), data))
        return lax.cond(finish.due(state.step), ended, lambda state: state, state)

    return run


def reduce_metrics(name: str, rows: Array) -> Array:
    """One row of a metric out of many updates' [updates, ...]: the mean, or the largest."""
    return rows.max(0) if name.endswith("_max") else rows.mean(0)
