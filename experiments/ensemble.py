"""What the experiments that train many networks as one program share: devices, and the summary."""

import json
import math
import os
from collections.abc import Callable
from typing import Any

import jax


def compact(summary: dict[str, Any]) -> str:
    """JSON with a line for each member, and numbers to five digits: a few kilobytes a member."""
    head = {name: value for name, value in summary.items() if name != "members"}
    lines = ",\n".join(json.dumps(_rounded(m), separators=(",", ":")) for m in summary["members"])
    return json.dumps(head, indent=1)[:-2] + f',\n "members": [\n{lines}\n]}}\n'


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: null for numbers that are not finite."""
    return _each_float(value, lambda number: number if math.isfinite(number) else None)


def _rounded(value: Any) -> Any:
    return _each_float(value, lambda number: float(f"{number:.5g}"))


def _each_float(value: Any, change: Callable[[float], Any]) -> Any:
    if isinstance(value, dict):
        return {name: _each_float(part, change) for name, part in value.items()}
    if isinstance(value, list):
        return [_each_float(part, change) for part in value]
    return change(value) if isinstance(value, float) else value


def set_cpu_devices(count: int):
    """Asks for `count` CPU devices, or one a core, if no computation has run yet.

    Each then works on one thread: members side by side use the cores better than one member's small
    matrix products cut up between them.
    """
    if count < 0:
        raise ValueError(f"cpu_devices is {count}; it must not be negative")
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" in flags:  # the caller has asked already
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        jax.config.update("jax_num_cpu_devices", count or cores)
    except RuntimeError:  # the devices are there already, with a program that called this one
        return
    if (count or cores) > 1:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
