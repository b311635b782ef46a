"""What the benchmarks of a card share: its facts, programs compiled side by side, profiles, rates.

Nothing here needs more than `jax`, so that it runs where only that is installed.
"""

import concurrent.futures
import dataclasses
import os
import pathlib
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from timing import machine, seconds_each

# Predicates of loops that stay on the card, as command buffers have them.
COMMAND_BUFFERS = {
    "xla_gpu_enable_command_buffer": ("FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONDITIONAL,WHILE"),
    "xla_gpu_graph_min_graph_size": 1,
}
PRODUCT = re.compile(r"gemm|cutlass|xmma|nvjet|cublas|dot|matmul", re.IGNORECASE)
OWN = re.compile(r"actjax_\w+")
NUMBER = re.compile(r"_\d+$")


def facts() -> dict[str, Any]:
    """The device, its driver, the versions and the commit."""
    device = jax.devices()[0]
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        shown = subprocess.run(query, capture_output=True, text=True).stdout
    except OSError:
        shown = ""
    versions = {"jax": jax.__version__}
    for name in ("jaxlib", "flax", "optax", "torch", "triton"):
        try:
            versions[name] = __import__(name).__version__
        except (ImportError, AttributeError):
            versions[name] = None
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "driver": shown.strip().splitlines(),
        "memory": (device.memory_stats() or {}).get("bytes_limit"),
        "versions": versions,
        **machine(),
    }


# --- Programs ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Program:
    """``run(carry, argument, updates) -> carry``, so many updates in one dispatch.

    Attributes:
      options: of the compiler.
      compiled, compile_s: set by `compile_all`; what failed is in `error`.
    """

    name: str
    run: Callable[..., Any]
    carry: Any
    argument: Any
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    donate: bool = True
    compiled: Any = None
    compile_s: float = 0.0
    error: str | None = None

    def lower(self):
        donated = (0,) if self.donate else ()
        jitted = jax.jit(self.run, donate_argnums=donated)
        return jitted.lower(self.carry, self.argument, jnp.int32(1))

    def call(self, carry=None):
        """``call(updates)`` on a copy of `carry`, or of the program's own, that it goes on with."""
        state = own(self.carry if carry is None else carry)

        def call(updates):
            nonlocal state
            state = self.compiled(state, self.argument, jnp.int32(updates))
            return state

        return call


def own(tree):
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)


def compile_all(programs: list[Program], workers: int | None = None) -> None:
    """Traces the programs one by one and compiles them side by side."""
    workers = workers or min(12, max(1, (os.cpu_count() or 2) - 2))

    def finish(program, lowered):
        began = time.perf_counter()
        try:
            program.compiled = lowered.compile(compiler_options=program.options or None)
        except Exception as error:
            program.error = in_short(error)
        program.compile_s = time.perf_counter() - began

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        waiting = []
        for program in programs:
            try:
                waiting.append(pool.submit(finish, program, program.lower()))
            except Exception as error:
                program.error = in_short(error)
        for future in waiting:
            future.result()


def in_short(error: Exception) -> str:
    """An error's kind and the beginning of what it says, whose first line seldom has the reason."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"


def milliseconds(program: Program, carry=None, *, target=0.06, repeats=2) -> float:
    """The least time of an update."""
    return 1e3 * seconds_each(program.call(carry), target=target, repeats=repeats)


# --- Where the time goes -------------------------------------------------------------------------


def profile(call: Callable[[], Any]) -> dict[str, Any]:
    """The kernels of one call on a GPU: how many, how many products, how busy; {} elsewhere.

    `own_us` has the time of this project's own kernels, by name, and `longest_us` that of the
    names that take most, without the number that XLA gives to kernels alike.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        [path] = pathlib.Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
        events = [
            (event.name, event.start_ns, event.duration_ns)
            for plane in data.planes
            if plane.name.startswith("/device:GPU")
            for line in plane.lines
            if line.name.startswith("Stream")
            for event in line.events
        ]
    if not events:
        return {}
    kernels = [event for event in events if not event[0].lower().startswith("mem")]
    own_us: dict[str, float] = {}
    for name, _, duration in kernels:
        if found := OWN.search(name):
            own_us[found.group()] = own_us.get(found.group(), 0) + duration / 1e3
    of_name: dict[str, float] = {}
    for name, _, duration in kernels:
        alike = NUMBER.sub("", name)
        of_name[alike] = of_name.get(alike, 0) + duration / 1e3
    longest = sorted(of_name.items(), key=lambda entry: -entry[1])[:12]
    begin = min(start for _, start, _ in events)
    end = max(start + duration for _, start, duration in events)
    return {
        "kernels": len(kernels),
        "copies": len(events) - len(kernels),
        "products": sum(bool(PRODUCT.search(name)) for name, _, _ in kernels),
        "busy": _covered(kernels) / max(1, end - begin),
        "own_us": own_us,
        "longest_us": dict(longest),
    }


def _covered(events) -> float:
    """Nanoseconds in which at least one of the events is under way."""
    covered, until = 0.0, 0.0
    for _, start, duration in sorted(events, key=lambda event: event[1]):
        covered += max(0.0, start + duration - max(start, until))
        until = max(until, start + duration)
    return covered


# --- Ceilings ------------------------------------------------------------------------------------


def ceilings(size: int, copied: int) -> list[Program]:
    """Products of ``size x size`` matrices, and copies of so many floats."""

    def multiply(a, b, updates):
        # scaled, so that nothing grows
        scale = jnp.asarray(1 / size**0.5, a.dtype)
        return lax.fori_loop(0, updates, lambda _, a: (a @ b) * scale, a)

    def copy(a, _, updates):
        return lax.fori_loop(0, updates, lambda i, a: a + 1, a)

    key = jax.random.key(0)
    square = lambda dtype: jax.random.normal(key, (size, size), dtype)
    f32, bf16 = square(jnp.float32), square(jnp.bfloat16)
    return [
        Program("bfloat16 product", multiply, bf16, bf16),
        Program("float32 product (default precision)", multiply, f32, f32),
        Program("copy", copy, jnp.ones(copied), ()),
    ]


def rate(program: Program, ms: float, size: int, copied: int) -> dict[str, float]:
    if program.name == "copy":
        return {"TB_per_s": 2 * 4 * copied / ms / 1e9}
    return {"TFLOP_per_s": 2 * size**3 / ms / 1e9}
