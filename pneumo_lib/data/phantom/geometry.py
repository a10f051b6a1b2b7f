"""Shapes in cm drawn on a pixel canvas as an X-ray sees them: outlines, bands, rounded bodies.

Lengths are in cm, x to the right of the image (the patient's left), y down, z to the patient's
back; the origin lies on the spine at mid chest.
"""

from typing import NamedTuple

import cv2
import numpy as np


class View(NamedTuple):
    """Where points in cm land: `pixel = matrix @ (x, y, z, 1)` on a canvas of `pixels` squared."""

    pixels: int
    per_cm: float
    matrix: np.ndarray


def view(pixels, *, field=40.0, turn=0.0, yaw=0.0, shift=(0.0, 0.0)):
    """`View` of a `field` cm wide detector, the patient turned in and out of its plane.

    Args:
        pixels: height and width of the canvas.
        field: width of the detector in cm.
        turn: rotation in the image plane, radians.
        yaw: rotation about the patient's long axis, radians; parts in front (z < 0) and
            behind (z > 0) move to opposite sides.
        shift: where the patient's origin lies, cm from the middle of the detector.
    """
    per_cm = pixels / field
    c, s = np.cos(turn), np.sin(turn)
    x, y = np.add(shift, field / 2)
    matrix = np.array([[c, -s, c * np.sin(yaw), x], [s, c, s * np.sin(yaw), y]])
    return View(pixels, per_cm, matrix * per_cm)


def zoom(view, factor):
    """The same view on a canvas with `factor` times as many pixels a side (rounded)."""
    pixels = round(view.pixels * factor)
    ratio = pixels / view.pixels
    return View(pixels, view.per_cm * ratio, view.matrix * ratio)


def place(view, points, z=0.0):
    """`(n, 2)` cm -> `(n, 2)` pixels; `z` (cm behind the mid plane) is a number or `(n,)`."""
    flat, depth, shift = view.matrix[:, :2], view.matrix[:, 2], view.matrix[:, 3]
    return points @ flat.T + np.multiply.outer(z, depth) + shift


def smooth(points, *, closed=False, rounds=3):
    """Round the corners of a polyline (Chaikin's corner cutting); open ends stay in place."""
    points = np.asarray(points, float)
    for _ in range(rounds):
        after = np.roll(points, -1, axis=0) if closed else points[1:]
        before = points if closed else points[:-1]
        cut = np.stack([0.75 * before + 0.25 * after, 0.25 * before + 0.75 * after], 1)
        cut = cut.reshape(-1, 2)
        points = cut if closed else np.vstack([points[:1], cut, points[-1:]])
    return points


def ellipse(width, height, *, centre=(0.0, 0.0)):
    """Closed outline `(40, 2)` of an upright ellipse; half width, half height and centre in cm."""
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([width * np.cos(turn), height * np.sin(turn)], 1) + centre


def ribbon(line, width):
    """Closed outline of a band along the polyline `line`; `width` in cm, a number or one each."""
    along = np.gradient(line, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    side = along[:, ::-1] * [1, -1] * np.broadcast_to(np.divide(width, 2), len(line))[:, None]
    return np.vstack([line + side, (line - side)[::-1]])


def _fixed(view, outlines, z):
    outlines = list(outlines)
    pixels = place(view, np.concatenate(outlines), z)
    pixels = np.round(pixels * 16).astype(np.int32)  # 4 fractional bits, as cv2 wants
    return np.split(pixels, np.cumsum([len(outline) for outline in outlines])[:-1])


def fill(view, outlines, *, z=0.0, value=255, onto=None):
    """Antialiased filled outlines on a uint8 canvas (a new one, or drawn over `onto`)."""
    canvas = np.zeros((view.pixels, view.pixels), np.uint8) if onto is None else onto
    for outline in _fixed(view, outlines, z):
        cv2.fillPoly(canvas, [outline], value, cv2.LINE_AA, 4)
    return canvas


def stroke(view, lines, *, width, z=0.0, value=255, onto=None, closed=False):
    """Antialiased polylines `width` cm thick (at least one pixel) on a uint8 canvas."""
    canvas = np.zeros((view.pixels, view.pixels), np.uint8) if onto is None else onto
    thick = max(1, round(width * view.per_cm))
    cv2.polylines(canvas, _fixed(view, lines, z), closed, value, thick, cv2.LINE_AA, 4)
    return canvas


def bulge(view, filled, radius):
    """Chord of a rounded body: 0 at the edge of a filled outline, 1 from `radius` cm inward.

    A ray at depth d inside a circle of radius R crosses `2 sqrt(d (2R - d))`: as a share of
    the diameter `sqrt(u (2 - u))`, with u = d / R cut at 1.
    """
    u = cv2.distanceTransform(filled, cv2.DIST_L2, 3)
    u *= 1 / (radius * view.per_cm)
    np.minimum(u, 1, out=u)
    return np.sqrt(u * (2 - u))
