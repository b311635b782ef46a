"""Three halting posteriors behind one interface: scores in, q(t) and an objective out.

A `Head` turns what the optimizer sees at a step into one score per problem. What a score means is
the posterior's business:

    Softmax        score = increment of the halting logit        Sander 2017, eqs 11 to 13
    StickBreaking  sigmoid(score) = chance to stop at this step  the author's later code
    Graves         sigmoid(score) = halting unit h               Graves 2016, eqs 5 to 10

Each works on whole curves (`log_posterior`, `objective`: [..., H], steps last, for training) and on
one step at a time (`begin`, `advance`, for an optimizer at work), with the same numbers.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from actjax._checks import check_choice, check_rngs
from actjax.halting import Ponder, halting_step, halting_weights
from actjax.learned.bound import amortisation_gap, elbo, log_posterior
from actjax.learned.features import log_sign
from actjax.learned.prior import HorizonPrior

KINDS = ("softmax", "stick", "graves")
GLOBAL_FEATURES = 6
NO_LIMIT = jnp.iinfo(jnp.int32).max  # an optimizer at work has no last step of its own


class HaltState(NamedTuple):
    """The posterior of a problem up to now; every field has the shape of a score, [...]."""

    steps: jax.Array  # int32: steps scored
    logit: jax.Array  # softmax: l_t. stick: log survival after t. graves: h_1 + ... + h_t
    log_total: jax.Array  # softmax: L_t = log sum exp(l). Others: unused, 0
    mass: jax.Array  # probability that computation has stopped by now
    gain: jax.Array  # what going on promises over its price, in units of the KL weight


@dataclasses.dataclass(frozen=True)
class Softmax:
    """q(t|T) = softmax(l_1..l_T) with l the running sum of the scores, mixed over p(T)."""

    prior: HorizonPrior
    kl_weight: float = 1.0
    bound: str = "act"

    def log_posterior(self, scores):
        return log_posterior(jnp.cumsum(scores, axis=-1), self.prior)

    def objective(self, scores, log_likelihood, horizons="all"):
        logits = jnp.cumsum(scores, axis=-1)
        return elbo(
            logits,
            log_likelihood,
            self.prior,
            kl_weight=self.kl_weight,
            bound=self.bound,
            horizons=horizons,
        )

    def gap(self, scores, log_likelihood):
        """KL(q || q*) to the best posterior for these loss curves, nats."""
        logits = jnp.cumsum(scores, axis=-1)
        return amortisation_gap(logits, log_likelihood, self.prior, kl_weight=self.kl_weight)

    def begin(self, like):
        state = _nothing_scored(like)
        return state._replace(log_total=jnp.full_like(state.log_total, -jnp.inf))

    def advance(self, state: HaltState, score) -> HaltState:
        """`mass` is the mass before t, 1 - q(t|T=t): what the June text has at inference."""
        score = _like_state(score, state)
        logit = state.logit + score
        log_total = jnp.logaddexp(state.log_total, logit)
        mass = -jnp.expm1(logit - log_total)
        return HaltState(state.steps + 1, logit, log_total, mass, score)


@dataclasses.dataclass(frozen=True)
class StickBreaking:
    """q(t) = lambda_t prod_{s<t} (1 - lambda_s), what is left on the last step.

    The divergence is the one to the geometric prior with its remainder on the last step,
    sum_t S_t KL(Bern(lambda_t) || Bern(1 - nu)), S_t being the chance to get to step t.
    """

    prior: HorizonPrior
    kl_weight: float = 1.0

    def log_posterior(self, scores):
        log_stop, log_survive = _log_hazards(scores)
        return log_stop + log_survive

    def objective(self, scores, log_likelihood):
        log_stop, log_survive = _log_hazards(scores)
        q = jnp.exp(log_stop + log_survive)
        divergence = self._divergence(scores, log_survive, self._prior_scores(scores))
        return jnp.sum(q * log_likelihood, axis=-1) - self.kl_weight * divergence

    def gap(self, scores, log_likelihood):
        """KL(q || q*) to the best posterior for these loss curves, nats."""
        _, log_survive = _log_hazards(scores)
        return self._divergence(scores, log_survive, self.oracle_scores(log_likelihood))

    def oracle_scores(self, log_likelihood):
        """The scores that maximise `objective`: q* is p(t) exp(log_likelihood / k), normalised."""
        prior = self._prior_scores(log_likelihood)
        log_stop, log_survive = _log_hazards(prior)
        log_q = log_stop + log_survive + log_likelihood / self.kl_weight
        after = jax.lax.cumlogsumexp(log_q, axis=log_q.ndim - 1, reverse=True)[..., 1:]
        return jnp.concatenate([log_q[..., :-1] - after, prior[..., -1:]], axis=-1)

    def _prior_scores(self, like):
        odds = jnp.log1p(-self.prior.nu) - jnp.log(self.prior.nu)
        return jnp.full_like(like, odds)

    def _divergence(self, scores, log_survive, other):
        stop = jax.nn.log_sigmoid(scores)
        go = jax.nn.log_sigmoid(-scores)
        each = jnp.exp(stop) * (stop - jax.nn.log_sigmoid(other))
        each = each + jnp.exp(go) * (go - jax.nn.log_sigmoid(-other))
        return jnp.sum((jnp.exp(log_survive) * each)[..., :-1], axis=-1)

    def begin(self, like):
        return _nothing_scored(like)

    def advance(self, state: HaltState, score) -> HaltState:
        """`mass` is the probability of having stopped at t or before."""
        score = _like_state(score, state)
        log_survival = state.logit + jax.nn.log_sigmoid(-score)
        mass = -jnp.expm1(log_survival)
        return HaltState(state.steps + 1, log_survival, state.log_total, mass, -score)


@dataclasses.dataclass(frozen=True)
class Graves:
    """An objective for optimizers that stop: the weights of `actjax.halting.Graves`, the rule, with
    ponder cost `time_penalty` (N + R) and no prior."""

    time_penalty: float = 1e-3
    epsilon: float = 0.01

    def log_posterior(self, scores):
        return jnp.log(halting_weights(jax.nn.sigmoid(scores), epsilon=self.epsilon).weights)

    def objective(self, scores, log_likelihood):
        rule = halting_weights(jax.nn.sigmoid(scores), epsilon=self.epsilon)
        gain = jnp.sum(rule.weights * log_likelihood, axis=-1)
        return gain - self.time_penalty * Ponder(rule.steps, rule.remainder).cost

    def begin(self, like):
        return _nothing_scored(like)

    def advance(self, state: HaltState, score) -> HaltState:
        """`mass` is h_1 + ... + h_t over 1 - epsilon, and 1 from the step on that is the last."""
        score = _like_state(score, state)
        halt, steps = jax.nn.sigmoid(score), state.steps + 1
        _, last = halting_step(halt, state.logit, steps, max_steps=NO_LIMIT, epsilon=self.epsilon)
        total = state.logit + halt
        mass = jnp.where(last, 1, jnp.minimum(total / (1 - self.epsilon), 1))
        return HaltState(steps, total, state.log_total, mass, -score)


class Head(nnx.Module):
    """Score of each problem from its pooled hidden state (June eq 13) and global features.

    Args:
      hidden_features: size of the optimizer network's last layer.
      see_globals: also see `global_features`. Without them the head is the papers'.
      width: units of a tanh layer between; 0 makes the head linear, w_q . h + b.
      bias: initial score.
      rngs: `nnx.Rngs` for the initial weights.
    """

    def __init__(
        self,
        hidden_features: int,
        *,
        see_globals: bool = True,
        width: int = 16,
        bias: float = 0.0,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        self.see_globals = see_globals
        inputs = hidden_features + (GLOBAL_FEATURES if see_globals else 0)
        init = nnx.initializers.lecun_normal()
        self.inner = nnx.Param(init(rngs.params(), (inputs, width)).T) if width else None
        self.inner_bias = nnx.Param(jnp.zeros((width, 1))) if width else None
        self.kernel = nnx.Param(jnp.zeros((width or inputs,)))
        self.bias = nnx.Param(jnp.asarray(bias, self.kernel[...].dtype))

    def __call__(self, pooled: jax.Array, features: jax.Array | None) -> jax.Array:
        """Scores [B] from the mean hidden state [hidden, B] and `global_features` [F, B]."""
        x = pooled.astype(self.kernel[...].dtype)
        if self.see_globals:
            x = jnp.concatenate([x, jnp.asarray(features, x.dtype)])
        if self.inner is not None and self.inner_bias is not None:
            x = jnp.tanh(self.inner[...] @ x + self.inner_bias[...])
        return self.kernel[...] @ x + self.bias[...]


def global_features(loss, previous_loss, gradient_norm, count) -> jax.Array:
    """What a problem looks like as a whole at step t: float [6, *shape].

    The loss and its last change as log and sign, the log of the gradient's norm, and that of the
    step number. At the first step, count = 1, the change is 0 whatever `previous_loss` holds.
    """
    change = jnp.where(count == 1, 0, loss - previous_loss)
    norm = log_sign(gradient_norm)[:1]
    time = jnp.log1p(count.astype(jnp.float32)) / 5
    found = log_sign(loss), log_sign(change), norm, time[None]
    widest = max((part.dtype for part in found), key=lambda dtype: dtype.itemsize)
    return jnp.concatenate([part.astype(widest) for part in found])


def make_posterior(kind: str, prior: HorizonPrior, *, kl_weight: float, time_penalty: float = 1e-3):
    """The posterior called `kind`: "softmax", "stick" or "graves"."""
    check_choice("kind", kind, KINDS)
    if kind == "graves":
        return Graves(time_penalty)
    return (Softmax if kind == "softmax" else StickBreaking)(prior, kl_weight)


def _nothing_scored(like) -> HaltState:
    """Zeros of the shape of `like`, each in a buffer of its own, so that all can be donated."""
    zero = lambda dtype: jnp.zeros_like(like, dtype)
    return HaltState(zero(jnp.int32), *(zero(jnp.float32) for _ in range(4)))


def _like_state(score, state: HaltState) -> jax.Array:
    """The score in the state's own float32, which a step must give back, also under x64."""
    return jnp.asarray(score, state.logit.dtype)


def _log_hazards(scores):
    """log lambda_t and log prod_{s<t}(1 - lambda_s); the last step takes what is left."""
    log_stop = jnp.concatenate(
        [jax.nn.log_sigmoid(scores[..., :-1]), jnp.zeros_like(scores[..., :1])], axis=-1
    )
    going = jnp.cumsum(jax.nn.log_sigmoid(-scores[..., :-1]), axis=-1)
    return log_stop, jnp.concatenate([jnp.zeros_like(scores[..., :1]), going], axis=-1)
