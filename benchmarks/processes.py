"""What a second process brings: one process against two that share each batch.

    python benchmarks/processes.py [--out benchmarks/results/processes-cpu.json]

A training step of ACT (forward, backward, Adam), the same number of sequences for every process,
each of which computes with one thread. "two runs apart" share nothing: what the machine gives. What
"two processes" lose to them is what they wait for each other: until the gradients are added up, and
for the one whose sequences ponder longer. The three take turns, and of each the best turn counts.
Beside them the sum alone of as many floats as the gradients have, one after the other, and between
matrix products of about 2 ms, which are the same for both processes: what that costs more is no
waiting for a slower process but the transport's, whose threads have to be woken several times for
a sum. With `--awake` the cores at least are.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P
from timing import new_file, write

from actjax import training
from actjax.training import distributed, sharding
from experiments import run
from experiments.network import make_network
from experiments.tasks import parity, wikipedia

# name -> (experiment, options, updates in a dispatch); the batch size is that of one process
SETTINGS = {
    "parity": (parity, {"bits": 64, "hidden": 128, "batch_size": 128}, 50),
    "text": (wikipedia, {"hidden": 128, "batch_size": 32}, 2),
}
ALONE, APART, TOGETHER = "one process", "two runs apart", "two processes"
SUM, PRODUCTS, BOTH = "the sum", "products", "products, sum"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=SETTINGS, action="append")
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--awake", action="store_true", help="let no core fall asleep")
    parser.add_argument("--out", type=new_file)
    parser.add_argument("--worker", nargs=2, metavar=("ADDRESS", "ID"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    with no_core_asleep() if arguments.awake else contextlib.nullcontext():
        rows = [row for name in arguments.setting or SETTINGS for row in measure(name, arguments)]
    print(f"{'':24} {'ms an update':>12} {'sequences/s':>12} {'/ one':>6}")
    for row in rows:
        rates = ""
        if "over_one" in row:
            rates = f"{row['sequences_per_second']:12.0f} {row['over_one']:6.2f}"
        print(f"{row['setting']:8} {row['name']:15} {row['ms']:12.2f} {rates}")
    settings = {name: getattr(arguments, name) for name in ("setting", "turns", "awake")}
    write(arguments.out, settings, rows=rows)


@contextlib.contextmanager
def no_core_asleep():
    """Keeps every core at work with what gives way to anything else (Linux)."""
    spin = (
        "echo 19 > /proc/self/autogroup; exec taskset -c {} chrt -i 0 sh -c 'while :; do :; done'"
    )
    loops = [
        subprocess.Popen(["sh", "-c", spin.format(core)], start_new_session=True)
        for core in os.sched_getaffinity(0)
    ]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()


def measure(setting: str, arguments) -> list[dict]:
    """Starts two processes; the first prints the rows."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    command = [sys.executable, __file__, "--setting", setting, "--turns", str(arguments.turns)]
    workers = [
        subprocess.Popen(
            [*command, "--worker", address, str(number)],
            stdout=subprocess.PIPE,
            env=os.environ | {"NPROC": "1"},  # threads that XLA computes with
        )
        for number in range(2)
    ]
    printed = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise SystemExit(f"{setting}: a process failed; see above")
    return json.loads(printed[0].splitlines()[-1])


def work(arguments):
    """One of the two processes."""
    address, number = arguments.worker
    (setting,) = arguments.setting
    with distributed.joined(address, process_id=int(number), num_processes=2):
        local, options, network = make_call(setting, shared=False)
        shared, _, _ = make_call(setting, shared=True)
        floats = sum(leaf.size for leaf in jax.tree.leaves(network))
        idle = lambda: None
        calls = {ALONE: idle if jax.process_index() else local, APART: local, TOGETHER: shared}
        calls |= make_sums(floats, SETTINGS[setting][-1])
        turns = {name: [] for name in calls}
        for _ in range(arguments.turns):
            for name, call in calls.items():
                multihost_utils.sync_global_devices(name)
                began = time.perf_counter()
                call()
                turns[name].append(time.perf_counter() - began)
        seconds = multihost_utils.process_allgather(np.array([turns[name] for name in calls]))
        distributed.leave_to_first()
        rows = []
        for name, times in zip(calls, seconds.max(0), strict=True):  # of the slower process
            each = float(times.min()) / SETTINGS[setting][-1]
            row = {"setting": setting, "name": name, "ms": 1e3 * each}
            if name in (SUM, BOTH):
                row["floats"] = floats
            elif name != PRODUCTS:
                rate = options.batch_size * (1 if name == ALONE else 2) / each
                row |= {"sequences_per_second": rate}
                row["over_one"] = rate / (rows[0]["sequences_per_second"] if rows else rate)
            rows.append(row)
        print(json.dumps(rows))


def make_sums(floats: int, times: int) -> dict[str, Callable]:
    """Functions that so many times add up a vector over the processes, take products, or both."""
    mesh = run.make_mesh(1)

    def add_up(vector):
        return lax.pcast(lax.psum(vector, sharding.DATA) / 2, sharding.DATA, to="varying")

    def multiply(vector):
        square = jnp.broadcast_to(vector[:1], (256, 256))
        for _ in range(4):
            square = jnp.tanh(square @ square)
        return vector + 0 * square[0, :1]

    def repeated(one):
        def some(vector):
            vector = lax.pcast(vector, sharding.DATA, to="varying")
            return lax.fori_loop(0, times, lambda _, vector: one(vector), vector)

        some = jax.jit(jax.shard_map(some, mesh=mesh, in_specs=P(), out_specs=P(sharding.DATA)))
        call = lambda: jax.block_until_ready(some(vector))
        call()
        return call

    vector = sharding.replicate(jnp.ones(floats), mesh)
    kinds = {SUM: add_up, PRODUCTS: multiply, BOTH: lambda vector: add_up(multiply(vector))}
    return {name: repeated(one) for name, one in kinds.items()}


def make_call(setting: str, *, shared: bool):
    """A function that does some updates and waits for them, its options and its network."""
    experiment, changes, updates = SETTINGS[setting]
    # without a rate, so that the ponder stays as it is
    fixed = {"halt_bias": -1.0, "learning_rate": 0.0}
    options = dataclasses.replace(experiment.PRESETS["demo"], **fixed, **changes)
    if shared:
        options = dataclasses.replace(options, batch_size=2 * options.batch_size)
    if setting == "text":
        corpus = jax.random.randint(jax.random.key(0), (100_000,), 0, 256, jnp.uint8)
        data, features = wikipedia.Data(corpus, None), (256, 256)
    else:
        data, features = (), (options.bits, 1)
    task, mesh = experiment.TASK, run.make_mesh(1) if shared else None
    parts = task.sampler(options), task.objective(options)
    step, start = run.recipe(options, *parts, tau=0.01, mesh=mesh)
    network, key = make_network(options, 0, *features), jax.random.key(1)
    state = start(network)
    if mesh is not None:
        state, key, data = sharding.replicate((state, key, data), mesh)
    chunk = training.make_chunk(step, updates)
    state = chunk(state, key, data)[0]

    def call():
        nonlocal state
        state = jax.block_until_ready(chunk(state, key, data))[0]

    return call, options, network


if __name__ == "__main__":
    main()
