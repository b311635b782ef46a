"""The horizon prior and the evidence bound against sums written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from actjax import learned as bounds
from actjax.learned.heads import Graves, Softmax, StickBreaking
from actjax.learned.prior import HorizonPrior
from actjax.learned.stopping import halting_states
from actjax.learned.training import halting_objective

H = 9
CUTS = ("preserve", "renormalise")


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def reference(logits, score, prior, k):
    """Per-horizon bounds, marginal q and its bound, as the double sums of eqs 6, 7, 10 and 24."""
    log_p = np.asarray(prior.log_horizon(), np.float64)
    log_given = np.asarray(prior.log_given(), np.float64)
    values, q = np.zeros(len(logits)), np.zeros(len(logits))
    for T in range(1, len(logits) + 1):
        given = softmax(logits[:T])
        values[T - 1] = given @ (score[:T] - k * (np.log(given) - log_given[T - 1, :T]))
        q[:T] += np.exp(log_p[T - 1]) * given
    tight = q @ (score - k * (np.log(q) - np.asarray(prior.log_marginal(), np.float64)))
    return values, np.exp(log_p) @ values, q, tight


@pytest.fixture
def curves():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, H)) * 2, -np.abs(rng.normal(size=(3, H)))


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("first_step", [0, 1])
@pytest.mark.parametrize("nu", [1e-9, 0.6, 0.97, 1 - 1e-9])
def test_prior_identities(nu, cut, first_step):
    prior = HorizonPrior(nu, horizon=H + first_step - 1, cut=cut, first_step=first_step)
    p, given = np.exp(prior.log_horizon()), np.exp(prior.log_given())
    assert p.shape == (H,)
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(given.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(p @ given, np.exp(prior.log_marginal()), rtol=2e-5, atol=1e-12)
    steps = np.arange(first_step, H + first_step)
    np.testing.assert_allclose(prior.cdf(steps), np.cumsum(p), rtol=1e-5)
    np.testing.assert_allclose(prior.mean, p @ steps, rtol=1e-5, atol=1e-6)


def test_unbounded_prior_is_the_papers():
    nu = 0.81
    prior, tall = HorizonPrior(nu), HorizonPrior(nu).over(400)
    T = np.arange(1, 401)
    a = np.sqrt(nu)
    np.testing.assert_allclose(
        np.exp(tall.log_horizon())[:300], (a ** (T - 1) * (1 - a**T) * (1 - nu))[:300], rtol=1e-4
    )
    np.testing.assert_allclose(np.exp(tall.log_marginal()), (1 - nu) * nu ** (T - 1), rtol=1e-4)
    np.testing.assert_allclose(prior.mean, tall.mean, rtol=1e-6)
    np.testing.assert_allclose(prior.mean, (1 + a + nu) / (1 - nu), rtol=1e-12)
    np.testing.assert_allclose(HorizonPrior(nu, first_step=0).mean, prior.mean - 1, rtol=1e-12)


@pytest.mark.parametrize("cut", CUTS)
def test_sampling_is_exact(cut):
    count = 100_000
    prior = HorizonPrior(0.8, horizon=H, cut=cut)
    found = np.bincount(prior.sample(jax.random.key(0), (count,)), minlength=H + 1)[1:] / count
    p = np.exp(prior.log_horizon())
    assert np.all(np.abs(found - p) < 5 * np.sqrt(p * (1 - p) / count))
    far = HorizonPrior(0.9999)
    mean = far.sample(jax.random.key(1), (count,)).mean()
    assert abs(float(mean) / far.mean - 1) < 0.02


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("k", [1.0, 0.03])
def test_bound_is_the_double_sum(curves, cut, k):
    prior = HorizonPrior(0.9, horizon=H, cut=cut)
    with jax.enable_x64(True):
        logits, score = (jnp.asarray(values) for values in curves)
        found = (
            bounds.horizon_elbo(logits, score, prior, kl_weight=k),
            bounds.elbo(logits, score, prior, kl_weight=k),
            jnp.exp(bounds.log_posterior(logits, prior)),
            bounds.elbo(logits, score, prior, kl_weight=k, bound="marginal"),
        )
        sampled = bounds.elbo(logits, score, prior, kl_weight=k, horizons=jnp.array([1, 4, H]))
        gradient = jax.grad(lambda r: bounds.elbo(logits, r, prior, kl_weight=k).sum())(score)
    for row in range(3):
        expected = reference(curves[0][row], curves[1][row], prior, k)
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_allclose(got[row], want, rtol=1e-6)
        np.testing.assert_allclose(sampled[row], expected[0][[0, 3, H - 1][row]], rtol=1e-6)
    np.testing.assert_allclose(gradient, found[2], rtol=1e-12)  # dELBO/dr_t = q(t)
    assert np.all(found[3] >= found[1])  # the marginal bound is the tighter one


def test_sampled_horizons_are_unbiased(curves):
    prior = HorizonPrior(0.8)
    logits, score = (jnp.asarray(values[0], jnp.float32) for values in curves)
    T = prior.over(H).sample(jax.random.key(0), (20_000,))
    rows = [jnp.broadcast_to(values, (T.size, H)) for values in (logits, score)]
    found = bounds.elbo(*rows, prior, horizons=T)
    error = 5 * float(found.std()) / np.sqrt(T.size)
    assert abs(float(found.mean() - bounds.elbo(logits, score, prior))) < error


def test_objective_of_sampled_horizons_is_unbiased(curves):
    scores, losses = (jnp.asarray(values.T, jnp.float32) for values in curves)
    posterior = Softmax(HorizonPrior(0.8), 0.3)
    exact = halting_objective(posterior).cost(losses, scores)[0]
    objective = halting_objective(posterior, horizons="sample")
    keys = jax.random.split(jax.random.key(0), 4000)
    found = jax.jit(jax.vmap(lambda key: objective.cost(losses, scores, key)[0]))(keys)
    assert float(found.std()) > 0.05
    assert abs(float(found.mean() - exact)) < 5 * float(found.std()) / np.sqrt(found.size)
    assert float(objective.cost(losses, scores)[0]) == float(exact)  # validation draws nothing


def sampled_bound(horizons, first_step=1):
    prior = HorizonPrior(0.5, first_step=first_step)
    return bounds.elbo(jnp.zeros(3), -jnp.arange(3.0), prior, horizons=horizons)


@pytest.mark.not_in("nans", "it asks for the NaN of a horizon out of range")
@pytest.mark.parametrize("first_step", [0, 1])
def test_sampled_horizons_count_from_the_priors_first_step(first_step):
    values = bounds.horizon_elbo(jnp.zeros(3), -jnp.arange(3.0), HorizonPrior(0.5))
    asked = jnp.arange(first_step - 1, first_step + 4)
    found = jax.vmap(jax.jit(lambda T: sampled_bound(T, first_step)))(asked)
    np.testing.assert_allclose(found[1:4], values, rtol=1e-6)
    assert np.isnan(found[0]) and np.isnan(found[4])  # traced, so that they cannot be refused
    assert float(sampled_bound(first_step + 2, first_step)) == pytest.approx(float(values[2]))


@pytest.mark.parametrize("bound", ["act", "marginal"])
def test_one_logit_stands_for_all_steps(bound):
    prior, gain = HorizonPrior(0.9), jnp.full(3, -1.0)
    found = bounds.elbo(jnp.zeros(1), gain, prior, bound=bound)
    assert float(found) == pytest.approx(
        float(bounds.elbo(jnp.zeros(3), gain, prior, bound=bound)), rel=1e-6
    )
    assert found > -2


@pytest.mark.parametrize("k", [1.0, 0.1])
def test_oracle_is_the_optimum(curves, k):
    prior = HorizonPrior(0.9, horizon=H)
    with jax.enable_x64(True):
        logits, score = (jnp.asarray(values) for values in curves)
        best = bounds.oracle_logits(score, prior, k)
        value, gradient = jax.value_and_grad(
            lambda l: bounds.elbo(l, score, prior, kl_weight=k).sum()
        )(best)
        gap = bounds.amortisation_gap(logits, score, prior, kl_weight=k)
        lost = bounds.elbo(best, score, prior, kl_weight=k) - bounds.elbo(
            logits, score, prior, kl_weight=k
        )
    assert np.abs(gradient).max() < 1e-12
    np.testing.assert_allclose(lost, k * np.asarray(gap), rtol=1e-9)
    p, given = np.exp(prior.log_horizon()), np.exp(prior.log_given())
    evidence = k * np.log(np.exp(np.asarray(score) / k) @ given.T) @ p
    np.testing.assert_allclose(value, evidence.sum(), rtol=1e-5)


def test_one_step_leaves_nothing_to_decide():
    score = jnp.array([-1.5])
    prior = HorizonPrior(0.9, horizon=1)
    assert float(bounds.elbo(jnp.array([7.0]), score, prior)) == pytest.approx(-1.5)
    assert float(jnp.exp(bounds.log_posterior(jnp.array([7.0]), prior))[0]) == pytest.approx(1)
    assert float(jax.grad(lambda l: bounds.elbo(l, score, prior))(jnp.zeros(1))[0]) == 0


@pytest.mark.parametrize("nu", [0.9, 0.9999])
def test_float32_holds_for_long_horizons_and_wild_logits(nu, quick_compilation):
    rng = np.random.default_rng(1)
    logits = np.float32(rng.normal(size=10_000) * 200)
    score = np.float32(-np.abs(rng.normal(size=10_000)))
    prior = HorizonPrior(nu)

    @jax.jit
    def bound(logits, score):
        value, gradient = jax.value_and_grad(bounds.elbo, argnums=(0, 1))(logits, score, prior)
        return value, gradient, jnp.exp(bounds.log_posterior(logits, prior))

    value, (gradient, slope), q = bound(logits, score)

    l, t = logits.astype(np.float64), np.arange(10_000)
    with jax.enable_x64(True):
        a, log_p = np.exp(prior.log_a), np.asarray(prior.over(10_000).log_horizon())
    total = np.logaddexp.accumulate(l)
    exact_q = np.exp(l + np.logaddexp.accumulate((log_p - total)[::-1])[::-1])
    exact = exact_q @ (score - (l - t * prior.log_a))
    exact += np.exp(log_p) @ (total + np.log1p(-a) - np.log1p(-(a ** (t + 1))))
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    np.testing.assert_allclose(q, exact_q, atol=1e-6)
    np.testing.assert_allclose(slope, exact_q, atol=1e-6)
    assert np.isfinite(gradient).all() and abs(float(q.sum()) - 1) < 1e-4


def test_stick_breaking_against_its_definition(curves):
    scores, score = curves
    nu, k = 0.9, 0.3
    posterior = StickBreaking(HorizonPrior(nu), k)
    with jax.enable_x64(True):
        q = np.exp(posterior.log_posterior(jnp.asarray(scores)))
        value = posterior.objective(jnp.asarray(scores), jnp.asarray(score))
        oracle = posterior.oracle_scores(jnp.asarray(score))
        best, slope = jax.value_and_grad(
            lambda s: posterior.objective(s, jnp.asarray(score)).sum()
        )(oracle)
        gap = posterior.gap(jnp.asarray(scores), jnp.asarray(score))
        best_q = np.exp(posterior.log_posterior(oracle))
    t = np.arange(H)
    p = (1 - nu) * nu**t
    p[-1] = nu ** (H - 1)
    hazard = 1 / (1 + np.exp(-scores))
    hazard[:, -1] = 1
    survive = np.cumprod(np.concatenate([np.ones((3, 1)), 1 - hazard[:, :-1]], 1), 1)
    np.testing.assert_allclose(q, hazard * survive, rtol=1e-10)
    divergence = (q * np.log(q / p)).sum(1)
    np.testing.assert_allclose(value, (q * score).sum(1) - k * divergence, rtol=1e-9)
    target = p * np.exp(score / k)
    np.testing.assert_allclose(best_q, target / target.sum(1, keepdims=True), rtol=1e-9)
    assert np.abs(slope).max() < 1e-12 and float(best) > np.asarray(value).sum()
    np.testing.assert_allclose(gap, (q * np.log(q / best_q)).sum(1), rtol=1e-9)


def test_one_step_at_a_time_equals_whole_curves(curves):
    scores = jnp.asarray(curves[0], jnp.float32)
    soft, stick, graves = Softmax(HorizonPrior(0.9)), StickBreaking(HorizonPrior(0.9)), Graves()
    logits = np.cumsum(np.asarray(scores, np.float64), -1)
    before = [1 - softmax(row[: t + 1])[-1] for row in logits for t in range(H)]
    mass = halting_states(soft, scores).mass
    np.testing.assert_allclose(mass.ravel(), before, atol=1e-6)
    cumulative = np.cumsum(np.exp(stick.log_posterior(scores)), -1)[:, :-1]
    np.testing.assert_allclose(halting_states(stick, scores).mass[:, :-1], cumulative, atol=1e-6)
    stopped = np.argmax(halting_states(graves, scores).mass >= 1, -1) + 1
    steps = np.sum(np.exp(graves.log_posterior(scores)) > 0, -1)
    assert list(stopped) == list(steps)
    np.testing.assert_allclose(np.exp(graves.log_posterior(scores)).sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HorizonPrior(1.0), "nu must be a number strictly between 0 and 1, got 1.0."),
        (lambda: HorizonPrior(0.5, horizon=0), "horizon must be an integer of at least 1, got 0."),
        (lambda: HorizonPrior(0.5, cut="no"), "cut must be 'preserve' or"),
        (lambda: HorizonPrior(0.5).log_horizon(), "horizon must be an integer for a table"),
        (
            lambda: bounds.elbo(jnp.ones(3), jnp.ones(3), HorizonPrior(0.5, 4)),
            "must cover the 3 steps of the last axis, got 4",
        ),
        (
            lambda: bounds.elbo(jnp.ones(3), jnp.ones(3), HorizonPrior(0.5), bound="x"),
            "bound must be",
        ),
        (lambda: sampled_bound(0), "integers from 1 to 3, got 0"),
        (lambda: sampled_bound(-1), "integers from 1 to 3, got -1"),
        (lambda: sampled_bound(jnp.array([3, 4])), "integers from 1 to 3, got 4"),
        (lambda: sampled_bound(3, first_step=0), "integers from 0 to 2, got 3"),
        (lambda: sampled_bound(1.0), "integers from 1 to 3, got 1.0"),
        (lambda: sampled_bound(True), "integers from 1 to 3, got True"),
        (lambda: bounds.log_posterior(jnp.ones(()), HorizonPrior(0.5)), "at least one step"),
        (
            lambda: halting_objective(StickBreaking(HorizonPrior(0.5)), horizons="sample"),
            "horizons must be 'all' but for Softmax",
        ),
        (lambda: halting_objective(Graves(), gap_weight=1.0), "gap_weight must be 0"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
