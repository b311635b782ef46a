"""Halting rules in every loop, each against a plain loop in NumPy float64."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import actjax
from actjax import halting
from actjax.halting import AtLeast, FixedSteps, Graves, PonderNet, Threshold
from tests import reference
from tests.test_unroll import _whiles, assert_trees_close

pytestmark = pytest.mark.usefixtures("quick_compilation")
B, T, D, H, M = 4, 3, 2, 3, 6
LENGTHS = [3, 1, 0, 2]
LOOPS = ({"loop": "scan"}, {"lanes": 2, "segment": 2}, {"segment": 3})


@dataclasses.dataclass(frozen=True)
class Doubling:
    """A rule of a user's own: not linear in h, with a register of two numbers a row."""

    mean: Any = True

    def start(self, zero):
        return {"left": zero + 1, "both": jnp.stack([zero, zero], 1)}

    def decide(self, registers, n, halt):
        return registers["left"] * (1 - halt**2) < 0.1

    def update(self, registers, n, halt, last):
        left = registers["left"]
        weight = jnp.where(last, left, left * halt**2)
        both = registers["both"] + jnp.stack([weight * n.astype(weight.dtype), jnp.log(halt)], 1)
        return {"left": left - weight, "both": both}, weight, both


def doubling(halts, _):
    left, weights = 1.0, []
    for h in halts:
        weights.append(left * h**2)
        left -= weights[-1]
    return left < 0.1, [*weights[:-1], 1 - sum(weights[:-1])]


# The rule, the reference's, what it is told there, and which leaves of (h, cost) it averages.
RULES = {
    "graves": (Graves(0.02), reference.graves, 0.02, (True, True)),
    "pondernet": (PonderNet(0.05), reference.pondernet, 0.05, (True, True)),
    "pondernet-loss": (
        PonderNet(0.1, prior=0.4, mean=(False, True)),
        reference.pondernet,
        0.1,
        (False, True),
    ),
    "threshold": (Threshold(0.6), reference.threshold, 0.6, (False, False)),
    "fixed": (FixedSteps(3), reference.fixed, 3, (False, False)),
    "at-least": (AtLeast(3, Graves()), reference.at_least(3, reference.graves), 0.01, (True, True)),
    "at-least-pondernet": (
        AtLeast(2, PonderNet()),
        reference.at_least(2, reference.pondernet),
        0.05,
        (True, True),
    ),
    "own": (Doubling(), doubling, None, (True, True)),
}


def weights(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (D, H), "recurrent": (H, H), "bias": (H,), "flag": (H,), "halt": (H,)}
    made = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return made | {"halt_bias": np.array(-0.3)}


def step(w, state, x, first):
    """A tanh cell, and a cost of each step."""
    (h, _) = state
    h = jnp.tanh(
        x @ w["kernel"]
        + h @ w["recurrent"]
        + w["bias"][None]
        + first[:, None].astype(x.dtype) * w["flag"][None]
    )
    return (h, (h * h).sum(-1)), jax.nn.sigmoid(h @ w["halt"] + w["halt_bias"])


def start(seed=2):
    return np.random.default_rng(seed).standard_normal((B, H)), np.zeros(B)


def inputs(seed=1):
    return np.random.default_rng(seed).standard_normal((B, T, D))


def loss(w, state, xs, rule, **options):
    final, states, ponder = actjax.unroll(
        step, w, state, xs, rule=rule, max_steps=M, lengths=jnp.array(LENGTHS), **options
    )
    value = jnp.sin(final[0]).sum() + jnp.cos(states[0]).sum() + (states[1] ** 2).sum()
    value += (ponder.remainder * jnp.arange(1.0, T + 1)[None]).sum()
    value += sum((leaf**2).sum() for leaf in jax.tree.leaves(ponder.extra))
    return value, (final, states, ponder)


def slow_loss(w, state, xs, name):
    """The same, one example, one input and one step at a time."""
    rule, weigh, setting, averaged = RULES[name]

    def one_step(state, x, first):
        (h,), halt = reference.simple_step(w, state[:1], x, first)
        return [h, (h * h).sum()], halt

    value, steps = H * sum(T - length for length in LENGTHS), np.zeros((B, T), int)
    remainder, extra = np.zeros((B, T)), np.zeros((B, T))
    for b in range(B):
        now = [leaf[b] for leaf in state]
        for t in range(LENGTHS[b]):
            halts = []

            def kept(state, x, first, halts=halts):
                new, halt = one_step(state, x, first)
                halts.append((new, halt))
                return new, halt

            mean, n, r, p = reference.ponder_one(
                kept, now, xs[b, t], max_steps=M, epsilon=setting, rule=weigh
            )
            now = [
                m if is_mean else s
                for m, s, is_mean in zip(mean, halts[-1][0], averaged, strict=True)
            ]
            steps[b, t], remainder[b, t] = n, r
            value += np.cos(now[0]).sum() + now[1] ** 2 + r * (t + 1)
            inner = getattr(rule, "rule", rule)
            if isinstance(inner, PonderNet):
                extra[b, t] = reference.divergence(p, inner.prior)
                value += extra[b, t] ** 2
            elif isinstance(inner, Doubling):
                counted = sum(q * (k + 1) for k, q in enumerate(p))
                value += counted**2 + sum(np.log(h) for _, h in halts) ** 2
        value += np.sin(now[0]).sum()
    return value, (steps, remainder, extra)


@pytest.mark.parametrize("name", [name for name in RULES if name != "graves"])
def test_every_rule_is_the_plain_loop_in_every_loop(float64, name):
    arguments = weights(), start(), inputs()
    expected, (steps, remainder, extra) = slow_loss(*arguments, name)
    assert len(set(steps[steps > 0].tolist())) > (0 if name == "fixed" else 1)

    # The gradient by central differences of the plain loop, along a few directions.
    rng, slopes = np.random.default_rng(3), []
    for _ in range(2):
        direction = jax.tree.map(lambda a: rng.standard_normal(np.shape(a)), arguments)
        by = lambda h, d=direction: jax.tree.map(lambda a, d: a + h * d, arguments, d)
        moved = lambda h, by=by: slow_loss(*by(h), name)
        (up, (steps_up, *_)), (down, (steps_down, *_)) = moved(1e-6), moved(-1e-6)
        assert np.array_equal(steps_up, steps) and np.array_equal(steps_down, steps)
        slopes.append((direction, (up - down) / 2e-6))

    loops = {"pondernet-loss": LOOPS, "threshold": LOOPS[:2], "own": LOOPS[:2]}
    for options in loops.get(name, LOOPS[1:2]):  # `tests.test_unroll` has Graves' rule
        run = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        run = jax.jit(run, static_argnums=3, static_argnames=("loop", "lanes", "segment"))
        (value, (_, _, ponder)), grads = run(*arguments, RULES[name][0], **options)
        np.testing.assert_allclose(value, expected, rtol=1e-10)
        np.testing.assert_array_equal(ponder.steps, steps)
        np.testing.assert_allclose(ponder.remainder, remainder, atol=1e-10)
        if extra.any():
            np.testing.assert_allclose(ponder.extra["kl"], extra, atol=1e-10)
        for direction, slope in slopes:
            pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
            along = sum(np.vdot(g, d) for g, d in pairs)
            np.testing.assert_allclose(along, slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", RULES)
def test_whole_rows_have_the_weights_of_the_loops(name):
    """Among the halting probabilities are exact zeros and ones; gradients are finite there too."""
    rule, weigh, setting, _ = RULES[name]
    rng = np.random.default_rng(0)
    halts = rng.uniform(0.01, 1, (2, 20, M)) ** rng.choice([0.5, 1, 3], (2, 20, 1))
    halts[0, :5, 1], halts[0, 3:8, 2] = (0.0, 1.0) if name != "own" else (0.1, 0.9)
    found = halting.halting_weights(jnp.asarray(halts, jnp.float32), rule=rule)
    for row, p, n, r in zip(*(np.reshape(a, (40, -1)) for a in (halts, *found)), strict=True):
        kept = []
        for h in row:
            kept.append(float(np.float32(h)))
            done, expected = weigh(kept, setting)
            if done:
                break
        assert n == len(kept)
        np.testing.assert_allclose(p, expected + [0] * (M - len(kept)), atol=1e-5)
        np.testing.assert_allclose(r, expected[-1], atol=1e-5)
    np.testing.assert_allclose(found.weights.sum(-1), 1, atol=1e-5)
    weighed = lambda halts: (halting.halting_weights(halts, rule=rule).weights ** 2).sum()
    assert np.isfinite(jax.grad(weighed)(jnp.asarray(halts, jnp.float32))).all()


@pytest.mark.parametrize("name", ["pondernet", "threshold", "own"])
def test_one_example_alone_is_the_same_as_in_a_batch(name):
    options = {"rule": RULES[name][0], "max_steps": M}
    run = lambda *given, lanes=None: actjax.unroll(step, *given, lanes=lanes, **options)[1:]
    run = jax.jit(run, static_argnames="lanes")
    w, state, xs = jax.tree.map(np.float32, (weights(), start(), inputs()))
    together = run(w, state, xs, lanes=2)
    for b in range(2):
        one = jax.tree.map(lambda leaf, b=b: leaf[b : b + 1], (state, xs))
        expected = jax.tree.map(lambda leaf, b=b: leaf[b : b + 1], together)
        assert_trees_close(run(w, *one), expected, 1e-6)


@pytest.mark.parametrize(
    ("rule", "bias"),
    [(PonderNet(), 1.0), (AtLeast(2, Threshold()), -0.3)],
    ids=["pondernet", "at-least"],
)
def test_layers_by_any_rule(rule, bias):
    def layer_step(w, state, x, below, n):
        (h, _), halt = step(w, (state + below.deepest, None), x, n == 1)
        return h, halt

    def total(w, loop):
        start = jnp.zeros((B, M, H)).at[:, 0].set(0.3)
        layers = actjax.Layers(start, jnp.ones(B, jnp.int32))
        final, made, ponder = actjax.unroll_layers(
            layer_step, w, layers, jnp.asarray(inputs(), jnp.float32),
            rule=rule, lengths=jnp.array(LENGTHS), loop=loop,
        )  # fmt: skip
        value = (made.states**2).sum() + jnp.sin(final.deepest).sum() + ponder.remainder.sum()
        return value + sum(leaf.sum() for leaf in jax.tree.leaves(ponder.extra)), (made, ponder)

    w = jax.tree.map(np.float32, weights() | {"halt_bias": bias})
    runs = [
        jax.jit(jax.value_and_grad(lambda w, loop=loop: total(w, loop), has_aux=True))(w)
        for loop in ("scan", "while")
    ]
    assert_trees_close(runs[1], runs[0], 1e-5)
    assert len(set(np.asarray(runs[0][0][1][1].steps).ravel().tolist())) > 2


@pytest.mark.parametrize("make", [
    lambda **k: actjax.ACT(D, H, max_steps=M, rule=PonderNet(mean=False), **k),
    lambda **k: actjax.LFACT(D, H, max_layers=M, rule=AtLeast(2, PonderNet()), **k),
], ids=["act", "lfact"])  # fmt: skip
def test_the_networks_and_streams_take_a_rule(make):
    xs = np.float32(inputs())
    runs = []
    for loop in ("scan", "while"):
        model = make(loop=loop, halt_bias=-0.5, rngs=nnx.Rngs(0))
        total = lambda model: (lambda y, p: ((y**2).sum() + p.extra["kl"].sum(), (y, p)))(
            *model(xs)[1:]
        )
        runs.append(jax.jit(jax.value_and_grad(total, has_aux=True))(model))
    assert_trees_close(jax.tree.leaves(runs[1]), jax.tree.leaves(runs[0]), 1e-5)
    outputs, ponder = runs[1][0][1]
    for result in actjax.stream(model, list(xs), lanes=2, chunk=2):
        np.testing.assert_allclose(result.outputs, outputs[result.index], atol=1e-5)
        np.testing.assert_array_equal(result.steps, ponder.steps[result.index])
        np.testing.assert_allclose(result.remainder, ponder.remainder[result.index], atol=1e-5)
        np.testing.assert_allclose(result.extra["kl"], ponder.extra["kl"][result.index], atol=1e-5)


def test_integers_booleans_and_keys_are_carried_in_the_state():
    """They leave their last value behind; noise of a row's own key is the same in every loop."""

    def noisy(w, state, x, first):
        h, n, odd, key = state
        key = jax.vmap(lambda k: jax.random.split(k)[0])(key)
        noise = jax.vmap(lambda k: jax.random.normal(k, (H,)))(key)
        (h, _), halt = step(w, (h, None), x, first)
        return (h + 0.1 * noise * w["bias"][None], n + 1, ~odd, key), halt

    def total(w, **options):
        state = jnp.zeros((B, H)), jnp.zeros(B, jnp.int16), jnp.zeros(B, bool)
        state = *state, jax.random.split(jax.random.key(0), B)
        final, states, ponder = actjax.unroll(
            noisy, w, state, jnp.asarray(inputs(), jnp.float32), max_steps=M, **options
        )
        read = lambda s: (*s[:3], jax.random.key_data(s[3]))
        value = (states[0] ** 2).sum() + ponder.cost.sum()
        return value, (read(final), read(states), ponder)

    w = jax.tree.map(np.float32, weights())
    runs = [
        jax.jit(
            jax.value_and_grad(
                lambda w, o=options: total(w, lengths=jnp.array(LENGTHS), **o), has_aux=True
            )
        )(w)
        for options in (LOOPS[0], LOOPS[1])
    ]
    assert_trees_close(runs[1], runs[0], 1e-5)
    (_, n, odd, _), _, ponder = runs[1][0][1]
    np.testing.assert_array_equal(n, ponder.steps.sum(1))
    np.testing.assert_array_equal(odd, n % 2 == 1)


def test_the_last_state_costs_no_mean():
    def carried(rule):
        run = lambda w: loss(w, start(), inputs(), rule)[0]
        jaxpr = jax.make_jaxpr(run)(weights())
        (loop,) = _whiles(jaxpr.jaxpr)
        return sum(v.aval.shape == (B, H) for v in loop.outvars)

    assert carried(Graves()) - carried(Threshold()) == 1


def test_what_is_no_rule_is_refused():
    run = lambda rule: actjax.unroll(step, weights(), start(), inputs(), max_steps=M, rule=rule)
    with pytest.raises(ValueError, match=r"rule must have mean, start, decide, update as a Rule"):
        run(0.01)
    with pytest.raises(ValueError, match=r"rule must have a mean that is a bool or a tree"):
        run(Graves(mean=(True, False, True)))

    class Halves(Graves):
        def decide(self, total, n, halt):
            return halt / 2

    with pytest.raises(ValueError, match="rule must decide by one bool a row"):
        run(Halves())

    class Grows(Graves):
        def update(self, total, n, halt, last):
            return (total, total), halt, None

    with pytest.raises(ValueError, match="rule must update its registers to the structure"):
        run(Grows())
    for make, sentence in (
        (lambda: Graves(1.0), "epsilon must be a number strictly between 0 and 1, got 1.0"),
        (lambda: PonderNet(prior=0), "prior must be a number strictly between 0 and 1, got 0"),
        (lambda: Threshold(-0.1), r"threshold must be a number between 0 \(included\) and 1, got"),
        (lambda: FixedSteps(0), "steps must be an integer of at least 1, got 0"),
        (lambda: AtLeast(0, Graves()), "steps must be an integer of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make()

    class Pairs(Graves):
        def update(self, total, n, halt, last):
            return total, halt

    with pytest.raises(ValueError, match=r"rule must update to \(registers, weight, extra\), got"):
        run(Pairs())

    class Numbers(Graves):
        def update(self, total, n, halt, last):
            return total, 1.0, None

    with pytest.raises(ValueError, match=r"rule must give one float weight a row, got shape \(\)"):
        run(Numbers())


@pytest.mark.parametrize("rule", [None, Threshold()])
def test_whole_rows_must_be_of_probabilities(rule):
    with pytest.raises(ValueError, match=r"halts must be probabilities .*, got 3\.1"):
        halting.halting_weights(jnp.array([0.5, 3.1]), rule=rule)
    with pytest.raises(ValueError, match="halts must be real numbers, got complex64"):
        halting.halting_weights(jnp.array([0.5, 0.1j], jnp.complex64), rule=rule)


@pytest.mark.not_in("nans", "its step gives a NaN")
def test_nan_is_no_rest():
    step = actjax.steps.until_converged(
        lambda params, state, x, first: (state * jnp.nan, None), tolerance=np.float32(0.1)
    )
    one = jnp.ones((2, 1))
    _, record = actjax.ponder(step, (), one, one, max_steps=7, rule=Threshold())
    assert record.steps.tolist() == [7, 7]


def test_transformations_of_steps_refuse_in_a_sentence():
    x = jnp.ones((3, 4, 2))
    positions = actjax.steps.start_positions(x)
    whole = lambda weight, state, x, first: (state, jax.nn.sigmoid(state[:, 0, 0]))
    apart = actjax.steps.until_converged(
        lambda params, state, x, first: (state, None), tolerance=0.1, distance=lambda a, b: a[0]
    )
    one = jnp.ones((2, 3))
    run = lambda step, state, x: jax.eval_shape(
        lambda: actjax.ponder(step, (), state, x, max_steps=3, rule=Threshold())
    )
    by_position = actjax.steps.by_position(whole, max_steps=3)
    for make, sentence in (
        (lambda: run(by_position, positions, x), "step must return one halting probability a posi"),
        (lambda: run(by_position, x, x), "state must be a Positions record, as start_positions"),
        (lambda: run(apart, one, one), "distance must return one float a row, of shape"),
        (lambda: actjax.steps.start_positions(()), "state must hold at least one array of shape"),
        (lambda: actjax.steps.start_positions(x.astype(int)), "state must hold floating-point arr"),
        (
            lambda: actjax.steps.start_positions(x, present=jnp.ones((3, 4), jnp.float32)),
            r"present must be bools of shape \(3, 4\), got shape \(3, 4\) of float32",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            make()


def test_a_universal_transformer_refuses_in_a_sentence():
    make = lambda **options: actjax.UniversalTransformer(
        8, 2, max_steps=2, rngs=nnx.Rngs(0), **options
    )
    for call, sentence in (
        (lambda: make(hidden_features=0), "hidden_features must be an integer of at least 1"),
        (lambda: make(lanes=0), "lanes must be an integer of at least 1, got 0"),
        (
            lambda: make()(jnp.ones((1, 2, 8), jnp.int32)),
            "x must hold floating-point numbers, got int32",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


def test_a_recursive_network_carries_thoughts_in_the_dtype_of_its_question():
    x = jnp.ones((2, 5, 8), jnp.float32)
    half = nnx.Linear(8, 8, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    model = actjax.Recursive(half, 8, latent_steps=2, cycles=2, rngs=nnx.Rngs(1))
    assert model(x, model.start(x)).answer.dtype == jnp.float32
    model = actjax.Recursive(nnx.Linear(8, 7, rngs=nnx.Rngs(0)), 8, rngs=nnx.Rngs(1))
    with pytest.raises(ValueError, match="network must return an array of the shape it is given"):
        model(x, model.start(x))
