"""Wikipedia, byte by byte: predict the next one (Graves 2016, section 3.5)."""

import dataclasses
import hashlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from actjax import losses, training
from actjax.tasks import text
from actjax.tasks.batch import Batch
from experiments import run
from experiments.data import load_text
from experiments.network import Network, make_network
from experiments.options import Options, joined, parse
from experiments.show import figures
from experiments.synthetic import Loaded

STRETCH = 120  # characters shown in a figure
CONTEXT = 50  # characters read before them
KINDS = {
    "a letter": b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "a digit": b"0123456789",
    "a space": b" ",
    "a new line": b"\n",
    "punctuation": b".,;:!?",
    "markup": b"<>[]{}|=&*#/'",
}
PLAIN = rb"[^<>\[\]{}|=&\n'*]"
PROSE = re.compile(rb"%b{%d} %b{%d}" % (PLAIN, CONTEXT - 1, PLAIN, STRETCH + 1))
MARKUP = b"<page>"  # where the second stretch begins (Graves 2016, figure 24)


@dataclasses.dataclass(frozen=True)
class Wikipedia(Options):
    """Predict the next byte of Wikipedia, markup and all.

    Presets: demo (a GRU of 128 units on windows of 50 bytes, a minute on two cores), lfact (the
    same on 10,240 windows, as in LFACT 2020) and graves (an LSTM of 1500 units on windows of 500
    bytes, as in Graves 2016; for an accelerator); cpu is demo and paper is graves.
    """

    window: int = 50
    """Consecutive bytes in a sequence; the state starts at zero in each."""
    data: str = "wikipedia"
    """wikipedia (6 MB, in this repository), enwik8 (downloaded once), or the path of any file."""
    held_out: float = 0.05
    """Fraction at the end of the text which is never trained on and measures the result."""
    sequences: int = 0
    """Train on this many windows, drawn once; validate on an eighth as many from the held-out text,
    keep the weights that do best there, and test on as many others. 0: train on windows from
    anywhere in the text, and measure the last weights on all of the held-out text."""
    mu: float = 0.0
    """Weight of the losses of lfact's intermediate layers."""


PRESETS = {
    "demo": Wikipedia(
        cell="gru",
        tau=2e-2,
        max_steps=10,
        over_time="mean",
        batch_size=32,
        learning_rate=3e-3,
        steps=600,
        log_every=20,
        checkpoint_every=200,
    ),
    "lfact": Wikipedia(
        model="lfact",
        cell="gru",
        tau=0.06,
        max_steps=3,
        mu=0.1,
        over_time="mean",
        batch_size=64,
        sequences=10_240,
        learning_rate=2e-3,
        steps=2400,  # 15 times through the training windows
        log_every=80,
        checkpoint_every=160,
    ),
    "graves": Wikipedia(
        cell="lstm",
        hidden=1500,
        tau=6e-3,
        batch_size=16,
        window=500,
        learning_rate=1e-4,
        steps=160_000,
        checkpoint_every=1000,
    ),
}
PRESETS |= {"cpu": PRESETS["demo"], "paper": PRESETS["graves"]}


def main(argv: list[str]):
    """Trains a network, measures it on held-out text, draws its figures and prints a table."""
    options = parse("wikipedia", PRESETS, argv)
    with joined(options):
        summary, folder = train(options)
        found = summary["evaluation"]
        error = found["bits_per_character_standard_error"]
        run.show(
            "Wikipedia, held-out text",
            [
                {
                    "model": summary["model"],
                    "updates": f"{summary['steps']:,}",
                    "bits per character": f"{found['bits_per_character']:.4f} +- {error:.4f}",
                    "ponder N + R": f"{found['ponder']:.2f}",
                    "largest": f"{found['ponder_max']:.1f}",
                    "time": f"{summary['wall_time_seconds']:.0f} s",
                }
            ],
            *run.notes(summary, folder),
        )


def train(options: Wikipedia) -> tuple[dict[str, Any], Any]:
    """One run from start to figures: its summary and its folder."""
    data, test, sha256 = load(options)
    network = make_network(options, text.SYMBOLS, text.SYMBOLS)
    network, folder = run.train(
        "wikipedia",
        options,
        network,
        sampler(options),
        make_objective(options),
        data=data,
        data_id=sha256,
        score=validation(options),
    )
    evaluation = measure(network, test, options)
    training.write_json(folder / "stretches.json", stretches(network, test.text))
    summary = run.finish("wikipedia", options, folder, evaluation)
    figures.draw(folder)
    return summary, folder


def check_held_out(options: Wikipedia, size: int):
    """Refuses a held-out split too short for a window, or for a stretch to draw."""
    least = max(options.window, CONTEXT + STRETCH) + 1
    if size < least:
        raise ValueError(
            f"held_out is {options.held_out}, which leaves {size} bytes of {options.data!r} for "
            f"the held-out split; it needs {least}"
        )


class Data(NamedTuple):
    """What a run trains on: a text, or pieces of one [N, T + 1] and others to validate with."""

    train: jax.Array
    validation: jax.Array | None


class Test(NamedTuple):
    """What a run is measured on.

    Attributes:
      batch: windows of bytes never trained on.
      text: what stretches to look at come from.
      others: "train" and "validation" windows, as many, if there are such sets.
    """

    batch: Batch
    text: np.ndarray
    others: dict[str, Batch]


def load(options: Wikipedia) -> Loaded:
    """The text's parts as `options` want them, `Data` and `Test`, the same for every seed.

    Raises:
      ValueError: for a text too short for them.
    """
    corpus = load_text(options.data)
    sha256 = hashlib.sha256(corpus).hexdigest()
    begin, held_out = text.split(corpus, options.held_out)
    check_held_out(options, held_out.size)
    if not options.sequences:
        run.input_size(sampler(options), Data(begin, None))
        batch = text.windows(held_out, options.window, encoding="index")
        return Loaded(Data(jnp.asarray(begin), None), Test(batch, held_out, {}), sha256)
    count, window = max(1, options.sequences // 8), options.window
    for_training, for_others = jax.random.split(jax.random.key(0))
    pieces = text.draw(for_training, options.sequences, text=begin, window=window, apart=False)
    others = text.draw(for_others, 2 * count, text=held_out, window=window, apart=True)
    batch = lambda chosen: text.as_batch(jnp.asarray(chosen), encoding="index")
    seen = {"train": batch(pieces[:count]), "validation": batch(others[:count])}
    data = Data(jnp.asarray(pieces), jnp.asarray(others[:count]))
    return Loaded(data, Test(batch(others[count:]), held_out, seen), sha256)


def sampler(options: Wikipedia):
    """`(key, Data) -> Batch`."""

    def anywhere(key, data):
        return text.sample(key, options.batch_size, text=data.train, window=options.window)

    def from_pieces(key, data):
        rows = jax.random.randint(key, (options.batch_size,), 0, len(data.train))
        return text.as_batch(data.train[rows])

    return from_pieces if options.sequences else anywhere


def validation(options: Wikipedia):
    """`(network, Data) -> float`, minus the bits per character; None where there is no such set."""
    if not options.sequences:
        return None

    def score(network: Network, data: Data):
        def one_batch(pieces):
            batch = text.as_batch(pieces)
            logits, _ = network(batch.inputs)
            return losses.bits_per_character(logits, batch.targets, batch.mask)

        rows = min(options.batch_size, len(data.validation))
        count = len(data.validation) // rows
        pieces = data.validation[: count * rows].reshape(count, rows, -1)
        return -jax.lax.map(one_batch, pieces).mean()

    return score


def make_objective(options: Wikipedia):
    """`(network, batch, tau) -> (loss, metrics)`: cross-entropy and ponder cost (Graves 2016, eq
    12), with `mu` those of intermediate layers too (LFACT 2020, eq 6)."""
    over_time = options.over_time

    def objective(network: Network, batch, tau):
        logits, ponder, layers = network.with_layers(batch.inputs)
        total = losses.softmax_cross_entropy(logits, batch.targets, batch.mask)
        if options.mu and layers is not None:
            total += options.mu * losses.over_layers(
                lambda outputs, mask: losses.softmax_cross_entropy(
                    network.readout(outputs), batch.targets, mask
                ),
                layers,
                batch.mask,
                deepest=total,
            )
        cross_entropy = (total if over_time == "sum" else total / batch.mask.sum(1)).mean()
        loss = cross_entropy + tau * losses.ponder_cost(ponder.cost, over_time=over_time).mean()
        return loss, {
            "bits_per_character": losses.bits_per_character(logits, batch.targets, batch.mask),
            "accuracy": losses.accuracy(logits.argmax(-1), batch.targets, batch.mask),
            **losses.ponder_metrics(ponder),
        }

    return objective


def measure(network: Network, test: Test, options: Wikipedia) -> dict[str, Any]:
    """`evaluate` on the test windows, with N_t by step for the others too."""
    found = evaluate(network, test.batch, options)
    parts = {name: evaluate(network, batch, options) for name, batch in test.others.items()}
    of_all = {**parts, "test": found}
    return found | {"steps_by_step": {name: part["steps_by_step"] for name, part in of_all.items()}}


def evaluate(network: Network, batch: Batch, options: Wikipedia) -> dict[str, Any]:
    """Bits per character over the windows of `batch`, whose inputs are bytes [N, T]."""
    size = options.batch_size
    count = batch.inputs.shape[0]
    rows = min(size, count)
    starts = np.arange(-(-count // rows)) * rows
    picked = np.minimum(starts[:, None] + np.arange(rows), count - 1)  # the last is filled up

    @jax.jit
    def run_batches(network, inputs, targets):
        def one(_, piece):
            inputs, targets = piece
            logits, ponder = network(jax.nn.one_hot(inputs, text.SYMBOLS))
            mask = jnp.ones_like(targets, bool)
            nats = losses.softmax_cross_entropy(logits, targets, mask, over_time="mean")
            right = (logits.argmax(-1) == targets).mean(-1)
            return None, (nats / jnp.log(2.0), right, ponder.cost, ponder.steps)

        return jax.lax.scan(one, None, (inputs, targets))[1]

    records = run_batches(network, batch.inputs[picked], batch.targets[picked])
    bits, right, ponder, steps = (
        np.asarray(record).reshape(-1, *record.shape[2:])[:count] for record in records
    )
    return {
        "bits_per_character": float(bits.mean()),
        "bits_per_character_standard_error": float(bits.std() / np.sqrt(count)),
        "accuracy": float(right.mean()),
        "ponder": float(ponder.mean()),
        "ponder_max": float(ponder.max()),
        "ponder_steps": float(steps.mean()),
        "characters": int(count * options.window),
        "steps_by_step": run.steps_by_step(steps),
        "by_kind": by_kind(np.asarray(batch.inputs), ponder),
    }


def by_kind(inputs: np.ndarray, ponder: np.ndarray) -> list[dict[str, Any]]:
    """Mean ponder, with its standard error, after each kind of byte."""
    rows = []
    for kind, members in KINDS.items():
        here = ponder[np.isin(inputs, np.frombuffer(members, np.uint8))]
        if here.size:
            row = {"kind": kind, "count": here.size, "ponder": float(here.mean())}
            rows.append(row | {"ponder_standard_error": float(here.std() / np.sqrt(here.size))})
    return rows


def stretches(network: Network, held_out: np.ndarray) -> list[dict[str, Any]]:
    """Ponder, loss and entropy along two stretches of held-out text, prose and markup.

    Graves 2016, figures 23 and 24.
    """
    raw = held_out.tobytes()
    last = held_out.size - STRETCH - CONTEXT - 1
    prose = PROSE.search(raw, len(raw) // 2, last + CONTEXT + STRETCH) or PROSE.search(raw)
    starts = {"prose": prose.start() if prose else last}
    markup = raw.find(MARKUP, CONTEXT, last + CONTEXT)
    if markup >= 0:
        starts["markup"] = markup - CONTEXT
    return [
        {"name": name, **stretch(network, held_out[start : start + CONTEXT + STRETCH + 1])}
        for name, start in starts.items()
    ]


def stretch(network: Network, piece: np.ndarray) -> dict[str, Any]:
    """The figures of each character of a piece but the first CONTEXT: lists of STRETCH."""
    symbols = jnp.asarray(piece, jnp.int32)[None]
    inputs, targets = symbols[:, :-1], symbols[:, 1:]
    logits, ponder = network(jax.nn.one_hot(inputs, text.SYMBOLS))
    log_p = jax.nn.log_softmax(logits)
    loss = -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0] / jnp.log(2.0)
    shown = slice(CONTEXT, None)
    return {
        "bytes": inputs[0, shown].tolist(),
        "ponder": ponder.cost[0, shown].tolist(),
        "loss_bits": loss[0, shown].tolist(),
        "entropy_bits": losses.entropy_bits(logits)[0, shown].tolist(),
    }
