"""Collapse of a lung, and what it changes along each X-ray: the pneumothorax of a phantom."""

import cv2
import numpy as np

from pneumo_lib.data.phantom.geometry import bulge, fill, place, stroke, zoom


def collapse(outline, area, *, site, rng):
    """Function that shrinks a lung from the chest wall until the air rim has the wanted area.

    Each boundary point moves towards the hilum by a share that depends on its direction from
    the middle of the lung: most at `site` ("apical", "lateral" or "basal"), little elsewhere.
    Bisection on the area between the two outlines finds the amount. `outline` is `(n, 2)` of the
    inflated lung in cm, `area` in cm², cut at 80 % of the lung; the function maps `(n, 2)` points
    of the inflated lung to their places in the collapsed one.
    """
    sign = np.sign(outline[:, 0].mean())
    middle, hilum = np.array([6.6 * sign, -1.0]), np.array([4.6 * sign, 0.5])
    whole = cv2.contourArea(outline.astype(np.float32))
    share = min(area / whole, 0.8)
    towards = {"apical": 75, "lateral": 10, "basal": -45}[site] + rng.normal(0, 8)
    spread = rng.uniform(11, 22) + 170 * share
    lobes = rng.normal(0, 0.1, 3)[:, None], rng.uniform(0, 2 * np.pi, 3)[:, None]

    def moved(points, amount):
        away = points - middle
        degrees = np.degrees(np.arctan2(-away[:, 1], sign * away[:, 0]))  # 0 outward, 90 up
        pull = np.exp(-0.5 * ((degrees - towards) / spread) ** 2)
        waves = np.sin(np.outer([2, 3, 4], np.radians(degrees)) + lobes[1])
        pull *= 1 + (lobes[0] * waves).sum(0)
        inward = np.maximum(degrees - 95, np.maximum(-degrees - 75, 0))
        pull *= np.exp(-0.5 * (inward / (9 + 70 * share)) ** 2)  # the hilum holds the lung there
        pull = amount * np.maximum(pull - 0.04, 0)
        return points + (pull / (1 + pull))[:, None] * (hilum - points)

    low, high = 0.0, 60.0
    for _ in range(30):
        amount = (low + high) / 2
        rim = whole - cv2.contourArea(moved(outline, amount).astype(np.float32))
        low, high = (amount, high) if rim < share * whole else (low, amount)
    return lambda points: moved(points, amount)


def air_rim(view, whole, shrunk):
    """Changes along each ray where a lung shrinks from outline `whole` to `shrunk`, both float32.

    First a factor on the depth of lung tissue: 0 in the rim, and in the lung above 1 (the same
    tissue in less room) except where it rounds off towards its new edge. Then the cm of visceral
    pleura, which the rays graze along the new edge.
    """
    lost = 1 - cv2.contourArea(np.float32(shrunk)) / cv2.contourArea(np.float32(whole))
    rim = fill(view, [whole])
    filled = 1 + rim * np.float32(0.8 * lost / 255)
    fill(view, [shrunk], value=0, onto=rim)
    inside = (rim < 128).astype(np.uint8)
    filled *= 0.5 * inside + 0.5 * bulge(view, inside, 1.5)
    gap = np.hypot(*(shrunk - whole).T)
    free = gap > 0.1 * gap.max()
    lines = [shrunk[k : k + 2] for k in np.flatnonzero(free[:-1] & free[1:])]
    return filled, stroke(view, lines, width=0.1) * np.float32(1.1 / 255)


def rim_mask(view, whole, shrunk, *, size):
    """Mask `(size, size)` of the air rim, uint8 of 0 and 1, with the area of the rim.

    Its pixels are those that the rim covers most, also of a rim thinner than a pixel.
    """
    fine = zoom(view, 6 * size / view.pixels)
    rim = np.zeros((fine.pixels, fine.pixels), np.uint8)
    for outline, value in ((whole, 36), (shrunk, 0)):
        points = np.round(place(fine, outline)).astype(np.int32)
        cv2.fillPoly(rim, [points], value)  # not antialiased: what they share must vanish
    covered = rim.reshape(size, 6, size, 6).mean((1, 3))
    pixels = max(round(covered.sum() / 36), 1)
    return (covered >= max(np.sort(covered, axis=None)[-pixels], 1)).astype(np.uint8)
