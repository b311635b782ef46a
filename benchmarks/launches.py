"""What a training step launches and moves on a GPU, from its compiled program: no GPU is needed.

    pip install "jax[cuda12]"
    python benchmarks/launches.py [SETTING ...] [--ways plain while] [--out FILE]

JAX compiles for the description of a card that is not there. The settings are those of
`accelerator.py`, with its choices for a GPU. For the adaptive loop an iteration is one of its
rounds forward and one backward, with its share of the products of many iterations; for the plain
network it is a step in time. A training step is what stands outside of these loops, and as many
iterations as a mean of two ponder steps takes where no lane waits.

Nothing here is a time: how long a launch takes only a card can tell, and it also searches for the
best form of each product, which is left out here.
"""

import os

os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}

import argparse
from unittest import mock

import accelerator_rows as make
import jax
import jax.numpy as jnp
from hlo import Loop, loops
from jax.experimental import topologies
from timing import new_file, write

from actjax._loop import adaptive, plan
from experiments.record import environment, print_table

MEMORY = 151_397_597_184  # bytes
H200 = f"""
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472  core_count: 132  fpus_per_core: 128
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000  l2_cache_size: 52428800  clock_rate_ghz: 1.98
  device_memory_size: {MEMORY}
  cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "NVIDIA H200"
"""
CARD = {"topology": "1x1x1", "target_config": H200}
NAMES = ("text-lstm", "addition", "text", "big", "big bf16", "wiki bf16 1536", "lfact")
WAYS = ("plain", "while")
PONDER = 2.0  # mean N, that of the benchmark's first level


def main(argv: list[str] | None = None):
    described = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=described)
    parser.add_argument("settings", nargs="*", metavar="SETTING", default=list(NAMES))
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--out", type=new_file, help="JSON file to write")
    arguments = parser.parse_args(argv)
    if odd := [name for name in arguments.settings if name not in NAMES]:
        parser.error(f"SETTING must be one of {', '.join(NAMES)}, got {odd[0]}.")
    try:
        topologies.get_topology_desc("H200", "cuda", **CARD)
    except NotImplementedError:
        parser.error('JAX must have its plugin for CUDA (pip install "jax[cuda12]"), got none.')
    rows = []
    for name in arguments.settings:
        rows += [counted(name, way) for way in arguments.ways if (name, way) != ("lfact", "plain")]
    print_table("A training step, from the program compiled for an H200", [cells(r) for r in rows])
    given = {name: str(value) for name, value in vars(arguments).items()}
    write(arguments.out, given, versions=environment()["versions"], ponder=PONDER, rows=rows)


def counted(name: str, way: str) -> dict:
    """A setting's launches and megabytes, of an iteration and of a training step."""
    topology = topologies.get_topology_desc("H200", "cuda", **CARD)
    device = jax.sharding.SingleDeviceSharding(topology.devices[0])
    on_device = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)
    plans, make_plan = [], adaptive.make_plan

    def planned(*given, **static):
        plans.append(make_plan(*given, **static))
        return plans[-1]

    with (
        mock.patch.object(jax, "default_backend", lambda: "gpu"),
        mock.patch.object(plan, "_segment_bytes", lambda _: int(MEMORY / 16)),
        mock.patch.object(adaptive, "make_plan", planned),
    ):
        jax.clear_caches()
        if name == "lfact":
            *_, row = make.lfact_rows(False)
        else:
            row = make.training_row("training", name, make.SETTINGS[name], way)
        arguments = row.program.carry, row.program.argument, jnp.int32(1)
        arguments = jax.tree.map(on_device, arguments)
        traced = jax.jit(row.program.run, donate_argnums=0).trace(*arguments)
    text = traced.lower(lowering_platforms=("cuda",)).compile().as_text()
    setting = make.SETTINGS["text" if name == "lfact" else name]
    rounds = setting.time if way == "plain" else PONDER * setting.time
    block, chunk = (plans[-1].block, plans[-1].chunk) if plans else (1, 1)
    return {"name": name, "way": way} | summed(loops(text), rounds, block, chunk)


def summed(found: list[Loop], rounds: float, block: int, chunk: int) -> dict[str, float]:
    """What an iteration takes, and what a training step with so many does.

    The loop over updates holds that over the iterations forward and that back; around each there
    may be a loop over segments, and around the second there is one over chunks. Of segments that
    were not kept, and are computed again, there are none here.
    """
    around = {body: loop for loop in found for body in loop.inside}
    [update] = [loop for loop in found if loop.body not in around]
    inner = [loop for loop in found if not loop.inside]
    [forward] = [loop for loop in inner if "transpose(" not in loop.where]
    alone = [loop for loop in inner if len(around[loop.body].inside) == 1 or len(inner) == 2]
    [back] = [loop for loop in alone if loop is not forward]
    late = around[back.body]
    found = {}
    for unit in ("launches", "megabytes"):
        of = lambda loop: getattr(loop, unit)  # noqa: B023
        once = (of(forward) + of(back)) / block + (0 if late is update else of(late) / chunk)
        found[unit] = once
        found[f"{unit} outside"] = of(update)
        found[f"{unit} a step"] = of(update) + rounds * once
    return found


def cells(row: dict) -> dict:
    """A row in words and figures."""
    names = "{}", "{} outside", "{} a step"
    units = {"launches": "{:.1f}", "megabytes": "{:.0f}"}
    shown = {
        name.format(u): form.format(row[name.format(u)])
        for u, form in units.items()
        for name in names
    }
    return {"setting": row["name"], "way": row["way"]} | shown


if __name__ == "__main__":
    main()
