"""The one exception a user's bad input raises."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input, in one sentence: the field, what was found, what was expected.

    The command line prints it alone and exits with status 2.
    """
