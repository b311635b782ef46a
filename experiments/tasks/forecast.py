"""A network that forecasts classes of price changes: its core, its heads, its loss, its figures."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from actjax import Layers, Ponder, Seq2Seq, losses
from actjax.tasks.batch import Batch
from experiments.evaluation import steps_by_step

MOST_WINDOWS = 1000  # that measure a period, spread evenly over it


class Forecast(NamedTuple):
    """What a network says of a batch.

    Attributes:
      logits: [B, S, K, C], for S prediction steps, K instruments and C classes.
      ponder: the record [B, T], or [B, T + S] of an encoder and a decoder.
      layers: the outputs of every layer, [B, S, L, hidden], or None where there are no layers.
    """

    logits: Array
    ponder: Ponder
    layers: Layers | None = None


class Forecaster(nnx.Module):
    """A recurrent core, and for each of `instruments` a softmax over `classes`.

    The core predicts the next step at every input, or, where it is a `Seq2Seq`, the `horizon` steps
    behind the inputs.
    """

    def __init__(
        self, core: nnx.Module, instruments: int, classes: int, *, horizon: int, rngs: nnx.Rngs
    ):
        self.core, self.horizon = core, horizon
        self.instruments, self.classes = instruments, classes
        self.heads = nnx.Linear(core.hidden_features, instruments * classes, rngs=rngs)

    def __call__(self, inputs: Array) -> Forecast:
        """Inputs [B, T, K] to a forecast of all prediction steps."""
        if isinstance(self.core, Seq2Seq):
            decoded = self.core(inputs, steps=self.horizon)
            return Forecast(self.read(decoded.outputs), decoded.ponder, decoded.layers)
        if hasattr(self.core, "layers"):
            _, layers, ponder = self.core.layers(inputs)
            return Forecast(self.read(layers.deepest), ponder, layers)
        _, outputs, ponder = self.core(inputs)
        return Forecast(self.read(outputs), ponder)

    def read(self, outputs: Array) -> Array:
        """Outputs [..., hidden] to logits [..., K, C]."""
        return self.heads(outputs).reshape(*outputs.shape[:-1], self.instruments, self.classes)


def make_objective(
    mu: float, over_time: str
) -> Callable[[Forecaster, Batch, Array], tuple[Array, dict[str, Array]]]:
    """`(network, batch, tau) -> (loss, metrics)`: eq 6 of LFACT 2020, eq 4 where `mu` is 0.

    The cross-entropies of all instruments add up; `mu` weighs those of every layer that ran.
    """

    def objective(network: Forecaster, batch: Batch, tau: Array):
        forecast = network(batch.inputs)
        total = losses.softmax_cross_entropy(forecast.logits, batch.targets, batch.mask)
        if mu and forecast.layers is not None:
            of_layer = lambda outputs, mask: losses.softmax_cross_entropy(
                network.read(outputs), batch.targets, mask
            )
            total += mu * losses.over_layers(of_layer, forecast.layers, batch.mask, deepest=total)
        cross_entropy = (total if over_time == "sum" else total / batch.mask.sum(1)).mean()
        cost = losses.ponder_cost(forecast.ponder.cost, over_time=over_time).mean()
        loss = cross_entropy + tau * cost
        right = losses.accuracy(forecast.logits.argmax(-1), batch.targets, batch.mask)
        return loss, {"accuracy": right, **losses.ponder_metrics(forecast.ponder)}

    return objective


def mean_f1(network: Forecaster, batch: Batch) -> Array:
    """Macro-F1, averaged over instruments and prediction steps: float scalar."""
    predictions = network(batch.inputs).logits.argmax(-1)
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
    forecast = network(batch.inputs)
    score = functools.partial(losses.confusion, classes=network.classes)
    predictions = forecast.logits.argmax(-1)
    scores = losses.f1(score(predictions, batch.targets, batch.mask))  # [S, K]
    always = jnp.broadcast_to(usual, batch.targets.shape)
    nats = losses.softmax_cross_entropy(
        forecast.logits, batch.targets, batch.mask, over_time="mean"
    )
    return {
        "f1": scores.mean(),
        "f1_by_step": scores.mean(1),
        "f1_by_instrument": scores.mean(0),
        "accuracy": losses.accuracy(predictions, batch.targets, batch.mask),
        "cross_entropy": nats.mean() / network.instruments,
        "usual_f1": losses.f1(score(always, batch.targets, batch.mask)).mean(),
        "usual_accuracy": losses.accuracy(always, batch.targets, batch.mask),
        "ponder": forecast.ponder.cost.mean(),
        "steps": forecast.ponder.steps,
    }
