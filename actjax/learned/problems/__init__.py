"""Families of problems to learn to optimize on: each draws one problem and scores one iterate."""

from actjax.learned.problems.family import Family as Family
from actjax.learned.problems.quadratic import quadratic as quadratic
from actjax.learned.problems.regression import regression as regression

__all__ = ["Family", "quadratic", "regression"]
