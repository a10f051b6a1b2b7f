"""Thickness maps of a chest: how many cm of each material one X-ray crosses in each pixel.

The axes are those of `phantom.geometry`. Outlines follow ordinary frontal radiographs; no
image of a patient was traced.
"""

from itertools import product

import cv2
import numpy as np

from pneumo_lib.data.phantom.geometry import bulge, ellipse, fill, ribbon, smooth, stroke, zoom

WALL = [  # inner face of the rib cage, from the apex of a lung down: (x, y)
    (4.3, -13.0), (6.6, -12.2), (8.9, -9.6), (10.6, -6), (11.9, -2), (12.7, 2), (13.1, 6),
    (13.2, 10), (12.9, 14), (12.2, 18),
]  # fmt: skip
RIGHT_EDGE = [  # right side of the mediastinum: vena cava, hilum, right atrium
    (4.5, -15), (3.2, -12.8), (2.4, -10.8), (2.3, -7.5), (2.5, -4), (2.6, -1.6), (3.5, -0.2),
    (4.6, 2.2), (5.0, 5.0), (4.6, 7.8), (3.2, 11), (3.2, 16),
]  # fmt: skip
LEFT_EDGE = [  # left side: subclavian artery, aortic knob, pulmonary trunk, left ventricle
    (4.5, -15), (3.2, -12.8), (2.5, -10.8), (2.5, -8.4), (3.7, -7.3), (4.0, -5.8), (3.2, -4.2),
    (3.4, -2.6), (4.0, -1.3), (5.0, -0.2), (7.0, 1.8), (8.3, 4.6), (8.8, 7.6), (8.3, 10.2),
    (6.0, 16),
]  # fmt: skip


def draw_patient(rng):
    """Body build of a patient: a dict of numbers, the same in every image of that patient."""
    female = rng.random() < 0.45
    fat = rng.gamma(2.5, 0.4)  # about 1 on average
    stature = rng.normal(0.93 if female else 1.0, 0.04)
    return {
        "sex": "F" if female else "M",
        "stature": stature,
        "size": rng.normal(1.0, [0.06, 0.05]) * stature,  # breadth, length; 1 as drawn here
        "fat": fat,
        "breast": rng.uniform(1.5, 4.5) * (0.5 + 0.5 * fat) if female else 0.0,
        "heart": rng.normal(0.95, 0.12),
        "knob": rng.uniform(0.6, 1.3),
        "bow": rng.normal(0, 0.35),
        "rib_step": rng.normal(2.25, 0.06),
        "rib_slope": rng.normal(3.4, 0.4),
        "shoulder": rng.normal(0, 0.7),
        "bubble": rng.normal(0.5, 0.5),
        "bone": rng.uniform(0.8, 1.5),
        "vessels": int(rng.integers(2**31)),
    }


def lungs(patient, *, breath=0.0):
    """Projected outlines of both lungs, `{"right": (n, 2), "left": (n, 2)}` in cm.

    Chest wall from the apex down, then along the diaphragm to the mediastinum and up again.
    `breath` is how much deeper than usual the patient breathed in, cm of diaphragm.
    """
    outlines = {}
    for side, edge in edges(patient).items():
        sign = 1 if side == "left" else -1
        wall, below = smooth(WALL), diaphragm(side, breath) * [sign, 1]
        wall = wall[wall[:, 1] < np.interp(wall[:, 0], below[::-1, 0], below[::-1, 1])]
        inner = np.interp(below[:, 1], edge[:, 1], edge[:, 0])
        below = below[(below[:, 0] < wall[-1, 0]) & (below[:, 0] > inner)]
        edge = edge[(edge[:, 1] < below[-1, 1]) & (edge[:, 1] > wall[0, 1])][::-1]
        outlines[side] = np.vstack([wall, below, edge]) * [sign, 1] * patient["size"]
    return outlines


def diaphragm(side, breath):
    """`(60, 2)` dome of the diaphragm in cm, from the chest wall towards the spine."""
    sign, middle, top = (-1, 6.3, 8.0) if side == "right" else (1, 6.9, 9.0)
    across = np.linspace(14, 2, 60)
    return np.stack([sign * across, top + breath + 0.1 * (across - middle) ** 2], 1)


def edges(patient):
    """Both edges of this patient's mediastinum in cm, x counted away from the midline."""
    left = np.array(LEFT_EDGE)
    left[9:14, 0] = 4.0 + (left[9:14, 0] - 4.0) * patient["heart"]
    left[4:6, 0] += patient["knob"] - 1
    right = np.array(RIGHT_EDGE)
    right[6:10, 0] += 2 * (patient["heart"] - 1)
    return {"right": smooth(right), "left": smooth(left)}


def vessel_tree(side, patient, *, rng):
    """Branching vessels of one lung, three generations of tapering paths from the hilum.

    Each branch leaves its parent's path somewhere and is shorter and thinner; at a fork in three
    the radii shrink by about 3 ** (-1 / 3), Murray's law (1926, doi:10.1085/jgp.9.6.835).
    Returns `[(paths (n, 7, 2) in cm, radius at their start in cm), ...]`, the trunks first.
    """
    sign = -1 if side == "right" else 1
    start = np.array([[2.9, -1.0 if side == "right" else -1.8]]) + rng.normal(0, 0.35, (13, 2))
    heading = np.array([-1.4, -1.1, -0.8, -0.5, -0.2, 0.1, 0.5, 0.8, 1.0, 1.15, 1.3, 1.45, 1.6])
    heading += rng.normal(0, 0.12, 13)  # 0 is outward, 1.57 down
    length = 9 + 4 * np.sin(heading) ** 2 + rng.normal(0, 1, 13)
    generations = []
    for radius, children, spread in ((0.28, 6, 0.55), (0.14, 5, 0.75), (0.075, 0, 0)):
        bend = np.cumsum(rng.normal(0, 0.26, (len(start), 6)), 1)
        angle = heading[:, None] + bend
        steps = np.stack([np.cos(angle), np.sin(angle)], 2) * (length / 6)[:, None, None]
        paths = start[:, None] + np.concatenate([np.zeros_like(steps[:, :1]), steps], 1).cumsum(1)
        generations.append((paths * [sign, 1] * patient["size"], radius))
        if children:
            parent = np.repeat(np.arange(len(paths)), children)
            knot = rng.integers(1, 6, len(parent))
            start = paths[parent, knot]
            turn = rng.choice([-1, 1], len(parent)) * rng.normal(spread, 0.2, len(parent))
            heading = angle[parent, knot] + turn
            length = length[parent] * rng.uniform(0.25, 0.55, len(parent))
    return generations


def ribs(patient):
    """Centre lines of eleven rib pairs, `{"back": [(line (n, 2), z (n,)), ...], "front": ...}`.

    A rib is a tilted ring: it leaves the spine at the back, slopes down to the side wall and on
    to its end in front, where cartilage (invisible here) takes over.
    """
    halves = {"back": [], "front": []}
    t = np.linspace(0.0, np.pi, 40)
    for k in range(11):
        top = -12.6 + patient["rib_step"] * k
        slope = patient["rib_slope"] * (0.7 + 0.05 * k)
        side = np.interp(top + slope, *np.transpose(WALL)[::-1]) + 0.3 if k else 5.6
        x = 1.6 + (side - 1.6) * np.sin(t) ** 0.85
        y = top - 0.9 * np.sin(np.minimum(2 * t, np.pi)) + slope * (1 - np.cos(t))
        z = 7.5 * np.cos(t)
        end = 0.72 - 0.012 * max(k - 5, 0)  # the lower ribs end further to the side
        for sign in (-1, 1):
            line = np.stack([sign * x, y], 1) * patient["size"]
            halves["back"].append((line[t <= np.pi / 2], z[t <= np.pi / 2]))
            if 0 < k < 10:
                front = (t >= np.pi / 2) & (t <= end * np.pi)
                halves["front"].append((line[front], z[front]))
    return halves


def solid_body(view, patient, *, arms):
    """Soft tissue in cm along each ray, as if the chest held no air and no bone."""
    half = 15.6 + 1.5 * patient["fat"]
    trunk = np.array(
        [[0, -30], [5.2, -30], [5.8, -18], [9, -15.6], [14, -13.6], [18.5, -11.5], [20.5, -8],
         [half + 1.5, -3], [half, 2], [half - 0.3, 8], [half + 0.2, 14], [half + 1, 30], [0, 30]]
    )  # fmt: skip
    trunk[5:7, 1] += patient["shoulder"]
    trunk = smooth(np.vstack([trunk, trunk[::-1] * [-1, 1]]) * patient["size"])
    coarse = zoom(view, 1 / 2)
    rows = (np.arange(coarse.pixels) - coarse.matrix[1, 3]) / coarse.per_cm
    depth = np.interp(rows, [-17, -12, -6, 8], [0.75, 0.75, 1, 1.08]).astype(np.float32)
    solid = bulge(coarse, fill(coarse, [trunk]), 7.5)
    solid *= depth[:, None] * (17.0 + 3.2 * patient["fat"])
    limbs = [ribbon(limb, 8.0 + patient["fat"]) for limb in upper_arms(patient, arms=arms)]
    np.maximum(solid, 9.0 * bulge(coarse, fill(coarse, limbs), 4.5), out=solid)
    solid += breasts(coarse, patient)
    solid = cv2.GaussianBlur(solid, (0, 0), 0.25 * coarse.per_cm)  # no creases in skin
    return cv2.resize(solid, (view.pixels, view.pixels), interpolation=cv2.INTER_CUBIC)


def breasts(view, patient):
    """Soft tissue of both breasts in cm along each ray: a round lower border, a faint upper one."""
    if not patient["breast"]:
        return np.float32(0)
    size, low = 0.75 + 0.08 * patient["breast"], 2.0 + 0.8 * patient["breast"]
    discs = [ellipse(5.6 * size, 6.2 * size, centre=(8.2 * sign, low)) for sign in (-1, 1)]
    discs = [disc * patient["size"] for disc in discs]
    rows = (np.arange(view.pixels) - view.matrix[1, 3]) / view.per_cm
    hang = np.interp(rows - low, [-7, 5], [0.0, 1.0]).astype(np.float32)[:, None]
    return patient["breast"] * hang * bulge(view, fill(view, discs, z=-9.0), 4.0)


def upper_arms(patient, *, arms):
    """Centre lines of both arms from the shoulder joint, held `arms` radians off the body."""
    shoulder = np.array([16.6, -10.3 + patient["shoulder"]])
    elbow = shoulder + 34 * np.array([np.sin(arms), np.cos(arms)])
    return [np.linspace(shoulder, elbow, 8) * [sign, 1] * patient["size"] for sign in (-1, 1)]


def air_space(view, patient, *, breath):
    """Depth of the two pleural spaces in cm along each ray, heart and diaphragm left out."""
    size = patient["size"]
    wall = smooth(WALL)
    cage = np.vstack([wall, wall[::-1] * [-1, 1]]) * size
    depth = 11.0 + 1.2 * patient["fat"] + 2.5 * patient["stature"]
    space = depth * bulge(view, fill(view, [cage]), 11.0)
    edge = edges(patient)
    middle = np.vstack([edge["right"] * [-1, 1], edge["left"][::-1]]) * size
    space *= 1 - 0.95 * bulge(view, fill(view, [middle]), 4.0)  # some lung lies behind the heart
    right, left = (diaphragm(side, breath) * size for side in ("right", "left"))
    floor = np.vstack([right, left[::-1], [[30, 40], [-30, 40]]])
    space *= 1 - bulge(view, fill(view, [floor]), 3.5)  # and some below the domes
    return space


def skeleton(view, patient, *, arms):
    """Cortical bone in cm along each ray: ribs, spine, clavicles, shoulder blades, arms."""
    size = patient["size"]
    total = spine(view, patient).astype(np.float32)
    for half, width, inner, rim in (("back", 1.1, 80, 135), ("front", 1.3, 42, 75)):
        layer = np.zeros((view.pixels, view.pixels), np.uint8)
        for line, z in ribs(patient)[half]:
            band, depth = ribbon(line, width), np.concatenate([z, z[::-1]])
            fill(view, [band], z=depth, value=inner, onto=layer)
            stroke(view, [band], z=depth, width=0.1, value=rim, onto=layer)
        cv2.accumulate(layer, total)
    layer = np.zeros((view.pixels, view.pixels), np.uint8)
    for arm in upper_arms(patient, arms=arms):
        shaft = ribbon(arm, np.interp(np.arange(8), [0, 1], [3.0, 2.2]))
        fill(view, [shaft], value=130, onto=layer)
        stroke(view, [shaft], width=0.35, value=190, onto=layer)
        fill(view, [ellipse(2.3, 2.3, centre=arm[0])], value=190, onto=layer)
    blade = np.array([[14.6, -11.0], [13.0, -6.5], [12.4, -1.5], [13.2, 1.5], [14.0, 0.5],
                      [15.2, -5.5], [16.2, -9.0]])  # fmt: skip
    clavicle = np.array([[1.3, -8.6], [3.5, -9.3], [7.5, -10.2], [11, -11.9], [15.2, -12.3]])
    for sign in (-1, 1):
        bone = smooth(np.add(blade, [0, patient["shoulder"]]), closed=True) * [sign, 1] * size
        fill(view, [bone], z=6.0, value=75, onto=layer)
        stroke(view, [bone], z=6.0, width=0.3, value=160, closed=True, onto=layer)
        lift = np.linspace(0, patient["shoulder"], 5)[:, None] * [0, 1]
        bar = ribbon(smooth(clavicle + lift) * [sign, 1] * size, 1.25)
        fill(view, [bar], z=-5.0, value=130, onto=layer)
        stroke(view, [bar], z=-5.0, width=0.14, value=215, onto=layer)
    cv2.accumulate(layer, total)
    return total * (patient["bone"] / 255)


def spine(view, patient):
    """Vertebral bodies with their end plates and pedicles, 255 for 1 cm of cortical bone."""
    layer = np.zeros((view.pixels, view.pixels), np.uint8)
    body = np.array([[-1.6, -0.95], [1.6, -0.95], [1.4, 0], [1.6, 0.95], [-1.6, 0.95], [-1.4, 0]])
    for k, y in enumerate(np.arange(-19, 22, 2.3)):
        centre = np.array([patient["bow"] * np.sin(y / 6), y])
        bone = smooth(body, closed=True, rounds=1) * (0.82 + 0.02 * k) + centre
        bone *= patient["size"]
        fill(view, [bone], z=4.0, value=85, onto=layer)
        stroke(view, [bone], z=4.0, width=0.12, value=115, closed=True, onto=layer)
        rings = [ellipse(0.35, 0.45, centre=np.add(centre, [x, -0.2])) for x in (-1.15, 1.15)]
        rings = [ring * patient["size"] for ring in rings]
        stroke(view, rings, z=6.0, width=0.12, value=135, closed=True, onto=layer)
    return layer


def gas(view, patient, *, breath):
    """Air outside the lungs in cm along each ray: trachea, main bronchi, stomach bubble."""
    bend = 0.4 * patient["knob"]  # the aortic arch pushes the trachea to the patient's right
    pipe = [(0.0, -22), (0.0, -13), (-bend, -7), (0.1, -4.2)]
    bronchi = [[(0.0, -4.8), (-1.2, -3.1), (-2.4, -2.0)], [(0.1, -4.8), (1.6, -3.5), (3.0, -2.5)]]
    tubes = [ribbon(smooth(pipe), 1.7), *(ribbon(smooth(tube), 1.1) for tube in bronchi)]
    air = 1.1 * bulge(view, fill(view, [tube * patient["size"] for tube in tubes], z=1.0), 0.85)
    if patient["bubble"] > 0.2:
        size, below = patient["bubble"], 10.6 + breath + patient["bubble"]
        bubble = ellipse(2.6 * size, 1.1 * size, centre=(6.0, below)) * patient["size"]
        air += 3 * bulge(view, fill(view, [bubble]), 1.2)
    return air


def vasculature(view, patient, lung, *, moved):
    """Blood in the lung vessels in cm along each ray, at most a quarter of the depth of `lung`.

    `moved` maps "left" or "right" to the function that shrinks the points of that lung.
    """
    rng = np.random.default_rng(patient["vessels"])
    layer = np.zeros((view.pixels, view.pixels), np.uint8)
    trees = {side: vessel_tree(side, patient, rng=rng) for side in ("right", "left")}
    # The finest generation first, the wide ones over it; each path from its outer third inward.
    for generation, end, side in product((2, 1, 0), (6, 4, 2), trees):
        paths, radius = trees[side][generation]
        points = paths[:, end - 2 : end + 1].reshape(-1, 2)
        points = moved[side](points) if side in moved else points
        width = 2 * radius * (1 - end / 8)
        lines, value = points.reshape(-1, 3, 2), int(min(255, 400 * width))
        stroke(view, lines, width=width, value=value, onto=layer)
    return np.minimum(layer * np.float32(2 / 255), 0.25 * lung)  # an artery and a vein


def haze(view, *, rng):
    """Share of the lung that is fluid or dense tissue: fine texture and broad patches."""
    total = np.zeros((view.pixels, view.pixels), np.float32)
    for cells, strength in ((110, 0.022), (45, 0.015), (7, min(0.06, rng.exponential(0.02)))):
        noise = strength * rng.standard_normal((cells, cells), dtype=np.float32)
        total += cv2.resize(noise, total.shape, interpolation=cv2.INTER_CUBIC)
    return np.maximum(total + 0.03, 0)
