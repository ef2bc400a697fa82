"""The exceptions of this package: bad input, and a run that was stopped on request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Bad input, in one sentence: the field, what was found, what was expected.

    The command line prints it alone, with the flags of the arguments that it names, and exits with
    status 2.

    Args:
        *sentence: the name of the refused argument and what follows it, so that
            `InputError("k", "is 0; expected at least 1.")` reads "k is 0; expected at least 1."; or
            a whole sentence, if no argument is its subject.
        remedy: name of another argument that would allow what is refused; the sentence then ends
            with ", or" and its name.
    """

    def __init__(self, *sentence: str, remedy: str | None = None):
        super().__init__(*sentence)
        self.remedy = remedy

    @property
    def field(self) -> str | None:
        """The name of the refused argument, or None if none is the subject of the sentence."""
        return self.args[0] if len(self.args) > 1 else None

    def __str__(self) -> str:
        return self.spelled(str)

    def spelled(self, spelling: Callable[[str], str]) -> str:
        """The sentence with `spelling(name)` in place of an argument's name, e.g. its flag."""
        *field, sentence = self.args
        text = " ".join([*map(spelling, field), sentence])
        if self.remedy is None:
            return text
        return f"{text.removesuffix('.')}, or {spelling(self.remedy)}."

    def without_remedy(self) -> str:
        """The sentence without its remedy, for an error that wraps this one."""
        return str(InputError(*self.args))


@contextmanager
def renamed(**names: str) -> Iterator[None]:
    """Call a refused argument by the name its caller was given it under: `renamed(old="new")`."""
    try:
        yield
    except InputError as error:
        if error.field not in names:
            raise
        new = type(error)(names[error.field], error.args[1], remedy=error.remedy)
        raise new from error


class Stopped(Exception):
    """A run was asked to stop, and did so after a whole step."""

    by_keyboard: bool = False
    """Whether it was asked by Ctrl-C."""
