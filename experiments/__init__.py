"""The papers' experiments, one command each: `python -m experiments NAME --help`."""
