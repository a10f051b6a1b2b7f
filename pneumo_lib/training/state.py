"""Run folders under way: created, kept after each epoch, resumed."""

from pathlib import Path

from pneumo_lib._startup import keras  # noqa: F401

import numpy as np
import pandas as pd
from keras import ops

from pneumo_lib._files import atomic_write, begin_folder, project_path, read_csv, write_csv
from pneumo_lib.runs import SETTINGS, changed_settings, is_finished, logger


def create_run_folder(name, settings):
    """`Path` of the folder `name` below `runs/`, new or begun with the same settings.

    `settings` is the dict that decides the run's results; work with others under that name is
    moved aside to `<name>.old-<number>`. A ValueError if the folder holds no training run.
    """
    folder = project_path(Path("runs") / name)
    if changed := changed_settings(folder, settings):
        number = 1
        while (aside := folder.with_name(f"{name}.old-{number}")).exists():
            number += 1
        folder.rename(aside)
        logger.warning(
            "%s was trained with other settings (%s); kept as %s",
            *(name, ", ".join(changed), aside.name),
        )
    if changed != []:  # a run of an older version holds the same settings in another form
        begin_folder(folder, settings, record=SETTINGS, what="A run")
    if is_finished(folder):  # and killed just before its state was removed
        (folder / "state.npz").unlink(missing_ok=True)
    return folder


def save_state(folder, variables, history, scores):
    """Keep all that training needs to go on after the last epoch of `history`, a list of dicts.

    `variables` is a list of `keras.Variable` (weights, optimizer, seed generators), `scores` a
    dict from milestone to table.
    """
    write_csv(folder / "history.csv", pd.DataFrame(history))
    if scores:
        write_scores(folder, scores)
    # Last, for it decides how many rows of the tables above count.
    with atomic_write(folder / "state.npz") as aside:
        np.savez(aside, *[ops.convert_to_numpy(v) for v in variables], epoch=len(history))


def write_scores(folder, scores):
    """`scores.csv`: the tables of a dict from milestone to table, the epoch as first column."""
    tables = pd.concat(dict(sorted(scores.items())), names=["epoch"]).reset_index("epoch")
    write_csv(folder / "scores.csv", tables)


def epochs_done(folder):
    """Epochs up to the last checkpoint in `folder`; 0 without one."""
    if not (folder / "state.npz").exists():
        return 0
    with np.load(folder / "state.npz") as state:
        return int(state["epoch"])


def load_state(folder, variables):
    """Set `variables`, all that were kept or the first of them, to the last checkpoint in `folder`.

    Returns:
        `(history, scores)` so far, as given to `save_state()`; empty if there is none.
    """
    if not (epoch := epochs_done(folder)):
        return [], {}
    with np.load(folder / "state.npz") as state:
        for number, variable in enumerate(variables):
            variable.assign(state[f"arr_{number}"])
    history = read_csv(folder / "history.csv").head(epoch)
    scores = {}
    if (folder / "scores.csv").exists():
        tables = read_csv(folder / "scores.csv").groupby("epoch")
        scores = {n: table.drop(columns="epoch") for n, table in tables if n <= epoch}
    return history.to_dict("records"), scores
