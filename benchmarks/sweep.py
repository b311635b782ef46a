"""What training an ensemble as one program gains over training its members one by one.

    python benchmarks/sweep.py [--hidden 128] [--members 8] [--updates 200] [--out sweep.json]

Parity networks with ACT, the members' time penalties from 0.1 to 1e-4, the same updates in every
row. "one by one" is a loop over members with one compiled program; the others are `sweep`, where a
device works on its members in turn ("map") or at once ("vmap"). "half retired" is the time of an
update, for each member still running, once half of them have left.
"""

# ruff: noqa: E402  (the number of devices is set before they are looked at)
import dataclasses
import os

import jax

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
jax.config.update("jax_num_cpu_devices", CORES)

import jax.numpy as jnp
import numpy as np
from timing import first_and_least, make_parser, write

from actjax.training import make_chunk, stack_states, sweep
from actjax.training.state import own_state
from experiments.run import make_member
from experiments.tasks import parity


def main():
    counts = {"hidden": 128, "batch_size": 128, "members": 8, "updates": 200, "repeats": 3}
    arguments = make_parser(__doc__, **counts).parse_args()
    rows = measure(arguments)
    print(f"{'':34} {'ms/update/member':>17} {'gain':>6} {'first call s':>13}")
    for row in rows:
        print(
            f"{row['name']:34} {row['ms']:17.3f} {rows[0]['ms'] / row['ms']:6.2f} "
            f"{row['first_call_s']:13.1f}"
        )
    write(arguments.out, vars(arguments), rows=rows)


def measure(arguments) -> list[dict]:
    options = dataclasses.replace(
        parity.PRESETS["fojo"], hidden=arguments.hidden, batch_size=arguments.batch_size
    )
    train_step, make_state = make_member(parity.TASK, options)
    size, updates = arguments.members, arguments.updates
    seeds, taus = jnp.arange(size), jnp.geomspace(0.1, 1e-4, size)
    states, keys = stack_states(make_state, seeds, taus), jax.vmap(jax.random.key)(seeds)
    chunk = make_chunk(train_step, updates)

    def one_by_one():
        for member in range(size):
            state = own_state(jax.tree.map(lambda leaf, m=member: leaf[m], states))
            jax.block_until_ready(chunk(state, keys[member], ())[0])

    rows = [timed("one by one", one_by_one, size * updates, arguments.repeats)]
    for devices in (jax.devices()[:1], jax.devices()):
        for batching in ("vmap", "map"):
            name = f"sweep, {batching}, {len(devices)} device" + "s" * (len(devices) > 1)
            whole = timed_sweep(name, train_step, states, keys, updates, batching, devices, None)
            rows.append(whole)
            if len(devices) == len(jax.devices()):
                half = np.arange(size) % 2 == 0
                rows.append(
                    timed_sweep(
                        f"{name}, half retired",
                        train_step,
                        states,
                        keys,
                        updates,
                        batching,
                        devices,
                        half,
                    )
                )
    return rows


def timed(name, function, count, repeats) -> dict:
    first, least, _ = first_and_least(function, repeats)
    return {"name": name, "ms": 1e3 * least / count, "first_call_s": first}


def timed_sweep(name, train_step, states, keys, updates, batching, devices, half) -> dict:
    """Four dispatches in one sweep; their times are in its rows, the first with compilation."""
    result = sweep(
        train_step,
        states,
        keys=keys,
        steps=4 * updates,
        log_every=updates,
        rows_per_dispatch=1,
        retire=None if half is None else lambda history: half,
        batching=batching,
        devices=devices,
    )
    seconds = np.diff(result.history["seconds"], prepend=0)
    running = np.isfinite(result.history["loss"]).sum(axis=1)
    # where half have retired, the second dispatch compiles the smaller bucket
    ms = 1e3 * seconds[2:] / (updates * running[2:])
    return {"name": name, "ms": float(ms.min()), "first_call_s": float(seconds[0])}


if __name__ == "__main__":
    main()
