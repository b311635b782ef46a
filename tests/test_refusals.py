"""What is refused: before any compilation, in one sentence that names the argument.

A row is a name, a call, and how its sentence begins. Add yours to the table of its area, or make
another table and add it to `REFUSALS`.
"""

import dataclasses
import re
import types
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import export

import actjax
from actjax import budget, learned, losses, training
from actjax.learned import problems
from actjax.tasks import addition, logic, mazes, parity, sort, sudoku, text
from tests.learned_refusals import LEARNED

INTERNALS = re.compile(
    r"Tracer|Traced<|[Jj]axpr|[Aa]val|ShapeDtypeStruct|PyTreeDef|<function|at 0x"
)
STATE, X = jnp.zeros((2, 3)), jnp.zeros((2, 4, 3))
LAYERS = actjax.Layers(jnp.zeros((2, 5, 3)), jnp.ones(2, jnp.int32))
KEY = jax.random.key(0)
SGD = optax.sgd(0.1)


def step(params, state, x, *rest):
    return state, jax.nn.sigmoid(state[:, 0])


def logits(params, state, x, *rest):
    return state, state[:, 0] + 3.1


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class WithFunction:
    """A model with a function among its leaves, as those of Equinox are."""

    weights: jax.Array
    activation: Callable


class Unregistered:
    """A model that is no pytree."""

    def for_stream(self, xs):
        return actjax.Prepared(step, (), STATE, xs, 3)


def unroll(step=step, params=(), state=STATE, xs=X, max_steps=3, **options):
    return lambda: actjax.unroll(step, params, state, xs, max_steps=max_steps, **options)


def layers(step=step, params=(), layers=LAYERS, xs=X, **options):
    return lambda: actjax.unroll_layers(step, params, layers, xs, **options)


def repeat(step=step, params=(), state=STATE, xs=X, repeats=2, **options):
    return lambda: actjax.repeat(step, params, state, xs, repeats=repeats, **options)


def traced(make):
    """The call that ``make(value)`` makes of a value that `jit` keeps from being known."""
    return lambda: jax.eval_shape(lambda value: make(value)(), jnp.float32(0.5))


def network(make, rngs=None, **options):
    return lambda: make(4, 2, rngs=nnx.Rngs(0) if rngs is None else rngs, **options)


def streamed(model):
    return lambda: list(actjax.stream(model, [np.ones((2, 3), np.float32)]))


def exported(loop):
    def call():
        (batch,) = export.symbolic_shape("b")
        model = actjax.ACT(3, 4, loop=loop, rngs=nnx.Rngs(0))
        xs = jax.ShapeDtypeStruct((batch, 2, 3), jnp.float32)
        export.export(jax.jit(lambda xs: model(xs)[1]))(xs)

    return call


def first_state(weight, loop="while"):
    halving = lambda w, state, x, first: (w * state + x, jax.nn.sigmoid(state[:, 0]))
    return actjax.unroll(halving, weight, STATE, X, max_steps=2, loop=loop)[1].sum()


def twice(loop="while"):
    """The gradient of a gradient, under `jit`."""
    jax.eval_shape(jax.grad(jax.grad(partial(first_state, loop=loop))), 0.5)


def forward(differentiate):
    """Forward mode, which JAX refuses once it compiles."""
    return lambda: jax.jit(differentiate).lower(0.5)


def recursive(network, gradient):
    model = actjax.Recursive(network(), 3, gradient=gradient, rngs=nnx.Rngs(0))
    model(STATE, model.start(STATE))


def kernels(weight):
    model = actjax.ACT(3, 4, max_steps=2, loop="kernel", rngs=nnx.Rngs(0))
    return model((weight * X).astype(jnp.float32))[1].sum()


UNROLL = [
    ("max_steps", unroll(max_steps=0), "max_steps must be an integer of at least 1, got 0"),
    (
        "max_steps-size",
        unroll(max_steps=2**31),
        "max_steps must be an integer of at most 2147483647",
    ),
    ("max_steps-traced", traced(lambda n: unroll(max_steps=n)), "max_steps must be an integer"),
    ("epsilon-traced", traced(lambda e: unroll(epsilon=e)), "epsilon must be a number strictly"),
    ("loop", unroll(loop="for"), "loop must be 'while' or 'scan', got 'for'"),
    ("lanes", layers(lanes=0), "lanes must be an integer of at least 1, got 0"),
    ("segment", layers(segment=2**40), "segment must be an integer of at most"),
    ("lengths", repeat(lengths=[1, 5]), "lengths must lie between 0 and the 4 inputs given, got 5"),
    ("lengths-kind", layers(lengths=np.ones(2)), "lengths must be 2 integers, one a sequence"),
    ("xs", layers(xs=jnp.zeros(2)), "xs must hold arrays of shape [batch, time, ...]"),
    ("xs-function", unroll(xs=jnp.tanh), "xs must hold arrays and numbers, got the function"),
    ("state", repeat(state=STATE.astype(int)), "state must hold floating-point arrays"),
    ("layers", layers(layers=STATE), "layers must be a Layers record"),
    ("repeats", repeat(repeats=2**31), "repeats must be an integer of at most 2147483647"),
    ("step", unroll(step=lambda *a: 1), "step must return (state, halt), got an array"),
    (
        "step-state",
        layers(step=lambda p, s, *a: (s[:, :2], s[:, 0])),
        "step must return a state of",
    ),
    ("step-halt", unroll(step=lambda p, s, *a: (s, s)), "step must return one float halting prob"),
    ("step-number", unroll(step=lambda p, s, *a: (s, 0.5)), "step must return one float halting"),
    ("logits", unroll(step=logits), "step must return halting probabilities between 0 and 1"),
    ("logits-scan", unroll(step=logits, loop="scan"), "step must return halting probabilities"),
    ("logits-layers", layers(step=logits), "step must return halting probabilities between"),
    ("halts", lambda: actjax.halting_weights(jnp.float32(1)), "halts must have shape [..., M]"),
    *(
        (
            f"export-{loop}",
            exported(loop),
            "loop must be 'scan' where jax.export leaves a dimension",
        )
        for loop in ("while", "kernel")
    ),
    ("twice", twice, "loop='while' has no reverse-mode derivative of its gradient"),
    *(
        (f"forward-{name}", forward(call), "loop='while' has no forward-mode derivative: use loop=")
        for name, call in {
            "jvp": lambda weight: jax.jvp(first_state, (weight,), (1.0,)),
            "jacfwd": jax.jacfwd(first_state),
            "jit": jax.jacfwd(jax.jit(first_state)),
            "twice": jax.jacfwd(jax.jacfwd(first_state)),
        }.items()
    ),
    ("forward-kernel", forward(jax.jacfwd(kernels)), "loop='kernel' has first derivatives in rev"),
    ("stream", streamed(Unregistered()), "model must hold arrays and numbers, got Unregistered"),
]
BOTH = {"epsilon": 0.01, "rule": actjax.halting.Graves(0.05)}
returning = lambda *results: types.SimpleNamespace(
    mean=True,
    start=lambda zero: zero,
    decide=lambda registers, n, halt: halt > 0.5,
    update=lambda registers, n, halt, last: results[0] if len(results) == 1 else results,
)
ROW = jnp.zeros(2, jnp.float32)
RULES = [
    (
        "rule",
        unroll(rule="graves"),
        "rule must have mean, start, decide, update as a Rule does, got 'graves'",
    ),
    ("rule-class", unroll(rule=actjax.halting.Graves), "rule must be made, Graves(...), got the"),
    *(
        (f"rule-{name}", call, "rule must have mean, start, decide, update as a Rule does, got 'x'")
        for name, call in {
            "act": network(actjax.ACT, rule="x"),
            "lfact": network(actjax.LFACT, max_layers=2, rule="x"),
            "universal": network(actjax.UniversalTransformer, max_steps=2, rule="x"),
            "at-least": lambda: actjax.halting.AtLeast(2, "x"),
        }.items()
    ),
    *(
        (f"epsilon-{name}", call, "epsilon must be the rule's own where rule is given, got 0.01")
        for name, call in {
            "unroll": unroll(**BOTH),
            "layers": layers(**BOTH),
            "ponder": lambda: actjax.ponder(step, (), STATE, STATE, max_steps=3, **BOTH),
            "weights": lambda: actjax.halting_weights(jnp.full(3, 0.5), **BOTH),
            "act": network(actjax.ACT, **BOTH),
            "lfact": network(actjax.LFACT, max_layers=2, **BOTH),
            "stream": streamed(actjax.StepModel(step, (), STATE[0], max_steps=3, **BOTH)),
        }.items()
    ),
    (
        "rule-one",
        unroll(rule=returning(ROW)),
        "rule must update to (registers, weight, extra), got",
    ),
    (
        "rule-two",
        layers(rule=returning(ROW, ROW)),
        "rule must update to (registers, weight, extra), got 2",
    ),
    (
        "rule-weight",
        unroll(rule=returning(ROW, 1.0, None)),
        "rule must give one float weight a row",
    ),
    (
        "rule-registers",
        unroll(rule=returning((ROW, ROW), ROW, None)),
        "rule must update its registers to the structure, shapes and dtypes they started with",
    ),
    (
        "cell",
        lambda: actjax.ACT(3, 4, cell="gru", rngs=nnx.Rngs(0)),
        "cell must be a class or a factory, nnx.GRUCell for one, got 'gru'.",
    ),
]
FUNCTIONS = WithFunction(STATE, jax.nn.relu)
PARAMS = [
    (f"params-{name}", call(params=params), f"params must hold arrays and numbers, got {got}")
    for name, call in (("unroll", unroll), ("layers", layers), ("repeat", repeat))
    for params, got in ((FUNCTIONS, "the function 'relu'"), ({"name": "act"}, "str"))
]
TASKS = [
    ("bits", lambda: parity.sample(KEY, 2, bits=0), "bits must be an integer of at least 1, got 0"),
    (
        "max_bits",
        lambda: parity.sample(KEY, 2, bits=2, max_bits=3),
        "max_bits must be at most bits",
    ),
    ("layout", lambda: parity.sample(KEY, 2, layout="x"), "layout must be 'prefix' or 'scattered'"),
    ("batch_size", lambda: logic.sample(KEY, -1), "batch_size must be an integer of at least 1"),
    (
        "max_gates",
        lambda: logic.sample(KEY, 2, max_gates=11),
        "max_gates must be at most 10, got 11",
    ),
    (
        "encoding",
        lambda: text.as_batch(jnp.ones((1, 3)), encoding="x"),
        "encoding must be 'one_hot'",
    ),
    (
        "text",
        lambda: text.windows(np.ones(3), 5),
        "text must have at least 6 bytes for a window of",
    ),
    ("path", lambda: text.read("/nowhere"), "path must be a file that can be read, got '/nowhere'"),
]
BUDGETS = [
    ("ponder", lambda: budget.hold(2.0), "ponder must be above 2, the cost of one step, got 2.0"),
    ("tau", lambda: budget.fixed(-1.0), "tau must be at least 0, got -1.0"),
    ("integral", lambda: budget.hold(3.0, integral=-1), "integral must be at least 0, got -1"),
    (
        "window",
        lambda: budget.hold(3.0, window=0),
        "window must be an integer of at least 1, got 0",
    ),
    (
        "over_time",
        lambda: losses.ponder_cost(X, over_time="max"),
        "over_time must be 'sum' or 'mean'",
    ),
]
PAIR = actjax.Seq2Seq(*(actjax.RNN(3, 3, rngs=nnx.Rngs(i)) for i in (0, 1)))
FEED = lambda outputs, key: outputs
TRAINED = training.init_state(STATE, SGD)
EVERY = training.make_train_step(lambda key, data: X, lambda state, xs: (state.sum(), {}), SGD)
KEYS = {
    "sample": lambda key: actjax.PonderNet(3, 4, rngs=nnx.Rngs(0))(X, sample=key),
    "generate": lambda key: PAIR.generate(X, FEED, steps=2, key=key),
    "fit": lambda key: training.fit(EVERY, TRAINED, key=key, steps=1),
    "step": lambda key: EVERY(TRAINED, key),
    "chunk": lambda key: training.make_chunk(EVERY, 1)(TRAINED, key, ()),
    "recycled": lambda key: training.init_recycled(STATE, SGD, FEED, FEED, key),
    "parity": lambda key: parity.sample(key, 2),
    "addition": lambda key: addition.sample(key, 2),
    "logic": lambda key: logic.sample(key, 2),
    "sort": lambda key: sort.sample(key, 2),
    "sudoku": lambda key: sudoku.sample(key, 2, puzzles=None),
    "mazes": lambda key: mazes.sample(key, 2, puzzles=None),
    "text": lambda key: text.sample(key, 2, text=np.ones(99)),
    "pieces": lambda key: text.draw(key, 2, text=np.ones(99), window=3, apart=True),
    "horizon": lambda key: learned.HorizonPrior(0.5).sample(key),
    "stopping": learned.sampled,
    "quadratic": problems.quadratic(dim=2).sample,
    "regression": problems.regression(dim=2).sample,
}
NO_KEYS = [
    (
        f"key-{name}",
        partial(call, 0),
        f"{'sample' if name == 'sample' else 'key'} must be a PRNG key",
    )
    for name, call in KEYS.items()
]
NO_KEYS += [
    (
        "key-float",
        lambda: KEYS["fit"](jnp.zeros(2)),
        "key must be a PRNG key, as jax.random.key(0)",
    ),
    ("key-many", lambda: KEYS["sort"](jax.random.split(KEY)), "key must be a PRNG key, as jax."),
    *(
        (
            f"rngs-{make.__name__}",
            network(make, 0, **options),
            "rngs must be nnx.Rngs, as nnx.Rngs(0)",
        )
        for make, options in (
            (actjax.ACT, {}),
            (actjax.RNN, {}),
            (actjax.UniversalTransformer, {"max_steps": 2}),
            (actjax.Recursive, {}),
        )
    ),
]
NETWORKS = [
    (
        f"{name}-{gradient}",
        lambda inside=inside, gradient=gradient: recursive(inside, gradient),
        sentence,
    )
    for gradient in ("last", "all")
    for name, inside, sentence in (
        (
            "draws",
            lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(0)),
            "network must draw no noise, since all steps would draw the same (switch it off by "
            "model.eval()), got the stream 'dropout'",
        ),
        (
            "writes",
            lambda: nnx.BatchNorm(3, rngs=nnx.Rngs(0)),
            "network must change none of its variables when it is called, since a loop keeps "
            "nothing of it, got a write to BatchStat 'mean'",
        ),
    )
]
NETWORKS += [
    (
        f"epsilon-set-{make.__name__}",
        lambda make=make, options=options: setattr(network(make, **options)(), "epsilon", 0.1),
        "epsilon must be set with the rule, as in model.rule = actjax.halting.Graves(epsilon), got "
        "model.epsilon = 0.1",
    )
    for make, options in ((actjax.ACT, {}), (actjax.LFACT, {"max_layers": 2}))
]
NETWORKS += [
    (
        f"row-{name}",
        streamed(actjax.StepModel(step, (), state, max_steps=2)),
        f"state must be that of one row, without a batch axis, got shape {got}",
    )
    for name, state, got in (
        ("one", jnp.zeros((1, 3)), "(1, 3)"),
        ("batch", STATE, "(2, 3)"),
    )
]
REFUSALS = [*UNROLL, *RULES, *PARAMS, *TASKS, *BUDGETS, *LEARNED, *NO_KEYS, *NETWORKS]


@pytest.mark.parametrize(
    ("call", "beginning"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS]
)
def test_it_is_refused_in_a_sentence(call, beginning):
    with pytest.raises((ValueError, TypeError)) as raised:
        call()
    sentence = str(raised.value).partition("\n")[0]  # JAX adds lines of its own where it is at work
    assert sentence.startswith(beginning)
    assert sentence.endswith(".") and ". " not in sentence
    assert not INTERNALS.search(sentence)


def test_what_the_sentences_advise_works():
    twice("scan")
    forward(jax.jacfwd(partial(first_state, loop="scan")))()
    forward(jax.hessian(first_state))()
    for key in (KEY, jax.random.PRNGKey(0), np.zeros(2, np.uint32)):
        KEYS["sort"](key)
    weights, activation = jnp.full((1, 3), 0.5), jnp.tanh  # parted, and put together in the step
    together = lambda w, state, x, first: step(w, activation(w * state + x), x)
    actjax.unroll(together, weights, STATE, X, max_steps=2)
    huge = jax.eval_shape(lambda: actjax.unroll(step, (), STATE, X, max_steps=2**31 - 1)[2].cost)
    assert huge.shape == (2, 4)
    in_range = lambda *a: (STATE, jnp.array([1.0, 0.0]))  # 0 and 1 themselves are allowed
    assert actjax.unroll(in_range, (), STATE, X, max_steps=2)[2].steps.tolist() == [
        [1] * 4,
        [2] * 4,
    ]


@pytest.mark.not_in("nans", "it looks for the NaN that is found there")
def test_a_step_that_returns_logits_is_found_under_jit():
    run = lambda step: jax.jit(unroll(step=actjax.steps.checked(step)))()[2].remainder
    assert np.isnan(run(logits)).all() and np.isfinite(run(step)).all()


@pytest.mark.parametrize("loop", ["scan", "while"])
def test_a_nan_of_the_step_is_found_by_debug_nans(loop):
    run = unroll(step=actjax.steps.checked(logits), loop=loop)
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        run()
