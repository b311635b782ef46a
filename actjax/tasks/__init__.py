"""Tasks: one pure sampler a file, drawn on the device inside the compiled training loop.

`actjax.tasks.NAME.sample(key, batch_size, **options)` returns a `Batch`.
"""

from actjax.tasks import addition as addition
from actjax.tasks import logic as logic
from actjax.tasks import parity as parity
from actjax.tasks import sort as sort
from actjax.tasks import sudoku as sudoku
from actjax.tasks import text as text
from actjax.tasks.batch import Batch as Batch

__all__ = [
    "Batch",
    "addition",
    "logic",
    "parity",
    "sort",
    "sudoku",
    "text",
]
