"""The images that a study is asked about, by their numbers in a data set."""

from __future__ import annotations

from collections.abc import Sequence

from vit_clt.data.images import ImageData
from vit_clt.errors import InputError


def check_query(query: Sequence[int], data: ImageData) -> None:
    """Refuse numbers of images that the data does not have.

    Raises:
        InputError: there is no number, or one is out of range or given twice (the image would
            count double).
    """
    if not query:
        raise InputError("query", "is empty; expected at least one image.")
    for i, image in enumerate(query):
        if not 0 <= image < len(data):
            raise InputError(
                "query", f"is {image}; expected images from 0 to {len(data) - 1} of {data.name}."
            )
        if image in query[:i]:
            raise InputError("query", f"holds {image} twice; expected different images.")
