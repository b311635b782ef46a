"""Learned optimizers: a meta-update, an optimizer step against Adam, and the O(H) bound.

    python benchmarks/learned.py [--out FILE] [--quick]

Prints a table and writes JSON. Times are the least and the median over repeats, of one call.
"""

import argparse
import functools
import os
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from actjax.learned import (
    CoordinatewiseLSTM,
    HorizonPrior,
    LearnedOptimizer,
    elbo,
    lstm_optimizer,
    meta,
)
from actjax.learned.problems import quadratic
from benchmarks.timing import machine, new_file, save

REPEATS = 15
SECONDS = 3.0  # after which no more repeats are taken
UPDATES = 5  # meta-updates in a dispatch
NONE = PartitionSpec()


def measure(function, *arguments, per: int = 1) -> dict[str, float]:
    """Milliseconds of wall and of processor time for one of the `per` pieces of a call."""
    jax.block_until_ready(function(*arguments))
    wall, cpu = [], []
    while not wall or (len(wall) < REPEATS and per * sum(wall) < 1e3 * SECONDS):
        began = time.perf_counter(), time.process_time()
        jax.block_until_ready(function(*arguments))
        wall.append(1e3 * (time.perf_counter() - began[0]) / per)
        cpu.append(1e3 * (time.process_time() - began[1]) / per)
    return {"min_ms": min(wall), "median_ms": statistics.median(wall), "cpu_ms": min(cpu)}


def repeated_updates(loss, parameters, start, axis=None):
    """`UPDATES` Adam updates of `loss(parameters, start) -> scalar` in one program.

    With `axis`, the name of a mesh axis, the loss is the mean over its devices.
    """
    optimizer = optax.adam(1e-3)

    def run(parameters, opt_state, start):
        def body(carry, _):
            parameters, opt_state = carry
            value, gradient = jax.value_and_grad(loss)(parameters, start)
            if axis is not None:
                value, gradient = jax.lax.pmean((value, gradient), axis)
            updates, opt_state = optimizer.update(gradient, opt_state)
            return (optax.apply_updates(parameters, updates), opt_state), value

        return jax.lax.scan(body, (parameters, opt_state), length=UPDATES)

    return run, (parameters, optimizer.init(parameters), start)


def meta_update() -> dict[str, float]:
    """125 functions of 10 parameters, 20 steps, with this package."""
    family = quadratic()
    learned = LearnedOptimizer(CoordinatewiseLSTM(rngs=nnx.Rngs(0)))
    start = jax.jit(lambda key: meta.start(learned.network, family, key, 125))(jax.random.key(0))

    def loss(learned, start):
        return meta.unroll(learned, family, start, 20)[1].losses.sum(0).mean()

    run, arguments = repeated_updates(loss, learned, start)
    return measure(jax.jit(run), *arguments, per=UPDATES)


def sharded_meta_update() -> dict[str, float]:
    """The same with the functions dealt out to the devices, which here are the cores."""
    family, devices, key = quadratic(), jax.device_count(), jax.random.key(0)
    learned = LearnedOptimizer(CoordinatewiseLSTM(rngs=nnx.Rngs(0)))
    mesh, each = jax.make_mesh((devices,), ("problems",)), -(-125 // devices)

    def begin(key):
        key = jax.random.fold_in(key, jax.lax.axis_index("problems"))
        return meta.start(learned.network, family, key, each)

    def loss(learned, start):
        return meta.unroll(learned, family, start, 20)[1].losses.sum(0).mean()

    shapes = jax.eval_shape(lambda key: meta.start(learned.network, family, key, each), key)
    dealt = jax.tree.map(
        lambda leaf: PartitionSpec(*[None] * (leaf.ndim - 1), "problems") if leaf.ndim else NONE,
        shapes,
    )
    shard = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
    start = jax.jit(shard(begin, in_specs=NONE, out_specs=dealt))(key)
    run, arguments = repeated_updates(loss, learned, start, "problems")
    run = shard(run, in_specs=(NONE, NONE, dealt), out_specs=NONE)
    return {
        **measure(jax.jit(run), *arguments, per=UPDATES),
        "devices": devices,
        "functions": each * devices,
    }


def plain_meta_update() -> dict[str, float]:
    """The same, written the ordinary way: coordinates as rows, one problem at a time, vmapped."""
    family, hidden = quadratic(), 20
    keys = jax.random.split(jax.random.key(0), 7)
    shapes = [(2, 80), (20, 80), (20, 80), (20, 80), (20, 1)]
    weights = [0.2 * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=False)]
    weights += [jnp.zeros(80), jnp.zeros(80)]

    def cell(z, c):
        i, f, g, o = jnp.split(z, 4, axis=-1)
        c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return c, jax.nn.sigmoid(o) * jnp.tanh(c)

    def one(weights, theta, data):
        x1, h1, x2, h2, out, b1, b2 = weights

        def value(theta):
            return jnp.sum((data.W @ theta - data.y) ** 2)

        def step(carry, _):
            theta, state = carry
            gradient = jax.lax.stop_gradient(jax.grad(value)(theta))
            size = jnp.maximum(jnp.abs(gradient), jnp.exp(-10.0))
            x = jnp.stack([jnp.log(size) / 10, jnp.sign(gradient)], axis=-1)
            c1, a1, c2, a2 = state
            c1, a1 = cell(x @ x1 + a1 @ h1 + b1, c1)
            c2, a2 = cell(a1 @ x2 + a2 @ h2 + b2, c2)
            theta = theta + 0.1 * (a2 @ out)[:, 0]
            return (theta, (c1, a1, c2, a2)), value(theta)

        state = (jnp.zeros((theta.shape[0], hidden)),) * 4
        return jax.lax.scan(step, (theta, state), length=20)[1].sum()

    problems = jax.vmap(family.sample)(jax.random.split(keys[-1], 125))

    def loss(weights, problems):
        return jax.vmap(one, in_axes=(None, 0, 0))(weights, *problems).mean()

    run, arguments = repeated_updates(loss, weights, problems)
    return measure(jax.jit(run), *arguments, per=UPDATES)


def step_in_place(optimizer):
    """Updates a state that the next call takes over, as a training loop does."""
    update = jax.jit(lambda g, s, p: optimizer.update(g, s, p)[::-1], donate_argnums=1)
    state = None

    def call(params):
        nonlocal state
        if state is None:
            state = jax.tree.map(jnp.copy, optimizer.init(params))  # no buffer twice
        state, updates = update(params, state, params)
        return state, updates

    return call


def optimizer_steps(sizes) -> list[dict]:
    """One update of a model of so many parameters: the LSTM optimizer and Adam."""
    rows = []
    for size in sizes:
        params = {"kernel": jnp.ones((size // 2, 2))}
        row = {"parameters": size}
        for name, optimizer in (
            ("lstm", lstm_optimizer(CoordinatewiseLSTM(rngs=nnx.Rngs(0)))),
            ("adam", optax.adam(1e-3)),
        ):
            row[name] = measure(step_in_place(optimizer), params)
        row["ratio"] = row["lstm"]["min_ms"] / row["adam"]["min_ms"]
        rows.append(row)
    return rows


def double_sum_elbo(logits, score, prior):
    """The bound of June eq 10 as it is written, O(H^2)."""
    steps = logits.shape[-1]
    within = jnp.tril(jnp.ones((steps, steps), bool))
    log_q = jax.nn.log_softmax(jnp.where(within, logits[..., None, :], -jnp.inf), axis=-1)
    log_given = prior.over(steps).log_given()
    term = jnp.where(within, jnp.exp(log_q) * (score[..., None, :] - (log_q - log_given)), 0.0)
    return jnp.sum(jnp.exp(prior.over(steps).log_horizon()) * term.sum(-1), -1)


def bounds(horizons) -> list[dict]:
    """Value and gradient of the bound for 16 problems: O(H) against O(H^2)."""
    prior, rows = HorizonPrior(0.99), []
    for horizon in horizons:
        logits = jax.random.normal(jax.random.key(0), (16, horizon))
        score = -jnp.ones((16, horizon))
        row = {"horizon": horizon}
        for name, bound in (("linear", elbo), ("double_sum", double_sum_elbo)):
            if name == "double_sum" and horizon > 2000:
                continue
            both = jax.jit(jax.value_and_grad(lambda l, r=score, b=bound: b(l, r, prior).sum()))
            row[name] = measure(both, logits)
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=new_file, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="smaller models and horizons")
    options = parser.parse_args()
    sizes = (10**4, 10**5) if options.quick else (10**4, 10**5, 10**6, 10**7)
    horizons = (100, 1000) if options.quick else (100, 1000, 10_000)
    # One device a core, for the row that deals the functions out; all others use one device.
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    result = {"meta_update": {}}
    # In turns, so that both see the machine in the same mood.
    contenders = (
        ("actjax", meta_update),
        ("sharded", sharded_meta_update),
        ("plain", plain_meta_update),
    )
    for name, function in contenders * 2:
        row = function()
        before = result["meta_update"].get(name, row)
        result["meta_update"][name] = min(before, row, key=lambda r: r["min_ms"])
        print(f"meta-update {name:8} {row['min_ms']:8.2f} ms (cpu {row['cpu_ms']:.2f})", flush=True)
    result["optimizer_step"] = optimizer_steps(sizes)
    for row in result["optimizer_step"]:
        times = f"lstm {row['lstm']['min_ms']:9.3f} ms   adam {row['adam']['min_ms']:8.3f} ms"
        print(f"{row['parameters']:>9,} parameters   {times}", flush=True)
    result["elbo"] = bounds(horizons)
    for row in result["elbo"]:
        times = {name: row[name]["min_ms"] for name in ("linear", "double_sum") if name in row}
        print(
            f"horizon {row['horizon']:>6}   "
            + "   ".join(f"{k} {v:.3f} ms" for k, v in times.items())
        )
    result["machine"] = machine()
    result["versions"] = {"jax": jax.__version__, "optax": optax.__version__}
    result["command"] = "python benchmarks/learned.py" + (" --quick" if options.quick else "")
    save(options.out, result)


if __name__ == "__main__":
    main()
