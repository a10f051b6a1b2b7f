"""Work that is killed: each job makes a folder, and is run in a process of its own.

`python jobs.py JOB FOLDER [EVENT]` does it once, and kills itself at that file event (a file
opened, renamed, removed, a memory map made, ...).
"""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
EVENTS = {
    "open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate",
    "shutil.rmtree", "mmap.__new__", "fcntl.flock",
}  # fmt: skip
SETTINGS = {"weights": None, "epochs": 4, "milestones": [2], "batch_size": 4}


def prepare(folder):
    """Arrays of the data set in the folder `data` beside, five images a chunk."""
    from pneumo_lib.data import arrays
    from pneumo_lib.data import prepare as preparation
    from pneumo_lib.data.siim import read_cases

    arrays.CHUNK = 5
    preparation.prepare(read_cases(folder.parent / "data"), folder / "made", size=32, workers=2)


def phantoms(folder):
    """Twelve phantoms, drawn in this process."""
    from pneumo_lib.data.phantom.draw import make_phantoms

    make_phantoms(folder / "made", count=12, size=64, workers=1)


def features(folder):
    """Features of 24 images, kept on disk every two batches."""
    from pneumo_lib.models import fcn
    from pneumo_lib.training import features

    features._BATCHES_BETWEEN_FLUSHES = 2
    encoder, _ = fcn.split_fcn(fcn.build_fcn("vgg16", size=32, weights=None, seed=0))
    features.cached_features(encoder, _squares(), "vgg16", folder=folder / "made", batch_size=3)


def train(folder):
    """A head trained on features of its own."""
    from pneumo_lib.training.train import train

    os.environ["PNEUMO_HOME"] = str(folder)
    train(_squares(), run="made", backbone="vgg16", **SETTINGS)


def train_small(folder):
    """The small FCN from scratch, with flips."""
    from pneumo_lib.training.train import train

    os.environ["PNEUMO_HOME"] = str(folder)
    train(_squares(), run="made", backbone="small", **SETTINGS)


def report(folder, *, only=""):
    """The whole study at the smallest settings, or the notebooks whose names match `only`."""
    os.environ |= {"PNEUMO_HOME": str(folder), "TQDM_DISABLE": "1"}
    from pneumo_lib.study.report import run_report

    root, notebooks = TESTS.parent, folder / "notebooks"
    notebooks.mkdir(exist_ok=True)
    for path in (root / "notebooks").glob(f"{only}*.ipynb"):
        shutil.copy2(path, notebooks)
    run_report(params=root / "params" / "smoke.yaml", notebooks=notebooks)


def report_of_trainings(folder):
    """What of the study draws, prepares, trains and scores: the rest only shows it, or networks."""
    report(folder, only="0[56]_")


def _squares():
    sys.path.insert(0, str(TESTS))
    from conftest import make_data

    return make_data(Path("squares").resolve())


JOBS = (prepare, phantoms, features, train, train_small, report, report_of_trainings)
JOBS = {job.__name__: job for job in JOBS}


# Each job is a fork of a process that has imported what jobs need and computed nothing, as
# TensorFlow, once it computes, hangs in a fork; a new process would import for seconds.
CHILDREN = multiprocessing.get_context("forkserver")
LIGHT = ("jobs", "pneumo_lib.data.prepare", "pneumo_lib.data.phantom.draw")
ALL = ("tensorflow", "pneumo_lib.training.train", "conftest", *LIGHT)


def count_file_events(kill_at=None):
    """A list that grows with the file events from now on; the process dies at number `kill_at`."""
    seen = []

    def hook(event, arguments):
        path = str(arguments[0]) if arguments else ""
        if event not in EVENTS or "site-packages" in path or path.endswith((".py", ".pyc", ".so")):
            return  # imports are not the job's own work
        seen.append(f"{event} {arguments[0] if arguments else ''}")
        if len(seen) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return seen


def in_a_child(name, folder, *, kill_at=None, kill_after=None):
    """`(exit status, file events)` of a job in a process of its own.

    It is killed at the file event of number `kill_at`, or after so many seconds.
    """
    child = CHILDREN.Process(target=_silently, args=(name, folder, kill_at))
    child.start()
    child.join(kill_after)
    child.kill()
    child.join()
    counts = folder / "events.txt"
    return child.exitcode, counts.read_text().splitlines() if child.exitcode == 0 else []


def _silently(*arguments):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    run(*arguments)


def run(name, folder, kill_at):
    """The job, here; its file events go into `events.txt`."""
    seen = count_file_events(kill_at)
    JOBS[name](folder)
    (folder / "events.txt").write_text("\n".join(seen))


def contents(folder):
    """What a job made, see `contents_of()`."""
    made = folder / "made"
    return contents_of(made if made.exists() else folder / "runs" / "made")


def contents_of(made):
    """What every file below `made` holds, without seconds; see the comments."""
    found = {}
    for path in sorted(path for path in made.rglob("*") if path.is_file()):
        name = str(path.relative_to(made))
        if path.suffix == ".csv" and "seconds" in (header := path.read_text().split("\n")[0]):
            rows = [line.split(",") for line in path.read_text().splitlines()]
            place = header.split(",").index("seconds")
            found[name] = [row[:place] + row[place + 1 :] for row in rows]
        elif path.name == "config.json":
            found[name] = {**json.loads(path.read_text()), "seconds": None}
        elif path.suffix == ".keras":  # the zip and HDF5 containers hold times
            import keras

            from pneumo_lib.models import fcn  # noqa: F401  (its layers must be known)

            network = keras.models.load_model(path, compile=False)
            found[name] = [weight.tobytes() for weight in network.get_weights()]
        elif path.suffix == ".h5":
            import h5py

            with h5py.File(path) as file:
                names = []
                file.visit(names.append)
                weights = [
                    file[n][()].tobytes() for n in names if isinstance(file[n], h5py.Dataset)
                ]
            found[name] = weights
        elif path.suffix not in (".count", ".lock") and path.name != "made_from.npy":
            # those are removed last, and a kill just before leaves them: nothing reads them again
            found[name] = path.read_bytes()
    return found


def kill_everywhere(name, folder, *, points=None):
    """Kills a job at file events, lets it go on, and compares with the undisturbed one.

    Args:
        name: of the job.
        folder: an empty one, but for what the job needs.
        points: how many events, evenly; `None`: each of them.

    Returns:
        dict: `events` in all, `kills`, and what went `wrong`, as text.
    """

    def fresh(label):
        place = folder / label
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        return place

    whole = fresh("undisturbed")
    status, events = in_a_child(name, whole)
    wrong = [] if status == 0 else [f"undisturbed: {status}"]
    count, kills = len(events), 0
    expected = contents(whole) if status == 0 else None
    chosen = range(1, count + 1) if points is None else {
        1 + (2 * point + 1) * count // (2 * points) for point in range(points)
    }  # fmt: skip
    for event in sorted(chosen):
        place = fresh("killed")
        status, _ = in_a_child(name, place, kill_at=event)
        if status != -signal.SIGKILL:
            wrong.append(f"event {event}: ended with {status} and not by the kill")
            continue
        kills += 1
        status, _ = in_a_child(name, place)
        where = f"killed at event {event} of {count}, {events[event - 1]}"
        if status != 0:
            wrong.append(f"{where}: the second call ended with {status}")
        elif contents(place) != expected:
            wrong.append(f"{where}: another result")
        elif rest := [p.name for p in place.glob("made.*")]:
            wrong.append(f"{where}: {rest} is left")
    return {"events": count, "kills": kills, "wrong": wrong}


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
