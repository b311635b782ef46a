"""What modules make of a user's own cell: variables it writes, layers that are not plain."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import actjax

pytestmark = pytest.mark.usefixtures("quick_compilation")
B, T, D, H = 3, 4, 5, 6
XS = jax.random.normal(jax.random.key(0), (B, T, D))
NETWORKS = {
    "act": partial(actjax.ACT, max_steps=4, halt_bias=-1.0),
    "act-scan": partial(actjax.ACT, max_steps=4, loop="scan"),
    "lfact": partial(actjax.LFACT, max_layers=3, halt_bias=0.0),
    "lfact-scan": partial(actjax.LFACT, max_layers=3, loop="scan"),
    "repeat": partial(actjax.Repeat, repeats=2),
    "rnn": actjax.RNN,
}


def make(network, cell, seed=0):
    return NETWORKS[network](D, H, cell=cell, rngs=nnx.Rngs(seed))


class Around(nnx.Module):
    """A cell around a GRU, for others to add to; it says nothing of its input layers."""

    def __init__(self, in_features, hidden_features, *, rngs):
        self.inner = nnx.GRUCell(in_features, hidden_features, rngs=rngs)

    def initialize_carry(self, shape, rngs):
        return self.inner.initialize_carry(shape, rngs)

    def __call__(self, carry, inputs):
        return self.inner(carry, inputs)


# --- Variables that a cell writes --------------------------------------------------------------


class Normed(Around):
    def __init__(self, in_features, hidden_features, *, rngs):
        super().__init__(in_features, hidden_features, rngs=rngs)
        self.norm = nnx.BatchNorm(hidden_features, rngs=rngs)

    def __call__(self, carry, inputs):
        carry, y = self.inner(carry, inputs)
        return carry, self.norm(y)


class Counting(Around):
    def __init__(self, in_features, hidden_features, *, rngs):
        super().__init__(in_features, hidden_features, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros(()))

    def __call__(self, carry, inputs):
        self.calls[...] += 1
        return self.inner(carry, inputs)


class Sowing(Around):
    def __call__(self, carry, inputs):
        self.sow(nnx.Intermediate, "seen", inputs)
        return self.inner(carry, inputs)


WRITERS = {
    Normed: "BatchStat 'cell.norm.mean'",
    Counting: "Variable 'cell.calls'",
    Sowing: "Intermediate 'cell.seen'",
}


@pytest.mark.filterwarnings("ignore:Using 'Module.sow")
@pytest.mark.parametrize("cell", WRITERS)
def test_a_cell_that_writes_is_refused_by_the_name_of_what_it_writes(cell):
    sentence = f"cell must change none of its variables .*, got a write to {WRITERS[cell]}"
    for network in NETWORKS:
        model, other = make(network, cell), make(network, cell)
        for run in (
            lambda: model(XS),  # noqa: B023
            lambda: actjax.Seq2Seq(model, other)(XS, steps=2),  # noqa: B023
            lambda: actjax.stream_batch(model, [np.ones((2, D))]),  # noqa: B023
        ):
            with pytest.raises(ValueError, match=sentence):
                run()


@pytest.mark.filterwarnings("ignore:Using 'Module.sow")
def test_what_a_cell_sows_for_capture_is_refused_too():
    model = make("rnn", Sowing)
    with pytest.raises(ValueError, match="got a write to Intermediate"):
        nnx.capture(lambda model: model(XS), nnx.Intermediate)(model)


def test_statistics_that_are_only_read_are_no_hindrance():
    model = make("rnn", Normed)
    model.eval()
    assert jax.eval_shape(model, XS)[1].shape == (B, T, H)


@pytest.mark.parametrize("loop", ["while", "scan"])
def test_a_pure_step_that_writes_is_refused(loop):
    """But for weight norm, whose writes are of no account."""
    norm, drop = nnx.BatchNorm(H, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    weights = nnx.WeightNorm(nnx.Linear(H, H, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))

    def step(module, state, x, first):
        state = module(state)
        return state, jax.nn.sigmoid(state[:, 0])

    def run(step, params):
        return actjax.unroll(step, params, jnp.zeros((B, H)), XS, max_steps=3, loop=loop)

    with pytest.raises(ValueError, match=r"params must change none .* BatchStat 'mean'"):
        run(step, norm)
    with pytest.raises(ValueError, match="params must hold no stream of noise"):
        run(step, drop)
    with pytest.raises(ValueError, match="step must change no variable when it is called"):
        run(lambda params, *rest: step(norm, *rest), ())
    with pytest.raises(ValueError, match=r"params must change none .* BatchStat 'mean'"):
        actjax.repeat(step, norm, jnp.zeros((B, H)), XS, repeats=2)
    assert jax.eval_shape(run, jax.tree_util.Partial(step), weights)[1].shape == (B, T, H)


# --- Input layers ------------------------------------------------------------------------------


class NormedLinear(nnx.Module):
    def __init__(self, linear, *, rngs):
        self.linear, self.norm = linear, nnx.LayerNorm(linear.out_features, rngs=rngs)

    def __call__(self, inputs):
        return self.norm(self.linear(inputs))


class Doubled(nnx.Linear):
    def __call__(self, inputs):
        return 2 * super().__call__(inputs)


def lora(linear, rngs):
    layer = nnx.LoRALinear(linear.in_features, linear.out_features, lora_rank=2, rngs=rngs)
    layer.lora.lora_b[...] += 1
    return layer


def rounded(linear, rngs):
    """Scales by its largest kernel entry, as a quantized product does."""

    def dot_general(x, kernel, *args, **kwargs):
        size = jnp.abs(kernel).max()
        return size * jax.lax.dot_general(x, jnp.round(8 * kernel / size) / 8, *args, **kwargs)

    linear.dot_general = dot_general
    return linear


LAYERS = {
    "layer norm": lambda linear, rngs: NormedLinear(linear, rngs=rngs),
    "subclass": lambda linear, rngs: Doubled(linear.in_features, linear.out_features, rngs=rngs),
    "lora": lora,
    "weight norm": lambda linear, rngs: nnx.WeightNorm(linear, rngs=rngs),
    "dot_general": rounded,
    "plain": lambda linear, rngs: linear,
}


def replaced(layer):
    def cell(in_features, hidden_features, *, rngs):
        made = nnx.GRUCell(in_features, hidden_features, rngs=rngs)
        made.dense_i = LAYERS[layer](made.dense_i, rngs)
        return made

    return cell


@pytest.mark.parametrize("layer", LAYERS)
def test_a_step_is_the_cell_itself_whatever_its_input_layer_is(layer):
    """Of every network, and of a first and a later step."""
    carry = 0.5 * jnp.ones((B, H))
    for network in ("act", "repeat", "rnn"):
        model = make(network, replaced(layer))
        step, params, _, inputs = model.prepare(XS, carry)
        assert step.hoisted == (layer == "plain")
        for first in (True, False):
            flag = jnp.full((B, model.flag), float(first))
            expected, _ = model.cell(carry, jnp.concatenate([XS[:, 1], flag], -1))
            new, _ = step(params, carry, inputs[:, 1], jnp.full(B, first))
            np.testing.assert_allclose(new, expected, atol=1e-6)
    model = make("lfact", replaced(layer))
    step, params, _, inputs = model.prepare_layers(XS)
    assert step.cell.hoisted == (layer == "plain")
    expected, _ = model.cell(model.combine(carry, carry), XS[:, 1])
    new, _ = step.apply(params[0], carry, inputs[:, 1], carry)
    np.testing.assert_allclose(new, expected, atol=1e-6)


@pytest.mark.parametrize("layer", ["layer norm", "weight norm"])
def test_networks_over_odd_layers_run_as_a_loop_over_the_cell(layer):
    model, carry, rows = make("rnn", replaced(layer)), jnp.zeros((B, H)), []
    for t in range(T):
        carry, y = model.cell(carry, XS[:, t])
        rows.append(y)
    outputs = jnp.stack(rows, 1)
    np.testing.assert_allclose(model(XS)[1], outputs, atol=1e-6)
    (result,) = actjax.stream(model, [XS[0]], lanes=1, chunk=3)
    np.testing.assert_allclose(result.outputs, outputs[0], atol=1e-6)
    decoder = make("rnn", replaced(layer), seed=1)
    decoded = actjax.Seq2Seq(model, decoder)(XS, steps=1)
    np.testing.assert_allclose(decoded.outputs[:, 0], decoder.cell(carry, XS[:, -1])[1], atol=1e-6)
    scan, adaptive = make("act-scan", replaced(layer)), make("act", replaced(layer))
    adaptive.halt = scan.halt
    for a, b in zip(jax.tree.leaves(scan(XS)), jax.tree.leaves(adaptive(XS)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_input_layers_are_inherited_declared_or_left_alone():
    class Empty(nnx.GRUCell):
        pass

    class Overriding(nnx.GRUCell):
        def __call__(self, carry, inputs):
            return super().__call__(carry, jnp.tanh(inputs))

    class Declaring(Around):
        input_layers = ("inner.dense_i",)

    class Mistaken(Declaring):
        input_layers = ("inner.dense_i",)

        def __call__(self, carry, inputs):
            carry, y = self.inner(carry, inputs)
            return carry, y + inputs[:, :1]

    class Misspelt(Around):
        input_layers = "dense_i"

    hoisted = lambda cell: make("act", cell).prepare(XS)[0].hoisted
    assert hoisted(Empty) and hoisted(Declaring)
    assert not hoisted(Overriding) and not hoisted(Around)
    with pytest.raises(ValueError, match=r"input_layers must name all .*, got Mistaken"):
        hoisted(Mistaken)
    with pytest.raises(ValueError, match="input_layers must be a tuple of attribute names"):
        hoisted(Misspelt)
    plain, declared = make("rnn", Around), make("rnn", Declaring)
    np.testing.assert_allclose(plain(XS)[1], declared(XS)[1], atol=1e-6)


# --- Odd cells ---------------------------------------------------------------------------------


def test_an_initial_carry_that_is_drawn_does_not_depend_on_the_place():
    cell = partial(nnx.LSTMCell, carry_init=nnx.initializers.normal(1.0))
    model = make("rnn", cell)
    c, h = model.initial_state(B)
    assert np.abs(c).min() > 0 and (c == c[:1]).all() and (h == h[:1]).all()


def test_cells_that_cannot_be_are_refused():
    class Wide(Around):
        def __call__(self, carry, inputs):
            carry, y = self.inner(carry, inputs)
            return carry, jnp.concatenate([y, y], -1)

    class Single(Around):
        def __call__(self, carry, inputs):
            return self.inner(carry, inputs)[0]

    class Growing(Around):
        def __call__(self, carry, inputs):
            carry, y = self.inner(carry, inputs)
            return (carry, carry), y

    class Flat(Around):
        def initialize_carry(self, shape, rngs):
            return self.inner.initialize_carry(shape, rngs), jnp.zeros(shape[0])

    class Tied(nnx.GRUCell):
        def __init__(self, in_features, hidden_features, *, rngs):
            super().__init__(in_features, hidden_features, rngs=rngs)
            self.again = self.dense_h

    outside = nnx.Rngs(0)

    class Borrowing(Around):
        def __call__(self, carry, inputs):
            return self.inner(carry + outside.normal(carry.shape), inputs)

    for cell, sentence in (
        (Borrowing, "cell must change no variable when it is called, got a write to one that"),
        (Wide, r"cell must return a carry and an output of shape \(3, 6\), got \(3, 12\)"),
        (Single, r"cell must return \(carry, output\), a tree and an array, got"),
        (Growing, "cell's carry must hold arrays of shapes"),
        (Tied, "cell must hold each variable once, .* 'again.kernel' and 'dense_h.kernel'"),
        (Around(D, H, rngs=nnx.Rngs(0)), r"cell must be a class or a factory, .* got a Around"),
        (lambda *_, rngs: jnp.tanh, "cell must make an nnx.Module with a method initialize_carry"),
    ):
        for network in ("act", "lfact", "rnn"):
            with pytest.raises(ValueError, match=sentence):
                make(network, cell)(XS)
    with pytest.raises(ValueError, match="cell must carry float arrays of shape"):
        make("lfact", Flat)
