"""The memory that the gradient of a long sequence needs, as the compiler plans it; nothing is run.

    python benchmarks/memory.py [--hidden 1500] [--out benchmarks/results/memory-cpu.json]

Wikipedia as Graves 2016 trained it: an LSTM of 1500 units over 500 characters, M 100. The adaptive
loop keeps the residuals of one segment of iterations and recomputes the others; the masked scan
keeps those of all M steps of all inputs.
"""

import time

import jax
import jax.numpy as jnp
from flax import nnx
from timing import make_parser, write

import actjax


def main():
    sizes = {"hidden": 1500, "time": 500, "batch_size": 16, "max_steps": 100}
    arguments = make_parser(__doc__, **sizes).parse_args()
    rows = [measure(arguments, loop) for loop in ("while", "scan")]
    for row in rows:
        print(f"{row['loop']:6} {row['memory_mb']:10.0f} MB  {row['compile_s']:6.1f} s to compile")
    write(arguments.out, vars(arguments), rows=rows)


def measure(arguments, loop: str) -> dict:
    """What the program needs beside its arguments and results."""

    def make():
        return actjax.ACT(
            256,
            arguments.hidden,
            cell=nnx.OptimizedLSTMCell,
            max_steps=arguments.max_steps,
            loop=loop,
            rngs=nnx.Rngs(0),
        )

    def loss(model, xs):
        _, outputs, ponder = model(xs)
        return (outputs**2).mean() + ponder.cost.mean()

    xs = jax.ShapeDtypeStruct((arguments.batch_size, arguments.time, 256), jnp.float32)
    began = time.perf_counter()
    compiled = jax.jit(jax.grad(loss)).lower(jax.eval_shape(make), xs).compile()
    return {
        "loop": loop,
        "memory_mb": compiled.memory_analysis().temp_size_in_bytes / 1e6,
        "compile_s": time.perf_counter() - began,
    }


if __name__ == "__main__":
    main()
