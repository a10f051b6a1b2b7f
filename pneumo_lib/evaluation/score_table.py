"""Results tables with bootstrap confidence intervals, from the pixel counts of each image."""

import numpy as np
import pandas as pd

from pneumo_lib.evaluation import logged_metrics, metrics
from pneumo_lib.evaluation.metrics import COUNTS, LOGGED_COUNTS, confusion_counts, ratio

HEADINGS = {
    "pixel_accuracy": "Pixel accuracy",
    "mean_iou": "Mean IoU",
    "iou": "Foreground IoU",
    "dice_positive": "Dice, positives",
    "siim_dice": "SIIM-ACR Dice",
    "logged_mean_iou": "Logged mean IoU",
    "logged_dice": "Logged Dice",
    "hd95": "Hausdorff 95, pixels",
    "asd": "Surface distance, pixels",
    "hd95_mm": "Hausdorff 95, mm",
    "asd_mm": "Surface distance, mm",
    "auc": "ROC AUC",
    "average_precision": "Average precision",
}
DISTANCES = ("hd95", "asd", "hd95_mm", "asd_mm")
_ENDS = ("", "_lower", "_upper")  # of the columns of a score: the score and its interval


def count_cases(data, predictions, *, count=confusion_counts):
    """DataFrame of the counts of every case of `Prepared` data, one row each, as in `scores.csv`.

    `predictions` yields `(slice of the rows, their predictions)` in the order of `data`; `count`
    makes of `(masks, predictions)` a dict of one number per image.
    """
    batches = [count(data.masks[rows], y_pred) for rows, y_pred in predictions]
    counts = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    cases = data.cases[["image_id", "split", "has_pneumothorax"]].reset_index(drop=True)
    return cases.assign(**counts)


def score_table(scores, *, by=(), mean_over=None, n_bootstrap=1000, seed=0, level=0.95):
    """Scores of each group and split with bootstrap intervals, the all-background row first.

    The interval is the percentile bootstrap over all images of a split, not stratified, with
    the same resamples in each row. It does not cover the variance of training: another seed or
    split moves scores by more. With `mean_over`, score and interval are those of the mean over
    several trainings of a network.

    Args:
        scores: one row per image and group, with columns `image_id`, `split`,
            `has_pneumothorax`, `tp`, `fp`, `fn`, `tn`, those of `by`, and optionally those
            of `saturation_counts()` and of `boundary_scores()`, and `image_score`.
        by: names of the columns that identify a network, such as `["backbone", "epoch"]`.
        mean_over: name of the column that tells trainings of one network apart, such as "seed".
        n_bootstrap, seed, level: number of resamples, at least 1; their seed; confidence level.

    Returns:
        DataFrame in the order of `scores`: the columns of `by` (`model` if there are none),
        `split`, `images`, `positives`, and for each score in `HEADINGS` three columns `<score>`,
        `<score>_lower`, `<score>_upper`. Pixel accuracy, IoU and the logged metrics are pooled;
        Dice is a mean over images, a distance over those that have one; the AUC is that of
        `image_score` (NaN without positive or healthy images). A positive whose mask
        vanished at this size counts as missed in `dice_positive`. The all-background prediction
        is a saturated one.

    Raises:
        ValueError: if `scores` is empty, lacks columns or has an image twice in one group.

    Reference:
        Efron, Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.
    """
    by = [by] if isinstance(by, str) else list(by)
    needed = ["image_id", "split", "has_pneumothorax", *COUNTS, *by]
    if missing := [name for name in needed if name not in scores]:
        raise ValueError(f"`scores` must have the columns {needed}. Missing: {missing}")
    if scores.empty:
        raise ValueError("`scores` must have at least one row. Received: none")
    repeats = [mean_over] if mean_over else []
    if scores.duplicated(["image_id", "split", *by, *repeats]).any():
        raise ValueError(
            "An image may occur once in each row of the table. Received: one scored several "
            f"times with by={by}. Add the column that tells them apart, such as 'epoch'"
        )
    if not by:
        scores, by = scores.assign(model="network"), ["model"]
    draws = {"n_bootstrap": n_bootstrap, "seed": seed, "level": level}
    rows = []
    each_once = scores.drop_duplicates(["image_id", "split"])
    for split, images in each_once.groupby("split", sort=False):
        names = {by[0]: "all background", "split": split}
        rows.append(names | _score_row([_all_background(images)], **draws))
    for key, images in scores.groupby([*by, "split"], sort=False):
        names = dict(zip([*by, "split"], key, strict=True))
        trainings = [t for _, t in images.groupby(mean_over)] if mean_over else [images]
        rows.append(names | _score_row(trainings, **draws))
    table = pd.DataFrame(rows)
    table[by] = table[by].convert_dtypes()  # epochs stay integers beside a missing one
    return table[[*by, *table.columns.difference(by, sort=False)]]


def format_table(table, *, digits=2):
    """`score_table()` as text for a paper: "0.61 [0.55, 0.66]", pixel accuracy with two more."""
    names = [name for name in HEADINGS if name in table]
    text = table[[c for c in table if not c.startswith(tuple(names))]].copy()
    for name in names:
        places = digits + 2 if name == "pixel_accuracy" else digits
        score, lower, upper = (table[name + end].map(f"{{:.{places}f}}".format) for end in _ENDS)
        cells = score + " [" + lower + ", " + upper + "]"
        text[HEADINGS[name]] = cells.where(table[name].notna(), "–")
    return text


def _score_row(trainings, *, level, **draws):
    """Scores of one group with their intervals: means over the trainings of its network."""
    each = [_resampled_scores(images, **draws) for images in trainings]
    images = trainings[0]
    row = {"images": len(images), "positives": int(images["has_pneumothorax"].sum())}
    for name in each[0]:
        score, *resampled = np.mean([scores[name] for scores in each], axis=0)
        usable = np.array(resampled)[~np.isnan(resampled)]  # a resample may hold no positive
        bounds = [(1 - level) / 2, (1 + level) / 2]
        interval = np.quantile(usable, bounds) if usable.size else (np.nan, np.nan)
        row |= zip([name + end for end in _ENDS], [score, *interval], strict=True)
    return row


def _resampled_scores(images, *, n_bootstrap, seed):
    """Dict from each score to its `(1 + n_bootstrap,)` values, over the images, then resamples.

    Each score but the AUC is a ratio of sums over images.
    """
    counts = {name: images[name] for name in COUNTS + LOGGED_COUNTS if name in images}
    positive = images["has_pneumothorax"].to_numpy(dtype=bool)
    counts |= {
        "images": np.ones(len(images)),
        "positives": positive,
        "dice_of_positives": np.where(positive, metrics.dice(counts, empty_score=0.0), 0),
        "dice_of_all": metrics.dice(counts, empty_score=1.0),
    }
    for name in DISTANCES:
        if name in images:
            counts |= {name: images[name].fillna(0), f"{name}_known": images[name].notna()}
    per_image = np.column_stack(list(counts.values())).astype(np.float64)
    # how often each image counts: all of them once, then drawn with replacement
    n, rng = len(images), np.random.default_rng(seed)
    draws = (rng.integers(n, size=n) for _ in range(n_bootstrap))
    times = [np.ones(n), *(np.bincount(drawn, minlength=n) for drawn in draws)]
    sums = np.column_stack([drawn @ per_image for drawn in times])
    scores = _scores_of_sums(dict(zip(counts, sums, strict=True)))
    if "image_score" in images:
        scores["auc"] = _areas(positive, images["image_score"].to_numpy(), times)
    return scores


def _scores_of_sums(sums):
    scores = {
        "pixel_accuracy": metrics.pixel_accuracy(sums),
        "mean_iou": metrics.mean_iou(sums, empty_score=np.nan),
        "iou": metrics.iou(sums, empty_score=np.nan),
        "dice_positive": ratio(sums["dice_of_positives"], sums["positives"]),
        "siim_dice": sums["dice_of_all"] / sums["images"],
    }
    if LOGGED_COUNTS[0] in sums:
        scores["logged_mean_iou"] = logged_metrics.logged_mean_iou(sums)
        scores["logged_dice"] = logged_metrics.logged_dice(sums)
    distances = [name for name in DISTANCES if name in sums]
    return scores | {name: ratio(sums[name], sums[f"{name}_known"]) for name in distances}


def _areas(positive, score, times):
    """Area under the ROC curve of each resample: `times` says how often it holds each image."""
    order = np.argsort(score)
    positive, score = positive[order], score[order]
    lower, upper = (np.searchsorted(score, score, side) for side in ("left", "right"))
    areas = []
    for drawn in times:
        healthy = np.concatenate([[0], np.cumsum(drawn[order] * ~positive)])
        found = drawn[order] * positive
        pairs = found.sum() * healthy[-1]
        below = (healthy[lower] + healthy[upper]) / 2  # a tie counts one half
        areas.append(found @ below / pairs if pairs else np.nan)
    return np.array(areas)


def _all_background(images):
    """Counts of a saturated prediction of background on the same images."""
    lesion, healthy = images["tp"] + images["fn"], images["fp"] + images["tn"]
    counts = {"tp": 0 * lesion, "fp": 0 * lesion, "fn": lesion, "tn": healthy}
    logged = dict(zip(LOGGED_COUNTS, (healthy, lesion, healthy), strict=True))
    # The distance to an empty mask is a rule, not a measurement, so that row has none.
    others = logged | dict.fromkeys(DISTANCES, np.nan) | {"image_score": 0.0}
    return images.assign(**counts, **{name: others[name] for name in others if name in images})


def with_groups(scores, cases):
    """Scores with a column for the size of the lesion, and the view and sex where known.

    Args:
        scores: one row per image (and epoch), with `image_id`, `has_pneumothorax` and counts.
        cases: case table of all these images, or a ValueError.

    Returns:
        `scores` in the order of `lesion`, the quarter of the positive images (each once, all
        splits) by share of the image covered: "healthy", "smallest", "small", "large",
        "largest"; "vanished" where no pixel of a lesion was left at this size. With `view` and
        `sex`, "unknown" where missing, if `cases` has them, as where the data came as DICOM.
    """
    scores = scores.reset_index(drop=True)  # tables of several runs repeat their row labels
    cases = cases.set_index("image_id")
    if missing := (~scores["image_id"].isin(cases.index)).sum():
        raise ValueError(
            f"`cases` must hold every image of `scores`. Received: {missing} rows of other images"
        )
    area = (scores["tp"] + scores["fn"]) / scores[list(COUNTS)].sum(axis=1)
    edges = area[area > 0].groupby(scores["image_id"]).first().quantile([0.25, 0.5, 0.75])
    positive = scores["has_pneumothorax"].astype(int)
    place = np.where(area > 0, 2 + np.searchsorted(edges, area), positive)
    names = ["healthy", "vanished", "smallest", "small", "large", "largest"]
    groups = {"lesion": pd.Categorical.from_codes(place, names, ordered=True)}
    for name in ("view", "sex"):
        if name in cases:
            groups[name] = scores["image_id"].map(cases[name].fillna("unknown"))
    return scores.assign(**groups).sort_values("lesion", kind="stable")
