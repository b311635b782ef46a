"""Optimizers that learn how to step and when to stop (Sander 2017), one command each."""

# name -> (module with main(argv), what it does): the same form as the experiments' own table
COMMANDS = {
    "quadratic": ("experiments.learned.quadratic", "learn to minimise 10-d quadratic functions"),
    "regression": ("experiments.learned.regression", "learn to fit, and when to stop fitting"),
    "mnist": ("experiments.learned.mnist", "learn to train a small network on MNIST"),
    "cifar10": ("experiments.learned.cifar10", "learn to train a convolutional network"),
    "evaluate": (
        "experiments.learned.evaluate",
        "test a learned optimizer again, with its figures",
    ),
}
