"""Tables of scores by hand, their intervals against SciPy and by simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from pneumo_lib.data.siim import read_cases
from pneumo_lib.evaluation import logged_metrics
from pneumo_lib.evaluation.score_table import format_table, score_table, with_groups


def make_scores(n=40, *, seed=0, pixels=100, split="test", **columns):
    """A made-up table: every second image positive, Dice of positives drawn uniformly."""
    rng = np.random.default_rng(seed)
    positive = np.arange(n) % 2 == 0
    area = np.where(positive, rng.integers(5, 40, n), 0)
    tp = np.floor(area * rng.uniform(0, 1, n)).astype(int)
    fp = rng.integers(0, 3, n) * (rng.random(n) < 0.3)
    scores = pd.DataFrame({"image_id": [f"{split}-{i}" for i in range(n)], "split": split})
    return scores.assign(
        has_pneumothorax=positive, tp=tp, fp=fp, fn=area - tp, tn=pixels - area - fp, **columns
    )


def test_the_first_row_of_each_split_is_the_all_background_prediction():
    scores = pd.concat([make_scores(10, split="train"), make_scores(6, split="test")])
    table = score_table(scores, n_bootstrap=10)
    assert list(table["model"]) == ["all background", "all background", "network", "network"]
    assert list(table["split"]) == ["train", "test", "train", "test"]
    assert list(table["images"]) == [10, 6, 10, 6]
    assert list(table["positives"]) == [5, 3, 5, 3]
    assert list(table["iou"][:2]) == [0, 0]
    assert list(table["dice_positive"][:2]) == [0, 0]
    assert list(table["siim_dice"][:2]) == [0.5, 0.5]


def test_all_background_has_the_published_scores_on_the_full_data_set():
    # 12,047 images, 2,669 positive, 0.303 % foreground: the same totals, spread evenly
    n, positives, pixels = 12_047, 2_669, 128 * 128
    area = np.where(np.arange(n) < positives, round(0.00303 * n * pixels / positives), 0)
    scores = pd.DataFrame({"image_id": range(n), "split": "all", "has_pneumothorax": area > 0})
    scores = scores.assign(tp=area, fp=0, fn=0, tn=pixels - area)
    row = score_table(scores, n_bootstrap=5).iloc[0]
    found = row[["pixel_accuracy", "mean_iou", "iou", "siim_dice"]].astype(float)
    np.testing.assert_allclose(found, [0.9970, 0.4985, 0, 0.7785], atol=5e-5)


def test_scores_of_a_row_equal_those_counted_by_hand():
    scores = pd.DataFrame(
        {
            "image_id": ["a", "b", "c"],
            "split": "test",
            "has_pneumothorax": [True, True, False],
            "tp": [4, 0, 0],
            "fp": [0, 0, 2],
            "fn": [0, 4, 0],
            "tn": [6, 6, 8],
        }
    )
    row = score_table(scores, n_bootstrap=5).iloc[1]
    assert row["pixel_accuracy"] == pytest.approx(24 / 30)
    assert row["iou"] == pytest.approx(4 / 10)
    assert row["mean_iou"] == pytest.approx((4 / 10 + 20 / 26) / 2)
    assert row["dice_positive"] == pytest.approx(1 / 2)
    assert row["siim_dice"] == pytest.approx(1 / 3)


def test_a_positive_whose_mask_vanished_counts_as_missed():
    scores = make_scores(2).assign(tp=0, fp=0, fn=0, tn=100)
    row = score_table(scores, n_bootstrap=5).iloc[1]
    assert row["dice_positive"] == 0
    assert row["siim_dice"] == 1


def test_rows_are_told_apart_by_the_named_columns():
    scores = pd.concat(
        [
            make_scores(backbone=backbone, epoch=epoch)
            for backbone in ("vgg19", "resnet50")
            for epoch in (50, 100)
        ]
    )
    table = score_table(scores, by=["backbone", "epoch"], n_bootstrap=10)
    assert list(table["backbone"]) == ["all background", "vgg19", "vgg19", "resnet50", "resnet50"]
    assert table["epoch"].dtype == "Int64"  # 50, not 50.0, beside the missing one
    assert list(table["epoch"].fillna(0)) == [0, 50, 100, 50, 100]
    assert list(table)[:5] == ["backbone", "epoch", "split", "images", "positives"]


def test_logged_scores_appear_where_their_counts_do():
    plain = make_scores()
    logged = plain.assign(saturated_right=90, saturated_wrong=0, true_class_probability=98.0)
    assert "logged_mean_iou" not in score_table(plain, n_bootstrap=5)
    row = score_table(logged, n_bootstrap=5).iloc[1]
    assert row["logged_mean_iou"] == pytest.approx((0.9 + 1 / (2 - 0.9)) / 2)
    assert row["logged_dice"] == pytest.approx(0.98)


def test_logged_scores_of_all_background_are_those_of_a_saturated_prediction():
    scores = make_scores(pixels=64)
    truth = np.zeros((len(scores), 1, 64), dtype=np.uint8)
    for mask, area in zip(truth, scores["tp"] + scores["fn"], strict=True):
        mask[0, :area] = 1
    softmax = np.stack([np.ones(truth.shape), np.zeros(truth.shape)], axis=-1)
    scores = scores.assign(**logged_metrics.saturation_counts(truth, softmax))
    row = score_table(scores, n_bootstrap=5).iloc[0]
    logged = logged_metrics.as_logged_mean_iou, logged_metrics.as_logged_dice
    expected = [score(truth, softmax) for score in logged]
    assert [row["logged_mean_iou"], row["logged_dice"]] == pytest.approx(expected)


def test_intervals_are_those_of_scipy():
    scores = make_scores(200)
    row = score_table(scores, n_bootstrap=4000).iloc[1]
    tp, fp, fn = (scores[name].to_numpy() for name in ("tp", "fp", "fn"))

    def pooled_iou(tp, fp, fn, axis=-1):
        return tp.sum(axis) / (tp + fp + fn).sum(axis)

    judge = stats.bootstrap(
        (tp, fp, fn), pooled_iou, paired=True, vectorized=True, n_resamples=4000,
        method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    width = judge.high - judge.low
    np.testing.assert_allclose([row["iou_lower"], row["iou_upper"]], judge, atol=0.06 * width)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    # Dice of positives is uniform on a grid with mean 1/2, so the true mean is known.
    rng, n, hits = np.random.default_rng(0), 60, 0
    area, positive = 20, np.arange(n) % 2 == 0
    base = pd.DataFrame({"image_id": range(n), "split": "test", "has_pneumothorax": positive})
    for repeat in range(300):
        found = np.where(positive, rng.integers(0, area + 1, n), 0)  # tp = fp + tp: dice = tp / 20
        counts = {"tp": found, "fp": area * positive - found, "fn": area * positive - found}
        row = score_table(base.assign(**counts, tn=50), n_bootstrap=300, seed=repeat).iloc[1]
        hits += row["dice_positive_lower"] <= 0.5 <= row["dice_positive_upper"]
    assert 0.90 <= hits / 300 <= 0.98


def test_equal_seeds_give_equal_intervals_and_others_do_not():
    scores = make_scores()
    pd.testing.assert_frame_equal(score_table(scores, seed=3), score_table(scores, seed=3))
    assert not score_table(scores, seed=3).equals(score_table(scores, seed=4))


def test_a_split_without_positives_has_no_dice_of_positives():
    scores = make_scores(10).assign(has_pneumothorax=False, tp=0, fn=0, fp=0, tn=100)
    table = score_table(scores, n_bootstrap=5)
    assert np.isnan(table["dice_positive"]).all()
    assert list(format_table(table)["Dice, positives"]) == ["–", "–"]


def test_format_table_writes_scores_as_papers_do():
    columns = {"pixel_accuracy": 0.99704, "siim_dice": 0.614}
    table = pd.DataFrame([{"model": "network", "split": "test", "images": 9}])
    for name, score in columns.items():
        table = table.assign(
            **{name: score, f"{name}_lower": score - 0.06, f"{name}_upper": score + 0.0019}
        )
    assert format_table(table).iloc[0].to_dict() == {
        "model": "network",
        "split": "test",
        "images": 9,
        "Pixel accuracy": "0.9970 [0.9370, 0.9989]",
        "SIIM-ACR Dice": "0.61 [0.55, 0.62]",
    }


def test_score_table_refuses_missing_columns_an_empty_table_and_an_image_scored_twice():
    with pytest.raises(ValueError, match=r"must have the columns .* Missing: \['tn', 'epoch'\]"):
        score_table(make_scores().drop(columns="tn"), by="epoch")
    with pytest.raises(ValueError, match="at least one row"):
        score_table(make_scores().iloc[:0])
    with pytest.raises(ValueError, match="Add the column that tells them apart, such as 'epoch'"):
        score_table(pd.concat([make_scores(epoch=50), make_scores(epoch=100)]))


def test_a_distance_is_the_mean_over_the_images_that_have_one():
    scores = make_scores(4, hd95=[3.0, np.nan, 5.0, np.nan], asd_mm=np.nan)
    table = score_table(scores, n_bootstrap=200)
    assert table["hd95"][1] == 4
    assert 3 <= table["hd95_lower"][1] <= table["hd95_upper"][1] <= 5
    assert table["asd_mm"].isna().all()
    assert np.isnan(table["hd95"][0])  # a prediction of nothing has no outline
    assert "asd" not in table
    text = format_table(score_table(make_scores(4, hd95=2.0), n_bootstrap=5))
    assert list(text["Hausdorff 95, pixels"]) == ["–", "2.00 [2.00, 2.00]"]


def grouped(area, **columns):
    """Images of 100 pixels with lesions of the given areas, and -1 for a healthy one."""
    area = pd.Series(area)
    scores = pd.DataFrame({"image_id": area.index, "has_pneumothorax": area >= 0})
    scores = scores.assign(tp=0, fp=0, fn=area.clip(0), tn=100 - area.clip(0))
    return scores, pd.DataFrame({"image_id": area.index, **columns})


def test_lesions_are_dealt_to_quarters_by_their_size():
    scores, cases = grouped([8, 2, -1, 6, 4, 7, 1, 3, 5])
    found = with_groups(scores, cases)
    areas = found.groupby("lesion", observed=True)["fn"].agg(list)
    assert areas.to_dict() == {
        "healthy": [0],
        "smallest": [2, 1],
        "small": [4, 3],
        "large": [6, 5],
        "largest": [8, 7],
    }


def test_a_lesion_without_a_pixel_left_is_a_group_of_its_own():
    scores, cases = grouped([0, 4, -1])
    assert list(with_groups(scores, cases)["lesion"]) == ["healthy", "vanished", "smallest"]


def test_several_epochs_of_an_image_do_not_move_the_quarters():
    scores, cases = grouped([1, 2, 3, 4, 0])
    twice = pd.concat([scores.assign(epoch=1), scores.assign(epoch=2)])
    found = with_groups(twice, cases)
    assert found["lesion"].cat.codes.is_monotonic_increasing
    assert found["lesion"].value_counts().drop(["healthy", "vanished"]).tolist() == [2] * 4


def test_view_and_sex_are_added_where_they_are_known():
    scores, cases = grouped([3, -1], view=["PA", np.nan], sex=["F", "M"])
    found = with_groups(scores, cases).set_index("image_id").loc[[0, 1]]
    assert list(found["view"]) == ["PA", "unknown"]
    assert list(found["sex"]) == ["F", "M"]
    found = found.reset_index().assign(split="test")
    table = score_table(found, by="view", n_bootstrap=5)
    assert list(table["view"]) == ["all background", "PA", "unknown"]


def test_view_and_sex_come_with_the_official_files_and_not_with_the_png_release(siim_dicom):
    cases = read_cases(siim_dicom)
    scores, png_cases = grouped([-1] * len(cases))
    found = with_groups(scores.assign(image_id=cases["image_id"]), cases)
    assert set(found["view"]) == {"AP", "PA"}
    assert set(found["sex"]) == {"F", "M"}
    assert {"view", "sex"}.isdisjoint(with_groups(scores, png_cases).columns)


def test_groups_of_images_that_are_not_in_the_case_table_are_refused():
    scores, cases = grouped([3, -1])
    with pytest.raises(ValueError, match=r"hold every image.*Received: 1 rows of other images"):
        with_groups(scores, cases.head(1))


def test_a_table_by_size_of_lesion_comes_in_its_order():
    scores, cases = grouped([8, 2, -1, 6, 4])
    table = score_table(with_groups(scores.assign(split="test"), cases), by="lesion", n_bootstrap=5)
    order = ["all background", "healthy", "smallest", "small", "large", "largest"]
    assert list(table["lesion"]) == order


def with_image_scores(n=40, *, seed=0):
    rng = np.random.default_rng(seed)
    scores = make_scores(n, seed=seed)
    return scores.assign(image_score=(rng.random(n) + 0.4 * scores["has_pneumothorax"]).round(1))


def test_the_area_is_that_of_scikit_learn_and_so_is_its_interval():
    scores = with_image_scores()
    y_true, y_score = scores["has_pneumothorax"].to_numpy(), scores["image_score"].to_numpy()
    background, row = (score_table(scores, n_bootstrap=200).iloc[i] for i in (0, 1))
    assert row["auc"] == pytest.approx(roc_auc_score(y_true, y_score))
    assert background["auc"] == 0.5
    draws = np.random.default_rng(0)  # resamples are drawn in this way
    each = [draws.integers(40, size=40) for _ in range(200)]
    judged = [roc_auc_score(y_true[rows], y_score[rows]) for rows in each]
    np.testing.assert_allclose(
        row[["auc_lower", "auc_upper"]].astype(float), np.quantile(judged, [0.025, 0.975])
    )


def test_without_positive_or_healthy_images_there_is_no_area():
    scores = with_image_scores()
    for positive in (True, False):
        part = scores[scores["has_pneumothorax"] == positive]
        assert np.isnan(score_table(part, n_bootstrap=5)["auc"]).all()


def test_scores_of_several_trainings_are_means_over_them():
    trainings = [with_image_scores(seed=0).assign(seed=n) for n in range(2)]
    trainings[1]["tp"] = 0
    trainings[1]["fn"] = trainings[0]["tp"] + trainings[0]["fn"]
    both = score_table(pd.concat(trainings), mean_over="seed", n_bootstrap=50)
    first, second = (score_table(t, n_bootstrap=50).iloc[1] for t in trainings)
    assert list(both["images"]) == [40, 40]
    for name in ("dice_positive", "iou", "mean_iou", "siim_dice", "auc"):
        assert both.iloc[1][name] == pytest.approx((first[name] + second[name]) / 2)
    # the second training finds nothing in any resample, so the mean's interval is half the first's
    assert both.iloc[1]["dice_positive_upper"] == pytest.approx(first["dice_positive_upper"] / 2)
    with pytest.raises(ValueError, match="one scored several times"):
        score_table(pd.concat(trainings))
