"""What is raised to the user: bad input, and a stop that was asked for."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input, in one sentence: the field, what was found, what was expected.

    The command line prints it alone and exits with status 2.
    """


class Stopped(Exception):
    """A run was asked to stop, and did so after a whole step."""
