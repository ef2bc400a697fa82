"""Text that strangers wrote (names of classes, files and data) as it may be shown.

A name may hold escape sequences, which act on a terminal, or begin like a formula, which a
spreadsheet would compute. `printable` and `plain_cell` keep such text as text.
"""

from __future__ import annotations

import re
import unicodedata

_SHOWN_CONTROLS = "\n\t"
# these format characters turn the direction of the text that follows them
_DIRECTIONS = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_PLAIN = re.compile(r"-|[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def printable(text: str) -> str:
    """The text without characters that act on a terminal.

    Left out are control characters (Unicode category Cc, among them ESC) except line feed and tab,
    and the characters that turn the direction of text.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c
        for c in text
        if c in _SHOWN_CONTROLS or (unicodedata.category(c) != "Cc" and c not in _DIRECTIONS)
    )


def plain_cell(text: str) -> str:
    """The text as a cell of a CSV file that a spreadsheet shows instead of computing it.

    Text that begins with =, +, -, @, tab or carriage return gets an apostrophe in front, which
    spreadsheets take for "this is text" (OWASP, CSV injection). Signed numbers and a dash alone are
    left as they are.
    """
    text = printable(text)
    return f"'{text}" if text.startswith(_FORMULA) and not _PLAIN.fullmatch(text) else text
