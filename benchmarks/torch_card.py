"""PyTorch's side of `accelerator.py`: ACT as one writes it there, and cuDNN's LSTM."""

import time

import numpy as np
import torch
from torch_peers import Masked

CELLS = {"SimpleCell": "rnn", "OptimizedLSTMCell": "lstm"}
WIDE = {"rnn": 1, "lstm": 4}


def _milliseconds(call, *, target=0.3, repeats=2) -> float:
    def timed(count):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(count):
            call()
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / count

    timed(1)
    once = timed(1)
    count = max(1, round(target / once))
    return 1e3 * min(timed(count) for _ in range(repeats))


def masked(setting, level: tuple[float, float], compiled: bool) -> dict[str, float]:
    """A training step of the masked form, forward, backward and Adam."""
    bias, factor = level
    cell, rng = CELLS[setting.cell.__name__], np.random.default_rng(0)
    hidden, wide = setting.hidden, WIDE[CELLS[setting.cell.__name__]] * setting.hidden
    draw = lambda *shape: rng.standard_normal(shape) / np.sqrt(shape[0])
    weights = {
        "kernel": draw(setting.features, wide),
        "recurrent": draw(hidden, wide),
        "bias": np.zeros(wide),
        "flag": 0.1 * rng.standard_normal(wide),
        "halt": factor * draw(hidden),
        "halt_bias": np.array(bias),
    }
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    torch.set_default_device("cuda")
    torch.set_float32_matmul_precision("high")
    limits = {"max_steps": setting.max_steps, "epsilon": 0.01}
    network = Masked(weights, cell=cell, compiled=compiled, **limits)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-9)
    xs = torch.randn(setting.batch, setting.time, setting.features)
    steps = None

    def call():
        nonlocal steps
        optimizer.zero_grad()
        answer = network(xs)
        steps = answer.steps
        (answer.outputs.square().mean() + 1e-3 * answer.cost).backward()
        optimizer.step()

    return {"ms": _milliseconds(call), "mean_ponder": float(steps.float().mean())}


def cudnn(setting) -> dict[str, float]:
    """A training step of cuDNN's LSTM, one step an input."""
    torch.set_default_device("cuda")
    dtype = torch.bfloat16 if setting.dtype is not None else torch.float32
    torch.backends.cudnn.allow_tf32 = True
    network = torch.nn.LSTM(setting.features, setting.hidden, batch_first=True).to(dtype)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-9)
    xs = torch.randn(setting.batch, setting.time, setting.features, dtype=dtype)

    def call():
        optimizer.zero_grad()
        network(xs)[0].square().mean().backward()
        optimizer.step()

    return {"ms": _milliseconds(call), "mean_ponder": 1.0}
