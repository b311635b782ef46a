"""Builds the wheel, installs it into a bare environment outside of the clone and uses it there.

`make wheel`; needs a package index. Not a test of the suite, for it takes a minute.
"""

import pathlib
import subprocess
import sys
import tempfile
import venv
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TRY = """
import sys

import actjax
import jax
import jax.numpy as jnp
from flax import nnx

assert "site-packages" in actjax.__file__, actjax.__file__
model = actjax.ACT(4, 8, max_steps=5, rngs=nnx.Rngs(0))
loss = lambda model: model(jnp.ones((2, 3, 4)))[2].cost.mean()
gradient = jax.jit(jax.grad(loss))(model)
assert jnp.isfinite(gradient.halt.kernel[...]).all()
found = actjax.learned.minimize(
    actjax.learned.lstm_optimizer(actjax.learned.CoordinatewiseLSTM(rngs=nnx.Rngs(0))),
    lambda x: (x**2).sum(), jnp.ones(3), max_steps=2)
assert found.steps == 2
for name in ("mlp", "quadratic", "regression"):
    optimizer = actjax.learned.load(name).optimizer()
    found = actjax.learned.minimize(
        optimizer, lambda x: ((x - 1) ** 2).sum(), jnp.zeros(3), max_steps=100)
    assert found.loss < 0.3, (name, found.loss)
assert not {"experiments", "benchmarks", "tests"} & set(sys.modules)
print("actjax", actjax.__version__, "works from its wheel")
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        quiet = "--quiet", "--disable-pip-version-check"
        pip = "-m", "pip", "wheel", *quiet, "--no-deps", "--wheel-dir", folder, str(ROOT)
        subprocess.run([sys.executable, *pip], check=True)
        (wheel,) = pathlib.Path(folder).glob("actjax-*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        outside = {name.partition("/")[0] for name in names if not name.startswith("actjax")}
        if outside or "actjax/py.typed" not in names:
            sys.exit(f"{wheel.name} must hold actjax alone with its py.typed, got also {outside}")
        venv.create(pathlib.Path(folder) / "bare", with_pip=True)
        python = str(pathlib.Path(folder) / "bare/bin/python")
        subprocess.run([python, "-m", "pip", "install", *quiet, str(wheel)], check=True)
        subprocess.run([python, "-c", TRY], check=True, cwd=folder)
        helps = subprocess.run([python, "-m", "actjax"], cwd=folder, capture_output=True, text=True)
        if "clone" not in helps.stderr:
            sys.exit(f"python -m actjax must say where the experiments are, got {helps.stderr!r}")


if __name__ == "__main__":
    main()
