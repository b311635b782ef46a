"""Softmax halting posterior and its evidence bound, exact and in O(H) (Sander 2017, eqs 6 to 12).

The logits l_1..l_H of a problem give q(t|T) = softmax(l_1..l_T)_t for every horizon T at once.
Everything here follows from one chain rule. With L_T = log sum_{t<=T} exp(l_t),

    w_T = q(T|T) = exp(l_T - L_T),    q(t|T) = (1 - w_T) q(t|T-1)  for t < T,

so that an expectation or a divergence under q(.|T) is a running mean with weights w_T. No term
grows with the logits, which keeps float32 exact to its own precision for long horizons.

Shapes: logits and log_likelihood are [..., H] and broadcast against each other; reductions are over
the last axis. The units are nats.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from actjax._checks import check_choice
from actjax.learned.prior import HorizonPrior

BOUNDS = ("act", "marginal")


def log_posterior(logits: jax.Array, prior: HorizonPrior) -> jax.Array:
    """log q(t) = log sum_{T>=t} q(t|T) p(T) (June eq 7): float [..., H].

    Example:
      >>> import jax.numpy as jnp
      >>> log_q = jax.jit(log_posterior, static_argnums=1)(jnp.zeros(4), HorizonPrior(0.9))
      >>> round(float(jnp.exp(log_q).sum()), 5)
      1.0
    """
    logits = _steps_last("logits", logits)
    prior = prior.over(logits.shape[-1])
    log_w, log_keep = _log_weights(logits)
    log_horizon = _table(prior.log_horizon(), logits)

    # log S_t = log(p(t) + (1 - w_{t+1}) S_{t+1}) is the mass of horizons that reach t.
    def combine(later, earlier):
        return later[0] + earlier[0], jnp.logaddexp(earlier[1], earlier[0] + later[1])

    log_next = jnp.concatenate([log_keep[..., 1:], jnp.zeros_like(log_keep[..., :1])], axis=-1)
    _, log_reach = lax.associative_scan(combine, (log_next, log_horizon), True, logits.ndim - 1)
    return log_w + log_reach


def elbo(
    logits: jax.Array,
    log_likelihood: jax.Array,
    prior: HorizonPrior,
    *,
    kl_weight: float = 1.0,
    bound: str = "act",
    horizons="all",
) -> jax.Array:
    """Lower bound on log p(x) of the halting posterior (June eqs 10, 21, 22): float [...].

    Args:
      logits: halting logits l_t, [..., H].
      log_likelihood: log p(x|t), the score after step t, [..., H].
      prior: its horizon, where set, must be H.
      kl_weight: k, weight of the divergence to the prior; a step is worth taking while it gains
        more than -k log(nu) / 2 nats. Mean losses need a small one (0.01 to 0.03).
      bound: "act" is the expectation over horizons of eq 10; "marginal" the tighter
        sum_t q(t) [log p(x|t) - k log(q(t) / p(t))].
      horizons: "all" sums over p(T) exactly; an integer or int [...] array of sampled horizons
        gives the bound at those T, an unbiased estimate of it. They count from
        `prior.first_step`; one out of range is refused, or gives nan where it is traced.

    Raises:
      ValueError: for an unknown bound, horizons that are not integers of the range, or sampled
        horizons for the marginal bound.

    Example:
      >>> import jax.numpy as jnp
      >>> gain = jnp.array([-4.0, -1.0, -0.9])
      >>> prior = HorizonPrior(0.9)
      >>> best = oracle_logits(gain, prior)
      >>> bool(elbo(best, gain, prior) > elbo(jnp.zeros(3), gain, prior))
      True
    """
    check_choice("bound", bound, BOUNDS)
    every = isinstance(horizons, str)
    if every and horizons != "all":
        raise ValueError(f"horizons must be 'all' or integers, got {horizons!r}.")
    logits, log_likelihood = jnp.broadcast_arrays(_steps_last("logits", logits), log_likelihood)
    if bound == "marginal":
        if not every:
            raise ValueError(f"horizons must be 'all' for the marginal bound, got {horizons!r}.")
        log_q = log_posterior(logits, prior)
        log_p = _table(prior.over(log_q.shape[-1]).log_marginal(), log_q)
        return jnp.sum(jnp.exp(log_q) * (log_likelihood - kl_weight * (log_q - log_p)), axis=-1)
    values = horizon_elbo(logits, log_likelihood, prior, kl_weight=kl_weight)
    if every:
        log_horizon = _table(prior.over(values.shape[-1]).log_horizon(), values)
        return jnp.sum(jnp.exp(log_horizon) * values, axis=-1)
    index = _horizon_index(horizons, prior.first_step, values.shape[-1])
    index = jnp.broadcast_to(index, values.shape[:-1])[..., None]
    return jnp.take_along_axis(values, index, axis=-1, mode="fill", fill_value=jnp.nan)[..., 0]


def horizon_elbo(
    logits: jax.Array, log_likelihood: jax.Array, prior: HorizonPrior, *, kl_weight: float = 1.0
) -> jax.Array:
    """The bound at every horizon T alone (June eq 6): float [..., H].

    `sum_t q(t|T) log p(x|t) - k KL(q(t|T) || p(t|T))` for T = 1..H.
    """
    logits, score = jnp.broadcast_arrays(_steps_last("logits", logits), log_likelihood)
    prior = prior.over(logits.shape[-1])
    log_w, log_keep = _log_weights(logits)
    log_v, log_rest = _log_weights(_prior_logits(prior, logits))
    return _running_mean(log_w, log_keep, score, kl_weight, log_v, log_rest)


def oracle_logits(
    log_likelihood: jax.Array, prior: HorizonPrior, kl_weight: float = 1.0
) -> jax.Array:
    """The logits that maximise `elbo` at every horizon at once: float [..., H].

    l*_t = log p(x|t) / k + (t - 1) log a. At k = 1 the bound is then E_p(T) log p(x|T). They need
    the whole loss curve, so they serve as a test, a yardstick and a target, not as a policy.
    """
    log_likelihood = _steps_last("log_likelihood", log_likelihood)
    return log_likelihood / kl_weight + _prior_logits(prior, log_likelihood)


def amortisation_gap(
    logits: jax.Array,
    log_likelihood: jax.Array,
    prior: HorizonPrior,
    *,
    kl_weight: float = 1.0,
) -> jax.Array:
    """E_p(T) KL(q(.|T) || q*(.|T)), nats lost to logits other than the oracle's: float [...].

    k times this is what `elbo` lacks to its maximum; it is computed without that subtraction and
    is never negative.
    """
    logits, score = jnp.broadcast_arrays(_steps_last("logits", logits), log_likelihood)
    prior = prior.over(logits.shape[-1])
    log_v, log_rest = _log_weights(oracle_logits(score, prior, kl_weight))
    log_w, log_keep = _log_weights(logits)
    divergence = -_running_mean(log_w, log_keep, jnp.zeros_like(score), 1.0, log_v, log_rest)
    return jnp.sum(jnp.exp(_table(prior.log_horizon(), logits)) * divergence, axis=-1)


def _steps_last(name: str, values: jax.Array) -> jax.Array:
    values = jnp.asarray(values)
    if values.ndim < 1 or values.shape[-1] < 1:
        raise ValueError(
            f"{name} must have at least one step on its last axis, got shape {values.shape}."
        )
    return values


def _horizon_index(horizons, first: int, steps: int) -> jax.Array:
    """Where the horizons lie on an axis of `steps`; `steps` itself for a traced one outside."""
    last = first + steps - 1
    allowed = f"horizons must be 'all' or integers from {first} to {last}"
    known = not isinstance(horizons, jax.core.Tracer)
    values = np.asarray(horizons) if known else horizons
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise ValueError(f"{allowed}, got {horizons!r}.")
    outside = (values < first) | (values > last)
    if known and outside.any():
        raise ValueError(f"{allowed}, got {values[outside].flat[0]}.")
    index = jnp.asarray(values) - first
    return jnp.where(index < 0, steps, index)  # a negative index would count from the end


def _prior_logits(prior: HorizonPrior, like: jax.Array) -> jax.Array:
    """(t - 1) log a, the logits of p(t|T), in the shape of `like`."""
    logits = jnp.arange(like.shape[-1], dtype=like.dtype) * prior.log_a
    return jnp.broadcast_to(logits, like.shape)


def _table(values: jax.Array, like: jax.Array) -> jax.Array:
    """A table of the prior's, [H], in the shape and dtype of `like`."""
    return jnp.broadcast_to(values.astype(like.dtype), like.shape)


def _log_weights(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log w_T and log(1 - w_T); the first step has w = 1 and no meaningful log(1 - w)."""
    before = lax.cumlogsumexp(logits, axis=logits.ndim - 1)[..., :-1]
    odds = logits[..., 1:] - before
    first = jnp.zeros_like(logits[..., :1])
    log_w = jnp.concatenate([first, jax.nn.log_sigmoid(odds)], axis=-1)
    return log_w, jnp.concatenate([first, jax.nn.log_sigmoid(-odds)], axis=-1)


def _running_mean(log_w, log_keep, score, kl_weight, log_v, log_rest):
    """E_q(t|T)[score] - k KL(q(.|T) || p(.|T)) for every T, both by their chain rules.

    q goes by (w, 1 - w) and p by (v, 1 - v): KL_T = (1 - w_T) KL_{T-1} + KL(Bern(w_T)||Bern(v_T)).
    """
    w, keep = jnp.exp(log_w), jnp.exp(log_keep)
    divergence = w * (log_w - log_v) + keep * (log_keep - log_rest)
    term = w * score - kl_weight * divergence
    keep = jnp.concatenate([jnp.zeros_like(keep[..., :1]), keep[..., 1:]], axis=-1)

    def combine(earlier, later):
        return later[0] * earlier[0], later[0] * earlier[1] + later[1]

    return lax.associative_scan(combine, (keep, term), axis=-1)[1]
