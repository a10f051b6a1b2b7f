"""Pictures of X-rays with their predicted masks, as PNG files."""

import cv2
import numpy as np

from pneumo_lib._files import atomic_write
from pneumo_lib.data.images import resize_image, resize_mask

_SIDES = (512, 1024)  # pixels: range of the longer side, so that the letters fit
_ORANGE, _VERMILION = (0, 159, 230), (0, 94, 213)  # Okabe and Ito (2008), as BGR
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_LINE = 30  # pixels


def draw_overlay(image, mask, caption):
    """X-ray with the mask tinted and outlined, and lines of text below: `(h, w, 3)` uint8, BGR.

    `image` and `mask` are `(height, width)` uint8, the mask of 0 and 1, `caption` a list of ASCII
    texts, the only letters that OpenCV has. The longer side of the picture has 512 to 1024 pixels
    without the caption.
    """
    longest = max(image.shape)
    scale = min(max(longest, _SIDES[0]), _SIDES[1]) / longest
    shape = tuple(max(1, round(scale * side)) for side in image.shape)
    picture = cv2.cvtColor(resize_image(image, shape), cv2.COLOR_GRAY2BGR)
    mask = resize_mask(mask, shape)
    if mask.any():
        inside = mask == 1
        picture[inside] = (0.7 * picture[inside] + 0.3 * np.array(_ORANGE)).astype(np.uint8)
        outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, _VERMILION, 2)
    return np.vstack([picture, *(_line(text, shape[1]) for text in caption)])


def write_png(path, image):
    """Writes `<path>.png` atomically: an image of grey uint8 or uint16, or of BGR uint8."""
    with atomic_write(path.with_name(f"{path.name}.png")) as aside:
        aside.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def _line(text, width):
    """Strip with white letters on black, as large as the width allows."""
    (wide, _), _ = cv2.getTextSize(text, _FONT, 1.0, 1)
    scale = min(0.6, 0.96 * width / wide)
    strip = np.zeros((_LINE, width, 3), np.uint8)
    place = (round(0.02 * width), round(0.7 * _LINE))
    cv2.putText(strip, text, place, _FONT, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return strip
