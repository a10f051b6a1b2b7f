"""Phantoms: the same image for the same seed, physics by hand, the files of a set."""

import json
import math

import cv2
import numpy as np
import pandas as pd
import pytest

from pneumo_lib.data.phantom import anatomy, collapse, geometry, radiography
from pneumo_lib.data.phantom.draw import describe, draw_phantom, make_phantoms

SMALL = {"size": 64, "prevalence": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_phantoms(tmp_path_factory.mktemp("phantoms") / "new", count=24, workers=1, **SMALL)


@pytest.fixture(scope="module")
def twins():
    """Ten chests drawn with and, otherwise the same, without a pneumothorax."""
    return [
        (*draw_phantom(index, prevalence=1.0), draw_phantom(index, prevalence=0.0)[0])
        for index in range(10)
    ]


def collapsed(side, area, *, site, pixels, patient=0, seed=1):
    """View, outline of a lung, the function that shrinks it, and the mask of the air rim."""
    view = geometry.view(pixels)
    whole = anatomy.lungs(anatomy.draw_patient(np.random.default_rng(patient)))[side]
    shrink = collapse.collapse(whole, area, site=site, rng=np.random.default_rng(seed))
    return view, whole, shrink, collapse.rim_mask(view, whole, shrink(whole), size=pixels)


def described(count, *, seed=0, prevalence=0.22):
    return pd.DataFrame([describe(i, seed=seed, prevalence=prevalence) for i in range(count)])


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.png"))}


# --- one image ---------------------------------------------------------------------------------


def test_draw_phantom_gives_one_image_for_each_seed_and_index():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    image, mask, info = draw_phantom(7, size=96, seed=3)
    again = draw_phantom(7, size=96, seed=3)
    np.testing.assert_array_equal(image, again[0])
    np.testing.assert_array_equal(mask, again[1])
    assert info == again[2]
    for other in (draw_phantom(8, size=96, seed=3), draw_phantom(7, size=96, seed=4)):
        assert np.abs(image.astype(int) - other[0]).mean() > 5
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("size", [64, 100, 256])
def test_draw_phantom_returns_a_grey_image_and_a_mask_of_zero_and_one(size):
    image, mask, info = draw_phantom(2, size=size, prevalence=1.0)
    assert image.shape == mask.shape == (size, size)
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    assert info["area"] == mask.sum()
    assert info["side"] in ("left", "right")


def test_draw_phantom_shows_the_same_chest_at_every_size():
    small, _, info = draw_phantom(4, size=128)
    large, _, same = draw_phantom(4, size=256)
    large = cv2.resize(large, (128, 128), interpolation=cv2.INTER_AREA)
    assert info["mimics"] == same["mimics"]
    assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.95


def test_a_pneumothorax_lies_on_its_side_of_the_image(twins):
    for _, mask, info, _ in twins:
        column = np.flatnonzero(mask.any(0)).mean()
        assert (column > mask.shape[1] / 2) == (info["side"] == "left")


def test_a_pneumothorax_is_darker_than_the_lung_that_was_there(twins):
    for image, mask, _, healthy in twins:
        change = image.astype(float) - healthy
        if mask.sum() > 200:
            assert change[mask == 1].mean() < -2
        assert abs(change[mask == 0].mean()) < 2.5


def test_vessels_shrink_with_the_lung_and_none_crosses_the_rim_of_air():
    view, whole, shrink, rim = collapsed("left", 60.0, site="lateral", pixels=384)
    patient = anatomy.draw_patient(np.random.default_rng(0))
    lung = anatomy.air_space(view, patient, breath=0.0)
    left = lung * collapse.air_rim(view, whole, shrink(whole))[0]
    deep = (rim == 1) & (lung >= 1)
    before = anatomy.vasculature(view, patient, lung, moved={})
    after = anatomy.vasculature(view, patient, left, moved={"left": shrink})
    assert before[deep].mean() > 0.02
    assert after[deep].mean() < 0.1 * before[deep].mean()
    assert np.abs(before - after)[:, 192:].max() > 0.1


def test_air_rim_holds_no_lung_and_ends_in_a_line_of_pleura():
    view, whole, shrink, rim = collapsed("left", 60.0, site="apical", pixels=384)
    filled, pleura = collapse.air_rim(view, whole, shrink(whole))
    deep = cv2.erode(rim, np.ones((9, 9), np.uint8)) == 1
    assert filled[deep].max() == 0
    assert pleura[deep].max() == 0
    assert pleura.max() == pytest.approx(1.1, abs=0.1)  # cm of pleura grazed
    assert filled.max() > 1.1  # the rest of the lung is denser than before


def test_darkness_alone_does_not_find_a_pneumothorax(twins):
    best = 0.0
    for threshold in range(10, 200, 10):
        found = np.array([image < threshold for image, *_ in twins])
        truth = np.array([mask == 1 for _, mask, *_ in twins])
        best = max(best, 2 * (found & truth).sum() / (found.sum() + truth.sum()))
    assert best < 0.3


def test_mimics_are_drawn_on_healthy_and_on_diseased_chests():
    seen = {True: set(), False: set()}
    for index in range(40):
        info = draw_phantom(index, size=64, prevalence=0.5)[2]
        seen[info["has_pneumothorax"]].update(info["mimics"])
    assert seen[True] == seen[False] == {"skin fold", "tube", "leads", "marker"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": -1}, "`index` must be 0 or more"),
        ({"index": 0, "size": 63}, "`size` must be 64 or more.*size=63"),
        ({"index": 0, "seed": -2}, "`seed` must be 0 or more.*seed=-2"),
        ({"index": 0, "prevalence": 1.5}, r"`prevalence` must be in \[0, 1\].*1.5"),
    ],
)
def test_draw_phantom_refuses_settings_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_phantom(**arguments)


# --- many images -------------------------------------------------------------------------------


@pytest.mark.parametrize("prevalence", [0.0, 0.22, 0.5, 1.0])
def test_both_official_parts_hold_the_wanted_share_of_positives(prevalence):
    cases = described(900, seed=5, prevalence=prevalence)
    shares = cases.groupby("official_part")["has_pneumothorax"].mean()
    assert shares["train"] == pytest.approx(prevalence, abs=0.01)
    assert shares["test"] == pytest.approx(prevalence, abs=0.03)


def test_images_are_numbered_within_their_official_part_without_a_gap():
    cases = described(100)
    for _, part in cases.groupby("official_part"):
        assert part["number"].tolist() == list(range(len(part)))


def test_wanted_areas_have_the_quantiles_of_the_real_data_set():
    areas = described(2000, prevalence=1.0)["share"] * 1024**2
    real = {0.05: 1364, 0.25: 4059, 0.5: 8630, 0.75: 18388}
    for quantile, area in real.items():
        assert np.quantile(areas, quantile) == pytest.approx(area, rel=0.1)
    assert 55 <= areas.min() <= areas.max() <= 161421


def test_masks_cover_the_wanted_area():
    for index in range(20):
        _, mask, _ = draw_phantom(index, prevalence=1.0)
        wanted = describe(index, seed=0, prevalence=1.0)["share"] * mask.size
        assert mask.sum() == pytest.approx(wanted, rel=0.15, abs=8)


def test_patients_with_two_images_exist_and_keep_to_one_official_part():
    cases = described(1000)
    images = cases.groupby("patient_id").size()
    assert images.max() == 2
    assert 0.1 < (images == 2).mean() < 0.3
    assert (cases.groupby("patient_id")["official_part"].nunique() == 1).all()
    assert (cases["official_part"] == "test").mean() == pytest.approx(0.11, abs=0.01)


# --- anatomy and physics -----------------------------------------------------------------------


def test_transmission_follows_the_exponential_law_computed_by_hand():
    # 10 cm of soft tissue at 60 keV: 0.2048 cm²/g x 1.06 g/cm³ = 0.21709 /cm -> exp(-2.1709)
    depth = {"soft": np.array([0.0, 10.0, 10.0]), "bone": np.array([0.0, 0.0, 1.0])}
    expected = [1.0, math.exp(-2.1709), math.exp(-2.1709 - 0.3148 * 1.92)]
    np.testing.assert_allclose(radiography.transmission(depth), expected, rtol=1e-4)
    half = math.log(2) / radiography.ATTENUATION["soft"]
    assert radiography.transmission({"soft": np.array([half])})[0] == pytest.approx(0.5)
    assert half == pytest.approx(3.19, abs=0.01)


def test_thicker_bone_is_brighter():
    steps = np.repeat(np.arange(4, dtype=np.float32), 48) * np.ones((192, 1), np.float32)
    thickness = {"soft": np.full_like(steps, 12), "bone": steps}
    rng = np.random.default_rng(0)
    density = radiography.expose(thickness, size=128, field=36.0, rng=rng)
    levels = radiography.display(density, field=36.0, rng=rng).reshape(128, 4, 32).mean((0, 2))
    assert (np.diff(levels) > 5).all()


def test_noise_falls_with_the_square_root_of_the_detector_area_of_a_pixel():
    flat = {"soft": np.full((256, 256), 20, np.float32)}
    noise = [
        radiography.expose(flat, size=size, field=40.0, rng=np.random.default_rng(0)).std()
        for size in (64, 128)
    ]
    assert noise[1] / noise[0] == pytest.approx(2, rel=0.05)


def test_bulge_is_the_chord_of_a_sphere():
    view = geometry.view(200, field=20.0)  # 10 pixels a cm
    filled = geometry.fill(view, [geometry.ellipse(5.0, 5.0)])
    chord = geometry.bulge(view, filled, 5.0)
    row, column = np.mgrid[:200, :200] - 100
    off = np.hypot(row, column) / 10
    expected = np.sqrt(np.maximum(25 - off**2, 0)) / 5
    assert np.abs(chord - expected)[off < 4.5].max() < 0.1
    assert chord[off > 5.2].max() == 0


def test_place_puts_the_patients_left_on_the_right_and_turns_front_against_back():
    view = geometry.view(100, field=10.0)
    np.testing.assert_allclose(geometry.place(view, np.array([[2.0, -3.0]])), [[70, 20]])
    turned = geometry.view(100, field=10.0, yaw=0.1)
    middle = np.zeros((1, 2))
    assert geometry.place(turned, middle, z=-5.0)[0, 0] < 50
    assert geometry.place(turned, middle, z=5.0)[0, 0] > 50


@pytest.mark.parametrize("site", ["apical", "lateral", "basal"])
@pytest.mark.parametrize("area", [2.0, 20.0, 150.0])
def test_collapse_leaves_a_rim_of_the_wanted_area_inside_the_chest_wall(site, area):
    view, whole, _, rim = collapsed("right", area, site=site, pixels=800, patient=3, seed=0)
    wanted = min(area, 0.8 * cv2.contourArea(whole.astype(np.float32)))
    assert rim.sum() / 20**2 == pytest.approx(wanted, rel=0.12, abs=0.1)  # 20 pixels a cm
    assert not rim[geometry.fill(view, [whole]) == 0].any()


# --- the folder --------------------------------------------------------------------------------


def test_make_phantoms_writes_the_layout_of_the_kaggle_release(folder):
    train = pd.read_csv(folder / "stage_1_train_images.csv")
    test = pd.read_csv(folder / "stage_1_test_images.csv")
    patients = pd.read_csv(folder / "patients.csv")
    assert list(train) == list(test) == ["new_filename", "ImageId", "has_pneumo"]
    assert list(patients) == ["ImageId", "patient_id"]
    both = pd.concat([train, test])
    assert len(train) == 20
    assert len(test) == 4
    assert set(both["ImageId"]) == set(patients["ImageId"]) == {f"phantom.0.{k}" for k in range(24)}
    names = {path.name for path in (folder / "png_images").iterdir()}
    assert names == set(both["new_filename"]) == {p.name for p in (folder / "png_masks").iterdir()}


def test_make_phantoms_writes_labels_that_agree_with_name_and_mask(folder):
    tables = [pd.read_csv(folder / f"stage_1_{part}_images.csv") for part in ("train", "test")]
    for row in pd.concat(tables).itertuples():
        mask = cv2.imread(str(folder / "png_masks" / row.new_filename), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (64, 64)
        assert set(np.unique(mask)) == ({0, 255} if row.has_pneumo else {0})
        assert row.new_filename.endswith(f"_{row.has_pneumo}_.png")


def test_make_phantoms_writes_what_draw_phantom_draws(folder):
    table = pd.read_csv(folder / "stage_1_train_images.csv").set_index("ImageId")
    image, mask, _ = draw_phantom(11, **SMALL)
    name = table.loc["phantom.0.11", "new_filename"]
    for part, pixels in (("png_images", image), ("png_masks", 255 * mask)):
        stored = cv2.imread(str(folder / part / name), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(stored, pixels)


def test_make_phantoms_gives_the_same_files_for_any_count_and_number_of_workers(folder, tmp_path):
    many = contents(make_phantoms(tmp_path, count=52, workers=2, **SMALL))
    few = contents(folder)
    assert len(many) == 52
    assert all(many[name] == content for name, content in few.items())


def test_make_phantoms_returns_at_once_when_all_is_there(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert make_phantoms(folder, count=24, **SMALL) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_make_phantoms_draws_only_what_is_missing_after_an_interruption(tmp_path):
    settings = {"count": 8, "workers": 1, **SMALL}
    make_phantoms(tmp_path, **settings)
    (tmp_path / "patients.csv").unlink()
    images = sorted((tmp_path / "png_images").iterdir())
    kept = {path: path.stat().st_mtime_ns for path in images[2:]}
    lost = contents(tmp_path / "png_images")[images[0].name]
    images[0].unlink()
    (tmp_path / "png_masks" / images[1].name).unlink()
    make_phantoms(tmp_path, **settings)
    assert images[0].read_bytes() == lost
    assert (tmp_path / "png_masks" / images[1].name).exists()
    assert {path: path.stat().st_mtime_ns for path in images[2:]} == kept
    assert len(pd.read_csv(tmp_path / "patients.csv")) == 8
    assert json.loads((tmp_path / "phantoms.json").read_text())["count"] == 8


def test_make_phantoms_refuses_a_count_of_zero_and_a_folder_of_other_settings_or_images(tmp_path):
    with pytest.raises(ValueError, match=r"`count` must be 1 or more\. Received: count=0"):
        make_phantoms(tmp_path, count=0)
    make_phantoms(tmp_path / "made", count=1, size=64)
    with pytest.raises(ValueError, match=r"A set of phantoms needs.*\(seed: 0, now 1\)"):
        make_phantoms(tmp_path / "made", count=1, size=64, seed=1)
    (tmp_path / "png_images").mkdir()
    with pytest.raises(ValueError, match=r"A set of phantoms needs.*which holds other files"):
        make_phantoms(tmp_path, count=1)
