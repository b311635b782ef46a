"""One meta-update as a `train_step` for `actjax.training.fit`, validation and best model included.

Two objectives:

    sum of losses   truncated backpropagation: windows of W steps over a horizon of H, the paper's
                    way to train the LSTM optimizer (section 5.1)
    halting         a whole horizon unrolled at once, its states kept every W steps: the posterior
                    over halting steps is normalised over the horizon, so windows would bias it
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from actjax._checks import check_choice, check_key, check_positive
from actjax.learned import meta
from actjax.learned.heads import Graves, Softmax
from actjax.learned.problems.family import Family
from actjax.training.metrics import check_names
from actjax.training.state import TrainState, apply_updates, as_transformation, init_state
from actjax.training.step import Finish, with_finish

MakeFamily = Callable[[Any], Family]  # data -> family; data is what `fit` hands to every update


class MetaExtra(NamedTuple):
    """What a meta-training run carries, as `state.extra`, besides the optimizer's parameters.

    Attributes:
      rollout: the problems in progress.
      best: the optimizer with the lowest validation loss so far, which is the one to use: what
        `state.model` holds is only the last.
      best_loss: its validation loss; inf before the first validation.
      validation_loss: of the last validation; inf before the first.
    """

    rollout: meta.Rollout
    best: meta.LearnedOptimizer
    best_loss: jax.Array
    validation_loss: jax.Array


class Objective(NamedTuple):
    """What a batch of curves costs: `(losses [S, B], scores [S, B], key) -> (loss [], metrics)`.

    The key is for objectives that draw something; without one, as in validation, they are exact.
    """

    cost: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    whole: bool  # whether it must see the whole horizon at once


def summed_loss() -> Objective:
    """The sum over steps of the mean loss over problems (June eqs 1 and 19)."""

    def cost(losses, scores, key=None):
        del scores, key
        return losses.mean(-1).sum(), {"final_loss": losses[-1].mean()}

    return Objective(cost, whole=False)


def halting_objective(posterior, *, gap_weight: float = 0.0, horizons: str = "all") -> Objective:
    """Minus the mean of the posterior's objective over problems (June eq 22).

    Args:
      posterior: one of `heads`.
      gap_weight: adds this times KL(q || q*), q* being the best posterior for the curves as they
        are, without a gradient through them. It trains the head directly. Graves' rule has no q*.
      horizons: "all" sums over p(T) exactly; "sample" draws one T a problem, as the papers do, an
        unbiased estimate of that sum. Only the softmax has a prior over T.
    """
    check_choice("horizons", horizons, ("all", "sample"))
    if horizons == "sample" and not (isinstance(posterior, Softmax) and posterior.bound == "act"):
        raise ValueError(
            "horizons must be 'all' but for Softmax with bound='act', "
            f"got 'sample' for {posterior!r}."
        )
    if gap_weight and isinstance(posterior, Graves):
        raise ValueError(f"gap_weight must be 0 for Graves' rule, got {gap_weight!r}.")

    def cost(losses, scores, key=None):
        gain, scores = -losses.T, scores.T
        if horizons == "sample" and key is not None:
            drawn = posterior.prior.over(losses.shape[0]).sample(key, losses.shape[1:])
            value = posterior.objective(scores, gain, drawn).mean()
        else:
            value = posterior.objective(scores, gain).mean()
        log_q = posterior.log_posterior(scores)
        q = jnp.exp(log_q)
        steps = lax.broadcasted_iota(q.dtype, q.shape, q.ndim - 1) + 1
        metrics = {
            "objective": value,
            "halting_step": jnp.sum(q * steps, -1).mean(),
            "halted_loss": jnp.sum(q * losses.T, -1).mean(),
            "final_loss": losses[-1].mean(),
        }
        if gap_weight:
            gap = posterior.gap(scores, lax.stop_gradient(gain)).mean()
            metrics["amortisation_gap"] = gap
            return gap_weight * gap - value, metrics
        return -value, metrics

    return Objective(cost, whole=True)


def make_meta_step(
    make_family: MakeFamily,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int = 125,
    horizon: int = 100,
    window: int = 20,
    second_order: bool = False,
    train_network: bool = True,
    columns: int | None = None,
    validate_every: int = 800,
    validation_size: int = 1000,
    validation_seed: int = 1,
):
    """Builds `(state, key, data) -> (state, metrics)` for `actjax.training.fit`.

    Args:
      make_family: `data -> Family`, called inside the compiled step so that data is its argument.
      objective: `summed_loss()` or `halting_objective(posterior)`.
      optimizer: the meta-optimizer, any Optax transformation; `value`, `grad` and `value_fn` are
        handed to those that look at the loss.
      batch_size: problems in an update (L).
      horizon: H, updates taken on a problem.
      window: steps between truncations, or between kept states for a whole-horizon objective; it
        must divide `horizon`.
      second_order: see `meta.unroll`.
      train_network: with False only the halting head learns.
      columns: coordinates, of all problems in an update, that the derivative goes through; they
        are drawn anew for each update. See `meta.unroll`; None takes all.
      validate_every: meta-updates between validations; the best parameters are kept, in
        `state.extra.best`. `fit` validates what it returns once more where its last update was not
        followed by a validation, so that `best` is never the untrained optimizer; a loop of your
        own does so with `step.finish.run(state, data)`.
      validation_size: problems in the fixed validation set.
      validation_seed: draws that set; the run's own seed plays no part in it.

    Raises:
      ValueError: for counts below 1 or a window that does not divide the horizon; and from the
        step for a state of `init_meta` with another `batch_size`.
    """
    counts = {
        "batch_size": batch_size,
        "horizon": horizon,
        "window": window,
        "validate_every": validate_every,
        "validation_size": validation_size,
    }
    for name, value in counts.items():
        check_positive(name, value)
    if columns is not None:
        check_positive("columns", columns)
    optimizer = as_transformation(optimizer)
    if horizon % window:
        raise ValueError(f"window must divide horizon = {horizon}, got {window}.")

    def unroll(learned, family, rollout, key):
        steps = horizon if objective.whole else window
        chunk = window if objective.whole and window < horizon else None
        drawn = None
        if columns is not None:
            among = rollout.memory.hidden[0].shape[-1]
            drawn = jax.random.choice(key, among, (min(columns, among),), replace=False)
        return meta.unroll(
            learned, family, rollout, steps, second_order=second_order, chunk=chunk, drawn=drawn
        )

    def loss_fn(learned, family, rollout, key):
        if not train_network:
            learned = meta.LearnedOptimizer(lax.stop_gradient(learned.network), learned.head)
        key_columns, key_horizons = jax.random.split(key)
        rollout, curves = unroll(learned, family, rollout, key_columns)
        loss, metrics = objective.cost(*curves, key_horizons)
        return loss, (lax.stop_gradient(rollout), metrics)

    def validate(learned, family, extra: MetaExtra):
        key = jax.random.key(validation_seed)
        rollout = meta.start(learned.network, family, key, validation_size)
        _, curves = meta.unroll(learned, family, rollout, horizon)
        found = objective.cost(*curves)[0].astype(extra.best_loss.dtype)
        better = found < extra.best_loss
        return extra._replace(
            best=jax.tree.map(lambda a, b: jnp.where(better, a, b), learned, extra.best),
            best_loss=jnp.where(better, found, extra.best_loss),
            validation_loss=found,
        )

    def step(state: TrainState, key, data: Any = ()):
        check_key("key", key)
        family = make_family(data)
        extra = state.extra
        problems = extra.rollout.loss.shape[0]
        if problems != batch_size:
            raise ValueError(
                f"batch_size must be that of init_meta, {problems} problems, got {batch_size}."
            )

        def fresh():
            return meta.start(state.model.network, family, key, batch_size)

        windows = 1 if objective.whole else horizon // window
        rollout = lax.cond(state.step % windows == 0, fresh, lambda: extra.rollout)
        draw = jax.random.fold_in(key, 1)
        (loss, (after, metrics)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
            state.model, family, rollout, draw
        )
        value_fn = lambda learned: loss_fn(learned, family, rollout, draw)[0]
        updates, opt_state = optimizer.update(
            gradient, state.opt_state, state.model, value=loss, grad=gradient, value_fn=value_fn
        )
        model = apply_updates(state.model, updates)
        count = state.step + 1
        extra = lax.cond(
            count % validate_every == 0,
            lambda extra: validate(model, family, extra),
            lambda extra: extra,
            extra._replace(rollout=after),
        )
        own = {
            "loss": loss,
            "validation_loss": extra.validation_loss,
            "gradient_norm": optax.tree.norm(gradient),
        }
        check_names(metrics, tuple(own))
        return TrainState(count, model, opt_state, extra), own | metrics

    def finish(state: TrainState, data: Any) -> TrainState:
        return state._replace(extra=validate(state.model, make_family(data), state.extra))

    return with_finish(step, Finish(due=lambda step: step % validate_every != 0, run=finish))


def init_meta(
    learned: meta.LearnedOptimizer,
    optimizer: optax.GradientTransformation,
    make_family: MakeFamily,
    data: Any = (),
    *,
    batch_size: int = 125,
) -> TrainState:
    """The state before the first meta-update; `batch_size` as in `make_meta_step`."""
    rollout = jax.jit(
        lambda data: meta.start(learned.network, make_family(data), jax.random.key(0), batch_size)
    )(data)
    worst = jnp.full((), jnp.inf, rollout.loss.dtype)
    best = jax.tree.map(jnp.copy, learned)  # donated beside the model, so in buffers of its own
    return init_state(learned, optimizer, MetaExtra(rollout, best, worst, worst.copy()))
