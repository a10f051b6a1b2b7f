"""`make torture`: kills, interrupts, fuzzing, mutants, twice the same report; hours, not minutes.

`python tests/torture/run.py [--minutes 10] [SECTION ...]` runs the named sections, or all; each
prints one line, and `runs/torture.json` keeps them with the inputs tried and the faults injected.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT)]
PATH = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
os.environ["TQDM_DISABLE"] = "1"

import archive_faults  # noqa: E402
import jobs  # noqa: E402
import mutants  # noqa: E402
import sweep_faults  # noqa: E402


def kills(folder, *, job, points):
    """A job killed at file events, evenly over all of them."""
    if job == "prepare":
        import hostile_corpus as corpus
        from test_hostile import release

        picture = corpus.encoded(corpus.picture())
        release(folder / "data", [corpus.Input(f"{n}.png", picture, None) for n in range(9)])
    found = jobs.kill_everywhere(job, folder, points=points)
    return {"faults": found["kills"], "wrong": found["wrong"], "of events": found["events"]}


def random_kills(folder, *, job, count, seed=0):
    """Work killed again and again at random moments until it ends, and anew, for `count` kills."""
    rng = random.Random(seed)
    whole, torn = folder / "undisturbed", folder / "killed"
    whole.mkdir(parents=True)
    torn.mkdir()
    started = time.monotonic()
    status, _ = jobs.in_a_child(job, whole)
    seconds, done, wrong = time.monotonic() - started, 0, [] if status == 0 else [str(status)]
    while not wrong:
        moment = rng.uniform(0.1, 0.35) * seconds if done < count else None
        status, _ = jobs.in_a_child(job, torn, kill_after=moment)
        if status == -signal.SIGKILL:
            done += 1
            continue
        wrong = compare(whole, torn) if status == 0 else [f"ended with {status}"]
        if done >= count:
            break
        shutil.rmtree(torn)
        torn.mkdir()
    return {"faults": done, "wrong": wrong}


def compare(one, other):
    """What differs between the results of a job, or between all runs of two reports; times may."""
    if not (one / "runs" / "report").exists():
        return [] if jobs.contents(one) == jobs.contents(other) else ["another result"]
    wrong = []
    folders = sorted(path.parent.name for path in (one / "runs").glob("*/config.json"))
    for name in folders:
        first, second = (jobs.contents_of(place / "runs" / name) for place in (one, other))
        files = sorted(first.keys() | second.keys())
        wrong += [f"{name}/{f} differs" for f in files if first.get(f) != second.get(f)]
    return wrong if folders else ["no finished run"]


def start(arguments, folder):
    """A `pneumo` command in a process group of its own; its output is in `folder/screen.txt`."""
    with (folder / "screen.txt").open("w") as screen:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=os.environ | {"PNEUMO_HOME": str(folder), "PYTHONPATH": PATH},
            stdout=screen,
            stderr=screen,
            start_new_session=True,
        )


def equal_reports(folder):
    """Two reports with the same seed."""
    places = [folder / name for name in ("first", "second")]
    for place in places:
        place.mkdir(parents=True)
    statuses = [jobs.in_a_child("report", place)[0] for place in places]
    return {"runs": 2, "wrong": compare(*places) if not any(statuses) else [str(statuses)]}


def interrupts(folder, *, arguments, count, within, seed=0):
    """Seconds from Ctrl-C to the end of a `pneumo` command, at random moments; then it goes on."""
    rng, wrong, seconds = random.Random(seed), [], []
    folder.mkdir(parents=True)
    if "predict" in arguments:
        jobs.in_a_child("train", folder)  # runs/made
        xrays(folder / "xrays", 3000)
    while len(seconds) < count:
        moment = rng.uniform(*within)
        process = start(arguments, folder)
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment)
            break  # it ended by itself
        family = psutil.Process(process.pid).children(recursive=True)
        started = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        seconds.append(round(time.monotonic() - started, 2))
        os.killpg(process.pid, signal.SIGKILL) if process.returncode is None else None
        said = (folder / "screen.txt").read_text()
        orphans = [child.name() for child in psutil.wait_procs(family, timeout=3)[1]]
        if seconds[-1] >= 2 or process.returncode != 130 or orphans or "goes on" not in said:
            found = f"{seconds[-1]} s, status {process.returncode}, left {orphans}: {said[-3000:]}"
            wrong.append(f"Ctrl-C after {moment:.1f} s: {found}")
    if process := start(arguments, folder).wait():
        wrong.append(f"the last call ended with {process}")
    return {"faults": len(seconds), "longest": max(seconds, default=0), "wrong": wrong}


def generated_xrays(folder, *, examples):
    """Generated X-rays on every path, see `test_same_pixels`."""
    folder.mkdir()
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_same_pixels.py"]
    settings = {"PYTHONPATH": PATH, "PNEUMO_EXAMPLES": str(examples)}
    with (folder / "screen.txt").open("w+") as screen:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=os.environ | settings, stdout=screen
        )
        screen.seek(0)
        return {"inputs": examples, "wrong": [screen.read()[-3000:]] if done.returncode else []}


def xrays(folder, count):
    """One phantom under many names."""
    import cv2

    import pneumo_lib as pl

    folder.mkdir()
    cv2.imwrite(str(folder / "0.png"), pl.draw_phantom(0, size=256)[0])
    for number in range(1, count):
        os.link(folder / "0.png", folder / f"{number}.png")


def fuzz(folder, *, target, minutes):
    """Coverage-guided fuzzing from the corpus of the tests."""
    folder.mkdir(parents=True)
    command = [sys.executable, str(HERE / "fuzz.py"), target, str(folder / "inputs")]
    options = [f"-max_total_time={60 * minutes:.0f}", f"-artifact_prefix={folder}/"]
    done = subprocess.run(
        command + options, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False
    )
    tried = [line.split()[-1] for line in done.stderr.splitlines() if "executed_units" in line]
    found = sorted(path.name for path in folder.glob("*-*"))
    wrong = [f"{name}: {folder / name}" for name in found]
    if done.returncode and not wrong:
        wrong = [done.stderr[-500:]]
    return {"inputs": int(tried[0]) if tried else 0, "wrong": wrong}


def sections(minutes):
    """Name -> function of an empty folder."""
    found = {}
    for job, points in (("prepare", None), ("phantoms", None), ("features", 30), ("train", 30)):
        found[f"kill {job}"] = lambda f, j=job, p=points: kills(f, job=j, points=p)
    for name, job in (("train_small", "train_small"), ("report", "report_of_trainings")):
        found[f"kill {name}"] = lambda f, j=job: random_kills(f, job=j, count=30)
    predict = ["-m", "pneumo_lib", "predict", "xrays", "--run", "made", "--out", "out"]
    report = ["-m", "pneumo_lib", "report", "--params", str(ROOT / "params" / "smoke.yaml")]
    for name, line, count, end in (("predict", predict, 20, 12), ("report", report, 10, 25)):
        found[f"interrupt {name}"] = lambda f, a=line, c=count, e=end: interrupts(
            f, arguments=a, count=c, within=(0.2, e)
        )
    found["equal reports"] = equal_reports
    found |= archive_faults.SECTIONS | sweep_faults.SECTIONS
    for target in ("rle", "tables", "dicom", "image"):
        found[f"fuzz {target}"] = lambda f, t=target: fuzz(f, target=t, minutes=minutes)
    found["generated xrays"] = lambda f: generated_xrays(f, examples=20_000)
    for module in mutants.MODULES:
        found[f"mutants {module}"] = lambda f, m=module: mutants.mutants(f, module=m)
    return found


def main():
    # In the background a shell ignores Ctrl-C for what it starts, and for all that comes of it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="of each fuzzing")
    parser.add_argument("names", nargs="*", metavar="SECTION", help="such as 'fuzz rle'")
    options = parser.parse_args()
    every = sections(options.minutes)
    if unknown := set(options.names) - every.keys():
        parser.error(f"no section {', '.join(unknown)}; there are: {', '.join(every)}")
    chosen = {name: every[name] for name in options.names or every}
    folder = Path(tempfile.mkdtemp(prefix="pneumo-torture-"))
    os.environ["TMPDIR"] = str(folder)  # of what is killed: it leaves files there
    jobs.CHILDREN.set_forkserver_preload(jobs.ALL)
    results, kept = {}, ROOT / "runs" / "torture.json"
    kept.parent.mkdir(exist_ok=True)
    for name, section in chosen.items():
        started = time.monotonic()
        results[name] = section(folder / name.replace(" ", "-"))
        results[name]["minutes"] = round((time.monotonic() - started) / 60, 1)
        print(
            f"{'FAILED' if results[name]['wrong'] else 'ok':8}{name:20}{results[name]}", flush=True
        )
        before = json.loads(kept.read_text()) if kept.exists() else {}  # of other calls
        kept.write_text(json.dumps(before | {name: results[name]}, indent=1) + "\n")
    failed = [name for name in results if results[name]["wrong"]]
    if not failed:
        shutil.rmtree(folder)
    sys.exit(f"Failed: {', '.join(failed)}. See {folder}" if failed else 0)


if __name__ == "__main__":
    main()
