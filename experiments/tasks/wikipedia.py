"""Wikipedia, byte by byte: predict the next one (Graves 2016, section 3.5)."""

import dataclasses
import hashlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from actjax import losses
from actjax.tasks import text
from actjax.tasks.batch import Batch
from experiments import evaluation
from experiments.data import load_text
from experiments.network import Network
from experiments.options import Options, require
from experiments.task import Loaded, Task, classes, make_layered_objective

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
HELD_OUT_BYTES = 100_000  # that measure a member of a sweep
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


DEMO = {"cell": "gru", "over_time": "mean", "max_steps": 10, "tau": 2e-2, "batch_size": 32}
DEMO |= {"learning_rate": 3e-3, "steps": 600, "log_every": 20, "checkpoint_every": 200}
LFACT = {"model": "lfact", "cell": "gru", "over_time": "mean", "max_steps": 3, "tau": 0.06}
LFACT |= {"mu": 0.1, "batch_size": 64, "sequences": 10_240, "learning_rate": 2e-3}
LFACT |= {"steps": 2400, "log_every": 80, "checkpoint_every": 160}  # 15 times through the windows
GRAVES = {"cell": "lstm", "hidden": 1500, "tau": 6e-3, "batch_size": 16, "window": 500}
GRAVES |= {"learning_rate": 1e-4, "steps": 160_000, "checkpoint_every": 1000}
KINDS_OF_RUN = {"demo": DEMO, "lfact": LFACT, "graves": GRAVES, "cpu": DEMO, "paper": GRAVES}
PRESETS = {name: Wikipedia(**chosen) for name, chosen in KINDS_OF_RUN.items()}


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
    least = max(options.window, CONTEXT + STRETCH) + 1
    allowed = f"a part that leaves at least {least} bytes of {options.data!r}, not {held_out.size}"
    require(held_out.size >= least, "held_out", allowed, options.held_out)
    if not options.sequences:
        jax.eval_shape(sampler(options), jax.random.key(0), Data(begin, None))
        batch = text.windows(held_out, options.window, encoding="index")
        return loaded(options, Data(jnp.asarray(begin), None), Test(batch, held_out, {}), sha256)
    count, window = max(1, options.sequences // 8), options.window
    for_training, for_others = jax.random.split(jax.random.key(0))
    pieces = text.draw(for_training, options.sequences, text=begin, window=window, apart=False)
    others = text.draw(for_others, 2 * count, text=held_out, window=window, apart=True)
    batch = lambda chosen: text.as_batch(jnp.asarray(chosen), encoding="index")
    seen = {"train": batch(pieces[:count]), "validation": batch(others[:count])}
    data = Data(jnp.asarray(pieces), jnp.asarray(others[:count]))
    return loaded(options, data, Test(batch(others[count:]), held_out, seen), sha256)


def loaded(options: Wikipedia, data: Data, test: Test, sha256: str) -> Loaded:
    start = jax.tree.map(lambda leaf: leaf[: HELD_OUT_BYTES // options.window], test.batch)
    return Loaded(data, test, sha256, of_many=test._replace(batch=start))


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


def objective(options: Wikipedia):
    """`(network, batch, tau) -> (loss, metrics)`."""

    def bits(logits, batch):
        found = losses.bits_per_character(logits, batch.targets, batch.mask)
        return {"bits_per_character": found}

    return make_layered_objective(options.mu, options.over_time, bits)


def measure(options: Wikipedia, networks: Network, test: Test) -> list[dict[str, Any]]:
    """`evaluate` of every member on the test windows; bits and N_t by step for the others too."""
    found = []
    for index in range(len(jax.tree.leaves(networks)[0])):
        network = evaluation.member(networks, index)
        batches = {**test.others, "test": test.batch}
        parts = {name: evaluate(network, batch, options) for name, batch in batches.items()}
        kept = "bits_per_character", "bits_per_character_standard_error", "ponder_steps"
        sets = {name: {key: part[key] for key in kept} for name, part in parts.items()}
        steps = {name: part["steps_by_step"] for name, part in parts.items()}
        found.append(parts["test"] | {"sets": sets, "steps_by_step": steps})
    return found


def evaluate(network: Network, batch: Batch, options: Wikipedia) -> dict[str, Any]:
    """Bits per character over the windows of `batch`, whose inputs are bytes [N, T]."""
    count = len(batch.inputs)
    rows = min(options.batch_size, count)
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
        "steps_by_step": evaluation.steps_by_step(steps),
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


TASK = Task(
    name="wikipedia",
    what="predict the next byte of Wikipedia",
    title="Wikipedia, held-out text",
    presets=PRESETS,
    features=lambda options: (text.SYMBOLS, text.SYMBOLS),
    sampler=sampler,
    objective=objective,
    predict=classes,
    load=load,
    score=validation,
    measure=measure,
    look=lambda network, test: {"stretches": stretches(network, test.text)},
)
