"""The tasks of the papers, one a file."""
