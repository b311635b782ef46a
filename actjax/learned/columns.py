"""The step of an optimizer at work: all coordinates in one pass over its memory.

A network's gates are as large as all that it remembers. Written out for every coordinate at once
they go to memory and back several times, which is most of the time of a step, so on a CPU the
coordinates go through in blocks small enough for their gates to stay in cache. The memory is one
array, since XLA then writes a block where it was read; of an array each for cells and hidden states
it makes a copy in every block.
"""

import jax
import jax.numpy as jnp
from jax import lax

from actjax.learned.network import CoordinatewiseLSTM, GroupedLSTM, LSTMState, zero_rows

BLOCK = 4096  # coordinates: 1.3 MB of gates for 20 units, the fastest of 1024 to 65536 on two cores

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
    columns = memory, jnp.where(ok, gradient, 0), seen
    runs = network.runs(gradient.shape[0])
    whole = lambda ok, columns: _step_runs(runs, len(gradient), ok, *columns)
    blocks = lambda ok, columns: _step_runs(runs, BLOCK, ok, *columns)
    # XLA's CPU compiler converts the whole of a bfloat16 array to write a block of it.
    if len(gradient) < 2 * BLOCK or memory.dtype != network.dtype:
        return whole(ok, columns)
    return lax.platform_dependent(ok, columns, cpu=blocks, default=whole)


def _step_runs(runs, block, ok, memory, gradient, seen):
    """The runs of coordinates one after the other, each with its own network, in blocks."""
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
