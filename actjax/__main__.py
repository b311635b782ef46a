"""`python -m actjax` says where the commands are."""

import sys

import actjax

print(
    f"actjax {actjax.__version__} is a library: `import actjax`.\n"
    "The papers' experiments are commands of a clone of its repository: run\n"
    "`python -m experiments` from the clone's folder for their list, or `make demo` to start.",
    file=sys.stderr,
)
sys.exit(2)
