"""Callbacks of a training: milestones, checkpoint with history."""

import math
import time

from pneumo_lib._startup import keras

from pneumo_lib._files import atomic_write
from pneumo_lib.training import state
from pneumo_lib.training.metrics import SCORES


class Milestones(keras.callbacks.Callback):
    """Keeps weights and scores of every case after chosen epochs but the last.

    The last epoch is scored when the training is over, with the network that is kept.

    Args:
        network: `keras.Model` whose weights are kept.
        folder: the run folder.
        epochs: those after which all is scored, 1 or later.
        score: function that returns the table of scores with the weights of the moment.
        scores: dict of such tables so far, by epoch; grows.
        averaged: `keras.callbacks.SwapEMAWeights`, whose averages are scored; None: no averages.

    Raises:
        ValueError: in `fit()`, if the loss is no longer finite; nothing of that epoch is kept.
    """

    def __init__(self, network, folder, epochs, score, scores, *, averaged=None):
        super().__init__()
        self.network, self.folder, self.epochs = network, folder, epochs
        self.score, self.scores, self.averaged = score, scores, averaged

    def on_epoch_end(self, epoch, logs=None):
        for name in ("loss", "val_loss"):
            if not math.isfinite(logs.get(name, 0)):
                raise ValueError(
                    f"The loss of a training must stay finite. Received: {name}={logs[name]} in "
                    f"epoch {epoch + 1} of run {self.folder.name!r}. Take a lower learning_rate; "
                    "the epochs before are kept"
                )
        if epoch + 1 not in self.epochs or epoch + 1 == self.params["epochs"]:
            return
        if self.averaged:
            self.averaged.on_test_begin()
        self.scores[epoch + 1] = self.score()
        with atomic_write(self.folder / f"epoch_{epoch + 1}.weights.h5") as aside:
            self.network.save_weights(aside)
        if self.averaged:
            self.averaged.on_test_end()


class Checkpoint(keras.callbacks.Callback):
    """Keeps history, scores and all variables after each epoch, so that a killed run goes on.

    Args:
        folder: the run folder.
        variables: list of `keras.Variable`: weights, optimizer, seed generators.
        history: list of rows so far; grows.
        scores: dict of tables, see `Milestones`, which must come before.
    """

    def __init__(self, folder, variables, history, scores):
        super().__init__()
        self.folder, self.variables, self.history, self.scores = folder, variables, history, scores

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        names = [prefix + name for prefix in ("", "val_") for name in ("loss", *SCORES)]
        row = {"epoch": epoch + 1, "seconds": time.monotonic() - self.started}
        row |= {name: logs[name] for name in names if name in logs}
        self.history.append(row)
        state.save_state(self.folder, self.variables, self.history, self.scores)
