"""What halts by more than one number a step, each beside a plain loop over single examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import actjax
from actjax import halting, steps
from actjax.halting import Graves, PonderNet, Threshold
from tests import reference
from tests.test_unroll import assert_trees_close

pytestmark = pytest.mark.usefixtures("quick_compilation")
B, S, D, M = 3, 4, 4, 5
LENGTHS = [4, 2, 4]
SAME = {"rtol": 1e-5, "atol": 1e-5}


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(float)


def constant(number):
    """What a loop in Python may look at while it is differentiated."""
    return float(jax.lax.stop_gradient(number))


def decide(weigh, halts, setting):
    """Whether a rule of the reference ends there, and its weights, which have a gradient."""
    return weigh([constant(h) for h in halts], setting)[0], weigh(halts, setting)[1]


# --- Until outputs come to rest -------------------------------------------------------------------


def towards(w, state, x, first):
    """A contraction, with a count of its steps and a halting unit that nobody listens to."""
    h, n = state
    return (jnp.tanh(h @ w + x), n + 1), jnp.ones(len(h))


def plain_converging(w, x, tolerance, distance):
    results, taken = [], []
    for row in x:
        h, n, apart = jnp.zeros_like(row)[None], 0, np.inf
        while n < 20 and (n < 2 or apart >= tolerance):
            new = jnp.tanh(h @ w + row[None])
            apart, h, n = constant(distance([new], [h])[0]), new, n + 1
        results.append(h[0])
        taken.append(n)
    return (jnp.stack(results) ** 2).sum(), np.array(taken)


@pytest.mark.parametrize("distance", [None, lambda new, old: steps.kl_of_logits(new[0], old[0])])
def test_until_converged_is_a_plain_loop(distance):
    w, x = 0.3 * normal(D, D), normal(B, D, seed=1) * jnp.array([[0.0], [1.0], [0.3]])
    tolerance = 1e-3 if distance is None else 1e-5
    step = steps.until_converged(towards, tolerance=tolerance, distance=distance)
    want = jax.value_and_grad(plain_converging, has_aux=True)
    (value, taken), gradient = want(w, x, tolerance, distance or steps.rms)
    assert len(set(taken)) == 3 and taken[0] == 2  # x = 0 is at rest, but not at a first step

    def loss(w, **options):
        start = jnp.zeros_like(x), jnp.zeros(B, int)
        (h, n), ponder = actjax.ponder(step, w, start, x, max_steps=20, rule=Threshold(), **options)
        return (h**2).sum(), (n, ponder.steps)

    for options in ({}, {"loop": "scan"}, {"lanes": 1}):
        (found, counts), slope = jax.value_and_grad(loss, has_aux=True)(w, **options)
        for count in counts:
            np.testing.assert_array_equal(count, taken)
        np.testing.assert_allclose(found, value, **SAME)
        np.testing.assert_allclose(slope, gradient, **SAME)
    with pytest.raises(ValueError, match="tolerance must be a number above 0, got 0"):
        steps.until_converged(towards, tolerance=0)


# --- The Universal Transformer --------------------------------------------------------------------

RULES = {
    "graves": (Graves(0.02), reference.graves, 0.02),
    "pondernet": (PonderNet(0.1, prior=0.4), reference.pondernet, 0.1),
    "threshold": (Threshold(0.5), reference.threshold, 0.5),
}
UNIVERSAL = [
    ("positions", "graves", {"loop": "while"}),
    ("positions", "graves", {"loop": "scan"}),
    ("positions", "pondernet", {"loop": "while", "lanes": 2}),
    ("positions", "threshold", {"loop": "while", "lanes": 1}),
    ("sequence", "graves", {"loop": "while", "lanes": 2}),
]


def universal(halt, rule, **options):
    options |= {"max_steps": M, "halt": halt, "rule": RULES[rule][0]}
    model = actjax.UniversalTransformer(D, 2, rngs=nnx.Rngs(3), **options)
    return jax.tree.map(lambda leaf: leaf.astype(float), model)


def loss_of(outputs, remainders, kl):
    return (outputs**2).sum() + 0.3 * remainders.sum() + 0.1 * kl.sum()


def plain_universal(model, x, lengths, halt, rule):
    """Sequences one by one, without padding; what halts as one is a position, or all of them."""
    _, weigh, setting = RULES[rule]
    apply = jax.jit(lambda model, h, n: model.apply(h[None], n, jnp.ones((1, len(h)), bool)))
    total, taken = 0.0, np.zeros((len(x), S), int)
    for b, length in enumerate(lengths):
        h = [x[b, s : s + 1] for s in range(length)]
        if halt == "sequence":
            h = [x[b, :length]]
        states, halts, weights = ([[] for _ in h] for _ in range(3))
        done = [False] * len(h)
        for n in range(1, M + 1):
            new, logits = apply(model, jnp.concatenate(h), jnp.array([n]))
            for s in [s for s in range(len(h)) if not done[s]]:
                own = slice(s, s + 1) if halt == "positions" else slice(None)
                h[s] = new[0, own]
                states[s].append(h[s])
                halts[s].append(jax.nn.sigmoid(logits[0, own].mean()))
                done[s], weights[s] = decide(weigh, halts[s], setting)
                taken[b, own] = n
            if all(done):
                break
        outputs = [
            sum(p * s for p, s in zip(*both, strict=True))
            for both in zip(weights, states, strict=True)
        ]
        log = lambda p, n: jnp.log(p / (0.4 * 0.6**n))
        kl = [0.0]  # other rules give weights of 0, which have no logarithm
        if rule == "pondernet":
            kl = [sum(p * log(p, n) for n, p in enumerate(w)) for w in weights]
        kl = jnp.array(kl)
        total += loss_of(jnp.concatenate(outputs), jnp.array([w[-1] for w in weights]), kl)
    return total, taken


@pytest.fixture(scope="module")
def plain():
    """The plain loop's value, steps and gradient; of each setting once."""
    known = {}

    def found(halt, rule):
        if (halt, rule) not in known:
            want = jax.value_and_grad(
                lambda model: plain_universal(model, 3 * normal(B, S, D), LENGTHS, halt, rule),
                has_aux=True,
            )
            known[halt, rule] = want(universal(halt, rule))
        return known[halt, rule]

    return found


@pytest.mark.not_in("strict", "Flax's LayerNorm promotes float64 with float32")
@pytest.mark.parametrize(("halt", "rule", "options"), UNIVERSAL)
def test_a_universal_transformer_is_a_plain_loop(float64, plain, halt, rule, options):
    (value, taken), gradient = plain(halt, rule)
    assert len(set(taken[0]) if halt == "positions" else set(taken[:, 0])) > 1

    def loss(model):
        present = jnp.arange(S)[None] < jnp.array(LENGTHS)[:, None]
        x = jnp.where(present[..., None], 3 * normal(B, S, D), jnp.nan)  # what pads is not read
        outputs, ponder = model(x, lengths=jnp.array(LENGTHS))
        kl = ponder.extra["kl"] if rule == "pondernet" else jnp.zeros(())
        return loss_of(outputs, ponder.remainder, kl), ponder

    (found, ponder), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        universal(halt, rule, **options)
    )
    np.testing.assert_array_equal(ponder.steps, taken if halt == "positions" else taken.max(1))
    np.testing.assert_allclose(found, value, rtol=1e-9)
    assert_trees_close(slope, gradient, rtol=1e-9)


def test_one_sequence_is_the_same_alone_and_in_any_order():
    model, x = universal("positions", "graves", lanes=2), 3 * normal(B, S, D)
    run = jax.jit(lambda x, lengths: model(x, lengths=lengths))
    outputs, ponder = run(x, jnp.array(LENGTHS))
    order = np.array([2, 0, 1])
    turned = run(x[order], jnp.array(LENGTHS)[order])
    alone, record = model(x[1:2, : LENGTHS[1]])
    np.testing.assert_allclose(turned[0], outputs[order], **SAME)
    np.testing.assert_array_equal(turned[1].steps, ponder.steps[order])
    np.testing.assert_allclose(alone[0], outputs[1, : LENGTHS[1]], **SAME)
    np.testing.assert_array_equal(record.steps[0], ponder.steps[1, : LENGTHS[1]])


# --- PonderNet ------------------------------------------------------------------------------------


def pondernet(**options):
    return actjax.PonderNet(
        D, 3, max_steps=M, prior=0.3, epsilon=0.1, halt_bias=-0.7, rngs=nnx.Rngs(0), **options
    )


def row(tree, *place):
    """One example of a tree of arrays, or one of its inputs: [1, ...]."""
    return jax.tree.map(lambda leaf: leaf[place][None], tree)


def squares(scale, outputs, targets):
    return ((scale * outputs - targets) ** 2).sum(-1)


def plain_expected(model, scale, xs, targets, lengths):
    """Losses, divergences and steps of sequences and inputs one by one."""
    step, params, start, inputs = model.prepare(xs, None, model.halt, None, None)
    one = jax.jit(step)
    total, taken = 0.0, np.zeros(xs.shape[:2], int)
    for b, length in enumerate(lengths):
        state = row(start, b)
        for t in range(length):
            losses, rates, done = [], [], False
            while not done and len(rates) < M:
                x = row(inputs, b, t)
                state, rate = one(params, state, x, jnp.array([not rates]))
                losses.append(squares(scale, step.read(state)[1], targets[b : b + 1, t])[0])
                rates.append(rate[0])
                done, weights = decide(reference.pondernet, rates, 0.1)
            kl = sum(p * jnp.log(p / (0.3 * 0.7**n)) for n, p in enumerate(weights))
            total += sum(p * loss for p, loss in zip(weights, losses, strict=True)) + 0.2 * kl
            taken[b, t] = len(rates)
    return total, taken


def test_the_expected_loss_is_a_plain_sum():
    xs, targets, lengths = normal(B, 2, D), normal(B, 2, 3, seed=1), [2, 1, 2]
    want = jax.value_and_grad(
        lambda both: plain_expected(*both, xs, targets, lengths), has_aux=True
    )
    (value, taken), gradient = want((pondernet(), jnp.float32(0.5)))
    assert len(set(taken.ravel())) > 2

    def loss(both):
        model, scale = both
        losses, kl, ponder = model.expected_loss(
            xs, targets, squares, scale, lengths=jnp.array(lengths)
        )
        return (losses + 0.2 * kl).sum(), ponder.steps

    for options in ({}, {"loop": "scan"}, {"lanes": 1}):
        both = pondernet(**options), jnp.float32(0.5)
        (found, counts), slope = jax.value_and_grad(loss, has_aux=True)(both)
        np.testing.assert_array_equal(counts, taken)
        np.testing.assert_allclose(found, value, **SAME)
        assert_trees_close(slope, gradient, rtol=1e-5)
    _, _, ponder = pondernet()(xs, lengths=lengths)  # stops where little is left
    np.testing.assert_array_equal(ponder.steps, taken)


def test_drawn_steps_have_the_distribution():
    rows, model = 4000, pondernet()
    xs = jnp.broadcast_to(normal(1, 2, D), (rows, 2, D))
    _, outputs, ponder = jax.jit(lambda key: model(xs, sample=key))(jax.random.key(1))
    step, params, state, inputs = model.prepare(xs[:1], None, model.halt, None, None)
    state, drawn = row(state, 0), np.ones(rows, bool)
    for t in range(2):
        states, rates = [], []
        for n in range(M):
            x = row(inputs, 0, t)
            state, rate = step(params, state, x, jnp.array([n == 0]))
            states.append(state)
            rates.append(rate[0])
        p = np.asarray(halting.halting_weights(jnp.stack(rates), rule=PonderNet(1e-6)).weights)
        found = np.bincount(ponder.steps[drawn, t], minlength=M + 1)[1:]
        spread = np.sqrt(drawn.sum() * p * (1 - p))
        assert (np.abs(found - drawn.sum() * p) < 4 * spread).all()
        n = found.argmax()  # and so does the next input, of those that are alike so far
        drawn &= np.asarray(ponder.steps[:, t]) == n + 1
        state = states[n]
        np.testing.assert_allclose(
            outputs[drawn, t], np.broadcast_to(step.read(state)[1], (drawn.sum(), 3)), **SAME
        )


# --- Recursive networks ---------------------------------------------------------------------------


def recursive(**options):
    network = nnx.Sequential(nnx.Linear(D, D, rngs=nnx.Rngs(0)), jnp.tanh)
    model = actjax.Recursive(network, D, latent_steps=2, rngs=nnx.Rngs(1), **options)
    model.halt.kernel[...] = 2 * normal(D, 1, seed=5)
    model.halt.bias[...] = jnp.zeros(1)
    return model


def plain_recursive(model, x, cycles, last):
    """Questions one by one; all but the last cycle of a step by weights that are constants."""
    (still, fixed_x) = jax.lax.stop_gradient((model, x)) if last else (model, x)
    total, taken = 0.0, []
    for b in range(len(x)):
        y, z, n, q = jnp.zeros((S, D)), jnp.zeros((S, D)), 0, -1.0
        while n < M and constant(q) <= 0:
            if last:
                y, z = jax.lax.stop_gradient((y, z))
            for cycle in range(cycles):
                net, question = (model, x) if cycle == cycles - 1 else (still, fixed_x)
                if last:  # nothing comes back from the last cycle either
                    y, z = jax.lax.stop_gradient((y, z))
                for _ in range(2):
                    z = net.network(question[b] + y + z)
                y = net.network(y + z)
            q, n = model.halt(y.mean(0))[0], n + 1
        total += (y**2).sum() + 0.1 * q
        taken.append(n)
    return total, np.array(taken)


@pytest.mark.parametrize(("cycles", "gradient"), [(1, "last"), (3, "last"), (2, "all")])
def test_a_recursive_network_is_a_plain_loop(cycles, gradient):
    x = 1.5 * normal(6, S, D)
    options = {"cycles": cycles, "gradient": gradient}
    want = jax.value_and_grad(
        lambda model: plain_recursive(model, x, cycles, gradient == "last"), has_aux=True
    )
    (value, taken), slope = want(recursive(**options))
    assert len(set(taken)) > 1

    def loss(model, **options):
        thought, ponder = actjax.ponder(
            actjax.Recursive.step,
            model,
            model.start(x),
            x,
            max_steps=M,
            rule=Threshold(),
            **options,
        )
        return (thought.answer**2).sum() + 0.1 * model.logit(thought).sum(), ponder.steps

    for loop in ({}, {"loop": "scan"}, {"lanes": 2}):
        (found, counts), found_slope = jax.value_and_grad(loss, has_aux=True)(
            recursive(**options), **loop
        )
        np.testing.assert_array_equal(counts, taken)
        np.testing.assert_allclose(found, value, **SAME)
        assert_trees_close(found_slope, slope, rtol=1e-5)
