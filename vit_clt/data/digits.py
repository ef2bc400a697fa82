"""The offline data sets: scikit-learn's 1,797 handwritten digits, alone and two to an image.

The images are those of UCI's "Optical Recognition of Handwritten Digits" (CC BY 4.0), with 8x8
pixels and 16 grey levels. They lie beside this file with their split, so that scikit-learn need not
be imported.

`adding_arrays` puts two digits side by side. The class is the last digit of their sum, which is not
a linear function of the two digits, so that a linear readout of both cannot give it.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from safetensors.numpy import load_file

NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip
DIGITS_CLASSES = [f"handwritten {word}" for word in NUMBER_WORDS]


def digits_arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The images of a split as uint8 "image row column" (0 to 255), and labels as int64 "image".

    The split is stratified with seed 0: 1,437 images for "train", 360 for "test". The shipped
    teacher was trained on "train" alone.
    """
    with as_file(files("vit_clt.data") / "digits.safetensors") as path:
        stored = load_file(path)
    rows = stored[split]
    images = np.rint(stored["images"][rows] * (255 / 16)).astype(np.uint8)
    return images, stored["labels"][rows].astype(np.int64)


ADDING_CLASSES = [f"sum ending in {word}" for word in NUMBER_WORDS]
N_PAIRS = {"train": 20_000, "test": 5_000}
SIDE = 16
"""Height and width of an image in pixels: two digits of half that side, left and right."""

# each split has its own seed, so that the size of one does not change the other
_SEEDS = {"train": 0, "test": 1}


class AddingArrays(NamedTuple):
    """The images of a split, their classes and their two digits."""

    images: UInt8[np.ndarray, "image row column"]
    """0 (paper) to 255 (ink)."""
    labels: Int[np.ndarray, " image"]
    """(left + right) mod 10."""
    left: Int[np.ndarray, " image"]
    right: Int[np.ndarray, " image"]


def adding_arrays(split: str) -> AddingArrays:
    """The pairs of "train" (20,000) or "test" (5,000), the same in every call.

    Both digits of a pair and their heights are drawn uniformly and independently, those of "train"
    from the 1,437 training digits and those of "test" from the 360 held-out ones, so that no image
    of a digit is in both.
    """
    digits, values = digits_arrays(split)
    # RandomState, as its numbers stay the same in every version of NumPy
    draw = np.random.RandomState(_SEEDS[split])
    pairs = draw.randint(len(digits), size=(N_PAIRS[split], 2))
    tops = draw.randint(SIDE // 2 + 1, size=pairs.shape)
    left, right = values[pairs].T
    return AddingArrays(side_by_side(digits[pairs], tops), (left + right) % 10, left, right)


def side_by_side(
    digits: Shaped[np.ndarray, "image 2 8 8"], tops: Int[np.ndarray, "image 2"]
) -> Shaped[np.ndarray, "image 16 16"]:
    """One image a pair: a digit in the left and right half, their top rows at `tops` (0 to 8)."""
    half = np.arange(SIDE // 2)
    images = np.zeros((len(digits), SIDE, SIDE), digits.dtype)
    image = np.arange(len(digits))[:, None, None, None]
    row = tops[:, :, None, None] + half[:, None]
    column = np.array([0, SIDE // 2])[:, None, None] + half
    images[image, row, column] = digits
    return images
