import shutil

import cv2
import numpy as np
import pandas as pd
import pytest

from pneumo_lib.data.siim import read_cases
from pneumo_lib.data.splits import leaked_patients, near_duplicate_pairs, split_cases

SPLITS = ["train", "validation", "test"]


def make_cases(count=200, *, per_patient=2, positives=0.25, seed=0):
    """A table of patients with 1 to `2 * per_patient` images, without files."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(count), rng.integers(1, 2 * per_patient + 1, count))[:count]
    return pd.DataFrame(
        {
            "image_id": [f"i{number}" for number in range(count)],
            "has_pneumothorax": rng.random(count) < positives,
            "official_part": np.where(rng.random(count) < 0.2, "test", "train"),
            "patient_id": [f"{patient:05d}" for patient in patients],
        }
    )


def split_without_files(cases, **settings):
    return split_cases(cases, near_duplicates=False, **settings)


def read_tables(siim_tables):
    """The whole data set's case table, without paths."""
    tables = [
        pd.read_csv(siim_tables / f"stage_1_{part}_images.csv").assign(official_part=part)
        for part in ("train", "test")
    ]
    table = pd.concat(tables, ignore_index=True)
    names = pd.read_csv(siim_tables / "nih_id.csv").set_index("Kaggle_ID")["NIH_ID"]
    return pd.DataFrame(
        {
            "image_id": table["ImageId"],
            "has_pneumothorax": table["has_pneumo"] == 1,
            "official_part": table["official_part"],
            "patient_id": table["ImageId"].map(names).str.split("_").str[0],
        }
    )


# Schemes


@pytest.mark.parametrize("seed", range(5))
def test_patient_split_keeps_every_patient_in_one_split(seed):
    cases = split_without_files(make_cases(seed=seed), scheme="patient", seed=seed)
    assert cases.groupby("patient_id")["split"].nunique().max() == 1
    assert leaked_patients(cases) == 0
    assert set(cases["split"]) == set(SPLITS)


def test_random_split_by_image_leaks_patients_and_the_count_says_so():
    cases = split_without_files(make_cases(), scheme="random")
    by_hand = sum(len(set(group["split"])) > 1 for _, group in cases.groupby("patient_id"))
    assert leaked_patients(cases) == by_hand > 10
    assert set(cases["split_scheme"]) == {"random"}


def test_official_split_keeps_the_test_set_and_takes_validation_by_patient():
    cases = split_without_files(make_cases(), scheme="official")
    assert ((cases["split"] == "test") == (cases["official_part"] == "test")).all()
    assert leaked_patients(cases[cases["split"] != "test"]) == 0


@pytest.mark.parametrize("scheme", ["patient", "random"])
@pytest.mark.parametrize(("validation", "test"), [(0.15, 0.15), (0.1, 0.3), (0, 0.5)])
def test_split_comes_near_the_shares_for_both_labels(scheme, validation, test):
    cases = split_without_files(make_cases(600), scheme=scheme, validation=validation, test=test)
    for _, label in cases.groupby("has_pneumothorax"):
        shares = label["split"].value_counts(normalize=True).reindex(SPLITS, fill_value=0)
        np.testing.assert_allclose(shares, [1 - validation - test, validation, test], atol=0.02)


def test_split_changes_nothing_but_its_two_columns():
    cases = make_cases().set_index(np.arange(200) + 7)
    split = split_without_files(cases)
    pd.testing.assert_frame_equal(split.drop(columns=["split", "split_scheme"]), cases)
    assert "split" not in cases


def test_split_is_the_same_for_a_seed_and_another_for_another():
    cases = make_cases()
    first, again, other = (
        split_without_files(cases, scheme="patient", seed=seed)["split"] for seed in (1, 1, 2)
    )
    assert first.equals(again)
    assert not first.equals(other)


@pytest.mark.parametrize(
    ("changes", "scheme"),
    [
        ({}, "patient"),  # the official sets share some
        ({"patient_id": lambda c: c["official_part"] + c["patient_id"]}, "official"),
        ({"patient_id": np.nan}, "official (patients unknown)"),
        ({"patient_id": np.nan, "official_part": np.nan}, "random (patients unknown)"),
        (
            {"patient_id": lambda c: c["patient_id"].where(c.index > 2)},
            "patient (patients of 3 images unknown)",
        ),
    ],
)
def test_auto_trusts_official_sets_without_common_patients_and_else_known_patients(changes, scheme):
    cases = split_without_files(make_cases().assign(**changes))
    assert set(cases["split_scheme"]) == {scheme}
    if scheme.startswith("official"):
        assert ((cases["split"] == "test") == (cases["official_part"] == "test")).all()
    if "unknown" not in scheme:
        assert leaked_patients(cases) == 0


# Cross-validation


def five_folds(cases, **settings):
    """The `split` of every fold, one column each."""
    folds = {n: split_without_files(cases, fold=f"{n}/5", **settings) for n in range(1, 6)}
    return pd.DataFrame({n: fold["split"] for n, fold in folds.items()})


@pytest.mark.parametrize("scheme", ["patient", "official", "random"])
def test_each_case_is_tested_in_every_fold_or_validated_in_exactly_one(scheme):
    folds = five_folds(make_cases(), scheme=scheme)
    plain = split_without_files(make_cases(), scheme=scheme)["split"]
    tested = (folds == "test").sum(axis=1)
    assert set(tested) == {0, 5}
    assert ((tested == 5) == (plain == "test")).all()
    assert ((folds == "validation").sum(axis=1)[tested == 0] == 1).all()


def test_fold_0_holds_no_case_out_and_has_the_test_part_of_the_others():
    cases = make_cases()
    split = split_without_files(cases, fold="0/5", scheme="patient")["split"]
    assert set(split) == {"train", "test"}
    fold = split_without_files(cases, fold="1/5", scheme="patient")["split"]
    np.testing.assert_array_equal(split == "test", fold == "test")


def test_folds_share_no_patient_and_come_near_equal_shares_for_both_labels():
    cases = make_cases(600)
    folds = five_folds(cases, scheme="patient")
    for fold in folds:
        assert leaked_patients(cases.assign(split=folds[fold])) == 0
    for _, rows in folds.groupby(cases["has_pneumothorax"]):
        left = (rows[1] != "test").sum()
        np.testing.assert_allclose((rows == "validation").sum() / left, 0.2, atol=0.03)


def test_near_identical_images_are_in_one_split_of_every_fold(png_release):
    copy_image(png_release, "2_train_0_.png", "4_train_0_.png")
    for fold in ("1/2", "2/2"):
        split = split_cases(read_cases(png_release), scheme="official", fold=fold)
        assert set(split["split_scheme"]) == {f"official, fold {fold}"}
        split = split.set_index("image_id")["split"]
        assert split["train.2"] == split["train.4"]


@pytest.mark.parametrize("fold", ["1/1", "0/1", "6/5", "2", "-1/5", "2/5 ", "02/5", 2, 0.4, ""])
def test_split_refuses_a_fold_that_there_is_not(fold):
    with pytest.raises(ValueError, match=rf"such as '2/5'. Received: fold={fold!r}"):
        split_without_files(make_cases(), fold=fold)


def test_split_refuses_more_folds_than_positives():
    with pytest.raises(ValueError, match=r"fold \d+/20 and fold \d+/20.* got none"):
        split_without_files(make_cases(60), fold="1/20", scheme="random")


# The real tables and images


def test_official_split_of_the_full_data_set_leaks_what_facts_say(siim_tables):
    cases = split_without_files(read_tables(siim_tables), scheme="official")
    test, rest = cases[cases["split"] == "test"], cases[cases["split"] != "test"]
    leaked = test[test["patient_id"].isin(rest["patient_id"])]
    assert (len(test), len(leaked), leaked["has_pneumothorax"].sum()) == (1372, 884, 277)
    assert leaked_patients(cases) == 662
    assert (test["has_pneumothorax"].sum(), test["patient_id"].nunique()) == (290, 1145)


def test_auto_split_of_the_full_data_set_leaks_no_patient(siim_tables):
    cases = split_without_files(read_tables(siim_tables))
    assert set(cases["split_scheme"]) == {"patient"}
    assert leaked_patients(cases) == 0
    shares = cases["split"].value_counts(normalize=True)[SPLITS]
    np.testing.assert_allclose(shares, [0.7, 0.15, 0.15], atol=0.001)
    prevalence = cases.groupby("split")["has_pneumothorax"].mean()
    np.testing.assert_allclose(prevalence, 0.2215, atol=0.001)


def test_auto_split_of_the_real_cases_is_official_and_clean(siim_real):
    cases = split_cases(read_cases(siim_real))
    assert set(cases["split_scheme"]) == {"official"}
    assert leaked_patients(cases) == len(near_duplicate_pairs(cases)) == 0
    assert cases["split"].value_counts()["test"] == 114


CHANGES = {
    "half the size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=3),
    "jpeg": lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [1, 50])[1], 0),
    "gamma": lambda image: (255 * (image / 255) ** 0.7).astype(np.uint8),
    "contrast": lambda image: (0.8 * image + 10).astype(np.uint8),
    "noise": lambda image: np.clip(
        image + np.random.default_rng(0).normal(0, 6, image.shape), 0, 255
    ).astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_of_real_images_are_near_identical_to_their_origin(
    siim_real, tmp_path, change
):
    paths = read_cases(siim_real)["image_path"][::20].tolist()
    copies = []
    for number, path in enumerate(paths):
        copies.append(str(tmp_path / f"{number}.png"))
        cv2.imwrite(copies[-1], CHANGES[change](cv2.imread(path, cv2.IMREAD_GRAYSCALE)))
    pairs = near_duplicate_pairs(pd.DataFrame({"image_path": paths + copies}))
    assert pairs.tolist() == [[row, row + len(paths)] for row in range(len(paths))]


# Near-identical images


def copy_image(folder, source, target):
    shutil.copy(folder / "png_images" / source, folder / "png_images" / target)


def test_near_identical_images_stay_together_under_every_scheme(png_release):
    copy_image(png_release, "2_train_0_.png", "4_train_0_.png")
    copy_image(png_release, "0_train_1_.png", "5_train_0_.png")
    cases = read_cases(png_release)
    for scheme in ("patient", "random", "official"):
        for seed in range(6):
            split = split_cases(cases, scheme=scheme, seed=seed, validation=0.2, test=0.2)
            split = split.set_index("image_id")["split"]
            assert split["train.2"] == split["train.4"]
            assert split["train.0"] == split["train.5"]
    assert near_duplicate_pairs(cases).tolist() == [[0, 5], [2, 4]]


def test_official_train_image_that_copies_a_test_image_goes_to_the_test_split(png_release, caplog):
    copy_image(png_release, "1_test_0_.png", "4_train_0_.png")
    split = split_cases(read_cases(png_release), scheme="official", validation=0.3)
    assert split.set_index("image_id")["split"]["train.4"] == "test"
    assert (split["split"] == "test").sum() == 5
    assert "1 official train images" in caplog.text
    assert "train.4" in caplog.text


def test_auto_does_not_trust_official_sets_that_share_an_image(png_release):
    copy_image(png_release, "1_test_0_.png", "4_train_0_.png")
    split = split_cases(read_cases(png_release), validation=0.2, test=0.2)
    assert split["split_scheme"][0] == "patient"
    split = split.set_index("image_id")["split"]
    assert split["train.4"] == split["test.1"] == split["test.0"]  # the copy's patient comes along


def test_flat_and_broken_images_are_near_identical_to_nothing(tmp_path):
    paths = [str(tmp_path / f"{name}.png") for name in "abcd"]
    for path in paths[:2]:
        cv2.imwrite(path, np.full((64, 64), 50, np.uint8))
    (tmp_path / "c.png").write_bytes(b"broken")
    assert near_duplicate_pairs(pd.DataFrame({"image_path": paths})).shape == (0, 2)


def test_near_identical_images_are_found_among_more_than_a_thousand(tmp_path):
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"{number}.png") for number in range(1020)]
    for path in paths:
        cv2.imwrite(path, rng.integers(0, 256, (48, 48), np.uint8))
    shutil.copy(paths[3], paths[1018])
    shutil.copy(paths[1010], paths[1019])
    pairs = near_duplicate_pairs(pd.DataFrame({"image_path": paths}))
    assert pairs.tolist() == [[3, 1018], [1010, 1019]]


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "patients"}, "`scheme` must be one of.*'patients'"),
        ({"validation": 0.6, "test": 0.4}, "leave some to train.*0.6, test=0.4"),
        ({"validation": -0.1}, "leave some to train"),
        ({"scheme": "patient", "patient_id": np.nan}, r"put patients\.csv"),
        ({"scheme": "official", "official_part": "train"}, "both official sets"),
        ({"has_pneumothorax": False}, "at least one positive.*0 positive of 200"),
    ],
)
def test_split_refuses_what_it_cannot_do(settings, message):
    columns = {key: settings.pop(key) for key in list(settings) if key in make_cases()}
    with pytest.raises(ValueError, match=message):
        split_without_files(make_cases().assign(**columns), **settings)


def test_split_refuses_fewer_positives_than_splits():
    cases = make_cases(20)
    cases["has_pneumothorax"] = [True, True] + [False] * 18
    cases["patient_id"] = cases["image_id"]
    with pytest.raises(ValueError, match=r"(test|validation|train) got none.*2 positive of 20"):
        split_without_files(cases, scheme="patient")


@pytest.mark.parametrize("seed", range(10))
def test_small_data_sets_still_give_each_split_a_positive(seed):
    cases = make_cases(24, per_patient=1)
    cases["has_pneumothorax"] = [True, False, False, False, False, False, False, False] * 3
    split = split_without_files(cases, scheme="random", seed=seed)
    assert set(split["split"][split["has_pneumothorax"]]) == set(SPLITS)
