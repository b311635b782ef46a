"""ACT straight from the equations, in NumPy float64: one example, one input, one step at a time."""

import numpy as np


def ponder_one(step, state, x, *, max_steps, epsilon):
    """One input of one example: ``(mean_state, N, R, weights)`` (Graves 2016, eqs 3 to 9, 13)."""
    states, halts = [], []
    while len(halts) < max_steps:
        state, halt = step(state, x, first=not halts)
        states.append(state)
        halts.append(halt)
        if sum(halts) >= 1 - epsilon:
            break
    remainder = 1 - sum(halts[:-1])
    weights = [*halts[:-1], remainder]
    mean = [sum(p * s[i] for p, s in zip(weights, states, strict=True)) for i in range(len(state))]
    return mean, len(halts), remainder, weights


def unroll(step, states, xs, *, max_steps, epsilon, lengths=None):
    """A batch of sequences, each for itself: ``(final, outputs, N, R)``.

    `states` is a list over examples of lists of arrays; `xs` is ``[B, T, D]``. Outputs are lists
    over examples of lists over inputs; N and R are ``[B, T]``, zero where padded.
    """
    batch, time = xs.shape[:2]
    lengths = [time] * batch if lengths is None else lengths
    steps, remainder = np.zeros((batch, time), int), np.zeros((batch, time))
    final, outputs = [], []
    for b in range(batch):
        state, row = states[b], []
        for t in range(lengths[b]):
            state, steps[b, t], remainder[b, t], _ = ponder_one(
                step, state, xs[b, t], max_steps=max_steps, epsilon=epsilon
            )
            row.append(state)
        final.append(state)
        outputs.append(row)
    return final, outputs, steps, remainder


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def simple_step(w, state, x, first):
    """A tanh cell with a halting unit: `w` holds kernel, recurrent, bias, flag, halt, halt_bias."""
    (h,) = state
    h = np.tanh(x @ w["kernel"] + h @ w["recurrent"] + w["bias"] + first * w["flag"])
    return [h], sigmoid(h @ w["halt"] + w["halt_bias"])


def lstm_step(w, state, x, first):
    """An LSTM with a halting unit on h; both c and h are averaged."""
    c, h = state
    z = x @ w["kernel"] + h @ w["recurrent"] + w["bias"] + first * w["flag"]
    i, f, g, o = np.split(z, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return [c, h], sigmoid(h @ w["halt"] + w["halt_bias"])


def gru_step(w, state, x, first):
    """A GRU (the reset gate applied after the recurrent product) with a halting unit."""
    (h,) = state
    a, b = x @ w["kernel"] + w["bias"] + first * w["flag"], h @ w["recurrent"]
    size = h.shape[0]
    r = sigmoid(a[:size] + b[:size])
    z = sigmoid(a[size : 2 * size] + b[size : 2 * size])
    n = np.tanh(a[2 * size :] + r * b[2 * size :])
    h = (1 - z) * n + z * h
    return [h], sigmoid(h @ w["halt"] + w["halt_bias"])
