"""A shipped optimizer against Adam on problems that no optimizer here has learned on.

`python -m experiments held_out`: the digits of scikit-learn by a fully connected network,
Friedman's function by one with two hidden layers, and images of MNIST by a convolutional one. Adam
has the rate of least summed loss on the very seeds that are compared, tuned to a sixteenth of a
decade.
"""

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from actjax import learned, training
from actjax.learned.problems import Family
from actjax.learned.problems.classifier import _convolve, cross_entropy
from experiments import record
from experiments.learned import figures, images
from experiments.options import Preset, parse, require

DIGITS = pathlib.Path(__file__).parent.parent / "data" / "digits.npz"
COARSE = tuple(k / 4 for k in range(-12, -1))  # log10 of rates, .001 to .3
FINE = tuple(k / 16 for k in (-3, -2, -1, 1, 2, 3))  # around the best of them
BATCH = 64
SEED = 2017


@dataclasses.dataclass(frozen=True)
class HeldOut(Preset):
    """Compare a shipped optimizer with Adam at its best rate, on problems held out from training.

    Presets: full (20 seeds of 100 steps: a quarter of an hour), short (2 seeds of 10 steps).
    """

    name: str = "mlp"
    """The optimizer: a name that ships, or a file of `learned.save`."""
    seeds: int = 20
    """First weights and orders of minibatches of each problem."""
    steps: int = 100
    """Updates, over which the loss is summed."""
    longer: int = 300
    """Updates of a second comparison, with a rate of its own, on a fifth of the seeds."""
    results: pathlib.Path | None = None
    """Where the comparison is written, as JSON, with a figure beside it."""


PRESETS = {"full": HeldOut(), "short": HeldOut(seeds=2, steps=10, longer=20)}


def main(command: str, argv: list[str]):
    options = parse(command, PRESETS, argv, check)
    record.check_file("results", options.results)
    began = time.perf_counter()
    network = learned.load(options.name).network
    rows, found = [], {}
    for problem, (family, says) in problems().items():
        compared = compare(family, network, seeds=options.seeds, steps=options.steps)
        few = max(options.seeds // 5, 2)
        later = compare(family, network, seeds=few, steps=options.longer, fine=())
        found[problem] = {"what": says, **summary(compared), "longer": summary(later)}
        rows.append({"problem": problem, **cells(found[problem])})
        if options.results is not None:
            write(options, found, time.perf_counter() - began)
            place = options.results.with_name(f"{options.results.stem}_{problem}.png")
            shown = {"lstm": compared["learned"], "adam": compared["adam"]}
            bands = {name: figures.bands(losses) for name, losses in shown.items()}
            figures.loss_curves(place, bands, ylabel="loss on the next minibatch")
    record.print_table(f"Loss summed over {options.steps} steps, {options.seeds} seeds", rows)


def write(options: HeldOut, found: dict[str, Any], seconds: float):
    """The comparison as far as it has come."""
    result = {
        "optimizer": options.name,
        "steps": options.steps,
        "longer": options.longer,
        "seeds": options.seeds,
        "problems": found,
        "seconds": round(seconds, 1),
        "command": record.command(),
        **record.environment(),
    }
    training.write_json(options.results, record.plain(result))


def check(options: HeldOut):
    for name in ("seeds", "steps", "longer"):
        require(getattr(options, name) >= 1, name, "at least 1", getattr(options, name))
    require(options.seeds >= 2, "seeds", "at least 2", options.seeds)


def compare(
    family: Family, network: Any, *, seeds: int, steps: int, fine: tuple[float, ...] = FINE
) -> dict[str, Any]:
    """Losses after each update, [seeds, steps], of the network and of Adam at its best rate.

    `fine` is how far from the best coarse rate others are tried, in decades.
    """
    run = functools.partial(curves, family, jax.random.key(SEED), seeds, steps)
    adam = jax.jit(lambda rate: run(optax.adam(rate)))
    tried = {}

    def best_of(exponents) -> float:
        for exponent in exponents:
            losses = np.asarray(adam(10.0**exponent), np.float64)
            mean = losses.sum(1).mean()
            tried[exponent] = mean if np.isfinite(mean) else np.inf, losses
        return min(tried, key=lambda exponent: tried[exponent][0])

    coarse = best_of(COARSE)
    best = best_of(coarse + off for off in fine)
    return {
        "learned": np.asarray(jax.jit(lambda: run(learned.lstm_optimizer(network)))(), np.float64),
        "adam": tried[best][1],
        "rate": 10.0**best,
        "sums_by_rate": {f"{10.0**at:.3g}": tried[at][0] for at in sorted(tried)},
    }


def curves(family: Family, key: jax.Array, seeds: int, steps: int, optimizer) -> jax.Array:
    """Losses after each update, each on the minibatch of the next: float [seeds, steps]."""

    def one(key):
        key_problem, key_batch = jax.random.split(key)
        params, data = family.sample(key_problem)

        def step(carry, index):
            params, state = carry
            here = jax.random.fold_in(key_batch, index)
            gradient = jax.grad(family.loss)(params, data, here)
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            after = family.loss(params, data, jax.random.fold_in(key_batch, index + 1))
            return (params, state), after

        return lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))[1]

    return lax.map(one, jax.random.split(key, seeds))


def summary(compared: dict[str, Any]) -> dict[str, Any]:
    """The sums of both, their paired difference and its standard error."""
    ours, adam = (compared[name].sum(1) for name in ("learned", "adam"))
    gap = ours - adam
    return {
        "learned_sum": ours.mean(),
        "adam_sum": adam.mean(),
        "adam_rate": compared["rate"],
        "difference": gap.mean(),
        "standard_error": gap.std(ddof=1) / np.sqrt(len(gap)),
        "lower_on": int((gap < 0).sum()),
        "seeds": len(gap),
        "learned_last": compared["learned"][:, -10:].mean(),
        "adam_last": compared["adam"][:, -10:].mean(),
        "adam_sums_by_rate": compared["sums_by_rate"],
    }


def cells(found: dict[str, Any]) -> dict[str, str]:
    later = found["longer"]
    return {
        "learned": f"{found['learned_sum']:.2f}",
        "Adam": f"{found['adam_sum']:.2f}",
        "its rate": f"{found['adam_rate']:.3g}",
        "difference": f"{found['difference']:.2f} ± {found['standard_error']:.2f}",
        "lower on": f"{found['lower_on']} of {found['seeds']}",
        "longer": f"{later['learned_sum']:.2f} / {later['adam_sum']:.2f}",
    }


def problems() -> dict[str, tuple[Family, str]]:
    """The problems held out: name -> (family, what it is)."""
    digits = np.load(DIGITS)
    mnist, _ = images.mnist("small")
    scaled = lambda pictures, most: np.asarray(pictures, np.float32) / most
    return {
        "digits": (
            supervised(
                dense((64, 32, 10), jax.nn.relu),
                cross_entropy,
                scaled(digits["images"], 16).reshape(-1, 64),
                digits["labels"],
            ),
            "1,797 digits of 8 x 8 pixels (scikit-learn), 64-32-10 ReLU, cross-entropy",
        ),
        "friedman": (
            supervised(dense((10, 32, 32, 1), jnp.tanh), squared_error, *friedman(2000)),
            "2,000 rows of Friedman's first function, scaled, 10-32-32-1 tanh, squared error",
        ),
        "mnist": (
            supervised(
                convolutional((8, 16)),
                cross_entropy,
                scaled(mnist.images, 255).reshape(-1, 28, 28, 1),
                mnist.labels,
            ),
            "4,000 images of MNIST, two convolutions (8, 16) of stride 2, ReLU, cross-entropy",
        ),
    }


def supervised(model: tuple[Callable, Callable], error: Callable, inputs, targets) -> Family:
    """Training `(init, apply)` on minibatches of 64 rows, drawn with replacement."""
    init, predict = model
    inputs, targets = jnp.asarray(inputs), jnp.asarray(targets)

    def loss(params, data, key):
        del data
        rows = jax.random.randint(key, (BATCH,), 0, len(inputs))
        return error(predict(params, inputs[rows]), targets[rows])

    return Family(lambda key: (init(key), ()), loss, lambda data: jnp.zeros(()), loss)


def squared_error(found, wanted):
    return jnp.mean((found[:, 0] - wanted) ** 2)


def dense(sizes: tuple[int, ...], activation: Callable) -> tuple[Callable, Callable]:
    """A fully connected network with Flax's first weights: Lecun normal kernels, zero biases."""
    shapes = list(itertools.pairwise(sizes))

    def predict(params, x):
        for layer in params[:-1]:
            x = activation(x @ layer["kernel"] + layer["bias"][None])
        return x @ params[-1]["kernel"] + params[-1]["bias"][None]

    return lambda key: _first_weights(key, shapes), predict


def convolutional(channels: tuple[int, ...], classes: int = 10) -> tuple[Callable, Callable]:
    """3 x 3 convolutions of stride 2 with ReLU on 28 x 28 x 1 images, then one dense layer."""
    side = 28
    for _ in channels:
        side = -(-side // 2)
    shapes = [(3, 3, m, n) for m, n in itertools.pairwise((1, *channels))]
    shapes.append((side * side * channels[-1], classes))

    def predict(params, x):
        for layer in params[:-1]:
            x = jax.nn.relu(_convolve(x, layer["kernel"]) + layer["bias"][None, None, None])
        return x.reshape(len(x), -1) @ params[-1]["kernel"] + params[-1]["bias"][None]

    return lambda key: _first_weights(key, shapes), predict


def friedman(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Friedman 1991, "Multivariate adaptive regression splines", eq 61: ten inputs of which five
    matter, with noise of unit variance; targets scaled to mean 0 and variance 1."""
    rng = np.random.default_rng(1991)
    x = rng.uniform(size=(rows, 10)).astype(np.float32)
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2
    y = y + 10 * x[:, 3] + 5 * x[:, 4] + rng.normal(size=rows)
    return x, ((y - y.mean()) / y.std()).astype(np.float32)


def _first_weights(key, shapes):
    init = jax.nn.initializers.lecun_normal()
    keys = jax.random.split(key, len(shapes))
    return [
        {"kernel": init(k, shape), "bias": jnp.zeros(shape[-1])}
        for k, shape in zip(keys, shapes, strict=True)
    ]
