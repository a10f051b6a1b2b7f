"""Whether a run's scores are those of the network that lies beside them."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from pneumo_lib import metrics
from pneumo_lib.features import predict_batches
from pneumo_lib.inference import load_network
from pneumo_lib.paths import project_path
from pneumo_lib.preparation import load_prepared
from pneumo_lib.runs import Run, data_checksum, load_run

# The whole network is compiled another way than the parts that training scored: a pixel whose
# probability is one half to the sixth digit may fall on the other side.
_PIXELS = 1e-5
# With a backbone in bfloat16 features move by a percent, and such pixels are more.
_PIXELS_BFLOAT16 = 1e-3


class Verification(NamedTuple):
    """What `verify_run()` found."""

    matches: bool
    images: int
    images_that_differ: int
    pixels_that_differ: float  # share of all pixels
    siim_dice: tuple  # as recorded, and as computed now
    worst: list  # image ids, the largest difference first, at most 3


def verify_run(run, *, data=None):
    """Compute the last scores of a run again, from its saved network and its prepared data.

    Args:
        run: `Run`, or what `load_run()` takes.
        data: `Prepared`; `None` opens the folder that the run names.

    Returns:
        `Verification`; it matches where no more pixels fell on the other side of one half than
        rounding explains: 1 in 100,000, or 1 in 1,000 for features in bfloat16.

    Raises:
        FileNotFoundError: if there is no finished run, or its data are not prepared here.
        ValueError: if the data are not those that the run was scored on.
    """
    run = run if isinstance(run, Run) else load_run(run)
    data = _open(run) if data is None else data
    if data_checksum(data) != run.config["data_checksum"]:
        raise ValueError(
            "A run is verified on the images, masks and split it was scored on. "
            f"Received: {data.folder}, which has changed since. Prepare the data again with "
            "prepare_data(), or train the run again"
        )
    recorded = run.scores[run.scores["epoch"] == run.scores["epoch"].max()]
    recorded = recorded.set_index("image_id").loc[data.cases["image_id"]]
    counts = _counts(run, data)
    wrong = sum(np.abs(counts[name] - recorded[name].to_numpy()) for name in metrics.COUNTS) / 2
    share = float(wrong.sum() / (data.masks.size or 1))
    allowed = _PIXELS_BFLOAT16 if run.config.get("feature_precision") == "bfloat16" else _PIXELS
    order = np.argsort(-wrong, kind="stable")[:3]
    return Verification(
        matches=share <= allowed,
        images=len(wrong),
        images_that_differ=int(np.count_nonzero(wrong)),
        pixels_that_differ=share,
        siim_dice=(metrics.siim_dice(recorded), metrics.siim_dice(counts)),
        worst=[data.cases["image_id"].iloc[i] for i in order if wrong[i]],
    )


def _open(run):
    try:
        return load_prepared(project_path(run.config["data"]))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            "A run is verified on the prepared data it was scored on: make them with "
            f"prepare_data({run.config['data_name']!r}, size={run.config['size']}) and the run's "
            f"split and seed. Received: {error}"
        ) from error


def _counts(run, data):
    network, backbone = load_network(run), run.config["backbone"]
    tables = []
    flipped = data.images[:, :, ::-1] if run.config.get("test_time_flip") else None
    batches = predict_batches(network, data.images, backbone, flipped=flipped)
    with tqdm(total=len(data.images), desc="verifying", unit="image") as bar:
        for rows, softmax in batches:
            table = metrics.confusion_counts(data.masks[rows], softmax[..., 1])
            tables.append(pd.DataFrame(table))
            bar.update(len(softmax))
    counts = pd.concat(tables, ignore_index=True)
    return {name: counts[name].to_numpy() for name in metrics.COUNTS}
