"""The modes that users debug in: everything traces under each, and nothing makes a NaN by the way.

What JAX refuses under them it refuses when it traces, so nothing is compiled here but for NaNs.
`ACTJAX_TEST_MODE` runs any of the other tests in a mode: see conftest.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import actjax
from actjax import losses, training
from actjax.tasks import Puzzles, addition, logic, mazes, parity, sort, sudoku, text
from tests.conftest import MODES

pytestmark = pytest.mark.usefixtures("quick_compilation")
B, T, D, H = 3, 4, 5, 6
LENGTHS = np.array([4, 0, 2], np.int32)
KEY = jax.random.key(0)


def step(params, state, x, *rest):
    """Any step function of `unroll`, or of `unroll_layers`."""
    state = jnp.tanh(params[None] * state + x)
    return state, jax.nn.sigmoid(state[:, 0])


def ones(*shape, dtype=None):
    """Under x64 double, as users have it, where types may be mixed."""
    mixed = jax.config.jax_enable_x64 and jax.config.jax_numpy_dtype_promotion == "standard"
    return jnp.ones(shape, dtype or (jnp.float64 if mixed else jnp.float32))


def network(make, loop="while", **options):
    def loss(model):
        xs = ones(B, T, D, dtype=model.dtype)
        _, outputs, ponder = model(xs, lengths=jnp.array(LENGTHS))
        cost = losses.ponder_cost(ponder.cost, jnp.array(LENGTHS), over_time="mean").mean()
        return outputs.astype(jnp.float32).sum() + cost.astype(jnp.float32)

    return lambda: (loss, make(D, H, rngs=nnx.Rngs(0), **options, **loop_of(make, loop)))


def loop_of(make, loop):
    return {} if make in (actjax.Repeat, actjax.RNN) else {"loop": loop}


def act(**options):
    return lambda loop: network(actjax.ACT, loop, max_steps=3, **options)


def lfact(**options):
    return lambda loop: network(actjax.LFACT, loop, max_layers=3, **options)


def seq2seq(loop):
    def loss(model):
        decoded = model(ones(B, T, D), steps=2, lengths=jnp.array([4, 1, 2]))
        return decoded.outputs.sum() + decoded.ponder.cost.sum()

    def make():
        halves = [actjax.ACT(D, H, max_steps=3, loop=loop, rngs=nnx.Rngs(i)) for i in (0, 1)]
        return loss, actjax.Seq2Seq(*halves)

    return make


def functions(loop):
    def loss(params):
        state, xs = jnp.zeros((B, D)), jnp.ones((B, T, D))
        options = {"lengths": jnp.array(LENGTHS), "loop": loop}
        _, states, ponder = actjax.unroll(step, params, state, xs, max_steps=3, **options)
        start = actjax.Layers(jnp.zeros((B, 3, D)), jnp.ones(B, jnp.int32))
        _, layers, _ = actjax.unroll_layers(step, params, start, xs, **options)
        return states.sum() + ponder.cost.sum() + layers.deepest.sum()

    return lambda: (loss, jnp.full(D, 0.5))


def others(loop):
    """The networks that halt by other rules or in other places."""
    lengths = jnp.array([4, 1, 2])
    squares = lambda _, outputs, x: ((outputs - x[:, :H]) ** 2).sum(-1)

    def loss(models):
        universal, whole, pondering, recursive, pair = models
        xs = ones(B, T, 8)
        outputs, ponder = universal(xs, lengths=lengths)
        total = outputs.sum() + ponder.cost.sum() + whole(xs, lengths=lengths)[0].sum()
        losses, kl, _ = pondering.expected_loss(xs, xs, squares, lengths=lengths)
        drawn = pondering(xs, sample=jax.random.key(0))[1]
        options = {"max_steps": 3, "rule": actjax.halting.Threshold(), "loop": loop}
        step, questions = actjax.Recursive.step, xs[:, :2]
        start = recursive.start(questions[:, 0])
        thought, _, _ = actjax.unroll(step, recursive, start, questions, **options)
        free, _ = pair.generate(xs, lambda outputs, key: outputs, steps=2, lengths=lengths)
        return total + (losses + kl).sum() + sum(x.sum() for x in (drawn, thought.answer, free))

    def make():
        rngs, options = nnx.Rngs(0), {"max_steps": 3, "loop": loop, "rngs": nnx.Rngs(0)}
        rule = actjax.halting.AtLeast(2, actjax.halting.PonderNet())
        return loss, (
            actjax.UniversalTransformer(8, 2, rule=rule, **options),
            actjax.UniversalTransformer(8, 2, halt="sequence", **options),
            actjax.PonderNet(8, H, **options),
            actjax.Recursive(nnx.Linear(8, 8, rngs=rngs), 8, latent_steps=1, cycles=2, rngs=rngs),
            actjax.Seq2Seq(*(actjax.RNN(8, 8, rngs=nnx.Rngs(i)) for i in (0, 1))),
        )

    return make


NETWORKS = {
    "act": act(),
    "act-lanes": act(lanes=2, cell=nnx.OptimizedLSTMCell),
    "act-bf16": act(dtype=jnp.bfloat16),
    "lfact": lfact(),
    "lfact-bf16": lfact(combine="mlp", attend="lower", dtype=jnp.bfloat16),
    "seq2seq": seq2seq,
    "functions": functions,
}
CASES = {
    f"{name}-{loop}": make(loop) for name, make in NETWORKS.items() for loop in ("scan", "while")
}
CASES |= {
    "others": others("while"),
    "repeat": network(actjax.Repeat, repeats=2),
    "rnn-bf16": network(actjax.RNN, dtype=jnp.bfloat16),
}
TRACED = [mode for mode in MODES if mode != "nans"]


@pytest.mark.parametrize("mode", TRACED)
@pytest.mark.parametrize("case", CASES)
def test_networks_and_their_gradients(case, mode):
    loss, params = CASES[case]()
    with MODES[mode]():
        jax.eval_shape(jax.value_and_grad(loss), params)


def everything_else():
    logits, mask = jnp.ones((B, T, 3)), jnp.ones((B, T), bool)
    targets = jnp.ones((B, T), jnp.int32)
    losses.softmax_cross_entropy(logits, targets, mask, over_time="mean")
    losses.sigmoid_cross_entropy(logits, jnp.ones((B, T, 3)), mask, over_time="mean")
    losses.bits_per_character(logits, targets, mask)
    losses.entropy_bits(logits)
    losses.accuracy(targets, targets, mask)
    losses.sequence_error_rate(targets, targets, mask)
    counts = losses.confusion(targets[..., None], targets[..., None], mask, classes=3)
    losses.f1(counts)
    ponder = actjax.Ponder(targets, jnp.ones((B, T)))
    losses.ponder_metrics(ponder, jnp.array(LENGTHS))
    square = lambda outputs, mask: jnp.where(mask, outputs[..., 0] ** 2, 0.0).sum(1)
    losses.over_layers(square, actjax.Layers(jnp.ones((B, T, 3, 2)), targets), mask)
    actjax.halting_weights(jnp.full((B, 4), 0.5))
    for controller in (
        actjax.budget.fixed(0.1),
        actjax.budget.hold(3.0),
        actjax.budget.schedule(lambda n: 0.1 * n.astype(jnp.float32)),
    ):
        controller.update(controller.update(controller.init(), jnp.float32(2.5)), 3.5)
    key = jax.random.key(0)
    for layout in parity.LAYOUTS:
        parity.sample(key, B, bits=4, layout=layout)
    for task in (addition, logic, sort):
        task.sample(key, B)
    sudoku.is_solved(jnp.ones((B, 16), jnp.int32), jnp.ones((B, 16), jnp.int32))
    letters = jnp.arange(100, dtype=jnp.uint8)
    text.sample(key, B, text=letters, window=5, encoding="index")
    return text.sample(key, B, text=letters, window=5).inputs


@pytest.mark.parametrize("mode", TRACED)
def test_losses_budgets_and_tasks(mode):
    with MODES[mode]():
        jax.eval_shape(everything_else)


@pytest.mark.parametrize("task", [addition, logic, parity, sort, text, sudoku, mazes])
def test_a_batch_is_the_same_under_x64(task):
    boards = Puzzles(np.eye(2, 16, dtype=int), np.ones((2, 16), int))
    options = {
        text: {"text": jnp.arange(100, dtype=jnp.uint8), "window": 5},
        sudoku: {"puzzles": boards},
        mazes: {"puzzles": boards},
    }.get(task, {})
    found = []
    for x64 in (False, True):
        with jax.enable_x64(x64):
            found.append(jax.jit(lambda key: task.sample(key, B, **options))(KEY))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def trained():
    """Updates by steps that keep the best and the average, and in recycled lanes."""
    optimizer = optax.adamw(0.1)
    xs = lambda key, data=(): jax.random.normal(key, (B, D), jnp.float32)
    model = nnx.Linear(D, D, rngs=nnx.Rngs(0))
    step = training.make_train_step(xs, lambda m, x: ((m(x) ** 2).mean(), {}), optimizer)
    step = training.keep_best(step, lambda m, data: -(m.kernel[...] ** 2).sum(), every=2)
    step = training.keep_average(step, 0.9)
    state = training.with_best(training.init_state(model, optimizer))
    state, _, _ = training.make_chunk(step, 2)(training.with_average(state), KEY, ())
    training.averaged_model(state, 0.9)

    def refined(model, x, y):
        y = model(y) + x
        return (y**2).mean(), (y, y[:, 0] > 0.0, {})

    begin, options = lambda model, x: jnp.zeros_like(x), {"max_steps": 3, "explore": 0.5}
    step = training.make_recycled_step(xs, refined, optimizer, start=begin, **options)
    step(training.init_recycled(model, optimizer, xs, begin, KEY), KEY)


@pytest.mark.parametrize("mode", TRACED)
def test_training(mode):
    with MODES[mode]():
        jax.eval_shape(trained)


@pytest.mark.parametrize("mode", MODES)
def test_streams(mode):
    model = actjax.LFACT(D, H, max_layers=2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    with MODES[mode]():
        actjax.stream_batch(model, np.ones((3, 2, D), np.float32), lanes=2, chunk=2)


@pytest.mark.parametrize("case", ["act-lanes-while", "lfact-scan", "functions-while"])
def test_no_nan_on_the_way(case):
    loss, params = CASES[case]()
    with jax.debug_nans(True):
        jax.jit(jax.value_and_grad(loss))(params)
