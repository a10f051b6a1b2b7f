"""Radiography of a drawn chest: attenuation, scatter, noise, display, and objects on the patient.

Sources of the constants are beside them; where a range stands instead of a number, images of
different machines and exposures differ by about that much.
"""

import cv2
import numpy as np

from pneumo_lib.data.phantom.geometry import ellipse, fill, ribbon, smooth, stroke

# Linear attenuation in 1/cm at 60 keV, about the mean energy of a 120 kV chest exposure: mass
# attenuation (NIST X-ray tables 3 and 4, ICRU-44 tissues) times density in g/cm³.
ATTENUATION = {
    "soft": 0.2048 * 1.06,
    "lung": 0.2053 * 0.26,  # inflated: three quarters of it is air
    "bone": 0.3148 * 1.92,
    "metal": 1.205 * 7.87,  # iron
}


def transmission(thickness):
    """Share of the primary X-rays that pass: `exp(-sum of attenuation x thickness)`.

    `thickness` maps materials (the keys of `ATTENUATION`) to arrays of one shape, cm along each
    ray; the result has that shape. Beer-Lambert law; Hubbell and Seltzer, NIST,
    doi:10.18434/T4D01F.
    """
    return np.exp(-sum(ATTENUATION[material] * depth for material, depth in thickness.items()))


def expose(thickness, *, size, field, rng):
    """Optical density `-log(signal)` that a `size` x `size` detector of `field` cm records.

    Adds scattered to primary radiation (a broad blur of it, a fifth to a half of the signal
    behind an anti-scatter grid) and quantum noise.
    """
    primary = cv2.resize(transmission(thickness), (size, size), interpolation=cv2.INTER_AREA)
    scatter = _broad(primary, field=field, sigma=4.5)
    signal = primary + rng.uniform(0.05, 0.18) * scatter
    quanta = 10 ** rng.uniform(4.0, 5.3) * 100 * (field / size) ** 2  # per pixel; 1e6 to 2e7 a cm²
    # A Poisson count of hundreds and more is normal to well below one grey level.
    signal *= quanta
    signal += np.sqrt(signal) * rng.standard_normal(signal.shape, dtype=np.float32)
    return -np.log(np.maximum(signal, 1) / quanta)


def display(density, *, field, rng):
    """Grey levels (uint8) of an optical density, as a digital system displays it.

    Broad differences are compressed and local ones kept, then a window and a curve follow, so
    that lung, heart and bone are all visible at once.
    """
    local = density + rng.uniform(0.5, 1.2) * (density - _broad(density, field=field, sigma=3.0))
    low, high = rng.uniform(-0.5, 0.1), np.quantile(local[::4, ::4], 0.95)
    grey = np.maximum((local - low) / (high - low), 0) ** rng.uniform(1.4, 2.3)
    bend = rng.uniform(0.3, 1.6)  # of the shoulder, where dense parts lose contrast
    grey = rng.uniform(185, 230) * (1 - np.exp(-bend * grey)) / (1 - np.exp(-bend))
    return np.clip(grey, 0, 250).astype(np.uint8)


def _broad(image, *, field, sigma):
    small = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma * 32 / field)
    return cv2.resize(small, image.shape, interpolation=cv2.INTER_CUBIC)


def mimics(view, *, rng):
    """Objects and skin folds that draw bright or dark lines without being disease.

    They are as frequent in healthy as in diseased chests, so that none gives the answer away.
    Returns the thickness in cm along each ray to add as soft tissue (`(pixels, pixels)` float32,
    or 0), the thickness of metal, and the names of what was drawn.
    """
    metal = np.zeros((view.pixels, view.pixels), np.uint8)
    kinds = {"skin fold": (0.25, _skin_fold), "tube": (0.25, _tube), "leads": (0.25, _leads)}
    kinds["marker"] = 0.85, _marker
    drawn = {name: draw(view, rng, metal) for name, (p, draw) in kinds.items() if rng.random() < p}
    return drawn.get("skin fold", 0), metal * np.float32(0.35 / 255), list(drawn)


def _skin_fold(view, rng, _):
    """A fold of skin: thick along one edge, fading to the other side; it runs off the lung."""
    sign, x = rng.choice([-1, 1]), rng.uniform(5.5, 11)
    line = np.array([[x + rng.normal(0, 2), -14], [x, -6], [x + 1, 1], [x + rng.normal(2, 1.5), 9]])
    line = smooth(line[: rng.integers(3, 5)] * [sign, 1])
    width = rng.uniform(1.5, 3.5)
    band = ribbon(line, 2 * width)
    half = band[: len(line)] if rng.random() < 0.5 else band[len(line) :][::-1]
    edge = fill(view, [np.vstack([line, half[::-1]])]) * np.float32(rng.uniform(0.8, 1.8) / 255)
    kernel = (round(width * view.per_cm) | 1,) * 2
    ridge = cv2.blur(stroke(view, [line[5:-5]], width=width), kernel)  # short: its ends fade out
    return edge * ridge * np.float32(1 / 255)


def _tube(view, rng, layer):
    """A drain through the chest wall, or a catheter from the neck to the heart."""
    if rng.random() < 0.5:
        sign = rng.choice([-1, 1])
        line = np.array([[19, 6], [14, 4], [10.5, 0], [9, -5], [6, rng.uniform(-11, -6)]])
        line[:, 1] += rng.normal(0, 2)
        wall = ribbon(smooth(line * [sign, 1]), 0.7)
        stroke(view, [wall], width=0.06, value=18, onto=layer, closed=True)
    else:
        start = [rng.choice([-5.0, 5.0]), -19]
        line = np.array([start, [-2.5, -12], [-2.4, -6], [-2.6, rng.uniform(-2, 3)]])
        stroke(view, [smooth(line)], width=0.2, value=12, onto=layer)


def _leads(view, rng, layer):
    """Wires of an electrocardiogram and their electrodes."""
    for _ in range(rng.integers(2, 5)):
        end = np.array([rng.uniform(-13, 13), rng.uniform(-11, 12)])
        start = np.array([rng.choice([-22.0, 22.0]), rng.uniform(-5, 25)])
        knee = (start + end) / 2 + rng.normal(0, 4, 2)
        wire = smooth(np.array([start, knee, end + rng.normal(0, 2, 2), end]), rounds=4)
        stroke(view, [wire], width=0.1, value=25, onto=layer)
        fill(view, [ellipse(0.35, 0.35, centre=end)], value=60, onto=layer)


def _marker(view, rng, layer):
    """The side letter of lead that the radiographer puts on the cassette, and sometimes a word."""
    sign, row = rng.choice([-1, 1]), rng.uniform(0.04, 0.18)
    corner = np.array([0.5 + sign * rng.uniform(0.36, 0.44), row]) * view.pixels
    height = view.pixels / 768 * rng.uniform(0.8, 1.3)
    font, thick = cv2.FONT_HERSHEY_SIMPLEX, max(1, view.pixels // 170)
    letter = "L" if sign > 0 else "R"
    cv2.putText(layer, letter, corner.astype(int).tolist(), font, height, 255, thick, cv2.LINE_AA)
    if rng.random() < 0.3:
        below = np.add(corner, np.multiply([-0.06, 0.05], view.pixels)).astype(int).tolist()
        cv2.putText(layer, "PORTABLE", below, font, height / 3, 200, 1, cv2.LINE_AA)


def collimate(image, *, rng):
    """Grey image with, one time in four, edges blacked as by the shutters of the X-ray tube."""
    if rng.random() > 0.25:
        return image
    left, top, right, bottom = rng.choice([-0.1, -0.1, 0.02, 0.05], 4)
    corners = np.array([[left, top], [1 - right, top], [1 - right, 1 - bottom], [left, 1 - bottom]])
    c, s = np.cos(turn := rng.normal(0, 0.015)), np.sin(turn)
    corners = ((corners - 0.5) @ [[c, s], [-s, c]] + 0.5) * len(image) * 16
    window = np.zeros_like(image)
    cv2.fillPoly(window, [np.round(corners).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return cv2.multiply(image, window, scale=1 / 255)
