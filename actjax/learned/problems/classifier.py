"""Small image classifiers to train: a sigmoid MLP and a convolutional network.

Sander 2017 (section 5) and Andrychowicz 2016: MNIST with 784-20-10 sigmoid units and batches of
128, CIFAR-10 with convolutions. A problem is a fresh initialisation and its stream of minibatches.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from actjax._checks import check_key, check_positive
from actjax.learned.problems.family import Family


class Images(NamedTuple):
    """A data set: images [N, ...] as bytes, labels [N]."""

    images: jax.Array
    labels: jax.Array


class Model(NamedTuple):
    """A network as two functions; `groups` maps a group of its parameters to its coordinates."""

    init: Callable[[jax.Array], Any]
    logits: Callable[[Any, jax.Array], jax.Array]  # (params, images in [0, 1]) -> [N, classes]
    groups: dict[str, int]


def classifier(
    model: Model, train: Images, heldout: Images | None = None, *, batch_size: int = 128
) -> Family:
    """Trains `model` by cross-entropy in nats, a minibatch a step.

    Args:
      model: `mlp()` or `convolutional()`.
      train: what minibatches are drawn from, with replacement.
      heldout: what `validation` draws its minibatches from.
      batch_size: images in a minibatch.
    """
    check_positive("batch_size", batch_size)
    train = _on_device(train)
    heldout = None if heldout is None else _on_device(heldout)
    if train.images.shape[0] != train.labels.shape[0]:
        raise ValueError(
            f"train must hold one label an image, got {train.images.shape[0]} images and "
            f"{train.labels.shape[0]} labels."
        )

    def sample(key):
        check_key("key", key)
        return model.init(key), jnp.zeros(())

    def loss_on(images: Images):
        def loss(params, data, key):
            del data
            rows = jax.random.randint(key, (batch_size,), 0, images.images.shape[0])
            logits = model.logits(params, scaled(images.images[rows]))
            return cross_entropy(logits, images.labels[rows])

        return loss

    loss = loss_on(train)
    return Family(sample, loss, lambda data: data, loss if heldout is None else loss_on(heldout))


def mlp(sizes: tuple[int, ...] = (784, 20, 10)) -> Model:
    """Fully connected layers with sigmoids between."""

    def init(key):
        keys = jax.random.split(key, len(sizes) - 1)
        return [
            {"kernel": _normal(k, (m, n), m), "bias": jnp.zeros(n)}
            for k, (m, n) in zip(keys, itertools.pairwise(sizes), strict=True)
        ]

    def logits(params, images):
        x = images.reshape(images.shape[0], -1).astype(params[0]["kernel"].dtype)
        for layer in params[:-1]:
            x = jax.nn.sigmoid(x @ layer["kernel"] + layer["bias"][None])
        return x @ params[-1]["kernel"] + params[-1]["bias"][None]

    count = sum((m + 1) * n for m, n in itertools.pairwise(sizes))
    return Model(init, logits, {"dense": count})


def convolutional(channels: tuple[int, ...] = (8, 16), classes: int = 10) -> Model:
    """3 x 3 convolutions of stride 2 with ReLU on 32 x 32 x 3 images, then one dense layer."""
    depths = (3, *channels)
    side = 32 // 2 ** len(channels)
    flat = side * side * channels[-1]

    def init(key):
        *keys, last = jax.random.split(key, len(channels) + 1)
        convolutions = [
            {"kernel": _normal(k, (3, 3, m, n), 9 * m), "bias": jnp.zeros(n)}
            for k, (m, n) in zip(keys, itertools.pairwise(depths), strict=True)
        ]
        dense = {"kernel": _normal(last, (flat, classes), flat), "bias": jnp.zeros(classes)}
        return {"convolution": convolutions, "dense": dense}

    def logits(params, images):
        x = images.astype(params["dense"]["kernel"].dtype) - 0.5
        for layer in params["convolution"]:
            x = jax.nn.relu(_convolve(x, layer["kernel"]) + layer["bias"][None, None, None])
        x = x.reshape(x.shape[0], -1)
        return x @ params["dense"]["kernel"] + params["dense"]["bias"][None]

    count = sum((9 * m + 1) * n for m, n in itertools.pairwise(depths))
    return Model(init, logits, {"convolution": count, "dense": (flat + 1) * classes})


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)
    return -chosen.mean()


def accuracy(model: Model, params: Any, images: Images) -> jax.Array:
    """Share of images classified rightly."""
    found = model.logits(params, scaled(images.images)).argmax(-1)
    return (found == images.labels.astype(found.dtype)).mean()


def scaled(images: jax.Array) -> jax.Array:
    """Bytes to floats in [0, 1]."""
    return images.astype(jnp.float32) / 255


def _on_device(data: Images) -> Images:
    """NumPy's arrays take no traced indices."""
    return Images(jnp.asarray(data.images), jnp.asarray(data.labels))


def _convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3 x 3 convolution of stride 2, padded to half the side: [B, S, S, m] to [B, S/2, S/2, n].

    As one product of patches: of many small networks at once, each with a kernel of its own, XLA
    makes batched products, where it would make grouped convolutions.
    """
    side = images.shape[1]
    padded = jnp.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)))
    shifted = [padded[:, i : i + side : 2, j : j + side : 2] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _normal(key, shape, fan_in: int) -> jax.Array:
    return jax.random.normal(key, shape) / fan_in**0.5
