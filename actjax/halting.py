"""When an input's ponder steps end, and what weight each has: halting rules, on arrays of rows.

A row takes ponder steps n = 1, 2, ...; step n emits a halting probability ``h^n``. A `Rule` says
from these when the row stops, at step N, and with what weights ``p^n`` its states are averaged.
The loops see to the limit M on steps; the rest is here, one step at a time in the loops, or a whole
row at once (`halting_weights`), in float32 at least, whatever the dtype of the network.

    Graves       sum h reaches 1 - epsilon; the last weight is the remainder       (Graves 2016)
    PonderNet    h^n is the probability to stop now if not before         (Banino et al. 2021)
    Threshold    h^n over a threshold; the last state is the result
    FixedSteps   so many steps, whatever h^n
    AtLeast      another rule, which may not stop before so many steps
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from actjax import _checks as checks
from actjax import _contracts as contracts


class Ponder(NamedTuple):
    """How long each input was pondered. ``B`` sequences of ``T`` inputs; zeros where padded.

    Attributes:
      steps: int32 ``[B, T]``. N, the number of ponder steps taken; a constant to the gradient.
      remainder: float ``[B, T]``. p^N, the weight of the last step: by Graves' rule R, through
        which halting is learned; by PonderNet's what the steps before left of the mass; 1 where
        the last state alone is the result.
      extra: what else the rule tells of each input, a pytree of ``[B, T, ...]``; None for Graves'.
    """

    steps: jax.Array
    remainder: jax.Array
    extra: Any = None

    @property
    def cost(self) -> jax.Array:
        """Ponder cost N + R of each input, float ``[B, T]`` (Graves 2016, eq 10)."""
        return self.steps.astype(self.remainder.dtype) + self.remainder


class HaltingWeights(NamedTuple):
    """A halting rule applied to whole rows of halting probabilities.

    Attributes:
      weights: float ``[..., M]``. p^n, zero after the last step; sums to 1 over the last axis.
      steps: int32 ``[...]``. N.
      remainder: float ``[...]``. p^N.
    """

    weights: jax.Array
    steps: jax.Array
    remainder: jax.Array


class Rule(Protocol):
    """A halting rule: an extension point; any object with these attributes is one.

    The loops call it with rows, one an input at work, and differentiate `update` themselves. Its
    methods are pure and treat each row alike and apart. A rule is a constant of the program: it
    holds numbers, no arrays, and equal rules are equal (a frozen dataclass is a good one).

    Attributes:
      mean: which leaves of the state leave their mean ``sum p^n s^n`` behind, as the output and as
        what the next input starts from; the others leave their last value, at no cost. A bool for
        all of them, or a pytree of bools that the state begins with. Leaves that are not of floats
        always leave the last. Has no meaning in `unroll_layers`, which keeps every state.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Thirds:  # stops at h > 1/2; each step takes a third of what is left of the mass
    ...     mean: bool = True
    ...     def start(self, zero):
    ...         return zero + 1
    ...     def decide(self, left, n, halt):
    ...         return halt > 0.5
    ...     def update(self, left, n, halt, last):
    ...         weight = jnp.where(last, left, left / 3)
    ...         return left - weight, weight, None
    >>> found = halting_weights(jnp.array([0.1, 0.4, 0.9]), rule=Thirds())
    >>> [round(float(p), 2) for p in found.weights]
    [0.33, 0.22, 0.44]
    """

    @property
    def mean(self) -> Any: ...

    def start(self, zero: jax.Array) -> Any:
        """The rule's registers before the first step of an input.

        Args:
          zero: float ``[rows]``, zeros in the dtype of halting, to make the registers from.

        Returns:
          Pytree of float arrays ``[rows, ...]``; ``()`` for none.
        """
        ...

    def decide(self, registers: Any, n: jax.Array, halt: jax.Array) -> jax.Array:
        """Whether step n is a row's last; the limit M ends it too, with or without this.

        Args:
          registers: as `start` and `update` returned them.
          n: int32 ``[rows]``, 1 for the first step of an input.
          halt: float ``[rows]``, h^n, 0 and 1 included.

        Returns:
          bool ``[rows]``. Recorded by the loops, never computed twice; a constant to the gradient.
        """
        ...

    def update(
        self, registers: Any, n: jax.Array, halt: jax.Array, last: jax.Array
    ) -> tuple[Any, jax.Array, Any]:
        """The weight of step n, and the registers after it; differentiable in both float arguments.

        Args:
          registers, n, halt: as in `decide`.
          last: bool ``[rows]``, whether the step is the row's last.

        Returns:
          ``(registers, weight, extra)``: the registers in the dtypes they had, p^n, float
          ``[rows]``, and a pytree of float arrays ``[rows, ...]`` of which the `Ponder` record
          keeps those of the last step as `Ponder.extra`; None for nothing.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Graves:
    """Adaptive Computation Time (Graves 2016, eqs 5 to 8 and 13): the rule unless told otherwise.

        N = min(M, min{n : h^1 + ... + h^n >= 1 - epsilon})                           (eqs 7, 13)

    with remainder ``R = 1 - (h^1 + ... + h^{N-1})`` (eq 8) and weights ``p^n = h^n`` for n < N,
    ``p^N = R`` (eq 6), which therefore sum to 1 whether the row halted or the limit M stopped it.
    The ponder cost is ``N + R`` (eq 10).

    Args:
      epsilon: the slack that lets a row halt at its first step.
      mean: as in `Rule`.
    """

    epsilon: float = 0.01
    mean: Any = True

    def __post_init__(self):
        checks.check_number("epsilon", self.epsilon, 0, 1)

    def start(self, zero):
        return zero  # h^1 + ... + h^{n-1}

    def decide(self, total, n, halt):
        return total + halt >= 1 - self.epsilon

    def update(self, total, n, halt, last):
        return total + halt, jnp.where(last, 1 - total, halt), None


@dataclasses.dataclass(frozen=True)
class PonderNet:
    """PonderNet (Banino et al. 2021): h^n is the probability to stop at n if not before.

    ``p^n = h^n (1 - h^1) ... (1 - h^{n-1})``. A row ends once less than epsilon of the mass is left
    or at the limit M; what is left goes to the last step, so that p sums to 1. Its `Ponder.extra`
    is ``{"kl": KL(p || G)}``, G the geometric prior of parameter `prior`, by the chain rule
    ``sum_n (1 - h^1) ... (1 - h^{n-1}) KL(Bernoulli(h^n) || Bernoulli(prior))`` with h^N = 1.

    The paper averages the losses of the steps, not their states: put a step's loss into the state
    as a leaf of its own, and let that leaf alone leave its mean behind (``mean=(False, True)`` for
    a state ``(cell's, loss)``), as the network `actjax.PonderNet` does. Add 0.01 times `kl`.

    Args:
      epsilon: the mass at which a row may end; the paper's 0.05.
      prior: lambda_p, in (0, 1): the prior expects 1 / prior steps.
      mean: as in `Rule`.
    """

    epsilon: float = 0.05
    prior: float = 0.2
    mean: Any = True

    def __post_init__(self):
        checks.check_number("epsilon", self.epsilon, 0, 1)
        checks.check_number("prior", self.prior, 0, 1)

    def start(self, zero):
        return zero + 1, zero  # what is left of the mass, and of KL(p || G) the terms so far

    def decide(self, registers, n, halt):
        return registers[0] * (1 - halt) < self.epsilon

    def update(self, registers, n, halt, last):
        left, divergence = registers
        rate = jnp.where(last, 1, halt)
        divergence = divergence + left * _bernoulli_divergence(rate, self.prior)
        return (left * (1 - halt), divergence), left * rate, {"kl": divergence}


def _bernoulli_divergence(rate: jax.Array, prior: float) -> jax.Array:
    """KL(Bernoulli(rate) || Bernoulli(prior)), finite with its gradient at 0 and 1."""
    log = lambda p: jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny))
    stop = rate * (log(rate) - jnp.log(prior))
    return stop + (1 - rate) * (log(1 - rate) - jnp.log1p(-prior))


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Stops at the first h^n over a threshold; the last state is the result, and no mean is taken.

    As the Q-halting of HRM (Wang et al. 2025) and TRM (Jolicoeur-Martineau 2025), which stop at
    sigmoid(q) > 0.5. Nothing of a loss reaches h^n through the rule: what it is to learn from
    belongs into the state.

    Args:
      threshold: in [0, 1); h^n has to be over it.
      mean: as in `Rule`, the weight being 1 at the last step and 0 before.
    """

    threshold: float = 0.5
    mean: Any = False

    def __post_init__(self):
        checks.check_number("threshold", self.threshold, 0, 1, include_low=True)

    def start(self, zero):
        return ()

    def decide(self, registers, n, halt):
        return halt > self.threshold

    def update(self, registers, n, halt, last):
        return (), last.astype(halt.dtype), None


@dataclasses.dataclass(frozen=True)
class FixedSteps:
    """A fixed number of steps, whatever h^n; the last state is the result (Fojo 2018, chapter 5).

    `actjax.repeat` does the same with less ado; this is for where a rule is asked for.

    Args:
      steps: N, unless the limit M is below it.
      mean: as in `Rule`, the weight being 1 at the last step and 0 before.
    """

    steps: int
    mean: Any = False

    def __post_init__(self):
        checks.check_positive("steps", self.steps)

    def start(self, zero):
        return ()

    def decide(self, registers, n, halt):
        return n >= self.steps

    def update(self, registers, n, halt, last):
        return (), last.astype(halt.dtype), None


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """A rule to which h^n is 0 for n below a minimum, so that it does not stop there.

    Args:
      steps: the minimum. The limit M still holds.
      rule: any other `Rule`.

    >>> rule = AtLeast(3, Graves())
    >>> int(halting_weights(jnp.array([0.9, 0.9, 0.5, 0.6]), rule=rule).steps)
    4
    """

    steps: int
    rule: Rule

    def __post_init__(self):
        checks.check_positive("steps", self.steps)
        contracts.check_rule(self.rule)

    @property
    def mean(self):
        return self.rule.mean

    def start(self, zero):
        return self.rule.start(zero)

    def decide(self, registers, n, halt):
        return self.rule.decide(registers, n, self._halt(n, halt)) & (n >= self.steps)

    def update(self, registers, n, halt, last):
        return self.rule.update(registers, n, self._halt(n, halt), last)

    def _halt(self, n, halt):
        return jnp.where(n < self.steps, 0, halt)


def chosen_rule(rule: Rule | None, epsilon: float | None = None) -> Rule:
    """`rule`, or Graves' with `epsilon`; of the two only one may be given."""
    given = () if epsilon is None else (epsilon,)
    return Graves(*given) if rule is None else contracts.check_rule(rule, epsilon)


def halting_dtype(dtype) -> jnp.dtype:
    """The dtype in which halting is computed for a network of `dtype`: float32 or wider."""
    dtype = jnp.dtype(dtype)
    wide = jnp.issubdtype(dtype, jnp.inexact) and dtype.itemsize >= 4
    return dtype if wide else jnp.dtype(jnp.float32)


def halting_step(
    halt: jax.Array, total: jax.Array, n: jax.Array, *, max_steps: int, epsilon: float
) -> tuple[jax.Array, jax.Array]:
    """Decides by Graves' rule whether ponder step n is a row's last, and what weight it gets.

    Args:
      halt: float ``[rows]``. h^n, in [0, 1].
      total: float ``[rows]``. h^1 + ... + h^{n-1}.
      n: int ``[rows]``. The number of this step, 1 for the first.
      max_steps: M, the limit on steps.
      epsilon: as in `Graves`.

    Returns:
      ``(weight, last)``: p^n, float ``[rows]``, and whether n = N, bool ``[rows]``.

    >>> weight, last = halting_step(jnp.array([0.4]), jnp.array([0.6]), jnp.array([2]),
    ...                             max_steps=10, epsilon=0.01)
    >>> bool(last[0]), round(float(weight[0]), 2)
    (True, 0.4)
    """
    rule = Graves(epsilon)
    last = rule.decide(total, n, halt) | (n >= max_steps)
    return rule.update(total, n, halt, last)[1], last


def halting_weights(
    halts: ArrayLike, *, epsilon: float | None = None, rule: Rule | None = None
) -> HaltingWeights:
    """Applies a rule to all M halting probabilities of each row at once.

    For where every step has been computed anyway; differentiable, with the gradient of the loops.

    Args:
      halts: float ``[..., M]``. h^1 .. h^M along the last axis; its length is the limit M.
      epsilon: as in `Graves`, whose rule it is unless `rule` is given.
      rule: any other `Rule`, in the place of Graves' and its epsilon.

    Returns:
      `HaltingWeights`.

    Raises:
      ValueError: no step along the last axis, or an epsilon or known halts not between 0 and 1.

    >>> weights, steps, _ = halting_weights(jnp.array([0.5, 0.3, 0.6, 0.9]))
    >>> int(steps), [round(float(p), 2) for p in weights]
    (3, [0.5, 0.3, 0.2, 0.0])
    """
    halts = jnp.asarray(halts)
    rule = chosen_rule(rule, epsilon)
    if halts.ndim < 1 or halts.shape[-1] < 1:
        raise ValueError(f"halts must have shape [..., M], M at least 1, got {halts.shape}.")
    checks.check_probabilities("halts", halts)
    halts = halts.astype(halting_dtype(halts.dtype))
    if not isinstance(rule, Graves):
        return _weights_step_by_step(halts, rule)
    totals = jnp.cumsum(halts, axis=-1)
    before = jnp.concatenate([jnp.zeros_like(totals[..., :1]), totals[..., :-1]], axis=-1)
    n = lax.broadcasted_iota(jnp.int32, halts.shape, halts.ndim - 1) + 1
    weights, last = halting_step(halts, before, n, max_steps=halts.shape[-1], epsilon=rule.epsilon)
    steps = jnp.argmax(last, axis=-1).astype(jnp.int32) + 1
    weights = jnp.where(n <= steps[..., None], weights, 0)
    remainder = jnp.take_along_axis(weights, steps[..., None] - 1, axis=-1)[..., 0]
    return HaltingWeights(weights, steps, remainder)


def _weights_step_by_step(halts: jax.Array, rule: Rule) -> HaltingWeights:
    limit = halts.shape[-1]

    def one_step(carry, halt):
        registers, n, running = carry
        n = n + 1
        last = rule.decide(registers, n, halt) | (n >= limit)
        registers, weight, _ = rule.update(registers, n, halt, last)
        return (registers, n, running & ~last), (jnp.where(running, weight, 0), running)

    rows = halts.reshape(-1, limit)
    zero = jnp.zeros_like(rows[:, 0])
    carry = rule.start(zero), zero.astype(jnp.int32), zero == 0
    _, (weights, running) = lax.scan(one_step, carry, rows.T)
    steps = running.sum(0, dtype=jnp.int32)
    remainder = jnp.take_along_axis(weights, steps[None] - 1, axis=0)[0]
    by_row = lambda leaf: leaf.reshape(*halts.shape[:-1], *leaf.shape[1:])
    return HaltingWeights(*map(by_row, (weights.T, steps, remainder)))
