"""What learned optimizers and `minimize` refuse: rows of `test_refusals.py`."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from actjax import learned

PARAMETERS = {"w": jnp.ones((2, 3)), "b": jnp.ones(())}
TWO = {"w": jnp.ones(2)}
LSTM = learned.lstm_optimizer(learned.CoordinatewiseLSTM(2, rngs=nnx.Rngs(0)))
SEEING = learned.CoordinatewiseLSTM(2, see_scale=True, rngs=nnx.Rngs(0))
HALTING = learned.act_optimizer(SEEING, learned.Head(2, rngs=nnx.Rngs(0)))


def update(
    optimizer,
    gradients=PARAMETERS,
    *,
    params=PARAMETERS,
    value=1.0,
    at=lambda init: init(PARAMETERS),
):
    """One update, at the state that ``at(init)`` makes."""
    return lambda: optimizer.update(gradients, at(optimizer.init), params, value=value)


def minimised(rate):
    return learned.minimize(optax.sgd(rate), jnp.square, 1.0, max_steps=2).loss


LEARNED = [
    *(
        (f"learned-{name}-{kind}", call, beginning)
        for kind, optimizer, record in (
            ("lstm", LSTM, "LSTMOptimizerState"),
            ("act", HALTING, "ACTOptimizerState"),
        )
        for name, call, beginning in (
            (
                "size",
                update(optimizer, at=lambda init: init(TWO)),
                "state must be what init makes of params with the 7 coordinates of the gradients, "
                "a memory of shape (8, 7), got one of shape (8, 2)",
            ),
            (
                "stacked",
                update(optimizer, at=lambda init: jax.vmap(init)({"w": jnp.ones((3, 7))})),
                "state must be what init makes of params with the 7 coordinates",
            ),
            (
                "kind",
                update(optimizer, at=lambda init: optax.sgd(0.1).init(TWO)),
                f"state must be an {record}, as init makes it, got tuple",
            ),
            (
                "gradients",
                update(optimizer, {"w": jnp.ones(7, int)}),
                "gradients must hold arrays of floating-point or complex numbers alone",
            ),
        )
    ),
    (
        "learned-params",
        update(HALTING, params=TWO),
        "params must have the 7 coordinates of the gradients, got 2",
    ),
    *(
        (
            f"learned-value-{name}",
            update(HALTING, value=value),
            f"value must be the loss, one real number, got {got}",
        )
        for name, value, got in (
            ("shape", jnp.ones(3, jnp.float32), "shape (3,) of float32"),
            ("complex", 1j, "1j"),
            ("string", "1.0", "'1.0'"),
        )
    ),
    *(
        (
            f"reverse-minimize-{name}",
            call,
            "minimize has no reverse-mode derivative: use forward mode, as jax.jacfwd does, or",
        )
        for name, call in {
            "eager": lambda: jax.grad(minimised)(0.1),
            "jit": lambda: jax.eval_shape(jax.grad(jax.jit(minimised)), 0.1),
        }.items()
    ),
]
