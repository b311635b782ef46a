"""PyTorch's side of `recursive.py`: an update of deep supervision with recycled lanes.

As TRM's training loop has it: the cycles but the last without gradient, the last with, one loss and
one update a supervised step, the state carried on without its gradient; a lane that is done takes
the next board. The same network, boards under random symmetries, optimizer and moving average as
`experiments sudoku`.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actjax.tasks.sudoku import BOXES, Puzzles


class SwiGLU(nn.Module):
    def __init__(self, features: int, expand: int):
        super().__init__()
        self.into = nn.Linear(features, 2 * expand * features, bias=False)
        self.out = nn.Linear(expand * features, features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.into(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class Mixer(nn.Module):
    def __init__(self, cells: int, features: int, expand: int):
        super().__init__()
        self.cells, self.features = SwiGLU(cells, expand), SwiGLU(features, expand)

    def forward(self, x: Tensor) -> Tensor:
        x = normalised(x + self.cells(x.transpose(1, 2)).transpose(1, 2))
        return normalised(x + self.features(x))


def normalised(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)


class Recursive(nn.Module):
    """The network of `experiments.reasoners.RecursiveCore`, with the weights of one.

    Args:
      weights: NumPy arrays by the names of `weights_of`.
      options: of `experiments sudoku`.
    """

    def __init__(self, weights: dict[str, np.ndarray], size: int, options):
        super().__init__()
        self.latent_steps, self.cycles = options.latent_steps, options.cycles
        hidden = options.hidden
        self.embed = nn.Embedding(size + 1, hidden)
        mixers = (Mixer(size * size, hidden, options.expand) for _ in range(options.layers))
        self.network = nn.Sequential(*mixers)
        self.halt, self.digits = nn.Linear(hidden, 1), nn.Linear(hidden, size, bias=False)
        self.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})

    def start(self, boards: Tensor) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros(*boards.shape, self.embed.embedding_dim)
        return zeros, zeros

    def cycle(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(self.latent_steps):
            z = self.network(x + y + z)
        return self.network(y + z), z

    def forward(self, boards: Tensor, targets: Tensor, y: Tensor, z: Tensor):
        """One supervised step: ``(loss, y, z, done)``."""
        with torch.no_grad():
            x = self.embed(boards)
            for _ in range(self.cycles - 1):
                y, z = self.cycle(x, y, z)
        y, z = self.cycle(self.embed(boards), y, z)
        logits, q = self.digits(y), self.halt(y.mean(1))[:, 0]
        entropy = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        right = (logits.argmax(-1) == targets).all(-1)
        halting = F.binary_cross_entropy_with_logits(q, right.to(q.dtype))
        return entropy + 0.5 * halting, y.detach(), z.detach(), q.detach() > 0


def weights_of(model) -> dict[str, np.ndarray]:
    """The weights of a `RecursiveCore`, by the names that they have here."""
    found = {
        "embed.weight": model.embed.embedding,
        "halt.weight": model.recursive.halt.kernel.T,
        "halt.bias": model.recursive.halt.bias,
        "digits.weight": model.digits.kernel.T,
    }
    for place, mixer in enumerate(model.recursive.network.layers):
        for side in ("cells", "features"):
            for part in ("into", "out"):
                kernel = getattr(getattr(mixer, side), part).kernel
                found[f"network.{place}.{side}.{part}.weight"] = kernel.T
    return {name: np.array(value) for name, value in found.items()}


class Trainer:
    """Updates of a network; the same options as of `experiments sudoku`.

    Args:
      compiled: whether the supervised step and its gradient go through `torch.compile`.
    """

    def __init__(self, model: Recursive, puzzles: Puzzles, options, *, compiled: bool):
        self.model, self.options = model, options
        self.step = torch.compile(model) if compiled else model
        self.boards, self.solutions = (torch.tensor(np.asarray(x)).long() for x in puzzles)
        self.size = puzzles.size
        self.weights = list(model.parameters())
        self.average = [torch.zeros_like(weight) for weight in self.weights]
        self.optimizer = torch.optim.AdamW(
            self.weights,
            lr=options.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=options.weight_decay,
            fused=True,
        )
        self.lanes = self.fresh()

    def fresh(self) -> list[Tensor]:
        """A board a lane: ``[boards, targets, y, z, steps, least]``."""
        rows, most = self.options.batch_size, self.options.max_steps
        boards, targets = self.sample(rows)
        least = torch.randint(2, most + 1, (rows,))
        explores = torch.rand(rows) < self.options.explore
        steps = torch.zeros(rows, dtype=torch.long)
        start = self.model.start(boards)
        return [boards, targets, *start, steps, torch.where(explores, least, 0)]

    def sample(self, rows: int) -> tuple[Tensor, Tensor]:
        """Boards drawn under random symmetries, as `actjax.tasks.sudoku.sample` draws them."""
        height, width = BOXES[self.size]
        index = torch.randint(len(self.boards), (rows,))
        lines = self._lines(rows, height)[:, :, None]
        cells = lines * self.size + self._lines(rows, width)[:, None, :]
        if height == width:
            mirrored = torch.rand(rows, 1, 1) < 0.5
            cells = torch.where(mirrored, cells.transpose(1, 2), cells)
        names = F.pad(torch.rand(rows, self.size).argsort(1) + 1, (1, 0))
        seen = lambda boards: names.gather(1, boards[index].gather(1, cells.flatten(1)))
        return seen(self.boards), seen(self.solutions) - 1

    def _lines(self, rows: int, band: int) -> Tensor:
        bands = torch.rand(rows, self.size // band).argsort(1)
        inner = torch.rand(rows, self.size // band, band).argsort(2)
        return (bands[:, :, None] * band + inner).flatten(1)

    def update(self) -> Tensor:
        """One update; its loss."""
        boards, targets, y, z, steps, least = self.lanes
        loss, y, z, done = self.step(boards, targets, y, z)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.weights, 1 - self.options.average)
            steps = steps + 1
            ended = (done & (steps >= least)) | (steps >= self.options.max_steps)
            lanes = [boards, targets, y, z, steps, least]
            shaped = lambda leaf: ended.reshape(-1, *[1] * (leaf.dim() - 1))
            pairs = zip(self.fresh(), lanes, strict=True)
            self.lanes = [torch.where(shaped(old), new, old) for new, old in pairs]
        return loss.detach()
