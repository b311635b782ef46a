"""The step of an optimizer at work: all coordinates in one pass over its memory.

A network's gates are as large as all that it remembers. Written out for every coordinate at once
they go to memory and back several times, which is most of the time of a step. So on a GPU a kernel
takes each coordinate from its memory to its memory (`kernel`), and on a CPU the coordinates go
through in blocks small enough for their gates to stay in cache. The memory is one array, since XLA
then writes a block where it was read; of an array each for cells and hidden states it makes a copy
in every block.
"""

import importlib
from types import ModuleType

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

from actjax.learned.network import CoordinatewiseLSTM, GroupedLSTM, LSTMState, zero_rows

BLOCK = 4096  # coordinates: 1.3 MB of gates for 20 units, the fastest of 1024 to 65536 on two cores
MOST_UNITS = 64  # whose gates a program of the kernel still holds in registers

Network = CoordinatewiseLSTM | GroupedLSTM


def empty_memory(network: Network, like: jax.Array, dtype=None) -> jax.Array:
    """Zeros for the coordinates `like`, [N]: float [memory_rows, N]."""
    return zero_rows(network, like, memory_rows(network), dtype)


def memory_rows(network: Network) -> int:
    """What a coordinate's memory holds: its moments and the cell and hidden state of each layer."""
    return network.moment_rows + 2 * len(network.kernels) * network.hidden_features


def advance(
    network: Network,
    memory: jax.Array,
    gradient: jax.Array,
    seen: tuple[jax.Array | None, jax.Array | None],
    ok: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """One step of all coordinates, or none where it is not `ok`.

    Args:
      network: steps.
      memory: float [rows, N], from `empty_memory`; its dtype is that in which it is kept.
      gradient: float [N].
      seen: params and their scales, each float [N], or None for a network that does not see them.
      ok: bool []. Without it the memory stays as it is and the update is zero.

    Returns:
      The memory and the update, float [N].
    """
    if len(gradient) < 2 * BLOCK:  # which is a few launches whatever is done
        return plain_step(network, ok, memory, gradient, seen)
    return _fastest(network, ok, memory, gradient, seen)


@jax.custom_jvp
def _fastest(network, ok, memory, gradient, seen):
    """The step by the kernel on a GPU; it has no derivatives, which are those of the other ways."""
    kernel = _kernel_for(network, memory)
    ways = {} if kernel is None else {"cuda": _alone(kernel.advance)}
    return _by_platform(network, ok, memory, gradient, seen, **ways)


@_fastest.defjvp
def _derivatives(primals, tangents):
    return jax.jvp(_by_platform, primals, tangents)


def _by_platform(network, ok, memory, gradient, seen, **ways):
    # XLA's CPU compiler converts the whole of a bfloat16 array to write a block of it.
    if memory.dtype == network.dtype:
        ways["cpu"] = _in_blocks
    return lax.platform_dependent(network, ok, memory, gradient, seen, **ways, default=plain_step)


def plain_step(network, ok, memory, gradient, seen):
    """The step of all coordinates at once, as XLA has it."""
    return _step_runs(network, len(gradient), ok, memory, gradient, seen)


def _in_blocks(network, ok, memory, gradient, seen):
    return _step_runs(network, BLOCK, ok, memory, gradient, seen)


def _kernel_for(network: Network, memory: jax.Array) -> ModuleType | None:
    """The module of the kernel; None where a step is not what it computes, or not where it can.

    XLA cannot divide a kernel. Arrays on a mesh whose axes are explicit or manual are left to the
    plain step. Where XLA alone knows how arrays lie, the kernel says how to divide the columns of
    one network, and is not taken for several, whose runs are no parts of equal size.
    """
    parts = list(network.networks) if isinstance(network, GroupedLSTM) else [network]
    alike = all(
        type(part) is CoordinatewiseLSTM
        and part.hidden_features <= MOST_UNITS
        and all(isinstance(value, int | float) for value in (part.p, part.output_scale))
        for part in parts
    )
    dtypes = memory.dtype in (jnp.float32, jnp.bfloat16) and network.dtype == jnp.float32
    automatic = set(jax.typeof(memory).sharding.mesh.axis_types) <= {AxisType.Auto}
    placed = automatic and (len(parts) == 1 or jax.device_count() == 1)
    if not (alike and dtypes and placed and _has_triton()):
        return None
    try:
        return importlib.import_module("actjax.learned.kernel")
    except ImportError as error:  # a JAX without Pallas for Triton
        if not (error.name or "").startswith("jax"):
            raise
        return None


def _has_triton() -> bool:
    """Whether no GPU here is older than Ampere, for which Triton does not compile."""
    for device in jax.local_devices():
        major = str(getattr(device, "compute_capability", "")).split(".")[0]
        if major.isdigit() and int(major) < 8:
            return False
    return True


def _alone(step):
    """`step`, but under `vmap` the plain one, which is a few products however many there are."""

    def chosen(*arguments):
        leaves, tree = jax.tree.flatten(arguments)
        one = jax.custom_batching.custom_vmap(
            lambda *leaves: step(*jax.tree.unflatten(tree, leaves))
        )

        @one.def_vmap
        def several(size, batched, *leaves):
            plain = lambda *leaves: plain_step(*jax.tree.unflatten(tree, leaves))
            axes = [0 if is_batched else None for is_batched in batched]
            return jax.vmap(plain, axes, axis_size=size)(*leaves), (True, True)

        return one(*leaves)

    return chosen


def _step_runs(network, block, ok, memory, gradient, seen):
    """The runs of coordinates one after the other, each with its own network, in blocks."""
    gradient, runs = jnp.where(ok, gradient, 0), network.runs(len(gradient))
    update = jnp.zeros_like(gradient, runs[0][0].dtype)
    for network, first, end in runs:

        def step(start, size, carry, network=network):
            memory, update = carry
            if size == len(update):
                return _step(network, memory, gradient, seen, ok)
            cut = lambda array: lax.dynamic_slice_in_dim(array, start, size, array.ndim - 1)
            put = lambda array, part: lax.dynamic_update_slice_in_dim(
                array, part, start, array.ndim - 1
            )
            before = cut(memory)
            after, moved = _step(network, before, *jax.tree.map(cut, (gradient, seen)), ok)
            return put(memory, after), put(update, moved)

        size = min(block, end - first)
        count, rest = divmod(end - first, size) if size else (0, 0)
        carry = memory, update
        if count == 1:
            carry = step(first, size, carry)
        elif count:
            each = lambda n, carry, first=first, size=size: step(first + n * size, size, carry)
            carry = lax.fori_loop(0, count, each, carry)
        memory, update = step(end - rest, rest, carry) if rest else carry
    return memory, update


def pooled_hidden(network: Network, memory: jax.Array) -> jax.Array:
    """The mean hidden state of the last layer: float [hidden, 1]; zeros without coordinates."""
    top = memory[-network.hidden_features :].astype(network.dtype)
    return top.sum(-1, keepdims=True) / max(top.shape[-1], 1)


def _step(network, memory, gradient, seen, ok):
    layers, kept = len(network.kernels), network.moment_rows
    moments, rest = memory[:kept].astype(network.dtype), memory[kept:].astype(network.dtype)
    parts = jnp.split(rest, 2 * layers)
    state = LSTMState(tuple(parts[:layers]), tuple(parts[layers:]), moments if kept else ())
    after, update = network(state, gradient, *seen)
    rows = [after.moments] if kept else []
    after = jnp.concatenate([*rows, *after.cell, *after.hidden]).astype(memory.dtype)
    return jnp.where(ok, after, memory), jnp.where(ok, update, 0)
