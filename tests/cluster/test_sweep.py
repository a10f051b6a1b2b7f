"""Sweeps: their files, and real trainings in worker processes that fail, wait and die."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from matplotlib.text import Text

from pneumo_lib import runs
from pneumo_lib.study.experiments import plan_run, run_experiments

sweep = pytest.importorskip("pneumo_lib.cluster.sweep", reason="the extra `cluster` is missing")

from pneumo_lib.cluster import dask_client as clusters  # noqa: E402
from pneumo_lib.plots import experiments, style  # noqa: E402

BASE = {"phantom_count": 12, "size": 32, "backbone": "small", "epochs": 2, "batch_size": 4}
LONG = BASE | {"epochs": 5000}  # never trained to its end
SCORES = pd.DataFrame(
    [
        (1, "a", "validation", True, 0, 0, 4, 12),
        (2, "a", "validation", True, 2, 0, 2, 12),
        (2, "b", "validation", False, 0, 0, 0, 16),
        (2, "c", "test", True, 0, 0, 4, 12),
        (2, "d", "test", False, 0, 1, 0, 15),
        (2, "e", "train", True, 4, 0, 0, 12),
    ],
    columns=["epoch", "image_id", "split", "has_pneumothorax", "tp", "fp", "fn", "tn"],
)


@pytest.fixture(scope="module")
def cluster():
    """A client of two worker processes; which are started in the place of one that dies."""
    with clusters.connected(workers=2) as client:
        yield client


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path))
    return tmp_path


def write(project, grid, base=BASE):
    (project / "try.yaml").write_text(yaml.safe_dump({"base": base, "grid": grid}, sort_keys=False))


def starts(client):
    """How often each run was started, by its name."""
    return Counter(name for _, name in client.get_events(sweep.STARTED))


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def once_it_trains(project, name, do):
    """A thread that calls `do()` when the run `name` has finished an epoch."""

    def wait():
        wait_for((project / "runs" / name / "state.npz").exists)
        do()

    threading.Thread(target=wait).start()


SERVER = """
import asyncio
from distributed import Nanny, Scheduler

async def serve():
    async with {} as server:
        print(server.address, flush=True)
        await server.finished()

asyncio.run(serve())
"""


def start_server(server):
    """A process of Dask's, which prints its address."""
    command = [sys.executable, "-c", SERVER.format(server)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


# Files of sweeps


def test_a_sweep_is_the_product_of_its_lists(project):
    write(project, {"loss": ["dice", "dice + focal"], "seed": [0, 1]}, {"size": 64})
    axes, found = sweep.read_sweep("try.yaml")
    assert axes == ["loss", "seed"]
    assert [(run.name, run.config.loss, run.config.seed, run.source) for run in found] == [
        (f"try-{name}-seed{seed}", loss, seed, {"data": "phantoms", "size": 64, "seed": seed})
        for name, loss in (("dice", "dice"), ("dice-focal", "dice + focal"))
        for seed in (0, 1)
    ]


def test_an_override_replaces_a_shared_setting_or_a_whole_axis(project):
    write(project, {"loss": ["dice", "focal"], "seed": [0, 1]}, {"size": 64})
    _, found = sweep.read_sweep("try.yaml", overrides={"size": 96, "seed": [7, 8], "loss": "dice"})
    assert [run.name for run in found] == ["try-dice-seed7", "try-dice-seed8"]
    assert found[0].source["size"] == 96


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"base": {}, "runs": {}}, r"try.yaml must have the parts `base` and `grid`"),
        ({"base": {}, "grid": {"loss": "dice"}}, r"a list of values.* loss='dice'"),
        ({"base": {}, "grid": {"los": ["dice"]}}, r"Did you mean loss"),
        ({"base": {"sise": 3}, "grid": {}}, r"Did you mean size"),
        ({"base": {}, "grid": {"seed": [0, 0]}}, r"try-seed0, more than once"),
        ({"base": {}, "grid": {"learning_rate": [1, "1.0"]}}, r"learning_rate1.0, more than once"),
        ({"base": {}, "grid": {"epochs": [1, 0]}}, r"`epochs` must be a whole number"),
    ],
)
def test_a_file_that_means_no_sweep_is_refused(project, content, message):
    (project / "try.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=message):
        sweep.read_sweep("try.yaml")


@pytest.mark.parametrize(("name", "count"), [("sweep", 12), ("folds", 5)])
def test_the_sweeps_of_the_project_can_be_read(name, count):
    axes, found = sweep.read_sweep(f"params/{name}.yaml")
    assert len(found) == count
    assert axes[-1] in ("seed", "fold")


# Runs that end


def test_a_sweep_trains_each_run_once_and_a_failure_stops_no_other(project, cluster, caplog):
    write(project, {"learning_rate": [1e-3, 1e38]})
    done = sweep.run_sweep("try.yaml", scheduler=cluster)
    right, wrong = "try-learning_rate0.001", "try-learning_rate1e-38"
    assert (starts(cluster)[right], starts(cluster)[wrong]) == (1, 2)  # it is tried again
    why, log = done.failed.pop(wrong)
    assert done.failed == {}
    assert "loss" in why
    assert "Traceback" in log.read_text()
    assert f"{wrong} failed: {why}" in caplog.text
    assert set(done.table["run"]) == {right}
    pd.testing.assert_frame_equal(pd.read_csv(done.folder / "table.csv"), done.table)
    again = sweep.run_sweep("try.yaml", scheduler=cluster, retries=0)
    assert (starts(cluster)[right], starts(cluster)[wrong]) == (1, 3)
    pd.testing.assert_frame_equal(again.table, done.table)
    only = {"learning_rate": 1e-3}  # all of it finished: no cluster is looked for
    sweep.run_sweep("try.yaml", overrides=only, scheduler="tcp://127.0.0.1:9")
    # the same file of settings as an experiment: but for threads, which add in another order
    (project / "one.yaml").write_text(yaml.safe_dump({"base": BASE | only, "experiments": {}}))
    [here] = run_experiments("one.yaml")
    there = runs.load_run(right)
    columns = here.history.columns.drop("seconds")
    pd.testing.assert_frame_equal(there.history[columns], here.history[columns], rtol=1e-4)


def test_a_result_that_did_not_come_here_is_a_failure(project, cluster, monkeypatch):
    write(project, {"seed": [0]})
    monkeypatch.setattr(runs, "is_finished", lambda folder: False)  # here, not in the workers
    done = sweep.run_sweep("try.yaml", scheduler=cluster)
    assert "all must share the folder PNEUMO_HOME" in done.failed["try-seed0"][0]
    assert done.table.empty


def test_the_table_holds_the_last_scores_of_each_run_and_split():
    found = [
        (SimpleNamespace(folder=SimpleNamespace(name=f"try-{seed}"), scores=SCORES), {"seed": seed})
        for seed in (0, 1)
    ]
    table = sweep.sweep_table(found, axes=["seed"])
    assert Counter(table["split"]) == {"validation": 6, "test": 6}
    values = table.set_index(["run", "split", "score"])["value"]["try-1"]
    # one positive of 4 pixels, half of it found, and one empty mask that is right or is not
    assert values["validation", "dice_positive"] == pytest.approx(2 * 2 / (2 * 2 + 2))
    assert values["validation", "siim_dice"] == pytest.approx((2 / 3 + 1) / 2)
    assert values["validation", "iou"] == pytest.approx(2 / 4)
    assert values["test", "siim_dice"] == 0
    nothing = table.set_index(["run", "split", "score"])["all_background"]["try-0"]
    assert nothing["test", "siim_dice"] == 0.5
    summary = sweep.summarise(table, axes=["seed"]).set_index(["split", "score"])
    assert summary.loc[("test", "iou"), ["runs", "mean", "sd"]].tolist() == [2, 0, 0]


# Workers that die


def test_a_run_whose_worker_is_lost_goes_on_elsewhere(project, cluster):
    write(project, {"seed": [0]}, BASE | {"epochs": 60})

    def kill():
        [(worker, _)] = [(w, keys) for w, keys in cluster.processing().items() if keys]
        os.kill(cluster.run(os.getpid, workers=[worker])[worker], signal.SIGKILL)

    before = starts(cluster)["try-seed0"]
    once_it_trains(project, "try-seed0", kill)
    done = sweep.run_sweep("try.yaml", scheduler=cluster, retries=0)
    assert done.failed == {}
    assert starts(cluster)["try-seed0"] == before + 2
    assert list(runs.load_run("try-seed0").history["epoch"]) == list(range(1, 61))


def test_a_run_that_takes_too_much_memory_is_ended_and_named(project):
    write(project, {"seed": [0]})
    done = sweep.run_sweep("try.yaml", workers=1, retries=0, memory="350MB")
    assert "more memory than it may" in done.failed["try-seed0"][0]


def test_an_interrupt_ends_what_is_under_way(project, cluster):
    def busy():
        return any(cluster.run(lambda dask_worker: len(dask_worker.active_threads)).values())

    write(project, {"seed": [0]}, LONG)
    once_it_trains(project, "try-seed0", lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        sweep.run_sweep("try.yaml", scheduler=cluster)
    wait_for(lambda: not busy())  # which Dask itself does not bring about
    assert not runs.is_finished(project / "runs" / "try-seed0")


def test_the_death_of_the_scheduler_is_one_error_and_ends_the_training(project):
    write(project, {"seed": [0]}, LONG)
    with start_server("Scheduler(host='127.0.0.1', port=0, dashboard=False)") as scheduler:
        address = scheduler.stdout.readline().strip()
        once_it_trains(project, "try-seed0", scheduler.kill)
        with (
            start_server(f"Nanny({address!r}, nthreads=1)"),  # whose end is waited for
            pytest.raises(clusters.LostCluster, match="the same command"),
        ):
            sweep.run_sweep("try.yaml", scheduler=address)
    assert not runs.is_finished(project / "runs" / "try-seed0")


# Workers that differ


@pytest.mark.parametrize("changes", [{"version": 0}, {"folder": "/nowhere"}])
def test_a_worker_refuses_what_it_would_do_in_vain(project, cluster, changes):
    given = {"folder": str(project), "version": runs.RESULTS_VERSION} | changes
    planned = plan_run("a", {})
    future = cluster.submit(sweep.train_on_worker, planned, home="home", pure=False, **given)
    with pytest.raises(RuntimeError, match="must share the folder PNEUMO_HOME and have the same"):
        future.result()


def test_a_worker_that_trains_needs_no_matplotlib():
    code = "import sys, pneumo_lib.cluster.sweep; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_sweep_that_waits_for_a_resource_logs_so(project, cluster, caplog):
    write(project, {"seed": [0]})

    def interrupt():
        wait_for(lambda: "No worker has GPU=1 yet" in caplog.text)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        sweep.run_sweep("try.yaml", scheduler=cluster, resources={"GPU": 1})


# The figure


def rows_of(**columns):
    """Two settings of two seeds, at 0.2 and 0.4, and at 0.6 and 0.8."""
    values = {"value": [0.2, 0.4, 0.6, 0.8], "lower": 0.1, "upper": 0.9, "all_background": 0.5}
    settings = {"backbone": ["small", "small", "vgg16", "vgg16"], "seed": [0, 1, 0, 1]}
    place = {"run": list("abcd"), **settings, "split": "test", "score": "iou"}
    return pd.DataFrame(place | values | columns)


def test_the_figure_has_a_row_for_each_setting_with_its_repeats_and_their_mean(project_style):
    figure = experiments.sweep_chart(rows_of(), scores=["iou"])
    ax = figure.axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["small FCN", "VGG16"]
    marks = {tuple(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2}
    assert {(0.2, 0.4), (0.6, 0.8)} <= marks  # the dots
    means = [x for x in marks if x[0] == x[1]]
    assert sorted(x[0] for x in means) == pytest.approx([0.3, 0.5, 0.7])  # 0.5: all background
    folds = rows_of(backbone="small", seed=[1, 2, 3, 4]).rename(columns={"seed": "fold"})
    ax = experiments.sweep_chart(folds, scores=["iou"]).axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["all runs"]


def test_the_files_of_a_sweep_can_be_read_again_and_name_the_folds(project, monkeypatch):
    drawn = []
    monkeypatch.setattr(style, "export", lambda figure, name, folder: drawn.append(figure))
    config = {"backbone": "vgg16", "weights": "random features", "synthetic": True}
    config |= {"split_scheme": "patient, fold 2/5", "leaked_patients": 0}
    sweep.keep_results(rows_of(), rows_of(), [SimpleNamespace(config=config)] * 2, project)
    note = "synthetic radiographs · random features: vgg16 · split: patient, 5 folds"
    assert note in [text.get_text() for text in drawn[0].findobj(Text)]
    pd.testing.assert_frame_equal(pd.read_csv(project / "table.csv"), rows_of())
