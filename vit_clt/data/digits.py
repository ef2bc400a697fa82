"""The offline data set: scikit-learn's 1,797 handwritten digits, split once and for all.

Source: UCI "Optical Recognition of Handwritten Digits", 8x8 pixels, 16 grey levels, shipped inside
scikit-learn. Nothing is downloaded.
"""

from __future__ import annotations

import numpy as np

NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip
CLASS_NAMES = [f"handwritten {word}" for word in NUMBER_WORDS]
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
