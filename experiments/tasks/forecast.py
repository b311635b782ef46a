"""A network that forecasts classes of price changes: its core, its heads, its loss, its figures."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from actjax import Seq2Seq, losses
from actjax.tasks.batch import Batch
from experiments.evaluation import steps_by_step
from experiments.network import Network

MOST_WINDOWS = 1000  # that measure a period, spread evenly over it


class Forecaster(Network):
    """A recurrent core, and for each of `instruments` a softmax over `classes`.

    The core predicts the next step at every input, or, where it is a `Seq2Seq`, the `horizon` steps
    behind the inputs. Logits are [B, S, K, C], for S prediction steps, K instruments and C classes;
    the ponder record is [B, T], or [B, T + S] of an encoder and a decoder.
    """

    def __init__(
        self, core: nnx.Module, instruments: int, classes: int, *, horizon: int, rngs: nnx.Rngs
    ):
        self.core, self.horizon = core, horizon
        self.instruments, self.classes = instruments, classes
        self.heads = nnx.Linear(core.hidden_features, instruments * classes, rngs=rngs)

    def with_layers(self, inputs: Array, lengths: None = None):
        """As of a `Network`."""
        if not isinstance(self.core, Seq2Seq):
            return super().with_layers(inputs)
        decoded = self.core(inputs, steps=self.horizon)
        return self.read(decoded.outputs), decoded.ponder, decoded.layers

    def read(self, outputs: Array) -> Array:
        """Outputs [..., hidden] to logits [..., K, C]."""
        return self.heads(outputs).reshape(*outputs.shape[:-1], self.instruments, self.classes)


def mean_f1(network: Forecaster, batch: Batch) -> Array:
    """Macro-F1, averaged over instruments and prediction steps: float scalar."""
    predictions = network(batch.inputs)[0].argmax(-1)
    counts = losses.confusion(predictions, batch.targets, batch.mask, classes=network.classes)
    return losses.f1(counts).mean()


def measure(network: Forecaster, batch: Batch, usual: Array) -> dict[str, Any]:
    """The figures of a network on the windows of a period.

    Args:
      batch: the windows; those beyond MOST_WINDOWS are thinned out evenly.
      usual: int [K], the most frequent class of each instrument during training, the forecast
        that F1 and accuracy are to be compared with.

    Returns:
      "f1" averaged over instruments and prediction steps, "f1_by_step" [S], "f1_by_instrument" [K],
      "accuracy", "cross_entropy" (nats an instrument and step), "usual_f1" and "usual_accuracy";
      "ponder" (mean N + R), "ponder_steps" (mean N), and "steps_by_step", the "mean", "maximum" and
      "percentile_90" of N_t at each input step, the decoder's after the encoder's.
    """
    size = len(batch.inputs)
    picked = np.unique(np.linspace(0, size - 1, min(size, MOST_WINDOWS)).round().astype(int))
    batch = jax.tree.map(lambda leaf: leaf[picked], batch)
    found = jax.tree.map(np.asarray, _apply(network, batch, usual))
    steps = found.pop("steps")
    return {
        "windows": len(picked),
        "ponder_steps": float(steps.mean()),
        **{name: value.tolist() for name, value in found.items()},
        "steps_by_step": steps_by_step(steps),
    }


@jax.jit
def _apply(network: Forecaster, batch: Batch, usual: Array) -> dict[str, Array]:
    logits, ponder = network(batch.inputs)
    score = functools.partial(losses.confusion, classes=network.classes)
    predictions = logits.argmax(-1)
    scores = losses.f1(score(predictions, batch.targets, batch.mask))  # [S, K]
    always = jnp.broadcast_to(usual, batch.targets.shape)
    nats = losses.softmax_cross_entropy(logits, batch.targets, batch.mask, over_time="mean")
    return {
        "f1": scores.mean(),
        "f1_by_step": scores.mean(1),
        "f1_by_instrument": scores.mean(0),
        "accuracy": losses.accuracy(predictions, batch.targets, batch.mask),
        "cross_entropy": nats.mean() / network.instruments,
        "usual_f1": losses.f1(score(always, batch.targets, batch.mask)).mean(),
        "usual_accuracy": losses.accuracy(always, batch.targets, batch.mask),
        "ponder": ponder.cost.mean(),
        "steps": ponder.steps,
    }
