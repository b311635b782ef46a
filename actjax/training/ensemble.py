"""Many runs as one program: an ensemble of training states on a leading array axis.

The members of a sweep share their training step and differ in what their states hold: the seed's
parameters, and in `TrainState.extra` such numbers as tau. One compiled dispatch takes all members
many updates further, spread over the devices there are. Each member's numbers are those of the
same run alone.

    member axis   states [E, ...] over D devices --take--> bucket [D * n, ...], n members a device
                  states [E, ...] over D devices <--put--- bucket [D * n, ...], many updates later

While all members train, the bucket is the ensemble itself and nothing moves. Members can retire
before the last step, when they have solved their task or their loss is not finite. Retired members
keep their state and leave the bucket, which halves as they go (n, n/2, n/4, ...; each size is
compiled once), so that they cost nothing from then on.
"""

import contextlib
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from actjax._checks import check_choice, check_key, check_positive
from actjax.training.compiler import options_for
from actjax.training.files import RunFiles
from actjax.training.folder import METRICS
from actjax.training.loop import OnRow, check_multiple
from actjax.training.metrics import plain, read_metrics
from actjax.training.partition import carried, hide, show
from actjax.training.progress import Progress
from actjax.training.state import TrainState, own_state
from actjax.training.step import TrainStep, finish_of, make_finish, reduce_metrics

BATCHING = ("vmap", "map")
AXIS = "members"

# retire(history) -> bool [E]: which members need no more training, from the metrics so far
Retire = Callable[[dict[str, np.ndarray]], np.ndarray]


class Sweep(NamedTuple):
    """What a sweep leaves behind.

    Attributes:
      states: the members' states: every leaf leads with the member axis E.
      history: metrics float [rows, E] by name, NaN once a member has retired, and "step" and
        "seconds" [rows].
      retired: bool [E], members that `retire` named or that diverged, at the last step or before.
      diverged: bool [E], those of them whose loss or gradient was not finite; their state is the
        one before the dispatch in which that happened.
    """

    states: TrainState
    history: dict[str, np.ndarray]
    retired: np.ndarray
    diverged: np.ndarray


def stack_states(make_state: Callable[..., TrainState], *columns: Array) -> TrainState:
    """The states of an ensemble: `make_state` over the rows of `columns`, each led by E.

    Example:
      >>> import optax
      >>> from actjax.training.state import init_state
      >>> make = lambda key, tau: init_state(jax.random.normal(key, (3,)), optax.sgd(0.1), tau)
      >>> states = stack_states(make, jax.random.split(jax.random.key(0), 4), jnp.ones(4))
      >>> states.model.shape, states.extra.shape
      ((4, 3), (4,))
    """
    return show(jax.jit(jax.vmap(lambda *row: hide(make_state(*row))))(*columns))


def sweep(
    train_step: TrainStep,
    states: TrainState,
    *,
    keys: Array,
    steps: int,
    data: Any = (),
    directory: str | os.PathLike | None = None,
    log_every: int = 100,
    rows_per_dispatch: int = 10,
    checkpoint_every: int | None = None,
    retire: Retire | None = None,
    batching: str | None = None,
    devices: list[jax.Device] | None = None,
    on_row: OnRow | None = None,
    description: str = "sweep",
) -> Sweep:
    """Trains every member of an ensemble until it retires or `steps` updates are done.

    With a `directory` the sweep writes there and continues what it finds there, as `fit` does: a
    row of metrics every `log_every` updates, a list over members under each name with null for
    retired ones, and checkpoints of the whole ensemble.

    Args:
      train_step: one member's step, `(state, key, data) -> (state, metrics)`; see
        `make_train_step`.
      states: the ensemble, every leaf led by the member axis E; see `stack_states`. Copied.
      keys: PRNG keys [E]; a member's update n uses `fold_in(keys[member], n)`, as in `fit`.
      steps: the number of updates of a member's whole run.
      data: pytree of arrays handed to `train_step`, the same for all members.
      directory: the folder of the sweep, or None to write nothing.
      log_every: updates between rows of metrics.
      rows_per_dispatch: rows in one compiled dispatch. Members retire between dispatches.
      checkpoint_every: updates between checkpoints, a multiple of those in a dispatch; two
        dispatches unless given.
      retire: `history -> bool [E]`, looked at between dispatches; None for no early retirement.
      batching: how a device works on its members: "vmap" at once, for accelerators, or "map" one
        after the other, for CPUs, where a member's loops then never wait for another's. Unless
        given it follows the device.
      devices: those to spread the members over; all unless given.
      on_row: called with each row of metrics, once it is written.
      description: shown beside the progress bar.

    Raises:
      ValueError: for counts below 1, fewer `steps` than are done, keys and states of different
        lengths, an unknown batching, or a checkpoint that is damaged or does not fit.
    """
    devices = list(devices or jax.devices())
    platform = devices[0].platform
    batching = batching or ("map" if platform == "cpu" else "vmap")
    size = _check_size(hide(states), keys)
    _check_counts(steps, log_every, rows_per_dispatch, checkpoint_every)
    check_choice("batching", batching, BATCHING)
    checkpoint_every = checkpoint_every or 2 * log_every * rows_per_dispatch
    mesh = Mesh(np.asarray(devices[:size]), (AXIS,))

    with contextlib.ExitStack() as stack:
        states, files, history = own_state(states), None, _History(size)
        if directory is not None:
            files = stack.enter_context(RunFiles(directory))
            states = files.restore(states)
            history.read(pathlib.Path(directory) / METRICS)
        states, keys = _spread((states, keys), mesh, size)
        data = jax.device_put(data, NamedSharding(mesh, P()))
        done = int(states.step.max())
        if done > steps:
            raise ValueError(
                f"steps must be at least {done}, which the run has done already, got {steps}."
            )
        seconds = files.seconds if files else 0.0
        progress = stack.enter_context(Progress(description, total=steps, done=done))
        dispatches = {}  # by rows and updates a row: only the first and the last may be shorter
        active = history.active(retire)
        while done < steps and active.any():
            began = time.perf_counter()
            shape = _shape(done, steps, log_every, rows_per_dispatch)
            if shape not in dispatches:
                dispatches[shape] = _make_dispatch(
                    train_step, *shape, batching, mesh, size, options_for(states.model, platform)
                )
            members = np.flatnonzero(active)
            bucket = None if active.all() else _bucket(members, len(keys), mesh.size)
            states, metrics = dispatches[shape](states, keys, bucket, data)
            # where each member was trained
            places = members if bucket is None else np.argsort(bucket.put)[: len(members)]
            metrics = {name: np.asarray(value)[places] for name, value in metrics.items()}
            passed = time.perf_counter() - began
            for index in range(shape[0]):
                done += shape[1]
                row = {"step": done, "members": members.tolist()}
                for name, value in metrics.items():
                    row[name] = _column(value[:, index], members, size)
                row["seconds"] = round(seconds + passed * (index + 1) / shape[0], 3)
                history.append(row)
                if files:
                    files.append(row)
                if on_row:
                    on_row(row)
            seconds += passed
            active = history.active(retire)
            if files and (done % checkpoint_every == 0 or done == steps or not active.any()):
                files.save(done, _first(states, size))
            rate = round(shape[0] * shape[1] * len(members) / passed, 1)
            progress.update(done, row | {"updates_per_second": rate})
        ended = ~history.active(retire)
        states = _finished(train_step, _first(states, size), data, batching)
        return Sweep(states, history.arrays(), ended, history.diverged)


class _History:
    """The rows of a sweep as arrays, and who is still in it."""

    def __init__(self, size: int):
        self._columns: dict[str, list] = {}
        self._members = np.arange(size)  # of the last row
        self.diverged = np.zeros(size, bool)

    def read(self, path: pathlib.Path):
        """Appends the rows of a sweep before."""
        rows = read_metrics(path)
        for number, row in enumerate(rows, 1):
            try:
                if row.keys() != rows[0].keys():
                    raise KeyError
                self.append(row)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{str(path)!r} must hold the rows of a sweep of {len(self.diverged)} members, "
                    f"got another kind in line {number}."
                ) from error

    def append(self, row: dict[str, Any]):
        self._members = np.asarray(row["members"])
        for name in row.keys() - {"members"}:
            self._columns.setdefault(name, []).append(np.array(row[name], float))
        for name in ("loss", "gradient_norm"):
            self.diverged[self._members] |= np.isnan(self._columns[name][-1][self._members])

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: np.stack(rows) for name, rows in self._columns.items()}

    def active(self, retire: Retire | None) -> np.ndarray:
        """Who trains next: the members of the last row, less the diverged and the solved."""
        active = np.zeros_like(self.diverged)
        active[self._members] = True
        if retire is not None and self._columns:
            active &= ~retire(self.arrays())
        return active & ~self.diverged


def _column(values: np.ndarray, members: np.ndarray, size: int) -> list[float | None]:
    """One value for each of `size` members, None for those that are not among `members`."""
    column: list[float | None] = [None] * size
    for member, value in zip(members, values, strict=True):
        column[member] = plain(value)
    return column


def _finished(train_step: TrainStep, states: TrainState, data: Any, batching: str) -> TrainState:
    """What is left to do for the members after their last updates; see `step.Finish`."""
    finish = finish_of(train_step)
    if finish is not None and finish.due(np.asarray(states.step)).any():
        run = make_finish(train_step)
        over = jax.vmap if batching == "vmap" else lambda one: lambda all: lax.map(one, all)
        states = jax.jit(lambda states, data: over(lambda s: run(s, data))(states))(states, data)
    return show(states)


def _make_dispatch(
    train_step: TrainStep,
    rows: int,
    log_every: int,
    batching: str,
    mesh: Mesh,
    size: int,
    compiler_options: dict[str, Any] | None,
):
    """`(states, keys, bucket, data) -> (states, metrics)`, compiled once for a bucket's size.

    Without a bucket every member is trained where it is, and nothing moves.
    """
    train_step = carried(train_step)

    def one_row(state, key, data):
        def update(state, _):
            return train_step(state, jax.random.fold_in(key, state.step), data)

        state, metrics = lax.scan(update, state, length=log_every)
        return state, {name: reduce_metrics(name, values) for name, values in metrics.items()}

    def one_member(state, key, data):
        after, metrics = lax.scan(lambda s, _: one_row(s, key, data), state, length=rows)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
        kept = jax.tree.map(lambda new, old: jnp.where(finite.all(), new, old), after, state)
        return kept, metrics

    def one_device(states, keys, filler, data):
        if batching == "vmap":
            return jax.vmap(one_member, in_axes=(0, 0, None))(states, keys, data)

        def in_turn(member):
            state, key, filler = member
            train = lambda: one_member(state, key, data)
            shapes = jax.eval_shape(train)[1]
            skip = lambda: (state, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
            return lax.cond(filler, skip, train)

        return lax.map(in_turn, (states, keys, filler))

    if mesh.size > 1:
        one_device = jax.shard_map(
            one_device,
            mesh=mesh,
            in_specs=(P(AXIS), P(AXIS), P(AXIS), P()),
            out_specs=(P(AXIS), P(AXIS)),
            check_vma=False,  # members never communicate, so nothing can vary where it should not
        )

    def dispatch(states, keys, bucket, data):
        if bucket is None:
            return one_device(states, keys, jnp.arange(len(keys)) >= size, data)
        taken = jax.tree.map(lambda leaf: leaf[bucket.take], states)
        filler = bucket.put >= len(keys)
        trained, metrics = one_device(taken, keys[bucket.take], filler, data)

        def put(leaf, new):
            return leaf.at[bucket.put].set(new, mode="drop")

        states = jax.tree.map(put, states, trained)
        return lax.with_sharding_constraint(states, NamedSharding(mesh, P(AXIS))), metrics

    return jax.jit(dispatch, donate_argnums=0, compiler_options=compiler_options)


def _spread(ensemble: Any, mesh: Mesh, size: int) -> Any:
    """Each device's share of the members, the first of which fill up the last share."""
    filler = -size % mesh.size
    if filler:
        ensemble = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:filler]]), ensemble)
    return jax.device_put(ensemble, NamedSharding(mesh, P(AXIS)))


def _first(ensemble: Any, size: int) -> Any:
    """The members themselves, without those that only fill up the last device's share."""
    if len(jax.tree.leaves(ensemble)[0]) == size:
        return ensemble
    return jax.tree.map(lambda leaf: leaf[:size], ensemble)


def _shape(done: int, steps: int, log_every: int, rows: int) -> tuple[int, int]:
    """Rows and updates a row of the next dispatch: up to the next multiple of a whole one.

    A run that ended between two multiples comes back to them first, so that rows and checkpoints
    stand at the same updates as in a run that never stopped.
    """
    to_row = min(log_every - done % log_every, steps - done)
    if to_row < log_every:
        return 1, to_row
    return min(rows - done // log_every % rows, (steps - done) // log_every), log_every


class _Bucket(NamedTuple):
    """Who is trained on which device: int [D * n] each, a device's n places side by side.

    Attributes:
      take: the member that each place trains.
      put: where its state goes: the same, or past the last for a place that only fills up.
    """

    take: np.ndarray
    put: np.ndarray


def _bucket(members: np.ndarray, size: int, devices: int) -> _Bucket:
    """The smallest bucket that holds `members`, of an ensemble of `size`.

    A device's share is the whole ensemble's, or that halved, rounded up, any number of times. The
    places are dealt out so that every device has as many real members as the others, or one less.
    """
    share = -(-size // devices)
    while -(-share // 2) * devices >= len(members) and share > 1:
        share = -(-share // 2)
    place = np.arange(share * devices).reshape(devices, share).T.ravel()
    take = np.full(share * devices, members[0])
    put = np.full(share * devices, size)
    take[place[: len(members)]] = put[place[: len(members)]] = members
    return _Bucket(take, put)


def _check_size(states: TrainState, keys: Array) -> int:
    """Returns the number of members, by which all leaves lead."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(states)]
    size = shapes[0][0] if shapes[0] else None
    odd = [shape for shape in shapes if shape[:1] != (size,)]
    if odd:
        raise ValueError(f"states must hold arrays that lead with the members, got shape {odd[0]}.")
    if jnp.shape(keys)[:1] != (size,):
        raise ValueError(f"keys must be one for each of {size} members, got {jnp.shape(keys)}.")
    check_key("keys", keys, 1)
    assert size is not None  # a first leaf without axes is odd
    return size


def _check_counts(steps: int, log_every: int, rows: int, checkpoint_every: int | None):
    counts = {"steps": steps, "log_every": log_every, "rows_per_dispatch": rows}
    for name, value in counts.items():
        check_positive(name, value)
    if checkpoint_every is not None:
        whole = "log_every * rows_per_dispatch"
        check_multiple("checkpoint_every", checkpoint_every, log_every * rows, whole)
