"""The tasks, one a file: a module of this folder that defines TASK is known to every command."""

import importlib
import pkgutil

from experiments.task import Task

FIRST = ("parity", "logic", "addition", "sort", "wikipedia", "finance")  # in the papers' order


def known() -> dict[str, Task]:
    """All tasks by name: those of the papers in their order, then any others."""
    names = [module.name for module in pkgutil.iter_modules(__path__, f"{__name__}.")]
    found = [getattr(importlib.import_module(name), "TASK", None) for name in names]
    tasks = {task.name: task for task in found if task is not None}
    order = [*(name for name in FIRST if name in tasks), *sorted(tasks.keys() - set(FIRST))]
    return {name: tasks[name] for name in order}
