"""Thousands of files through `pneumo predict`: flat memory, no lost row, time in proportion.

Minutes, so `make test` skips it: `PNEUMO_LOAD=10000 pytest -s tests/torture/test_predict_load.py`.
"""

import os
import shutil
import time

import cv2
import psutil
import pytest

import pneumo_lib as pl
from pneumo_lib.inference.predict_files import KINDS, predict_files, read_table

FILES = int(os.environ.get("PNEUMO_LOAD", 0))
BROKEN = 97  # every 97th file is torn
SIZE = 64
pytestmark = pytest.mark.skipif(not FILES, reason="takes minutes: PNEUMO_LOAD=10000 runs it")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    network = pl.build_small_fcn(size=SIZE)
    network.save(folder / "model.keras")
    return pl.runs.Run(folder, {"size": SIZE, "backbone": "small"}, None, None)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Hard links to a few X-rays of 512 pixels, in a hundred folders with the same names."""
    folder = tmp_path_factory.mktemp("files")
    sources = []
    for number in range(8):
        image = cv2.resize(pl.draw_phantom(number, size=256)[0], (512, 512))
        sources.append(folder / f"source{number}.png")
        cv2.imwrite(str(sources[-1]), image)
    torn = folder / "torn.png"
    torn.write_bytes(sources[0].read_bytes()[:500])
    paths = []
    for number in range(FILES):
        path = folder / f"{number % 100:02}" / f"{number // 100:04}.png"
        path.parent.mkdir(exist_ok=True)
        os.link(torn if number % BROKEN == 0 else sources[number % len(sources)], path)
        paths.append(path)
    return paths


def test_memory_is_flat_no_row_is_lost_and_time_is_linear(run, files, tmp_path, record_property):
    memory, moments = [], []
    process = psutil.Process()

    class Watched(list):
        """The files, noting memory and time as they are asked for."""

        def __iter__(self):
            for number, path in enumerate(super().__iter__()):
                if number % max(1, FILES // 20) == 0:
                    memory.append(process.memory_info().rss / 2**20)
                    moments.append(time.monotonic())
                yield path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pneumo_lib.inference.predict.find_images", lambda given: Watched(given))
        outcome = predict_files(files, run, tmp_path / "out")
    broken = len(range(0, FILES, BROKEN))
    assert (outcome.predicted, len(outcome.failed)) == (FILES - broken, broken)
    rows = read_table(tmp_path / "out")
    assert [row["file"] for row in rows] == sorted(map(str, files))
    assert len({row["output"] for row in rows if row["output"]}) == FILES - broken
    for kind in KINDS:
        assert len(list((tmp_path / "out" / kind).iterdir())) == FILES - broken
    growth = max(memory[len(memory) // 2 :]) - max(memory[: len(memory) // 2])
    record_property("growth_MiB", growth)
    print(f"\n{FILES} files: {memory[1]:.0f} MiB after 5 %, {memory[-1]:.0f} MiB at the end")
    assert growth < 100  # MiB, in the second half
    halves = moments[len(moments) // 2] - moments[1], moments[-1] - moments[len(moments) // 2]
    print(f"{FILES / (moments[-1] - moments[1]):.0f} files a second; halves {halves} s")
    shutil.rmtree(tmp_path / "out")
