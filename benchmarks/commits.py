"""How long do the epochs of `train()` take at two commits, measured in turn in one run?

`git worktree add ../before COMMIT`, then `python benchmarks/commits.py ../before .`: the heads on
cached features, 604 training and 106 validation images at 128 pixels, batches of 16, as in the
study's default run. Each turn is a process of its own, so that the first epoch includes
compilation. The seconds of the processor beside those of the clock count what the process itself
worked, and depend less on what else the machine does.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from harness import noise, report


def run_once(backbone, epochs):
    """One training, in a process of its own with the library of one commit; prints its figures."""
    from pneumo_lib.training import state
    from pneumo_lib.training.train import train

    save, ends = state.save_state, []

    def save_and_look(*arguments, **options):  # after each epoch, at every commit
        save(*arguments, **options)
        ends.append((time.perf_counter(), time.process_time()))

    data = noise(710, 128, training_share=604 / 710, folder=os.environ["PNEUMO_HOME"])
    settings = {"backbone": backbone, "weights": None, "epochs": epochs, "milestones": []}
    train(data, run="features", **settings | {"epochs": 1})  # so that no turn computes them
    state.save_state = save_and_look
    started = time.perf_counter(), time.process_time()
    history = train(data, run=str(os.getpid()), **settings).history
    first, *later = np.diff([started, *ends], axis=0).tolist()
    print(json.dumps({"first": first, "later": later, "loss": history["val_loss"].iloc[-1]}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", help="checkouts of the commits")
    parser.add_argument("--backbones", nargs="+", default=["vgg19", "resnet50"])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        return run_once(options.backbones[0], options.epochs)
    rows = []
    with TemporaryDirectory() as home:
        for turn in range(options.rounds):
            for backbone in options.backbones:
                for folder in options.folders:
                    once = ["--once", "--backbones", backbone, "--epochs", str(options.epochs)]
                    paths = {"PYTHONPATH": folder, "PNEUMO_HOME": f"{home}/{Path(folder).name}"}
                    done = subprocess.run(
                        [sys.executable, __file__, folder, *once],
                        env=os.environ | paths | {"TQDM_DISABLE": "1"},
                        stdout=subprocess.PIPE,
                        text=True,
                        check=True,
                    )
                    found = json.loads(done.stdout.splitlines()[-1])
                    kinds = [("first", found["first"])] + [("later", e) for e in found["later"]]
                    rows += [
                        (backbone, kind, folder, *seconds, found["loss"]) for kind, seconds in kinds
                    ]
                    print(turn, backbone, folder, done.stdout.splitlines()[-1], file=sys.stderr)
    names = ["network", "epoch", "commit", "seconds", "processor_seconds", "val_loss"]
    table = pd.DataFrame(rows, columns=names).groupby(names[:3], sort=False).median().reset_index()
    return report("commits", table, unit="seconds, medians over epochs and turns")


if __name__ == "__main__":
    main()
