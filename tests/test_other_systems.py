"""What differs on Windows and macOS, as far as another system can stand in for them."""

import os
import subprocess
import sys

import pandas as pd

SCRIPT = """
import multiprocessing, os, sys, warnings

sys.modules["fcntl"] = None
for name in ("posix_fallocate", "sched_getaffinity"):
    if hasattr(os, name):
        delattr(os, name)

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    warnings.filterwarnings("ignore", "only soft file lock")  # Windows has a lock of its own
    import pneumo_lib as pl
    from pneumo_lib.apps.cli import main

    data = pl.prepare_data(phantom_count=60, size=32)  # enough for a pool of processes
    run = pl.train(data, run="für alle", backbone="small", epochs=1)
    files = list(data.cases["image_path"][:2])
    sys.exit(main(["predict", *map(str, files), "--run", str(run.folder), "--out", "zwei Bilder"]))
"""


def test_spawned_processes_no_fcntl_and_blanks_and_umlauts_in_every_path(tmp_path):
    folder = tmp_path / "Röntgen Bilder (1)"
    folder.mkdir()
    (folder / "ein Skript.py").write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "ein Skript.py"],
        cwd=folder,
        env=os.environ | {"PNEUMO_HOME": str(folder), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(folder / "zwei Bilder/predictions.csv")
    assert len(table) == 2
    assert table["error"].isna().all()
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        *("data", "runs", "zwei Bilder")
    ]


def test_a_script_without_the_usual_last_block_ends_with_the_reason(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import pneumo_lib as pl\npl.make_phantoms('drawn', count=60, workers=2)\n")
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "A script must begin its work below `if __name__ == '__main__':`" in done.stderr
