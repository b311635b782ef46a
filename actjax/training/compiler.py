"""What the compiler is told of programs that ponder."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx


def gpu_compiler_options() -> dict[str, Any]:
    """Options of `jax.jit` for a program on a GPU that is mostly an adaptive loop.

    The loop's body is a few dozen small kernels, and whether it goes on is decided on the device.
    As a command buffer the body is launched at once and the decision never comes to the host:
    measured on one H200, a training step is 1.15 to 1.6 times as fast. A program without such a
    loop may get slower by them.

    Returns:
      What ``jax.jit(function, compiler_options=...)`` takes.

    >>> gpu_compiler_options()["xla_gpu_graph_min_graph_size"]
    1
    """
    kinds = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONDITIONAL,WHILE"
    return {"xla_gpu_enable_command_buffer": kinds, "xla_gpu_graph_min_graph_size": 1}


def ponders(model: Any) -> bool:
    """Whether a model has an adaptive loop in it: a module whose `loop` is "while"."""
    is_module = lambda node: isinstance(node, nnx.Module)
    modules = filter(is_module, jax.tree.leaves(model, is_leaf=is_module))
    return any(
        getattr(node, "loop", None) == "while" for m in modules for _, node in nnx.iter_graph(m)
    )


def options_for(model: Any, backend: str) -> dict[str, Any] | None:
    """The compiler's options for a program that trains `model`; None for those it has anyway."""
    return gpu_compiler_options() if backend == "gpu" and ponders(model) else None


def jit_by_model(function: Callable, **options: Any) -> Callable:
    """`jax.jit` of a function of a `TrainState` first, with the options that suit its model."""

    @functools.cache
    def compiled(choice: tuple):
        return jax.jit(function, compiler_options=dict(choice) or None, **options)

    def run(state, *rest):
        choice = options_for(state.model, jax.default_backend()) or {}
        return compiled(tuple(choice.items()))(state, *rest)

    return run
