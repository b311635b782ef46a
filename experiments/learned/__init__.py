"""Optimizers that learn how to step and when to stop (Sander 2017), one command each."""

# name -> (module with main(name, argv), what it does)
COMMANDS = {
    "quadratic": ("experiments.learned.compare", "learn to minimise 10-d quadratic functions"),
    "regression": ("experiments.learned.compare", "learn to fit, and when to stop fitting"),
    "mnist": ("experiments.learned.compare", "learn to train a small network on MNIST"),
    "cifar10": ("experiments.learned.compare", "learn to train a convolutional network"),
    "networks": ("experiments.learned.compare", "learn to train small networks of many kinds"),
    "weights": ("experiments.learned.weights", "train an optimizer that the library ships"),
    "held_out": (
        "experiments.learned.held_out",
        "a shipped optimizer against Adam on what it has never seen",
    ),
    "evaluate": (
        "experiments.learned.compare",
        "test a learned optimizer again, with its figures",
    ),
}
