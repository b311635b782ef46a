"""What `import actjax` gives, and what it leaves alone."""

import subprocess
import sys

import pytest

import actjax
from actjax import learned, tasks, training

FRESH = """
import sys

import actjax
import jax

assert actjax.tasks.parity.sample and actjax.budget.hold and actjax.losses
assert actjax.learned.minimize and actjax.learned.problems.quadratic
assert actjax.training.fit and actjax.training.distributed.joined
assert not {"orbax", "tensorstore", "matplotlib", "tyro", "scipy"} & set(sys.modules)
# No backend has started yet, which would be too late for this and for `jax.distributed`.
jax.config.update("jax_num_cpu_devices", 3)
assert len(jax.devices("cpu")) == 3
"""


def test_one_import_gives_every_part_and_loads_no_extra():
    ran = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("package", [actjax, learned, tasks, training], ids=lambda p: p.__name__)
def test_every_public_name_is_there(package):
    assert len(set(package.__all__)) == len(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None


def test_records_and_sweeps_are_public():
    for name in ("HaltState", "Minimum", "LSTMOptimizerState", "ACTOptimizerState", "GroupedLSTM"):
        assert name in learned.__all__
    assert {"Sweep", "stack_states", "make_mesh", "data_parallel"} <= set(training.__all__)
    from actjax.training.ensemble import sweep  # the module, though the package has the function

    assert training.sweep is sweep
