"""Sweeps: what a file means, and real worker processes that fail, stall and die.

A notebook of milliseconds stands for training. It notes each start, with its own process and its
worker's, and does what its parameter `event` says.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace

import nbformat
import pandas as pd
import psutil
import pytest
import yaml

from pneumo_lib import runs
from pneumo_lib.paths import project_path

sweep = pytest.importorskip("pneumo_lib.sweep", reason="the extra `cluster` is missing")

from pneumo_lib import cluster as clusters  # noqa: E402
from pneumo_lib import sweep_results, sweep_worker  # noqa: E402

keep_results = sweep_results.keep_results  # before a fixture replaces it
PARAMETERS = """data = "phantoms"
phantom_count = 8
size = 32
split = "auto"
fold = None
seed = 0
backbone = "small"
loss = "crossentropy"
learning_rate = 1e-3
event = ""
run_name = None"""
TRAINING = """
import json, os, time
from pathlib import Path

home = Path(os.environ["PNEUMO_HOME"])
folder = home / "runs" / run_name
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "starts.txt", "a") as starts:
    starts.write(f"{os.getpid()} {os.getppid()}\\n")
first = len((folder / "starts.txt").read_text().splitlines()) == 1
if event == "fail":
    raise ValueError("no such loss")
if event == "kill the worker" and first:
    os.kill(os.getppid(), 9)
if event == "kill the scheduler" and first:
    os.kill(int((home / "scheduler.pid").read_text()), 9)
if event == "eat":
    much = b"x" * 600_000_000
while event == "slow" and seed == 0 and len(list(home.glob("runs/*/config.json"))) < 3:
    time.sleep(0.1)  # until the three others are done
if event in ("eat", "wait") or "kill" in event and first:
    time.sleep(600)
(folder / "scores.csv").write_text((home / "scores.csv").read_text())
(folder / "history.csv").write_text("epoch\\n2\\n")
config = json.loads((home / "config.json").read_text())
(folder / "config.json").write_text(json.dumps(config | {"backbone": backbone, "loss": loss}))
"""
SCORES = """epoch,image_id,split,has_pneumothorax,tp,fp,fn,tn
1,a,validation,True,0,0,4,12
2,a,validation,True,2,0,2,12
2,b,validation,False,0,0,0,16
2,c,test,True,0,0,4,12
2,d,test,False,0,1,0,15
2,e,train,True,4,0,0,12
"""


@pytest.fixture(scope="module")
def cluster():
    """A client of two worker processes; which are started in the place of one that dies."""
    with clusters.connected(workers=2) as client:
        yield client


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with the notebook above, and data that need no preparation."""
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    cells.append(nbformat.v4.new_code_cell(TRAINING))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nb = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(nb, tmp_path / "notebooks" / "05_train_fcn.ipynb")
    config = {"results_version": runs.RESULTS_VERSION, "data_checksum": "of the data"}
    config |= {
        "leaked_patients": 0,
        "weights": "from scratch",
        "synthetic": True,
        "split_scheme": "patient",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "scores.csv").write_text(SCORES)
    monkeypatch.setattr(sweep, "prepare_for", lambda parameters: SimpleNamespace())
    monkeypatch.setattr(runs, "data_checksum", lambda data: "of the data")
    monkeypatch.setattr(sweep_results, "keep_results", lambda *args: None)  # draws for seconds
    return tmp_path


def write(project, grid, base=None):
    (project / "try.yaml").write_text(yaml.safe_dump({"base": base, "grid": grid}, sort_keys=False))


def starts(name):
    """`(kernel, worker)` process ids of each time that a run was started."""
    path = project_path("runs") / name / "starts.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def is_gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


SERVER = """
import asyncio
from distributed import Scheduler, Worker

async def serve():
    async with {} as server:
        print(server.address, flush=True)
        await server.finished()

asyncio.run(serve())
"""


def start_server(server):
    """A process of Dask's, which says its address."""
    command = [sys.executable, "-c", SERVER.format(server)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


# What a file means


def test_a_sweep_is_the_product_of_its_lists(project):
    write(project, {"loss": ["dice", "a + b"], "seed": [0, 1]}, {"size": 64})
    axes, found = sweep.read_sweep("try.yaml")
    assert axes == ["loss", "seed"]
    assert list(found) == ["try-dice-seed0", "try-dice-seed1", "try-a-b-seed0", "try-a-b-seed1"]
    assert found["try-a-b-seed1"] == {
        "data": "phantoms",
        "size": 64,
        "loss": "a + b",
        "seed": 1,
        "run_name": "try-a-b-seed1",
    }


def test_an_override_replaces_a_shared_parameter_or_a_whole_axis(project):
    write(project, {"loss": ["dice", "focal"], "seed": [0, 1]}, {"size": 64})
    _, found = sweep.read_sweep("try.yaml", overrides={"size": 96, "seed": [7, 8], "loss": "dice"})
    assert list(found) == ["try-dice-seed7", "try-dice-seed8"]
    assert found["try-dice-seed7"]["size"] == 96


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"base": {}, "runs": {}}, r"try.yaml must have the parts `base` and `grid`"),
        ({"base": {}, "grid": {"loss": "dice"}}, r"a list of values.* loss='dice'"),
        ({"base": {}, "grid": {"los": ["dice"]}}, r"Did you mean `loss`"),
        ({"base": {"sise": 3}, "grid": {}}, r"Did you mean `size`"),
        ({"base": {}, "grid": {"seed": [0, 0]}}, r"try-seed0, more than once"),
        ({"base": {}, "grid": {"learning_rate": [1, "1.0"]}}, r"learning_rate1.0, more than once"),
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
    write(project, {"event": ["fail", ""]})
    done = sweep.run_sweep("try.yaml", scheduler=cluster)
    assert (len(starts("try")), len(starts("try-fail"))) == (1, 2)  # which is tried again
    why, notebook = done.failed.pop("try-fail")
    assert done.failed == {}
    assert why == "ValueError: no such loss"
    assert "no such loss" in notebook.read_text()
    assert "try-fail failed: ValueError: no such loss" in caplog.text
    again = sweep.run_sweep("try.yaml", scheduler=cluster, retries=0)
    assert (len(starts("try")), len(starts("try-fail"))) == (1, 3)
    pd.testing.assert_frame_equal(again.table, done.table)


def test_the_table_holds_the_last_scores_of_each_run_and_part(project, cluster, monkeypatch):
    monkeypatch.setattr(sweep_results, "keep_results", keep_results)
    monkeypatch.setattr(sweep_results, "export", lambda figure, name, folder: None)
    write(project, {"loss": ["dice"], "seed": [0, 1]})
    done = sweep.run_sweep("try.yaml", scheduler=cluster)
    table = pd.read_csv(done.folder / "table.csv")
    pd.testing.assert_frame_equal(table, done.table)
    assert Counter(table["part"]) == {"validation": 6, "test": 6}
    values = table.set_index(["run", "part", "score"])["value"]["try-dice-seed1"]
    # one positive of 4 pixels, half of it found, and one empty mask that is right or is not
    assert values["validation", "dice_positive"] == pytest.approx(2 * 2 / (2 * 2 + 2))
    assert values["validation", "siim_dice"] == pytest.approx((2 / 3 + 1) / 2)
    assert values["validation", "iou"] == pytest.approx(2 / 4)
    assert values["test", "siim_dice"] == 0
    nothing = table.set_index(["run", "part", "score"])["all_background"]["try-dice-seed0"]
    assert nothing["test", "siim_dice"] == 0.5
    summary = done.summary.set_index(["loss", "part", "score"])
    assert summary.loc[("dice", "test", "iou"), ["runs", "mean", "sd"]].tolist() == [2, 0, 0]


# Workers that do not


def test_a_lost_worker_costs_only_its_own_run(project, cluster):
    write(project, {"event": ["kill the worker", ""]})
    done = sweep.run_sweep("try.yaml", scheduler=cluster, retries=0)
    assert set(done.table["run"]) == {"try-kill-the-worker", "try"}
    assert (len(starts("try-kill-the-worker")), len(starts("try"))) == (2, 1)
    wait_for(lambda: is_gone(starts("try-kill-the-worker")[0][0]))  # the lost worker's kernel


def test_a_slow_worker_leaves_the_other_runs_to_the_others(project, cluster):
    write(project, {"seed": [0, 1, 2, 3]}, {"event": "slow"})
    sweep.run_sweep("try.yaml", scheduler=cluster)
    workers = [starts(f"try-seed{seed}")[0][1] for seed in range(4)]
    assert workers.count(workers[0]) == 1


def test_a_run_that_takes_too_much_memory_is_ended_and_named(project, cluster):
    write(project, {"event": ["eat"]})
    done = sweep.run_sweep("try.yaml", scheduler=cluster, retries=0, memory="600MB")
    assert "A run may take 0.6 GB with its worker" in done.failed["try-eat"][0]


def test_an_interrupt_ends_what_is_under_way_and_the_same_call_goes_on(project, cluster):
    write(project, {"event": ["wait"]})

    def interrupt():
        wait_for(lambda: starts("try-wait"))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        sweep.run_sweep("try.yaml", scheduler=cluster)
    wait_for(lambda: is_gone(starts("try-wait")[0][0]))
    notebook = project / "notebooks" / "05_train_fcn.ipynb"
    notebook.write_text(notebook.read_text().replace('(\\"eat\\", \\"wait\\")', '(\\"eat\\",)'))
    assert sweep.run_sweep("try.yaml", scheduler=cluster).failed == {}


def test_the_death_of_the_scheduler_is_one_error_and_the_same_call_goes_on(project, cluster):
    write(project, {"event": ["kill the scheduler"]})
    with start_server("Scheduler(host='127.0.0.1', port=0, dashboard=False)") as scheduler:
        (project / "scheduler.pid").write_text(str(scheduler.pid))
        address = scheduler.stdout.readline().strip()
        with (
            start_server(f"Worker({address!r}, nthreads=1)"),  # which ends with its scheduler
            pytest.raises(clusters.LostCluster, match="the same command"),
        ):
            sweep.run_sweep("try.yaml", scheduler=address)
    wait_for(lambda: is_gone(starts("try-kill-the-scheduler")[0][0]))
    done = sweep.run_sweep("try.yaml", scheduler=cluster)
    assert done.failed == {}
    assert len(starts("try-kill-the-scheduler")) == 2


# Workers that are not alike


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 0}, "must have the same pneumo_lib. Received: another one on tcp:"),
        ({"executed": "/nowhere/a.ipynb"}, "must share the folder PNEUMO_HOME"),
    ],
)
def test_a_worker_refuses_what_it_would_do_in_vain(project, cluster, changes, message):
    given = {"executed": str(project / "a.ipynb"), "version": runs.RESULTS_VERSION} | changes
    future = cluster.submit(
        sweep_worker.train_on_worker, {"run_name": "a"}, home=str(project), pure=False, **given
    )
    with pytest.raises((RuntimeError, FileNotFoundError), match=message):
        future.result()


def test_a_sweep_that_waits_for_a_resource_says_so(cluster, caplog):
    sweep._warn_of_missing(cluster, {"GPU": 1})
    assert "No worker has GPU=1 yet" in caplog.text


def test_a_result_that_did_not_come_here_is_a_failure(project, cluster):
    write(project, {"event": [""]})
    config = project / "config.json"
    config.write_text(config.read_text().replace("of the data", "of other data"))
    done = sweep.run_sweep("try.yaml", scheduler=cluster)
    assert "client and workers must share PNEUMO_HOME" in done.failed["try"][0]
    assert done.table.empty


# The figure


def rows_of(**columns):
    """Two settings of two seeds, at 0.2 and 0.4, and at 0.6 and 0.8."""
    values = {"value": [0.2, 0.4, 0.6, 0.8], "lower": 0.1, "upper": 0.9, "all_background": 0.5}
    settings = {"backbone": ["small", "small", "vgg16", "vgg16"], "seed": [0, 1, 0, 1]}
    place = {"run": list("abcd"), **settings, "part": "test", "score": "iou"}
    return pd.DataFrame(place | values | columns)


def test_the_figure_has_a_row_for_each_setting_with_its_repeats_and_their_mean(project_style):
    figure = sweep_results.sweep_chart(rows_of(), scores=["iou"])
    ax = figure.axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["small FCN", "VGG16"]
    marks = {tuple(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2}
    assert {(0.2, 0.4), (0.6, 0.8)} <= marks  # the dots
    means = [x for x in marks if x[0] == x[1]]
    assert sorted(x[0] for x in means) == pytest.approx([0.3, 0.5, 0.7])  # 0.5: all background


def test_the_figure_of_a_cross_validation_has_one_row(project_style):
    table = rows_of(backbone="small", seed=[1, 2, 3, 4]).rename(columns={"seed": "fold"})
    ax = sweep_results.sweep_chart(table, scores=["iou"]).axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["all runs"]


def test_the_files_of_a_sweep_can_be_read_again_and_name_the_folds(project, monkeypatch):
    notes = []
    monkeypatch.setattr(sweep_results, "sweep_chart", lambda table, note: notes.append(note))
    monkeypatch.setattr(sweep_results, "export", lambda figure, name, folder: None)
    monkeypatch.setattr(sweep_results.plt, "close", lambda figure: None)
    config = {"backbone": "vgg16", "weights": "random features", "synthetic": True}
    config |= {"split_scheme": "patient, fold 2/5", "leaked_patients": 0}
    keep_results(rows_of(), rows_of(), [SimpleNamespace(config=config)] * 2, project)
    assert notes == ["synthetic radiographs · random features: vgg16 · split: patient, 5 folds"]
    pd.testing.assert_frame_equal(pd.read_csv(project / "table.csv"), rows_of())
