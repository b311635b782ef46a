"""The rows of `accelerator.py`: what is trained, at which sizes, and by which loop."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import card
import jax
import jax.numpy as jnp
import optax
from card import Program
from flax import nnx
from jax import lax
from loops import masked_scan, nested_while, with_loop

import actjax
from actjax import losses, training
from actjax.learned import CoordinatewiseLSTM, columns, lstm_optimizer
from actjax.nn.kernel import kernel_supports
from actjax.tasks import parity

ADAM = optax.adam(1e-9)  # so that the ponders stay where they are
GATES = {nnx.SimpleCell: 1, nnx.GRUCell: 3, nnx.OptimizedLSTMCell: 4}
# Initial bias of the halting unit and a factor on its kernel, for mean ponders near these.
LEVELS = {"2": (1.0, 1.0), "5": (-1.0, 2.0), "7": (-2.0, 2.0)}


@dataclasses.dataclass(frozen=True)
class Setting:
    """One network and the shape of its inputs."""

    batch: int
    time: int
    features: int
    hidden: int
    cell: Callable
    max_steps: int
    levels: tuple[str, ...] = ("2",)
    dtype: Any = None

    def network(self, loop: str, level: str):
        model = _made(self, loop == "plain")
        if loop == "plain":
            return model
        model = nnx.clone(model)  # whose variables are its own
        model.loop = "kernel" if loop == "kernel" else "while"
        bias, factor = LEVELS[level]
        model.halt.bias[...] = jnp.full_like(model.halt.bias[...], bias)
        model.halt.kernel[...] *= factor
        return model

    def inputs(self) -> jax.Array:
        shape = self.batch, self.time, self.features
        return jax.random.normal(jax.random.key(0), shape, self.dtype or jnp.float32)

    def flops(self, steps: float) -> float:
        """Of the recurrent products of a training step with so many ponder steps in all."""
        return 3 * 2 * GATES[self.cell] * self.hidden**2 * steps

    def small(self) -> "Setting":
        sizes = {"batch": 4, "time": min(self.time, 2), "features": 4, "hidden": 8}
        return dataclasses.replace(self, **sizes, max_steps=5, levels=self.levels[:1])


@functools.cache
def _made(setting: Setting, plain: bool):
    """The network, made in one program; large ones without the QR of an orthogonal start."""
    normal = {"recurrent_kernel_init": nnx.initializers.lecun_normal()}
    cell = functools.partial(setting.cell, **(normal if setting.hidden > 512 else {}))
    sizes = setting.features, setting.hidden
    options = {"cell": cell, "dtype": setting.dtype}
    if plain:
        return jax.jit(lambda: actjax.RNN(*sizes, **options, rngs=nnx.Rngs(0)))()
    options["max_steps"] = setting.max_steps
    return jax.jit(lambda: actjax.ACT(*sizes, **options, rngs=nnx.Rngs(0)))()


LSTM, GRU, SIMPLE = nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell
SETTINGS = {
    "parity": Setting(128, 1, 64, 128, SIMPLE, 100, ("2", "7")),
    "text": Setting(64, 50, 256, 128, GRU, 20, ("2", "5")),
    "text-lstm": Setting(16, 100, 256, 512, LSTM, 20, ("2", "5")),
    "addition": Setting(32, 5, 50, 512, LSTM, 20, ("2", "5")),
    "big": Setting(256, 100, 256, 1024, LSTM, 20),
    "big bf16": Setting(256, 100, 256, 1024, LSTM, 20, dtype=jnp.bfloat16),
    "wiki bf16": Setting(1024, 50, 256, 1500, LSTM, 20, dtype=jnp.bfloat16),
    "wiki bf16 1536": Setting(1024, 50, 256, 1536, LSTM, 20, dtype=jnp.bfloat16),
    "text bf16": Setting(64, 50, 256, 128, GRU, 20, dtype=jnp.bfloat16),
    "text-lstm 256": Setting(16, 100, 256, 256, LSTM, 20),
}
# Where the loops stand by size: H, B, dtype.
SHAPES = [
    (128, 16, None), (128, 512, None), (128, 4096, None),
    (512, 512, None), (1024, 4096, jnp.bfloat16), (1536, 512, jnp.bfloat16),
    (256, 512, None), (512, 16, None), (512, 4096, jnp.bfloat16),
    (1024, 16, None), (1024, 512, None), (1536, 4096, jnp.bfloat16),
    (256, 4096, jnp.bfloat16), (1536, 16, None),
]  # fmt: skip


def shape_setting(hidden: int, batch: int, dtype) -> Setting:
    return Setting(batch, 20, 64, hidden, LSTM, 20, dtype=dtype)


@dataclasses.dataclass
class Row:
    """One program and the carries it is timed with, by level.

    Attributes:
      read: what of the last carry goes into the record.
      per: what the time is divided by.
      facts: what goes into the record as it is.
    """

    group: str
    name: str
    way: str
    program: Program
    carries: dict[str, Any]
    read: Callable[[Any], dict[str, float]] = lambda carry: {}
    per: int = 1
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    setting: Setting | None = None
    profiled: bool = False


# --- Training steps ------------------------------------------------------------------------------


def training_row(group: str, name: str, setting: Setting, way: str) -> Row:
    """Forward, backward and Adam: `way` is a loop, with ", command buffers" if with those."""
    loop, _, rest = way.partition(", ")
    forms = {"scan": with_loop(masked_scan), "nested while": with_loop(nested_while)}
    call = forms.get(loop, lambda model, xs: model(xs)[1:])
    xs = setting.inputs()

    def loss(model, xs):
        outputs, ponder = call(model, xs)
        value = jnp.mean(jnp.square(outputs.astype(jnp.float32))) + 1e-3 * jnp.mean(ponder.cost)
        seen = ponder.steps.mean(dtype=jnp.float32), ponder.steps.sum(1, dtype=jnp.int32).max()
        return value, seen

    def run(carry, xs, updates):
        def update(_, carry):
            model, state, _ = carry
            (value, seen), gradient = jax.value_and_grad(loss, has_aux=True)(model, xs)
            change, state = ADAM.update(gradient, state, model)
            return optax.apply_updates(model, change), state, (value, *seen)

        return lax.fori_loop(0, updates, update, carry)

    def begin(level):
        model = setting.network(loop, level)
        return model, ADAM.init(model), (jnp.float32(0), jnp.float32(0), jnp.int32(0))

    levels = ("2",) if loop == "plain" else setting.levels
    carries = {level: begin(level) for level in levels}
    options = card.COMMAND_BUFFERS if rest and jax.default_backend() == "gpu" else {}
    program = Program(f"{name}, {way}", run, carries[levels[0]], xs, options)
    read = lambda carry: dict(
        zip(("loss", "mean_ponder", "iterations"), map(float, carry[2]), strict=True)
    )
    return Row(group, name, way, program, carries, read, setting=setting, profiled=True)


def training_rows(small: bool, names, ways, group: str) -> Iterator[Row]:
    for name in names[: 1 if small else None]:
        setting = SETTINGS[name].small() if small else SETTINGS[name]
        for way in ways:
            cell = setting.cell(1, setting.hidden, rngs=nnx.Rngs(0))
            if not (way.startswith("kernel") and kernel_supports(cell)):
                yield training_row(group, name, setting, way)


def shape_rows(small: bool) -> Iterator[Row]:
    for hidden, batch, dtype in SHAPES[: 1 if small else None]:
        setting = shape_setting(hidden, batch, dtype)
        setting = setting.small() if small else setting
        name = f"lstm {hidden}, B {batch}, {'bf16' if dtype else 'f32'}"
        ways = ("plain", "while", "kernel") if hidden <= 256 else ("plain", "while")
        for way in ways:
            yield training_row("shapes", name, setting, way)


# --- Ensembles -----------------------------------------------------------------------------------


def parity_step(loop: str, lanes: int | None, batch: int, hidden: int):
    """A member's training step and initial state, as Graves 2016 trains parity."""
    optimizer = optax.adam(1e-4)

    def objective(model, batch, tau):
        core, head = model
        _, outputs, ponder = core(batch.inputs)
        logits = head(outputs)[..., 0]
        loss = losses.sigmoid_cross_entropy(logits, batch.targets, batch.mask).mean()
        return loss + tau * ponder.cost.mean(), {"ponder": ponder.steps.mean()}

    def make(seed, tau, bias, factor):
        rngs = nnx.Rngs(jax.random.key(seed))
        core = actjax.ACT(64, hidden, cell=SIMPLE, loop=loop, lanes=lanes, rngs=rngs)
        core.halt.bias[...] = jnp.full_like(core.halt.bias[...], bias)
        core.halt.kernel[...] = core.halt.kernel[...] * factor
        return training.init_state((core, nnx.Linear(hidden, 1, rngs=rngs)), optimizer, tau)

    step = training.make_train_step(
        lambda key, data: parity.sample(key, batch, bits=64),
        objective,
        optimizer,
        control=lambda tau, metrics: tau,
    )
    return step, make


def sweep_row(
    group: str, members: int, way: str, small: bool, *, lanes=None, level="2", running=None
) -> Row:
    """Members trained as one program; of `running`, the rest have left and freed their places.

    `way` is a loop, with ", command buffers" if with those."""
    loop, _, buffers = way.partition(", ")
    members, batch, hidden = (3, 4, 8) if small else (members, 128, 128)
    running = min(members, running or members)
    step, make = parity_step(loop, lanes, batch, hidden)
    bias, factor = LEVELS[level]
    seeds, taus = jnp.arange(running), jnp.geomspace(0.1, 1e-4, running)
    states = jax.jit(jax.vmap(make, in_axes=(0, 0, None, None)))(seeds, taus, bias, factor)
    keys = jax.vmap(jax.random.key)(seeds)

    def run(carry, keys, updates):
        def one(state, key):
            return step(state, jax.random.fold_in(key, state.step))

        def update(_, carry):
            states, _ = carry
            states, metrics = jax.vmap(one)(states, keys)
            return states, metrics["ponder"].mean()

        return lax.fori_loop(0, updates, update, carry)

    name = f"{members} network{'s' * (members > 1)}" + (
        f", {running} running" if running < members else ""
    )
    way += f", {lanes} lanes" if lanes else ""
    carry = states, jnp.float32(0)
    options = card.COMMAND_BUFFERS if buffers and jax.default_backend() == "gpu" else {}
    program = Program(f"{name}, {way}", run, carry, keys, options)
    read = lambda carry: {"mean_ponder": float(carry[1])}
    facts = {"members": running}
    return Row(group, name, way, program, {level: carry}, read, running, facts)


def sweep_rows(small: bool) -> Iterator[Row]:
    for members in (32, 256):
        for loop in ("while", "kernel"):
            yield sweep_row("sweeps", members, loop, small)
            yield sweep_row("sweeps", members, loop, small, running=members // 2)
    yield sweep_row("sweeps", 32, "while, command buffers", small)
    yield sweep_row("sweeps", 1, "kernel", small)
    yield sweep_row("sweeps", 32, "kernel", small, lanes=16)


def grid_rows(small: bool) -> Iterator[Row]:
    """The grid of Graves 2016: 40 time penalties by 20 seeds, at the ponders of its start."""
    for lanes in (None, 16, 32):
        yield sweep_row("grid", 800, "kernel", small, lanes=lanes)
    yield sweep_row("grid", 800, "kernel", small, lanes=16, level="7")
    yield sweep_row("grid", 800, "while", small)


# --- Others --------------------------------------------------------------------------------------


def lfact_rows(small: bool) -> Iterator[Row]:
    setting = SETTINGS["text"].small() if small else SETTINGS["text"]
    for way in ("ACT", "LFACT"):
        row = training_row("lfact", "text", setting, "while")
        if way == "LFACT":
            model = actjax.LFACT(
                setting.features, setting.hidden, cell=GRU, max_layers=10, rngs=nnx.Rngs(0)
            )
            state = ADAM.init(model)
            row.carries = {"2": (model, state, row.program.carry[2])}
            row.program.carry = row.carries["2"]
        row.way, row.program.name = way, f"text, {way}"
        yield dataclasses.replace(row, carries={"2": row.program.carry}, setting=None)


def optimizer_rows(small: bool) -> Iterator[Row]:
    """One update of models of so many parameters: bytes are of the state, read and written."""
    learned = functools.partial(lstm_optimizer, CoordinatewiseLSTM(rngs=nnx.Rngs(0)))
    ways = {
        "learned": learned(),
        "learned, bfloat16 state": learned(state_dtype=jnp.bfloat16),
        "learned, no kernel": learned(),
        "adam": optax.adam(1e-9),
    }
    for size in (1000,) if small else (10**4, 10**5, 10**6, 10**7):
        for way, optimizer in ways.items():
            params = {"kernel": jnp.ones((size // 2, 2))}
            carry = params, optimizer.init(params)

            def run(carry, _, updates, optimizer=optimizer, way=way):
                def update(_, carry):
                    params, state = carry
                    change, state = optimizer.update(params, state, params)
                    return optax.apply_updates(params, optax.tree.scale(1e-9, change)), state

                if not way.endswith("no kernel"):
                    return lax.fori_loop(0, updates, update, carry)
                with mock.patch.object(columns, "_kernel_for", return_value=None):
                    return lax.fori_loop(0, updates, update, carry)

            moved = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(carry[1]))
            program = Program(f"{size} parameters, {way}", run, carry, ())
            facts = {"parameters": size, "bytes": moved}
            yield Row("optimizer", f"{size:,}", way, program, {"": carry}, facts=facts)
