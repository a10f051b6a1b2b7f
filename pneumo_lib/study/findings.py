"""What a report found, from the runs that it trained: the numbers that slides state."""

import numpy as np
import pandas as pd

from pneumo_lib.evaluation.metrics import dice
from pneumo_lib.evaluation.score_table import score_table
from pneumo_lib.models.names import BACKBONES


def run_scores(runs):
    """Scores of all cases at the milestones, with columns `network`, `weights` and `seed`."""
    names = {"network": "backbone", "weights": "weights", "seed": "seed"}
    each = [run.scores.assign(**{n: run.config[c] for n, c in names.items()}) for run in runs]
    return pd.concat(each)


def _last_scores(runs):
    scores = run_scores(runs)
    return scores[scores["epoch"] == scores.groupby("network")["epoch"].transform("max")]


def conclusion(runs):
    """The result of a report in one sentence: what the control and the best frozen backbone reach.

    Args:
        runs: list of `Run`, one of each backbone and seed.
    """
    table = score_table(_last_scores(runs), by=["network"], mean_over="seed", n_bootstrap=1)
    test = table[(table["split"] == "test") & (table["network"] != "all background")]
    ranked = test.set_index("network")["dice_positive"].sort_values(ascending=False)
    if "small" not in ranked or len(ranked) < 2:
        return (
            f"{BACKBONES[ranked.index[0]]} reaches a Dice of {ranked.iloc[0]:.2f} on the "
            "positive test cases; the control, or a network to compare it with, is missing."
        )
    frozen = ranked.drop("small")
    difference = round(ranked["small"] - frozen.iloc[0], 2)
    verdict = "level with" if difference == 0 else "ahead of" if difference > 0 else "behind"
    return (
        f"The control is {verdict} {BACKBONES[frozen.index[0]]}, the best frozen backbone: "
        f"{difference:+.2f} Dice on the positive test cases."
    )


def findings(runs):
    """Numbers of a report by name, for the titles and charts that `slides.yaml` lists.

    Args:
        runs: list of `Run`, one of each backbone and seed; scores are those of the first seed.

    Returns:
        Dict with `images` and `positives` of all splits, `pixels`, the share of lesion in them, and
        `learnt`, the largest share of a network's parameters that was trained, both in %; `test`,
        dict from a network to its row of `score_table()`, and `empty`, that of all background;
        `chosen`, the network with the highest Dice of validation positives, and `dice` of its
        test positives, ascending, in [0, 1]; `tables`, dict from a name to rows for a chart.
    """
    runs = [run for run in runs if run.config["seed"] == runs[0].config["seed"]]
    short = {name: label.partition(" (")[0] for name, label in BACKBONES.items()}
    last = _last_scores(runs).replace({"network": short})
    table = score_table(last, by=["network"])
    rows = {split: of.set_index("network") for split, of in table.groupby("split")}
    empty = rows["test"].loc["all background"].to_dict()
    test = rows["test"].drop(index="all background")
    validation = rows.get("validation", rows["test"]).loc[test.index, "dice_positive"]
    chosen = test.index[int(np.argmax(validation.fillna(0)))]
    each = last[last["network"] == chosen]
    area = each[["tp", "fn"]].to_numpy().sum() / each[["tp", "fp", "fn", "tn"]].to_numpy().sum()
    frozen = [run for run in runs if run.config["backbone"] != "small"] or runs
    counts = [run.config["parameters"] for run in frozen]
    in_test = last[last["split"] == "test"]
    marked = in_test.assign(hit=in_test["tp"] > 0, alarm=in_test["fp"] > 0)
    seen = marked[marked["has_pneumothorax"]].groupby("network", sort=False)["hit"].sum()
    alarms = marked[~marked["has_pneumothorax"]].groupby("network", sort=False)["alarm"].sum()
    lesions = each[(each["split"] == "test") & each["has_pneumothorax"]]
    curves = {short[run.config["backbone"]]: run.history.set_index("epoch") for run in runs}
    curves = pd.DataFrame({name: of["val_iou"] for name, of in curves.items() if "val_iou" in of})
    found = pd.DataFrame({"found": seen, "missed": empty["positives"] - seen})
    return {
        "conclusion": conclusion(runs),
        "images": len(each),
        "positives": int(each["has_pneumothorax"].sum()),
        "pixels": 100 * area,
        "learnt": max(100 * count["trainable"] / count["total"] for count in counts),
        "leaked": runs[0].config["leaked_patients"],
        "empty": empty,
        "test": test.assign(missed=found["missed"], alarms=alarms).T.to_dict(),
        "chosen": chosen,
        "dice": sorted(dice(lesions, empty_score=0.0)),
        "tables": {"curves": _rows(curves), "found": _rows(found)},
    }


def _rows(table):
    return [["", *table], *([name, *row] for name, row in table.astype(object).iterrows())]
