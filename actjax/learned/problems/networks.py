"""Small networks of many kinds to train, on data made on the device: an optimizer that has learned
on them is of use on others.

Each problem draws its own activation, loss, first weights, data and teacher. Its loss is divided by
that of its first weights, so that no kind of problem outweighs another, and grows like a logarithm
above CAP, so that one which diverges does not outweigh them all.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from actjax._checks import check_choice, check_key, check_positive
from actjax.learned.problems.classifier import _convolve, cross_entropy
from actjax.learned.problems.family import Family

CAP = 2.0
ACTIVATIONS = (jnp.tanh, jax.nn.relu, jax.nn.sigmoid, jax.nn.silu)
TARGETS = ("classes", "values", "both")


class Setting(NamedTuple):
    """One problem: what its network and its loss are, and its data, of which a minibatch is a run
    of rows that begins anywhere."""

    activation: jax.Array  # int32 []: index into ACTIVATIONS
    squared: jax.Array  # bool []: squared error, not cross-entropy
    unit: jax.Array  # []: the loss at the first weights
    inputs: jax.Array  # [rows, ...]
    classes: jax.Array  # int32 [rows]
    wanted: jax.Array  # [rows, outputs]: what squared error is to


def together(*families: Family) -> Family:
    """One problem of each family at once, their losses averaged.

    A coordinatewise optimizer does on each what it would do on it alone, so that to learn on such
    problems is to learn on a mixture, whose members may have any shapes. They share the key of a
    minibatch.

    Example:
      >>> import jax
      >>> from actjax.learned.problems import quadratic, regression
      >>> both = together(quadratic(3), regression(2))
      >>> params, data = both.sample(jax.random.key(0))
      >>> [leaf.shape for leaf in params], both.loss(params, data, jax.random.key(1)).shape
      ([(3,), (2,)], ())
    """

    if not families or not all(isinstance(family, Family) for family in families):
        raise ValueError(f"families must be at least one Family, got {families!r}.")

    def sample(key):
        check_key("key", key)
        keys = jax.random.split(key, len(families))
        pairs = [family.sample(k) for family, k in zip(families, keys, strict=True)]
        return [params for params, _ in pairs], [data for _, data in pairs]

    def mean_of(name):
        def score(params, data, key):
            parts = zip(families, params, data, strict=True)
            return sum(getattr(family, name)(*of, key) for family, *of in parts) / len(families)

        return score

    return Family(sample, mean_of("loss"), lambda data: jnp.zeros(()), mean_of("validation"))


def networks(
    sizes: tuple[int, ...],
    *,
    batch_size: int = 32,
    rows: int = 1024,
    targets: str = "both",
    pixels: bool = False,
) -> Family:
    """Fully connected networks of one shape.

    A problem draws: tanh, ReLU, sigmoid or SiLU units; weights N(0, g^2 / fan-in) with g from .6 to
    1.8; inputs whose variances along random axes fall by a power law, of a size from .3 to 2, as
    they are or rectified; targets by a random network or from Gaussian clusters; cross-entropy or
    squared error.

    Args:
      sizes: inputs, units of each layer, outputs.
      batch_size: rows in a minibatch.
      rows: in a data set.
      targets: "classes" (of the outputs, by cross-entropy or the squared error to 0 and 1),
        "values" (squared error), or "both", half of the problems each.
      pixels: always rectify the inputs, and let their variances fall fast, as images' do.
    """
    check_choice("targets", targets, TARGETS)
    _check_sizes("sizes", sizes, 2)
    inputs, outputs = sizes[0], sizes[-1]

    def draw(key):
        chance = jax.random.uniform(jax.random.fold_in(key, 0), (6 + rows,))
        power, noise, size, flip, clustered, valued = chance[:6]
        shapes = (inputs, inputs), (rows, inputs), (outputs, inputs), (inputs, 16), (16, outputs)
        normals = _normals(jax.random.fold_in(key, 1), *shapes, (rows, outputs))
        axes, z, centres, first, second, error = normals
        by_value = {"classes": jnp.zeros((), bool), "values": jnp.ones((), bool)}.get(
            targets, valued < 0.5
        )
        clusters = (clustered < 0.5) & ~by_value
        power = 0.5 + power if pixels else 1.5 * power
        spread = jnp.arange(1.0, inputs + 1) ** -power
        axes = spread[:, None] * axes * lax.rsqrt(jnp.sum(spread * spread))
        classes = (chance[6:] * outputs).astype(jnp.int32)
        x = jnp.where(clusters, 0.7 * (z + centres[classes]), z) @ axes
        values = jnp.tanh(x @ first * (1.5 / inputs**0.5)) @ second * 0.7 + 0.3 * noise * error
        classes = jnp.where(clusters, classes, values.argmax(-1))
        x = jnp.where(pixels | (flip < 0.3), jax.nn.relu(x), x) * jnp.exp(1.9 * size - 1.2)
        wanted = jnp.where(by_value, values, jax.nn.one_hot(classes, outputs))
        return x, classes, wanted, by_value

    def init(key, gain):
        shapes = list(itertools.pairwise(sizes))
        return [
            {"kernel": gain * kernel / kernel.shape[0] ** 0.5, "bias": jnp.zeros(kernel.shape[1])}
            for kernel in _normals(key, *shapes)
        ]

    def predict(params, x, activation):
        for layer in params[:-1]:
            x = activated(activation, x @ layer["kernel"] + layer["bias"][None])
        return x @ params[-1]["kernel"] + params[-1]["bias"][None]

    return _family(draw, init, predict, rows, batch_size)


def convolutions(
    side: int = 12,
    channels: tuple[int, ...] = (6, 8),
    classes: int = 6,
    *,
    batch_size: int = 32,
    rows: int = 1024,
) -> Family:
    """Small convolutional networks on images of smooth random patterns, a pattern a class.

    As `networks`, of 3 x 3 convolutions of stride 2 and a dense layer.

    Args:
      side: pixels of an image's side; there is one channel.
      channels: of each convolution, each of which halves the side.
      classes: patterns.
      batch_size: images in a minibatch.
      rows: images in a data set.
    """
    for name, value in (("side", side), ("classes", classes)):
        check_positive(name, value)
    _check_sizes("channels", channels, 1)
    depths, waves = (1, *channels), 5
    small, rest = divmod(side, 2 ** len(channels))
    if rest or not small:
        raise ValueError(
            f"side must be a multiple of {2 ** len(channels)} for {len(channels)} convolutions, "
            f"got {side!r}."
        )
    flat = small * small * channels[-1]
    places = (jnp.arange(side, dtype=jnp.float32) + 0.5) / side
    frequencies = jnp.arange(waves, dtype=jnp.float32)
    basis = jnp.cos(jnp.pi * places[:, None] * frequencies[None])  # [side, waves]

    def draw(key):
        chance = jax.random.uniform(jax.random.fold_in(key, 0), (3 + rows,))
        noise, contrast, threshold = chance[:3]
        labels = (chance[3:] * classes).astype(jnp.int32)
        shapes = (classes, waves, waves), (rows, waves, waves), (rows, side, side)
        centres, waving, speckle = _normals(jax.random.fold_in(key, 1), *shapes)
        pattern = (centres[labels] + (0.2 + noise) * waving) / waves
        images = basis[None] @ pattern @ basis.T[None] + 0.1 * speckle
        images = (0.5 + 2.5 * contrast) * images + 0.5 - 2 * threshold
        images = jax.nn.sigmoid(4 * images)[..., None]
        return images, labels, jax.nn.one_hot(labels, classes), jnp.zeros((), bool)

    def init(key, gain):
        shapes = [(3, 3, m, n) for m, n in itertools.pairwise(depths)] + [(flat, classes)]
        return [
            {
                "kernel": gain * kernel / (kernel.size / kernel.shape[-1]) ** 0.5,
                "bias": jnp.zeros(kernel.shape[-1]),
            }
            for kernel in _normals(key, *shapes)
        ]

    def predict(params, x, activation):
        for layer in params[:-1]:
            x = _convolve(x, layer["kernel"]) + layer["bias"][None, None, None]
            x = activated(activation, x)
        x = x.reshape(x.shape[0], -1)
        return x @ params[-1]["kernel"] + params[-1]["bias"][None]

    return _family(draw, init, predict, rows, batch_size)


def activated(index: jax.Array, x: jax.Array) -> jax.Array:
    """Activation number `index` of x."""
    return jnp.select([index == n for n in range(len(ACTIVATIONS))], [f(x) for f in ACTIVATIONS])


def _normals(key: jax.Array, *shapes: tuple[int, ...]) -> list[jax.Array]:
    """Standard normals of these shapes, from one draw: many draws take long to compile."""
    sizes = [math.prod(shape) for shape in shapes]
    numbers = jax.random.normal(key, (sum(sizes),))
    ends = list(itertools.accumulate(sizes))
    return [
        numbers[end - size : end].reshape(shape)
        for end, size, shape in zip(ends, sizes, shapes, strict=True)
    ]


def _check_sizes(name: str, sizes: tuple[int, ...], least: int):
    if len(sizes) < least:
        raise ValueError(f"{name} must have at least {least} entries, got {sizes!r}.")
    for size in sizes:
        check_positive(name, size)


def _family(draw, init, predict, rows: int, batch_size: int) -> Family:
    check_positive("batch_size", batch_size)
    check_positive("rows", rows)

    def error(params, data: Setting, chosen):
        found = predict(params, data.inputs[chosen], data.activation)
        squared = jnp.mean(jnp.sum((found - data.wanted[chosen]) ** 2, -1))
        entropy = cross_entropy(found, data.classes[chosen])
        return jnp.where(data.squared, squared, entropy)

    def sample(key):
        check_key("key", key)
        keys = jax.random.split(key, 3)
        x, classes, wanted, by_value = draw(keys[0])
        kind, gain, loss = jax.random.uniform(keys[1], (3,))
        activation = (kind * len(ACTIVATIONS)).astype(jnp.int32)
        data = Setting(activation, by_value | (loss < 0.15), jnp.ones(()), x, classes, wanted)
        params = init(keys[2], jnp.exp(1.1 * gain - 0.5))
        return params, data._replace(unit=error(params, data, jnp.arange(batch_size)))

    def loss(params, data, key):
        begin = jax.random.randint(key, (), 0, rows)
        share = error(params, data, (begin + jnp.arange(batch_size)) % rows) / data.unit
        return jnp.where(share < CAP, share, CAP + CAP * jnp.log(jnp.maximum(share, CAP) / CAP))

    return Family(sample, loss, lambda data: jnp.zeros(()), loss)
