"""What a training keeps after each epoch: history, scores at milestones, a checkpoint."""

import math
import time

from pneumo_lib._startup import keras

from pneumo_lib._files import atomic_write
from pneumo_lib.training import state
from pneumo_lib.training.metrics import SCORES


class Checkpoint(keras.callbacks.Callback):
    """Keeps history, scores and all variables, so that a killed run goes on, and milestones.

    At a milestone, weights and scores of every case are kept; those of the last epoch when the
    training is over, with the network that is kept.

    Args:
        network: `keras.Model` whose weights are kept.
        folder: the run folder.
        milestones: epochs after which all is scored, 1 or later, in order; the last ends the
            training.
        score: function that returns the table of scores with the weights of the moment.
        history: list of rows so far; grows.
        scores: dict of tables of scores so far, by epoch; grows.
        averaged: `keras.callbacks.SwapEMAWeights`, whose averages are scored; None: no averages.

    Raises:
        ValueError: in `fit()`, if the loss is no longer finite; nothing of that epoch is kept.
    """

    def __init__(self, network, folder, milestones, score, history, scores, *, averaged=None):
        super().__init__()
        self.network, self.folder, self.milestones = network, folder, milestones
        self.score, self.averaged, self.history, self.scores = score, averaged, history, scores

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        for name in ("loss", "val_loss"):
            if not math.isfinite(logs.get(name, 0)):
                raise ValueError(
                    f"The loss of a training must stay finite. Received: {name}={logs[name]} in "
                    f"epoch {epoch + 1} of run {self.folder.name!r}. Take a lower learning_rate; "
                    "the epochs before are kept"
                )
        if epoch + 1 in self.milestones[:-1]:
            self._keep_milestone(epoch + 1)
        names = [prefix + name for prefix in ("", "val_") for name in ("loss", *SCORES)]
        row = {"epoch": epoch + 1, "seconds": time.monotonic() - self.started}
        self.history.append(row | {name: logs[name] for name in names if name in logs})
        variables = [*self.network.variables, *self.model.optimizer.variables]
        state.save_state(self.folder, variables, self.history, self.scores)

    def _keep_milestone(self, epoch):
        if self.averaged:
            self.averaged.on_test_begin()
        self.scores[epoch] = self.score()
        with atomic_write(self.folder / f"epoch_{epoch}.weights.h5") as aside:
            self.network.save_weights(aside)
        if self.averaged:
            self.averaged.on_test_end()
