"""The scores of a sweep: one tidy table, its summary over seeds and folds, and a figure."""

import re

import matplotlib.pyplot as plt
import pandas as pd

from pneumo_lib import runs
from pneumo_lib.evaluation.score_table import score_table
from pneumo_lib.paths import write_csv
from pneumo_lib.plots.experiments import REPEATS, SCORES, sweep_chart
from pneumo_lib.plots.style import (
    export,
    use_style,
)


def sweep_table(found, *, axes):
    """A row for each run, part and score.

    Args:
        found: list of `(Run, dict of its parameters)`.
        axes: names of the parameters that tell the runs apart.

    Returns:
        DataFrame with the columns `run`, those of `axes`, `part` ("validation", "test"),
        `images`, `positives`, `score` (of `SCORES`), `value` after the last epoch with its
        bootstrap interval over images, `lower` and `upper` (see `score_table()`), and
        `all_background`, what a prediction of nothing scores on the same images.
    """
    rows = []
    for run, parameters in found:
        last = run.scores[run.scores["epoch"] == run.scores["epoch"].max()]
        scores = score_table(last[last["split"] != "train"]).set_index(["model", "split"])
        place = {"run": run.folder.name} | {axis: _plain(parameters[axis]) for axis in axes}
        for part in ("validation", "test"):
            if ("network", part) not in scores.index:
                continue
            network, nothing = (scores.loc[(m, part)] for m in ("network", "all background"))
            sizes = {"part": part} | network[["images", "positives"]].astype(int).to_dict()
            for score in SCORES:
                interval = [network[name] for name in (score, f"{score}_lower", f"{score}_upper")]
                values = dict(zip(("value", "lower", "upper"), interval, strict=True))
                reference = {"all_background": nothing[score]}
                rows.append(place | sizes | {"score": score} | values | reference)
    return pd.DataFrame(rows)


def summarise(table, *, axes):
    """The table over seeds and folds: how far a setting's score moves when training is repeated.

    Args:
        table: of `sweep_table()`.
        axes: as there.

    Returns:
        DataFrame with the other axes, `part`, `score`, `runs`, and of their values `mean`, `sd`
        (NaN for one run), `lowest`, `highest`; `all_background` is a mean, too: another seed or
        fold may have other images.
    """
    if table.empty:
        return table
    by = [*(axis for axis in axes if axis not in REPEATS), "part", "score"]
    values = {"runs": "size", "mean": "mean", "sd": "std", "lowest": "min", "highest": "max"}
    values = {name: ("value", how) for name, how in values.items()}
    groups = table.groupby(by, sort=False)
    return groups.agg(**values, all_background=("all_background", "mean")).reset_index()


def keep_results(table, summary, found, folder):
    """Writes table.csv, summary.csv and the figure, `scores` as PNG, SVG and PDF.

    Args:
        table, summary: of the functions above.
        found: list of `Run`.
        folder: `Path`.
    """
    write_csv(folder / "table.csv", table)
    write_csv(folder / "summary.csv", summary)
    one_each = {run.config["backbone"]: run for run in found}
    note = runs.caveats(list(one_each.values()))
    note = re.sub(r"fold \d+/(\d+)", r"\1 folds", note)
    with plt.rc_context():
        use_style()
        figure = sweep_chart(table, note=note)
        export(figure, "scores", folder=folder)
        plt.close(figure)


def _plain(value):
    """A value that a table can be grouped by."""
    return value if isinstance(value, (str, bool, int, float)) else str(value)
