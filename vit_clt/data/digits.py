"""The offline data sets: scikit-learn's 1,797 handwritten digits, alone and two to an image.

Source: UCI "Optical Recognition of Handwritten Digits", 8x8 pixels, 16 grey levels, shipped inside
scikit-learn, split once and for all. Nothing is downloaded.

`adding_arrays` puts two digits side by side; the class is the last digit of their sum, which is not
linear in the two digits, so a linear reading of both cannot give it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped, UInt8

NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip
DIGITS_CLASSES = [f"handwritten {word}" for word in NUMBER_WORDS]
N_TEST = 360


def digits_arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images as uint8 "image row column" (0 to 255) and labels as int64 "image".

    The split is stratified with seed 0: 1,437 images for "train", 360 for "test". The shipped
    teacher was trained on "train" alone.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    rows = np.arange(len(digits.target))
    train, test = train_test_split(rows, test_size=N_TEST, stratify=digits.target, random_state=0)
    chosen = {"train": train, "test": test}[split]
    images = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    return images, digits.target[chosen].astype(np.int64)


ADDING_CLASSES = [f"sum ending in {word}" for word in NUMBER_WORDS]
N_PAIRS = {"train": 20_000, "test": 5_000}
SIDE = 16
"""Height and width of an image in pixels: two digits of half that side, left and right."""

# each split draws from its own stream, so that neither size changes the other
_SEEDS = {"train": 0, "test": 1}


class AddingArrays(NamedTuple):
    """The images of a split in row order, their classes and what they are made of."""

    images: UInt8[np.ndarray, "image row column"]
    """0 (paper) to 255 (ink)."""
    labels: Int[np.ndarray, " image"]
    """(left + right) mod 10."""
    left: Int[np.ndarray, " image"]
    right: Int[np.ndarray, " image"]


def adding_arrays(split: str) -> AddingArrays:
    """The pairs of "train" (20,000) or "test" (5,000), the same in every call.

    Both digits of a pair and their heights are drawn evenly and apart from each other, "train" from
    the 1,437 training digits and "test" from the 360 held-out ones: no picture of a digit is in
    both.
    """
    digits, values = digits_arrays(split)
    # RandomState, as its numbers stay the same in every version of NumPy
    draw = np.random.RandomState(_SEEDS[split])
    chosen = draw.randint(len(digits), size=(N_PAIRS[split], 2))
    tops = draw.randint(SIDE // 2 + 1, size=chosen.shape)
    left, right = values[chosen].T
    return AddingArrays(side_by_side(digits[chosen], tops), (left + right) % 10, left, right)


def side_by_side(
    digits: Shaped[np.ndarray, "image 2 8 8"], tops: Int[np.ndarray, "image 2"]
) -> Shaped[np.ndarray, "image 16 16"]:
    """Each pair on one empty image, left and right half, its top rows at `tops` (0 to 8)."""
    half = np.arange(SIDE // 2)
    images = np.zeros((len(digits), SIDE, SIDE), digits.dtype)
    image = np.arange(len(digits))[:, None, None, None]
    row = tops[:, :, None, None] + half[:, None]
    column = np.array([0, SIDE // 2])[:, None, None] + half
    images[image, row, column] = digits
    return images
