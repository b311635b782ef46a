"""What a training step of LFACT costs beside ACT's and the plain network's, at equal mean ponder.

    python benchmarks/lfact.py [--out benchmarks/results/lfact-cpu.json]

Bytes of Wikipedia as in LFACT 2020, section 4.2 (B 64, T 50, GRU 128, softmax 256; forward,
backward and Adam). The bias of the halting unit is set so that the mean N is the row's; `mu` adds
the losses of intermediate layers. L is varied at the same N: only the layers used should cost.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from timing import make_parser, seconds_each, write

from experiments import run
from experiments.network import Network, make_network
from experiments.tasks import wikipedia

PONDERS = (1.05, 2.0)
LIMITS = (3, 10)
ROUNDS = 5


def main():
    arguments = make_parser(__doc__, hidden=128, batch_size=64, window=50).parse_args()
    rows = measure(arguments)
    print(f"{'model':8} {'L':>3} {'mu':>5} {'mean N':>7} {'ms':>8} {'/ ACT':>6}")
    for row in rows:
        ratio = f"{row['over_act']:6.2f}" if "over_act" in row else ""
        print(
            f"{row['model']:8} {row['limit'] or '':>3} {row['mu']:5.2f} {row['ponder_steps']:7.2f} "
            f"{row['ms']:8.1f} {ratio}"
        )
    write(arguments.out, vars(arguments), rows=rows)


def measure(arguments) -> list[dict]:
    options = {
        "cell": "gru",
        "hidden": arguments.hidden,
        "batch_size": arguments.batch_size,
        "window": arguments.window,
        "over_time": "mean",
        "learning_rate": 0.0,  # so that the ponder stays where it is set
    }
    make = lambda **more: wikipedia.Wikipedia(**options, **more)
    contenders = [contender(make(model="rnn"), None)]
    for ponder in PONDERS:
        for limit in LIMITS:
            contenders.append(contender(make(model="act", max_steps=limit), ponder))
            for mu in (0.0, 0.1):
                contenders.append(contender(make(model="lfact", max_steps=limit, mu=mu), ponder))
    for _ in range(ROUNDS):  # in turn, so that all meet the same machine
        for row, call in contenders:
            row["ms"] = min(row["ms"], 1e3 * seconds_each(call, repeats=1))
    act = None
    for row, _ in contenders:
        act = row["ms"] if row["model"] == "act" else act
        if row["model"] == "lfact":
            row["over_act"] = row["ms"] / act
    return [row for row, _ in contenders]


def contender(options: wikipedia.Wikipedia, ponder: float | None) -> tuple[dict, Callable]:
    """Its row, the time to be found, and `call(updates)`."""
    corpus = jax.random.randint(jax.random.key(0), (100_000,), 0, 256, jnp.uint8)
    data = wikipedia.Data(corpus, None)
    network, sample = make_network(options, 0, 256, 256), wikipedia.sampler(options)
    if ponder is not None:
        network = at_ponder(network, ponder, sample(jax.random.key(1), data))
    step, start = run.recipe(options, sample, wikipedia.objective(options), tau=0.01)
    state = start(network)

    @jax.jit
    def updates(state, count):
        def one(_, carry):
            state, _ = carry
            return step(state, jax.random.fold_in(jax.random.key(2), state.step), data)

        metrics = jax.eval_shape(step, state, jax.random.key(2), data)[1]
        blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), metrics)
        return jax.lax.fori_loop(0, count, one, (state, blank))[1]

    row = {
        "model": options.model,
        "limit": None if ponder is None else options.max_steps,
        "mu": options.mu if options.model == "lfact" else 0.0,
        "ms": float("inf"),
        "ponder_steps": float(updates(state, 1)["ponder_steps"]),
    }
    return row, lambda count: updates(state, count)


def at_ponder(network: Network, ponder: float, batch) -> Network:
    """The network with the bias of its halting unit such that the mean N is about `ponder`."""
    halt = getattr(network.core.halt, "primary", network.core.halt)
    halt.kernel = nnx.Param(3 * halt.kernel[...])  # so that inputs differ in N

    @jax.jit
    def mean_steps(network):
        return network(batch.inputs)[1].steps.mean()

    low, high = -8.0, 12.0
    for _ in range(16):
        middle = (low + high) / 2
        halt.bias = nnx.Param(jnp.full(1, middle))
        low, high = (middle, high) if mean_steps(network) > ponder else (low, middle)
    return network


if __name__ == "__main__":
    main()
