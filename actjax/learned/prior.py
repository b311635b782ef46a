"""Prior over the horizon T and the halting step t (Sander 2017, June eqs 14 to 16).

Writing a for sqrt(nu), with t and T counted from 1:

    p(T)   = a^(T-1) (1 - a^T) (1 - a^2)
    p(t|T) = (1 - a) a^(t-1) / (1 - a^T),    t <= T
    p(t)   = sum_{T >= t} p(t|T) p(T) = (1 - nu) nu^(t-1)

The June text prints 1 - sqrt(mu) where p(t|T) needs 1 - sqrt(nu), and the May text drops a^t from
p(t|T); the forms above are the ones that sum to 1.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from actjax._checks import check_choice, check_key

CUTS = ("preserve", "renormalise")


@dataclasses.dataclass(frozen=True)
class HorizonPrior:
    """Joint prior p(T) p(t|T) whose marginal over the halting step t is geometric.

    Args:
      nu: probability of going on after a step, in (0, 1). A step costs -log(nu)/2 nats.
      horizon: last step H that T and t may take; None leaves T unbounded.
      cut: how p(T) ends at H. "preserve" puts p(T >= H) in such a way that the marginal p(t) is
        exactly the truncated geometric; "renormalise" divides p(T) by p(T <= H), which bends it.
      first_step: 1 counts steps from 1 (June text); 0 from 0 (May text), so that there are H + 1.

    Tables are worked out in float64 on the host and come back in JAX's default float type.

    Example:
      >>> prior = HorizonPrior(0.9, horizon=3)
      >>> prior.log_horizon().shape, prior.log_given().shape
      ((3,), (3, 3))
      >>> round(HorizonPrior(0.9).mean, 3)
      28.487
    """

    nu: float
    horizon: int | None = None
    cut: str = "preserve"
    first_step: int = 1

    def __post_init__(self):
        if not isinstance(self.nu, (int, float, np.number)) or not 0 < self.nu < 1:
            raise ValueError(f"nu must be a number strictly between 0 and 1, got {self.nu!r}.")
        check_choice("cut", self.cut, CUTS)
        if self.first_step not in (0, 1):
            raise ValueError(f"first_step must be 0 or 1, got {self.first_step!r}.")
        if self.horizon is not None and (
            isinstance(self.horizon, bool)
            or not isinstance(self.horizon, (int, np.integer))
            or self.horizon < self.first_step
        ):
            raise ValueError(
                f"horizon must be an integer of at least {self.first_step}, got {self.horizon!r}."
            )

    @property
    def log_a(self) -> float:
        """log a = log(nu) / 2: minus the price of a step in nats."""
        return 0.5 * float(np.log(self.nu))

    @property
    def steps(self) -> int:
        """Number of values T can take, H for first_step=1 and H + 1 for first_step=0."""
        if self.horizon is None:
            raise ValueError("horizon must be an integer for a table over T, got None.")
        return self.horizon - self.first_step + 1

    def over(self, steps: int) -> "HorizonPrior":
        """The prior for arrays of `steps` entries: itself, or the unbounded one cut to that length.

        Raises:
          ValueError: the prior has a horizon of another length.
        """
        if self.horizon is None:
            return dataclasses.replace(self, horizon=steps + self.first_step - 1)
        if self.steps != steps:
            raise ValueError(
                f"horizon must cover the {steps} steps of the last axis, got {self.steps} steps."
            )
        return self

    def log_horizon(self) -> jax.Array:
        """log p(T) for every T: float [steps]."""
        return jnp.asarray(self._log_horizon())

    def log_given(self) -> jax.Array:
        """log p(t|T): float [steps (T), steps (t)], -inf for t > T. O(H^2), for tests."""
        index = np.arange(self.steps)
        table = np.log(-np.expm1(self.log_a)) + index[None, :] * self.log_a - self._log_support()
        return jnp.asarray(np.where(index[None, :] <= index[:, None], table, -np.inf))

    def log_marginal(self) -> jax.Array:
        """log p(t) for every t: float [steps]."""
        index, length = np.arange(self.steps), self.steps
        table = 2 * index * self.log_a + np.log(-np.expm1(2 * self.log_a))
        if self.cut == "preserve":
            return jnp.asarray(table - np.log(-np.expm1(2 * length * self.log_a)))
        bend = np.log(-np.expm1((length - index) * self.log_a))
        return jnp.asarray(table + bend - np.log(self._unbounded_cdf(length)))

    def cdf(self, T) -> jax.Array:
        """P(horizon <= T), elementwise in T."""
        count = np.maximum(np.asarray(T, np.float64) - self.first_step + 1, 0.0)
        if self.horizon is None:
            return jnp.asarray(self._unbounded_cdf(count))
        inside = self._unbounded_cdf(count) / self._mass_within()
        return jnp.asarray(np.where(count >= self.steps, 1.0, inside))

    @property
    def mean(self) -> float:
        """E[T]; (1 + a + a^2) / (1 - a^2) when unbounded and counted from 1."""
        if self.horizon is None:
            a = np.exp(self.log_a)
            return float((1 + a + a * a) / -np.expm1(2 * self.log_a)) + self.first_step - 1
        index = np.arange(self.steps)
        return float(np.exp(self._log_horizon()) @ (index + self.first_step))

    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        """Draw T by inverting its distribution function in closed form: int32 of `shape`.

        With x = a^n, P(T <= n) = (1 - x)(1 - a x) is a quadratic in x; each of its two stable
        solutions is used where it loses no digits.
        """
        check_key("key", key)
        u = jax.random.uniform(key, shape)
        if self.horizon is not None:
            u = u * self._mass_within()
        a, gap = float(np.exp(self.log_a)), float(-np.expm1(self.log_a))
        root = jnp.sqrt(gap**2 + 4 * a * u)
        x = 2 * (1 - u) / (1 + a + root)
        one_minus_x = 2 * u / (gap + root)
        log_x = jnp.where(u < 0.5, jnp.log1p(-one_minus_x), jnp.log(x))
        count = jnp.ceil(log_x / self.log_a)
        count = jnp.clip(count, 1, None if self.horizon is None else self.steps)
        return count.astype(jnp.int32) + (self.first_step - 1)

    def _unbounded_cdf(self, count):
        """P(T <= count) without a horizon, counted from 1."""
        return np.expm1(count * self.log_a) * np.expm1((count + 1) * self.log_a)

    def _mass_within(self) -> float:
        """What the unbounded distribution function is divided by below the horizon."""
        if self.cut == "preserve":
            return float(-np.expm1(2 * self.steps * self.log_a))
        return float(self._unbounded_cdf(self.steps))

    def _log_support(self) -> np.ndarray:
        """log(1 - a^T) as a column, the normaliser of p(t|T)."""
        return np.log(-np.expm1(np.arange(1, self.steps + 1) * self.log_a))[:, None]

    def _log_horizon(self) -> np.ndarray:
        index = np.arange(self.steps)
        table = index * self.log_a + self._log_support()[:, 0] + np.log(-np.expm1(2 * self.log_a))
        table = table - np.log(self._mass_within())
        if self.cut == "preserve":  # the last horizon also stands for every longer one
            table[-1] -= np.log(-np.expm1(self.log_a))
        return table
