"""PyTorch's side of `peers.py`: ACT as one writes it there, and the PyPI package.

A network is called as ``network(xs)`` and gives back an `Answer`. Parameters are named and laid out
as in tests/reference.py; the output of a cell is the last part of its state.
"""

import functools
from typing import NamedTuple

import torch
from conformance import LIMITS, Result, flat
from torch import Tensor, nn

State = tuple[Tensor, ...]


class Answer(NamedTuple):
    """What a network makes of a batch of sequences."""

    outputs: Tensor  # [B, T, H]
    steps: Tensor  # [B, T], N
    remainder: Tensor | None  # [B, T], R
    weights: Tensor | None  # [B, T, at least M], p^n; None unless asked for
    cost: Tensor  # scalar, the mean ponder cost


def rnn_cell(z: Tensor, state: State, recurrent: Tensor) -> State:
    (h,) = state
    return (torch.tanh(torch.addmm(z, h, recurrent)),)


def lstm_cell(z: Tensor, state: State, recurrent: Tensor) -> State:
    c, h = state
    i, f, g, o = torch.addmm(z, h, recurrent).chunk(4, dim=1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return c, torch.sigmoid(o) * torch.tanh(c)


CELLS = {"rnn": (rnn_cell, 1), "lstm": (lstm_cell, 2)}  # with the parts of their states


def parameters(weights) -> nn.ParameterDict:
    return nn.ParameterDict({k: nn.Parameter(torch.tensor(v)) for k, v in weights.items()})


class Network(nn.Module):
    """What the forms of ACT below share (Graves 2016, section 2).

    They loop over ponder steps and keep the states and halting probabilities; once the last row has
    halted, the rule is applied to all of them at once. The backward pass is autograd's.

    Args:
      weights: NumPy arrays by the names of tests/reference.py.
      cell: a key of `CELLS`.
      compiled: whether `step` and `mean_field`, which have no loop, go through `torch.compile`.
    """

    def __init__(self, weights, *, cell: str, max_steps: int, epsilon: float, compiled=False):
        super().__init__()
        self.cell, self.parts = CELLS[cell]
        self.max_steps, self.epsilon = max_steps, epsilon
        self.w = parameters(weights)
        if compiled:
            self.step = torch.compile(self.step, dynamic=self.dynamic)
            self.mean_field = torch.compile(self.mean_field, dynamic=self.dynamic)

    def forward(self, xs: Tensor, *, with_weights: bool = False) -> Answer:
        w, results = self.w, []
        # The products of all inputs at once: they do not change while an input is pondered.
        inputs = xs @ w["kernel"] + w["bias"]
        state = (xs.new_zeros(len(xs), len(w["recurrent"])),) * self.parts
        for z in inputs.unbind(dim=1):
            state, steps, remainder, weights = self.ponder(z, state)
            results.append((state[-1], steps, remainder, *([weights()] if with_weights else [])))
        results = [torch.stack(part, dim=1) for part in zip(*results, strict=True)]
        outputs, steps, remainder, *weights = results
        cost = (steps + remainder).mean()
        return Answer(outputs, steps, remainder, weights[0] if with_weights else None, cost)

    def gradients(self) -> dict:
        return {name: parameter.grad for name, parameter in self.w.items()}

    def step(self, z: Tensor, state: State) -> tuple[State, Tensor]:
        """A ponder step of the rows given, and their halting probabilities (eq 5)."""
        state = self.cell(z, state, self.w["recurrent"])
        return state, torch.sigmoid(torch.mv(state[-1], self.w["halt"]) + self.w["halt_bias"])


class Masked(Network):
    """The natural form: the whole batch steps on, and the rows that have halted are masked."""

    dynamic = None

    def ponder(self, z: Tensor, state: State):
        total, states, halts = z.new_zeros(len(z)), [], []
        while len(halts) < self.max_steps and bool((total < 1 - self.epsilon).any()):
            state, halt = self.step(z if halts else z + self.w["flag"], state)
            states.append(state)
            halts.append(halt)
            total = total + halt.detach()
        stacked = tuple(torch.stack(part) for part in zip(*states, strict=True))
        mean, steps, remainder, weights = self.mean_field(torch.stack(halts), stacked)
        pad = self.max_steps - len(halts)
        return mean, steps, remainder, lambda: nn.functional.pad(weights.T, (0, pad))

    def mean_field(self, halts: Tensor, states: State):
        """Equations 6 to 9 and 13 from probabilities ``[n, B]`` and states ``[n, B, H]``."""
        before = torch.cumsum(halts, dim=0) - halts  # h^1 + ... + h^(n - 1)
        taken = before < 1 - self.epsilon
        steps = taken.sum(dim=0)
        # where the others are: what is compiled may not know of a default device
        last = torch.arange(1, len(halts) + 1, device=halts.device)[:, None] == steps
        remainder = (last * (1 - before)).sum(dim=0)
        weights = torch.where(last, 1 - before, halts) * taken
        mean = tuple((weights[..., None] * s).sum(dim=0) for s in states)
        return mean, steps, remainder, weights


class Compact(Network):
    """Rows leave the batch as they halt, so that no row takes a step that does not count."""

    dynamic = True

    def ponder(self, z: Tensor, state: State):
        batch = len(z)
        row, total, kept = torch.arange(batch, device=z.device), z.new_zeros(batch), []
        while len(row):
            state, halt = self.step(z if kept else z + self.w["flag"], state)
            total = total + halt.detach()
            goes_on = (total < 1 - self.epsilon) & (len(kept) + 1 < self.max_steps)
            kept.append((row, halt, goes_on, *state))
            live = goes_on.nonzero()[:, 0]
            if len(live) < len(row):
                row, z, total = row[live], z.index_select(0, live), total[live]
                state = tuple(part.index_select(0, live) for part in state)
        row, halts, goes_on, *states = (torch.cat(part) for part in zip(*kept, strict=True))
        mean, steps, remainder, p = self.mean_field(row, halts, goes_on, tuple(states), batch)

        def weights():
            n = torch.cat([torch.full_like(part[0], n) for n, part in enumerate(kept)])
            return p.new_zeros(batch, self.max_steps).index_put((row, n), p)

        return mean, steps, remainder, weights

    def mean_field(self, row: Tensor, halts: Tensor, goes_on: Tensor, states: State, batch: int):
        """Equations 6 to 9 and 13 from all steps of all rows, ``[sum N]`` and ``[sum N, H]``."""
        zeros = halts.new_zeros(batch)
        steps = zeros.index_add(0, row, torch.ones_like(halts))
        remainder = 1 - zeros.index_add(0, row, torch.where(goes_on, halts, 0))
        weights = torch.where(goes_on, halts, remainder[row])
        blank = halts.new_zeros(batch, states[0].shape[1])
        mean = tuple(blank.index_add(0, row, weights[:, None] * s) for s in states)
        return mean, steps, remainder, weights


class Packed(nn.Module):
    """A cell whose state is one tensor, for the package's wrapper.

    The state ends with `places`: after the n-th ponder step the n-th of them is 1 and the others 0,
    so that the mean over the steps has the halting weights there.
    """

    def __init__(self, weights, *, cell: str, places: int):
        super().__init__()
        self.cell, parts = CELLS[cell]
        self.w = parameters({k: v for k, v in weights.items() if not k.startswith("halt")})
        features, self.size = weights["kernel"].shape[0], weights["recurrent"].shape[0]
        self.sizes = [self.size] * parts + [places]
        self.input_size, self.hidden_size = features + 1, sum(self.sizes)

    def forward(self, x: Tensor, packed: Tensor) -> Tensor:
        *state, places = packed.split(self.sizes, dim=1)
        x, first = x[:, :-1], x[:, -1:]
        z = x @ self.w["kernel"] + self.w["bias"] + first * self.w["flag"]
        state = self.cell(z, tuple(state), self.w["recurrent"])
        begin = torch.eye(1, places.shape[1]) * first
        return torch.cat([*state, begin + (1 - first) * places.roll(1, dims=1)], dim=1)


class Package(nn.Module):
    """`AdaptiveCellWrapper` of pytorch-adaptive-computation-time, over the inputs of a sequence.

    Around torch's own `RNNCell` where that is enough, around `Packed` otherwise.
    """

    def __init__(self, weights, *, cell: str, max_steps: int, epsilon: float, places: int = 0):
        from pytorch_adaptive_computation_time.models import AdaptiveCellWrapper

        super().__init__()
        self.places = places
        if cell == "rnn" and not places:
            features, self.size = weights["kernel"].shape
            inner = nn.RNNCell(features + 1, self.size)
            w = {name: torch.tensor(value) for name, value in weights.items()}
            inner.weight_ih.data = torch.vstack([w["kernel"], w["flag"]]).T.contiguous()
            inner.weight_hh.data = w["recurrent"].T.contiguous()
            inner.bias_ih.data, inner.bias_hh.data = w["bias"], torch.zeros(self.size)
        else:
            inner = Packed(weights, cell=cell, places=places)
            self.size = inner.size
        self.inner = inner
        self.wrapper = AdaptiveCellWrapper(
            inner, time_penalty=1.0, ponder_epsilon=epsilon, time_limit=max_steps
        )
        own = {id(p) for p in inner.parameters()}
        self.halt, self.halt_bias = (p for p in self.wrapper.parameters() if id(p) not in own)
        self.output = slice(inner.hidden_size - places - self.size, inner.hidden_size - places)
        self.halt.data.zero_()
        self.halt.data[0, self.output] = torch.tensor(weights["halt"])
        self.halt_bias.data.fill_(float(weights["halt_bias"]))

    def forward(self, xs: Tensor, *, with_weights: bool = False) -> Answer:
        state, results, costs = torch.zeros(len(xs), self.inner.hidden_size), [], []
        for x in xs.unbind(dim=1):
            state, cost, steps = self.wrapper(x, state)
            results.append((state, steps.reshape(-1)))
            costs.append(cost)
        states, steps = (torch.stack(part, dim=1) for part in zip(*results, strict=True))
        weights = remainder = None
        if with_weights:  # the package does not tell R: the last weight
            weights = states[..., states.shape[-1] - self.places :]
            last = torch.where(weights != 0, torch.arange(self.places), 0).amax(dim=-1)
            remainder = weights.gather(-1, last[..., None])[..., 0]
        return Answer(
            states[..., self.output], steps, remainder, weights, torch.stack(costs).mean()
        )

    def gradients(self) -> dict:
        found = {name: parameter.grad for name, parameter in self.inner.w.items()}
        return found | {"halt": self.halt.grad[0, self.output], "halt_bias": self.halt_bias.grad}


def contenders(weights, *, compiled: bool, **options) -> dict[str, nn.Module]:
    """All networks, by their names in the tables. `options` as of `Network`."""
    torch.compiler.reset()
    found = {}
    for name, form in {"masked": Masked, "compact": Compact}.items():
        found[f"torch, {name}, eager"] = form(weights, **options)
        if compiled:
            found[f"torch, {name}, compiled"] = form(weights, **options, compiled=True)
    return found


def result(network, xs, cotangent) -> Result:
    """What `conformance.compare` compares."""
    xs, cotangent = torch.tensor(xs), torch.tensor(cotangent)

    def gradient(loss):
        network.zero_grad()
        loss(network(xs)).backward()
        return flat(network.gradients())

    values = (value.detach().double().numpy() for value in network(xs, with_weights=True))
    ponder_gradient = gradient(lambda answer: answer.cost)
    task_gradient = gradient(lambda answer: (cotangent * answer.outputs).sum())
    return Result(*values, ponder_gradient, task_gradient)


def conformants(cell: str, weights, *, compiled: bool) -> dict:
    """All networks as contenders of `conformance.conformance`."""
    options = {"cell": cell, **LIMITS}
    networks = contenders(weights, compiled=compiled, **options)
    # Two places more than M, in case it takes more steps than it should.
    networks["PyPI package"] = Package(weights, **options, places=LIMITS["max_steps"] + 2)
    return {name: functools.partial(result, network) for name, network in networks.items()}
