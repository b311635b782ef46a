"""The kernels on a card, `loop="kernel"` and the learned optimizer's: right, and how best cut.

    python benchmarks/kernel_check.py --check --tune [--optimizer] [--seconds 200] [--out FILE]
                                      [--quick]

--check  the kernel beside `while` and `scan`, forward and gradients, for all cells and dtypes, with
         float32 products ("highest") and with the default ones. `apart` is the largest norm of a
         difference to the scan at "highest", over the scan's norm; `steps` the share of inputs at
         which N is the same. In bfloat16 `while` shows what rounding alone does. Of the optimizer
         the memory and the updates after some steps, beside the plain step at "highest".
--tune   the time of loss and gradient at GRU 128, T 50, mean N 2, for ways to cut the kernels,
         with each kernel's own time from the profile; and of the optimizer's step, with the time
         it takes to copy as many bytes.
--optimizer  of these the optimizer's alone.

Where time is short the rows that come last are left out.
"""

import argparse
import functools
import json
import pathlib
import time

import card
import jax
import jax.numpy as jnp
import numpy as np
from card import Program
from flax import nnx
from jax import lax

import actjax
from actjax._loop.kernel_plan import Tuning
from actjax.learned import CoordinatewiseLSTM, columns
from actjax.learned import kernel as optimizer_kernel
from actjax.nn import kernel

CHECKED = {
    "simple 100": (nnx.SimpleCell, 100, {}),
    "gru 128": (nnx.GRUCell, 128, {}),
    "lstm 64": (nnx.OptimizedLSTMCell, 64, {}),
    "gru 192, queue, segments": (
        nnx.GRUCell,
        192,
        {"lanes": 16, "segment": 12, "tuning": Tuning(gates="again")},
    ),
    "simple 128, 3 members": (nnx.SimpleCell, 128, {"members": 3}),
    "lstm 256": (nnx.LSTMCell, 256, {}),
}
TUNED = {
    "default": Tuning(),
    "resident": Tuning(resident=True, back_resident=True),
    "resident, tiles of 128": Tuning(units=128, resident=True, back_resident=True),
    "tiles of 128": Tuning(units=128),
    "resident, 16 warps": Tuning(warps=16, back_warps=16, resident=True, back_resident=True),
    "4 warps": Tuning(warps=4, back_warps=4),
    "gates again": Tuning(gates="again"),
    "gates bfloat16": Tuning(gates="bfloat16"),
    "16 warps": Tuning(warps=16, back_warps=16),
    "32 lanes": Tuning(lanes=32),
    "32 lanes, 16 warps": Tuning(lanes=32, warps=16, back_warps=16),
    "rows 128, weights by 8 warps": Tuning(rows=128, weight_warps=8),
    "tiles of 32": Tuning(units=32),
}
HALVED = {  # in bfloat16
    "default": Tuning(),
    "resident both ways": Tuning(back_resident=True),
    "read again": Tuning(resident=False, back_resident=False),
    "tiles of 128": Tuning(units=128),
}

OPTIMIZERS = {
    "optimizer": ({}, jnp.float32),
    "optimizer, bfloat16": ({}, jnp.bfloat16),
    "optimizer, moments": ({"preprocess": "adam", "see_scale": True}, jnp.float32),
}
CUTS = [{}, *({"width": w, "warps": n} for w, n in ((64, 2), (64, 4), (128, 8), (256, 8), (32, 1)))]


def network(cell, hidden, features=8, bias=1.0, factor=1.0, seed=0, **options):
    model = actjax.ACT(features, hidden, cell=cell, halt_bias=bias, rngs=nnx.Rngs(seed), **options)
    model.halt.kernel[...] *= factor
    return model


def apply(model, xs, loop, lengths=None, lanes=None, **options):
    """``(outputs, Ponder)`` by any of the loops; `options` are the kernel's alone."""
    step, params, state, inputs = model.prepare(xs, None, model.halt, lengths)
    limits = {"max_steps": model.max_steps, "epsilon": model.rule.epsilon, "lengths": lengths}
    if loop == "kernel":
        kind, limits = type(model.cell), limits | {"lanes": lanes}
        _, outputs, ponder = kernel.run(step, params, state, inputs, kind=kind, **limits, **options)
    else:
        _, states, ponder = actjax.unroll(step, params, state, inputs, loop=loop, **limits)
        outputs = step.read(states)[1]
    return outputs, ponder


# --- Whether it is right -------------------------------------------------------------------------


COLUMNS = {
    "scan": ("scan", "highest", jnp.float32),
    "kernel": ("kernel", "highest", jnp.float32),
    "while": ("while", "highest", jnp.float32),
    "kernel, default": ("kernel", "default", jnp.float32),
    "kernel, bfloat16": ("kernel", "default", jnp.bfloat16),
    "while, bfloat16": ("while", "default", jnp.bfloat16),
}


def checked(name: str, column: str, quick: bool) -> Program:
    """A program that returns all there is to compare."""
    cell, hidden, options = CHECKED[name]
    loop, precision, dtype = COLUMNS[column]
    members = options.get("members")
    options = {key: value for key, value in options.items() if key != "members"}
    hidden, batch, steps = (20, 20, 3) if quick else (hidden, 72, 6)
    xs = jax.random.normal(jax.random.key(1), (batch, steps, 8))
    lengths = jnp.arange(batch) % (steps + 1)
    make = lambda seed: network(
        cell, hidden, bias=-1.0, factor=2.0, seed=seed, max_steps=8, dtype=dtype
    )

    def loss(model, xs):
        more = options if loop == "kernel" else {}
        outputs, ponder = apply(model, xs, loop, lengths, **more)
        value = jnp.sin(2 * outputs.astype(jnp.float32)).sum() + ponder.remainder.sum()
        return value, (outputs, ponder)

    def run(carry, argument, _):
        with jax.default_matmul_precision(precision):
            function = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
            return (jax.vmap(function, in_axes=(0, None)) if members else function)(*argument)

    model = make(0)
    if members:
        model = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(make, range(members)))
    return Program(f"{name}: {column}", run, (), (model, xs), donate=False)


def checks(quick: bool) -> list[tuple[str, str, Program]]:
    return [
        (name, column, checked(name, column, quick))
        for name in list(CHECKED)[: 1 if quick else None]
        for column in list(COLUMNS)[: 2 if quick else None]
    ]


def check(deadline: float, quick: bool) -> list[dict]:
    rows, known = [], {}
    found = checks(quick)
    for begin in range(0, len(found), 12):
        if time.perf_counter() > deadline:
            break
        card.compile_all([program for *_, program in found[begin : begin + 12]])
        for name, column, program in found[begin : begin + 12]:
            row = {"case": name, "loop": column, "compile_s": program.compile_s}
            rows.append(row)
            try:
                if program.error:
                    raise RuntimeError(program.error)
                result = program.compiled((), program.argument, jnp.int32(1))
                (_, (outputs, ponder)), grads = jax.device_get(result)
            except Exception as error:
                row["error"] = card.in_short(error)
                continue
            if column == "scan":
                known[name] = outputs, ponder, grads
            if name in known:
                row |= difference((outputs, ponder, grads), known[name])
    return rows


def apart(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))


def difference(found, known) -> dict:
    (outputs, ponder, grads), (outputs_known, ponder_known, grads_known) = found, known
    leaves = zip(jax.tree.leaves(grads), jax.tree.leaves(grads_known), strict=True)
    return {
        "steps": float(np.mean(ponder.steps == ponder_known.steps)),
        "outputs": apart(outputs, outputs_known),
        "remainder": apart(ponder.remainder, ponder_known.remainder),
        "gradients": max(apart(a, b) for a, b in leaves),
    }


# --- How it is best cut --------------------------------------------------------------------------


def tuned(name: str, tuning: Tuning | None, batch: int, quick: bool, dtype=None) -> Program:
    hidden, steps = (16, 3) if quick else (128, 50)
    model = network(nnx.GRUCell, hidden, max_steps=20, dtype=dtype)
    xs = jax.random.normal(jax.random.key(0), (batch, steps, 8))
    options = {"loop": "while"} if tuning is None else {"loop": "kernel", "tuning": tuning}

    def loss(model, xs):
        outputs, ponder = apply(model, xs, **options)
        return jnp.mean(jnp.square(outputs.astype(jnp.float32))) + 1e-3 * jnp.mean(ponder.cost)

    def run(carry, xs, updates):
        def update(_, model):
            gradient = jax.grad(loss)(model, xs)
            return jax.tree.map(lambda leaf, d: leaf - 1e-9 * d, model, gradient)

        return lax.fori_loop(0, updates, update, carry)

    return Program(name, run, model, xs)


def tune(deadline: float, quick: bool) -> list[dict]:
    batches = (17,) if quick else (64, 512)
    make = functools.partial(tuned, quick=quick)
    programs = [make("while", None, b) for b in batches]
    variants = list(TUNED.items())[: 1 if quick else None]
    programs += [make(name, tuning, b) for name, tuning in variants for b in batches]
    if not quick:
        programs += [
            make(f"bfloat16, {name}", tuning, b, dtype=jnp.bfloat16)
            for name, tuning in HALVED.items()
            for b in batches
        ]
    rows = []
    for begin in range(0, len(programs), 12):
        if time.perf_counter() > deadline:
            break
        group = programs[begin : begin + 12]
        card.compile_all(group)
        for program in group:
            row = {"way": program.name, "batch": program.argument.shape[0]}
            row["compile_s"] = program.compile_s
            rows.append(row)
            try:
                if program.error:
                    raise RuntimeError(program.error)
                row["ms"] = card.milliseconds(program, target=0.03)
                row |= card.profile(lambda: program.call()(1))  # noqa: B023
            except Exception as error:
                row["error"] = card.in_short(error)
    return rows


# --- The learned optimizer's ---------------------------------------------------------------------


def optimizer_steps(name: str, case: str, size: int, cut: dict | None, precision="default"):
    """Steps of `size` parameters by the kernel so cut, or plain where `cut` is None."""
    options, dtype = OPTIMIZERS[case]
    made = CoordinatewiseLSTM(rngs=nnx.Rngs(0), **options)
    cut = cut if cut is None else cut | {"interpret": jax.default_backend() != "gpu"}
    step = columns.plain_step if cut is None else functools.partial(optimizer_kernel.advance, **cut)
    gradient = 1e-2 * jax.random.normal(jax.random.key(0), (size,))
    scale = gradient if made.see_scale else None

    def run(carry, gradient, updates):
        def update(n, carry):
            shown = gradient * jnp.cos(n.astype(gradient.dtype))
            return step(made, carry[1][0] < 1, carry[0], shown, (None, scale))

        with jax.default_matmul_precision(precision):
            return lax.fori_loop(0, updates, update, carry)

    memory = columns.empty_memory(made, gradient, dtype)
    return Program(name, run, (memory, jnp.zeros(size)), gradient)


def check_optimizer(deadline: float, quick: bool) -> list[dict]:
    if time.perf_counter() > deadline:
        return []
    ways = {"plain": None, "kernel": {}}
    found = [
        (case, f"{way}, {precision}", optimizer_steps(case, case, size, cut, precision))
        for size in (300 if quick else 100_001,)
        for case in list(OPTIMIZERS)[: 2 if quick else None]
        for precision in ("highest", "default")[: 1 if quick else None]
        for way, cut in ways.items()
    ]
    card.compile_all([program for *_, program in found])
    rows, known = [], {}
    for case, way, program in found:
        row = {"case": case, "loop": way, "compile_s": program.compile_s}
        rows.append(row)
        if program.error or time.perf_counter() > deadline:
            row["error"] = program.error or "no time"
            continue
        result = jax.device_get(program.call()(20))
        known.setdefault(case, result)
        row |= dict(zip(("memory", "updates"), map(apart, result, known[case]), strict=True))
    return rows


def tune_optimizer(deadline: float, quick: bool) -> list[dict]:
    size, rows = 300 if quick else 4_000_000, []
    cuts = [None, *CUTS[: 1 if quick else None]]
    shown = lambda cut: "plain" if cut is None else " x ".join(map(str, cut.values())) or "default"
    programs = [
        optimizer_steps(f"{case}: {shown(cut)}", case, size, cut)
        for case in list(OPTIMIZERS)[: 1 if quick else None]
        for cut in cuts
    ]
    for begin in range(0, len(programs), len(cuts)):
        if time.perf_counter() > deadline:
            break
        group = programs[begin : begin + len(cuts)]
        memory = group[0].carry[0]
        copy = Program(f"{size} parameters, a copy", _copied, memory, ())
        card.compile_all([*group, copy])
        for program in [copy, *group]:
            row = {"way": program.name, "batch": size, "compile_s": program.compile_s}
            rows.append(row)
            try:
                if program.error or time.perf_counter() > deadline:
                    raise RuntimeError(program.error or "no time")
                row["ms"] = card.milliseconds(program, target=0.03)
            except Exception as error:
                row["error"] = card.in_short(error)
            program.compiled = program.carry = None  # its memory is large
    return rows


def _copied(memory, _, updates):
    """Reads and writes all of it, as a step does at least."""
    return lax.fori_loop(0, updates, lambda n, memory: memory + n.astype(memory.dtype), memory)


# --- Tables --------------------------------------------------------------------------------------


def show(rows: list[dict], columns: dict[str, str]) -> None:
    for row in rows:
        cells = [format(row[key], form) if key in row else "" for key, form in columns.items()]
        print("  ".join([*cells, row.get("error", "")]).rstrip(), flush=True)


def main(arguments=None):
    described = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=described)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--optimizer", action="store_true")
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    result = card.facts()
    print(result["device"], result["driver"], result["versions"])
    if options.check:
        share = 0.45 if options.tune else 1
        until = began + share * options.seconds
        result["check"] = [] if options.optimizer else check(until, options.quick)
        print("\ncase, loop; N alike; apart: outputs, remainders, gradients; compilation, s")
        forms = {"case": "24", "loop": "16", "steps": "6.3f", "outputs": "8.1e"}
        show(
            result["check"],
            forms | dict.fromkeys(("remainder", "gradients"), "8.1e") | {"compile_s": "6.1f"},
        )
        result["optimizer"] = check_optimizer(until, options.quick)
        print("\ncase, way; apart: memory, updates; compilation, s")
        forms = {"case": "24", "loop": "16", "memory": "8.1e", "updates": "8.1e"}
        show(result["optimizer"], forms | {"compile_s": "6.1f"})
    if options.tune:
        until = began + options.seconds
        rows = result["tune"] = [] if options.optimizer else tune(until, options.quick)
        for row in rows:
            for name in ("advance", "retreat", "weights"):
                if found := row.get("own_us", {}).get(f"actjax_{name}"):
                    row[name] = found / 1e3
        print(
            "\nway, batch; ms: loss and gradient; advance, retreat, weights; kernels; compilation"
        )
        forms = {"way": "30", "batch": "5", "ms": "8.3f"}
        forms |= dict.fromkeys(("advance", "retreat", "weights"), "8.3f")
        show(rows, forms | {"kernels": "6", "compile_s": "6.1f"})
        result["tune_optimizer"] = tune_optimizer(until, options.quick)
        print("\nway (columns x warps of a program), parameters; ms; compilation")
        forms = {"way": "34", "batch": "9", "ms": "8.3f", "compile_s": "6.1f"}
        show(result["tune_optimizer"], forms)
    result["wall_s"] = time.perf_counter() - began
    print(f"\n{result['wall_s']:.0f} s")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
