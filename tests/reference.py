"""ACT straight from the equations, in NumPy float64: one example, one input, one step at a time."""

import math

import numpy as np


def graves(halts, epsilon):
    """Whether the last of these is an input's last, and the weights if so (eqs 6 to 8)."""
    return sum(halts) >= 1 - epsilon, [*halts[:-1], 1 - sum(halts[:-1])]


def pondernet(halts, epsilon):
    """The same by Banino et al. 2021: p^n = h^n prod (1 - h^k), the last with what is left."""
    left = [math.prod(1 - h for h in halts[:k]) for k in range(len(halts) + 1)]
    weights = [h * before for h, before in zip(halts, left, strict=False)]
    return 1 - left[-1] > 1 - epsilon, [*weights[:-1], left[-2]]


def threshold(halts, level):
    return halts[-1] > level, [0.0] * (len(halts) - 1) + [1.0]


def fixed(halts, steps):
    return len(halts) >= steps, [0.0] * (len(halts) - 1) + [1.0]


def at_least(steps, rule):
    """`rule` for halts that are 0 before a minimum of steps."""

    def later(halts, setting):
        done, weights = rule([h * (n + 1 >= steps) for n, h in enumerate(halts)], setting)
        return done and len(halts) >= steps, weights

    return later


def divergence(weights, prior):
    """KL of the weights to a geometric prior."""
    return sum(p * math.log(p / (prior * (1 - prior) ** n)) for n, p in enumerate(weights) if p > 0)


def ponder_one(step, state, x, *, max_steps, epsilon, rule=graves):
    """One input of one example: ``(mean_state, N, R, weights)`` (Graves 2016, eqs 3 to 9, 13)."""
    states, halts, done = [], [], False
    while not done and len(halts) < max_steps:
        state, halt = step(state, x, first=not halts)
        states.append(state)
        halts.append(halt)
        done, weights = rule(halts, epsilon)
    mean = [sum(p * s[i] for p, s in zip(weights, states, strict=True)) for i in range(len(state))]
    return mean, len(halts), weights[-1], weights


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


def attention_weights(w, query, below, n, *, attend):
    """alpha of layer n over the layers below (LFACT 2020, eq 5); `below` lists u^1 .. u^N."""
    c = len(below) if attend == "all" else min(len(below), n)
    hidden = [sigmoid(w["query"] * query + w["key"] * u + w["score_bias"]) for u in below[:c]]
    beta = np.array([w["score"][n - 1] @ h for h in hidden])
    alpha = np.exp(beta - beta.max())
    return alpha / alpha.sum()


def lfact_input(w, cell, below, x, *, max_layers, epsilon, attend):
    """One input of one example: ``(layers, halts)`` (LFACT 2020, section 3.1, and eq 1)."""
    layers, halts = [], []
    query = below[-1]
    while len(halts) < max_layers:
        n = len(halts) + 1
        alpha = attention_weights(w, query, below, n, attend=attend)
        transmitted = sum(a * u for a, u in zip(alpha, below, strict=False))
        combined = sigmoid(query @ w["w1"] + transmitted @ w["w2"] + w["b"])
        (query,), _ = cell(w, [combined], x, first=0)
        layers.append(query)
        halts.append(sigmoid(query @ w["wh"] + transmitted @ w["vh"] + w["bh"]))
        if sum(halts) >= 1 - epsilon:
            break
    return layers, halts


def lfact(w, cell, starts, xs, *, max_layers, epsilon=0.01, attend="all", lengths=None):
    """A batch of sequences, each for itself: ``(final, layers, N, R)``; `starts` lists layers."""
    batch, time = xs.shape[:2]
    lengths = [time] * batch if lengths is None else lengths
    steps, remainder = np.zeros((batch, time), int), np.zeros((batch, time))
    final, outputs = [], []
    for b in range(batch):
        below, row = starts[b], []
        for t in range(lengths[b]):
            below, halts = lfact_input(
                w, cell, below, xs[b, t], max_layers=max_layers, epsilon=epsilon, attend=attend
            )
            row.append(below)
            steps[b, t], remainder[b, t] = len(halts), 1 - sum(halts[:-1])
        final.append(below)
        outputs.append(row)
    return final, outputs, steps, remainder
