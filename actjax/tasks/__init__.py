"""Tasks: one pure sampler a file, drawn on the device inside the compiled training loop.

`actjax.tasks.NAME.sample(key, batch_size, **options)` returns a `Batch`.
"""

from actjax.tasks import addition as addition
from actjax.tasks import logic as logic
from actjax.tasks import mazes as mazes
from actjax.tasks import parity as parity
from actjax.tasks import sort as sort
from actjax.tasks import sudoku as sudoku
from actjax.tasks import text as text
from actjax.tasks.batch import Batch as Batch
from actjax.tasks.puzzles import Puzzles as Puzzles

__all__ = [
    "Batch",
    "Puzzles",
    "addition",
    "logic",
    "mazes",
    "parity",
    "sort",
    "sudoku",
    "text",
]
