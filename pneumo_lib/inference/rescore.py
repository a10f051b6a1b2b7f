"""Scores of a finished run, computed again: to verify them, or at its operating point."""

from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from pneumo_lib.evaluation import metrics
from pneumo_lib.evaluation.operating_point import apply_operating_point
from pneumo_lib.evaluation.score_table import count_cases
from pneumo_lib.models.forward import predict_batches
from pneumo_lib.runs import load_network, load_operating_point, load_run, load_run_data, open_run

# Share of pixels that may cross one half: the whole network is compiled in another way than the
# parts that training scored, so probabilities differ in the sixth digit.
_PIXELS = 1e-5
_PIXELS_HALF = 1e-3  # features in bfloat16 differ by a percent, in float16 by a thousandth


def scores_at_operating_point(run):
    """Counts of every case at the run's own operating point, like the rows of its scores.

    `run` is a `Run`, or what `load_run()` takes; errors as for `open_run()`.

    Returns:
        DataFrame with the columns `image_id`, `split`, `has_pneumothorax`, `tp`, `fp`, `fn`, `tn`.
    """
    opened = open_run(run)
    point = load_operating_point(opened.run)
    numbers = tqdm(range(len(opened.cases)), desc="scoring", unit="image", delay=1, leave=False)
    each = (slice(number, number + 1) for number in numbers)  # flat memory
    scores = opened.cases["image_score"]
    predictions = (
        (row, apply_operating_point(opened.probabilities[row], point, scores=scores[row]))
        for row in each
    )
    return count_cases(opened.data, predictions)


class Verification(NamedTuple):
    """Result of `verify_run()`."""

    matches: bool
    images: int
    images_that_differ: int
    pixels_that_differ: float  # share of all pixels
    siim_dice: tuple  # (recorded, computed now)
    worst: list  # image ids, the largest difference first, at most 3


def verify_run(run, *, data=None):
    """`Verification` of the last scores of a run by its saved network on its prepared data.

    It matches if no more pixels crossed one half than rounding explains: 1 in 100,000, or 1 in
    1,000 for features in half precision.

    Args:
        run: `Run`, or what `load_run()` takes.
        data: as for `load_run_data()`, with the same errors.
    """
    run = load_run(run)
    data = load_run_data(run, data=data)
    recorded = run.scores[run.scores["epoch"] == run.scores["epoch"].max()]
    recorded = recorded.set_index("image_id").loc[data.cases["image_id"]]
    flipped = data.images[:, :, ::-1] if run.config.get("test_time_flip") else None
    batches = predict_batches(
        load_network(run), data.images, run.config["backbone"], flipped=flipped, desc="verifying"
    )
    counts = count_cases(data, ((rows, softmax[..., 1]) for rows, softmax in batches))
    names = list(metrics.COUNTS)
    wrong = np.abs(counts[names].to_numpy() - recorded[names].to_numpy()).sum(axis=1) / 2
    share = float(wrong.sum() / (data.masks.size or 1))
    exact = run.config.get("feature_precision", "float32") == "float32"
    order = np.argsort(-wrong, kind="stable")[:3]
    return Verification(
        matches=share <= (_PIXELS if exact else _PIXELS_HALF),
        images=len(wrong),
        images_that_differ=int(np.count_nonzero(wrong)),
        pixels_that_differ=share,
        siim_dice=(metrics.siim_dice(recorded), metrics.siim_dice(counts)),
        worst=[data.cases["image_id"].iloc[i] for i in order if wrong[i]],
    )
