"""Images of every bit depth and palette, brought to 8 bits a channel before preprocessing."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFile


def eight_bit(image: Image.Image) -> Image.Image:
    """The same picture in a mode that PIL interpolates and converts to RGB without loss of range.

    - 16-bit grey (modes I;16, I;16B, I;16L, I;16N, and I with values up to 65,535) becomes 8-bit
      grey, round(v / 257): 0 stays 0, 65,535 becomes 255.
    - palette images become RGB, or RGBA where the palette is transparent, and 1-bit images become
      grey; as they are, PIL resizes both by nearest neighbour.
    - all others are returned as they are: grey, grey with alpha, RGB, RGBA (the preprocessing drops
      alpha) and CMYK (which it converts). PIL reads 16-bit colour PNGs at 8 bits itself.

    Of an animation this is the frame that is current: the first, when just opened.

    Raises:
        ValueError: 32-bit values, whose range is not known.
    """
    if isinstance(image, ImageFile.ImageFile):
        with image:  # of an animation PIL keeps the file open, for the other frames
            image = image.copy()
    if image.mode in ("P", "PA"):
        transparent = image.mode == "PA" or "transparency" in image.info
        return image.convert("RGBA" if transparent else "RGB")
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        sixteen = image.mode != "F" and values.min() >= 0 and values.max() <= 65535
        if not sixteen:
            raise ValueError(
                f"its values run from {values.min()} to {values.max()} in mode {image.mode}, "
                "expected 8 or 16 bits a channel"
            )
        # PIL's own conversion cuts values off at 255, so that most of the image is white
        return Image.fromarray(np.rint(values / 257).astype(np.uint8))
    return image
