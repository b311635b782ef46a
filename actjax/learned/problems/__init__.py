"""Families of problems to learn to optimize on: each draws one problem and scores one iterate."""

from actjax.learned.problems.classifier import Images as Images
from actjax.learned.problems.classifier import accuracy as accuracy
from actjax.learned.problems.classifier import classifier as classifier
from actjax.learned.problems.classifier import convolutional as convolutional
from actjax.learned.problems.classifier import mlp as mlp
from actjax.learned.problems.family import Family as Family
from actjax.learned.problems.networks import convolutions as convolutions
from actjax.learned.problems.networks import networks as networks
from actjax.learned.problems.networks import together as together
from actjax.learned.problems.quadratic import quadratic as quadratic
from actjax.learned.problems.regression import regression as regression

__all__ = [
    "Family",
    "Images",
    "accuracy",
    "classifier",
    "convolutional",
    "convolutions",
    "mlp",
    "networks",
    "quadratic",
    "regression",
    "together",
]
