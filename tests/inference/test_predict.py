"""Prediction: a file gets the probabilities of its prepared image."""

import hashlib
import json
import logging
import pickle
import shutil
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import CASES, SIZE

import pneumo_lib as pl
from pneumo_lib import runs
from pneumo_lib.data.dicom import XRay
from pneumo_lib.evaluation.operating_point import OperatingPoint
from pneumo_lib.inference import predict as inference
from pneumo_lib.inference.predict import Prediction, find_images, predict
from pneumo_lib.models import forward
from pneumo_lib.training.train import train


@pytest.fixture(scope="module")
def run(data):
    return train(data, run="tiny", backbone="vgg19", weights=None, epochs=1, batch_size=4)


@pytest.fixture(scope="module")
def files(data, tmp_path_factory):
    """The prepared images as PNG files, in the order of the cases."""
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / f"{number:02}.png" for number in range(CASES)]
    for path, image in zip(paths, data.images, strict=True):
        cv2.imwrite(str(path), image)
    return paths


def test_predictions_agree_with_the_probabilities_of_the_run(run, files):
    predictions = list(pl.predict(files, "tiny"))
    assert [prediction.path for prediction in predictions] == files
    kept = np.load(run.folder / "probabilities.npy") / 255
    probabilities = np.stack([prediction.probability for prediction in predictions])
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, kept, atol=0.5 / 255 + 1e-4)


def test_compiled_head_gives_the_same_probabilities(run, files, monkeypatch):
    plain = list(predict(files, run))
    monkeypatch.setattr(inference, "_WORTH_COMPILING", 1)
    compiled = list(predict(files, run, batch_size=10))  # the last batch is not full
    assert len(compiled) == len(plain)
    for one, other in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(other.probability, one.probability, atol=1e-5)


@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_large_images_go_through_the_network_a_few_at_a_time(run, data, monkeypatch, xla, flip):
    lengths = []

    def recording(*arguments, **options):
        compiled = forward.compiled(*arguments, **options)
        return lambda images: (lengths.append(len(images)), compiled(images))[1]

    run = run._replace(config=run.config | {"test_time_flip": flip})
    whole = inference.load_scored(run, batch_size=8, xla=xla)(data.images[:8])
    monkeypatch.setattr(inference, "compiled", recording)
    monkeypatch.setattr(inference, "batch_in_memory", lambda size, most: 3)
    few = inference.load_scored(run, batch_size=8, xla=xla)(data.images[:8])
    assert max(lengths) == 3
    for one, other in zip(few, whole, strict=True):  # probabilities, and scores of images
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_small_fcn_has_no_head_to_compile_and_predicts_all_the_same(bright, xrays, monkeypatch):
    monkeypatch.setattr(inference, "_WORTH_COMPILING", 1)
    [prediction] = predict(xrays / "half.png", bright)
    np.testing.assert_allclose(prediction.probability[0, [0, -1]], [1, 0], atol=1e-4)


def test_file_of_another_size_gets_the_probability_of_its_prepared_image(run, data, tmp_path):
    large = cv2.resize(data.images[0], (3 * SIZE, 2 * SIZE), interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(tmp_path / "large.png"), large)
    [prediction] = predict(tmp_path, run)
    kept = np.load(run.folder / "probabilities.npy")[0] / 255
    np.testing.assert_allclose(prediction.probability, kept, atol=0.5 / 255 + 1e-4)
    assert prediction.mask.shape == large.shape


@pytest.mark.parametrize("level", [0, 255])
def test_frame_around_an_xray_changes_nothing_within_it(run, data, tmp_path, level):
    plain = cv2.resize(data.images[0], (4 * SIZE, 3 * SIZE), interpolation=cv2.INTER_NEAREST)
    framed = np.pad(plain, ((SIZE, 0), (0, 2 * SIZE)), constant_values=level)
    framed = np.pad(framed, 20, constant_values=level)
    framed[5:12, 40:50] = 255 - level  # a letter burnt into it
    cv2.imwrite(str(tmp_path / "a.png"), plain)
    cv2.imwrite(str(tmp_path / "b.png"), framed)
    sure = float(np.quantile(next(predict(tmp_path / "a.png", run)).probability, 0.7))
    one, other = predict(tmp_path, run, operating_point=OperatingPoint(sure, 0.1, sure))
    assert one.mask.any()
    np.testing.assert_allclose(other.score, one.score, atol=1e-6)
    assert other.mask.shape == framed.shape
    np.testing.assert_array_equal(other.mask[SIZE + 20 : -20, 20 : -20 - 2 * SIZE], one.mask)
    assert other.mask.sum() == one.mask.sum()
    assert other.probability.shape == (SIZE, SIZE)
    assert (other.probability[: SIZE // 5] == 0).all()  # the frame, 52 of 168 rows
    np.testing.assert_allclose(other.probability.max(), one.probability.max(), atol=0.02)


def test_dicom_files_get_masks_of_their_own_size(run, siim_dicom):
    predictions = list(predict(siim_dicom, run))
    assert len(predictions) == 10
    assert {prediction.error for prediction in predictions} == {None}
    assert {prediction.mask.shape for prediction in predictions} == {(1024, 1024)}


def mask_of(probability, shape, point):
    """Mask of one X-ray of `shape` whose network gives `probability`."""
    probability = np.array(probability, np.float32)

    def read(path):
        return Prediction(path, xray=XRay(None, shape)), probability

    [prediction] = inference.predictions(["x"], read, lambda x: (x, [0.5]), point, 1, 1)
    assert prediction.mask.dtype == np.uint8
    return prediction.mask


def test_mask_is_1_where_the_upsampled_probability_reaches_the_threshold():
    # OpenCV's linear mode puts samples at pixel centres: 0.2, 0.3, 0.5, 0.6 in each row
    for threshold, row in ((0.4, [0, 0, 1, 1]), (0.1, [1, 1, 1, 1]), (0.7, [0, 0, 0, 0])):
        mask = mask_of([[0.2, 0.6], [0.2, 0.6]], (3, 4), OperatingPoint(threshold, 0, threshold))
        np.testing.assert_array_equal(mask, [row] * 3)


def test_mask_stays_empty_where_too_few_pixels_of_the_network_are_sure():
    probability = np.zeros((4, 4))
    probability[0, 0] = 0.9  # one pixel of sixteen
    assert mask_of(probability, (4, 4), OperatingPoint(0.8, 1 / 16, 0.5)).sum() == 1
    assert mask_of(probability, (4, 4), OperatingPoint(0.8, 2 / 16, 0.5)).sum() == 0


def test_operating_point_decides_the_mask(run, files):
    [nothing] = predict(files[0], run, operating_point=OperatingPoint(1.1, 0.01, 0.0))
    [everything] = predict(files[0], run, operating_point=OperatingPoint(1.1, 0.0, 0.0))
    assert not nothing.mask.any()
    assert everything.mask.all()  # no pixel must reach the top threshold where the area is 0


def test_operating_point_of_the_run_is_the_default(bright, xrays, tmp_path):
    moved = bright._replace(folder=shutil.copytree(bright.folder, tmp_path / "run"))
    point = {"top_threshold": 0, "min_area": 0, "bottom_threshold": 0}
    (moved.folder / "operating_point.json").write_text(json.dumps(point))
    masks = [next(predict(xrays / "half.png", run)).mask for run in (bright, moved)]
    assert [mask.all() for mask in masks] == [False, True]


def test_masks_of_a_given_shape_are_drawn_at_it(run, files):
    [prediction] = predict(files[0], run, shape=(50, 70))
    assert prediction.mask.shape == (50, 70)


def test_kept_results_hold_the_xray_and_all_hold_the_checksum_of_the_file(run, files):
    [kept] = predict(files[0], run, keep=True)
    assert kept.sha256 == hashlib.sha256(files[0].read_bytes()).hexdigest()
    np.testing.assert_array_equal(kept.xray.image, cv2.imread(str(files[0]), 0))
    [plain] = predict(files[0], run)
    assert (plain.sha256, plain.xray.image) == (kept.sha256, None)


def test_image_level_score_is_that_of_the_probability_map(run, files):
    [prediction] = predict(files[0], run)
    assert prediction.score == pl.evaluation.image_level_score(prediction.probability[None])[0]


def test_network_that_is_a_pickle_is_refused_unopened(run, tmp_path):
    class Planted:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "model.keras").write_bytes(pickle.dumps(Planted()))
    with pytest.raises(ValueError, match="hold no code of its own"):
        runs.load_network(run._replace(folder=tmp_path))
    assert not (tmp_path / "ran").exists()


def test_bad_files_are_named_and_the_others_go_on(run, files, tmp_path, caplog):
    torn, missing = tmp_path / "torn.png", tmp_path / "missing.png"
    torn.write_bytes(files[0].read_bytes()[:40])
    given = [files[0], torn, missing, files[1]]
    with caplog.at_level(logging.WARNING):
        predictions = list(predict(given, run, batch_size=2))
    assert [prediction.path for prediction in predictions] == given
    assert [prediction.error is None for prediction in predictions] == [True, False, False, True]
    assert predictions[1].probability is None
    assert "complete PNG, JPEG or DICOM" in predictions[1].error
    assert "No such file" in predictions[2].error
    assert "torn.png" in caplog.text
    assert "missing.png" in caplog.text
    [whole] = predict(files[1], run)
    np.testing.assert_allclose(predictions[3].probability, whole.probability, atol=1e-5)


def test_batch_of_bad_files_alone_is_survived(run, tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"")
    assert all(prediction.error for prediction in predict(tmp_path, run, batch_size=2))


def test_results_keep_the_order_of_the_files_however_long_each_takes(monkeypatch):
    threads_seen = set()

    def slow(path):
        threads_seen.add(threading.get_ident())
        time.sleep(0.02 if path % 3 == 0 else 0)
        return Prediction(path, xray=XRay(None, (2, 2))), np.full((2, 2), path, np.uint8)

    def foreground(images):
        return images.astype("float32") / 64, images[:, 0, 0] / 255

    point = OperatingPoint(0.5, 0.0, 0.5)
    predictions = list(inference.predictions(range(50), slow, foreground, point, 8, 4))
    assert [prediction.path for prediction in predictions] == list(range(50))
    assert [prediction.probability[0, 0] * 64 for prediction in predictions] == list(range(50))
    assert [prediction.mask[0, 0] for prediction in predictions] == [0] * 32 + [1] * 18
    assert len(threads_seen) > 1


@pytest.mark.parametrize("gpu", [False, True])
def test_the_next_batch_is_decoded_beside_a_gpu_and_not_beside_a_busy_processor(monkeypatch, gpu):
    begun, seen = [], []

    def read(number):
        begun.append(number)
        return Prediction(number, xray=XRay(None, (8, 8))), np.zeros((8, 8), "uint8")

    def network(images):
        time.sleep(0.05)  # for threads that would decode meanwhile
        seen.append(len(begun))
        return images.astype("float32"), np.zeros(len(images))

    monkeypatch.setattr(inference, "has_gpu", lambda: gpu)
    found = inference.predictions(range(10), read, network, OperatingPoint(), 4, 2)
    assert [prediction.path for prediction in found] == list(range(10))
    assert seen == ([8, 10, 10] if gpu else [4, 8, 10])


def test_files_are_decoded_only_a_few_batches_ahead():
    begun = []
    with inference.ThreadPoolExecutor(2) as threads:
        results = inference.ahead(threads, begun.append, range(1000), count=6)
        for _ in range(10):
            next(results)
        assert len(begun) <= 10 + 6
        results.close()


def test_folders_are_searched_for_images_and_sorted(tmp_path):
    for name in ("b.PNG", "notes.txt", "sub/a.dcm", "a.jpeg", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("sub/IM0001", "sub/DICOMDIR"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    found = find_images([tmp_path / "notes.txt", tmp_path])
    names = ["notes.txt", "a.jpeg", "b.PNG", "sub/IM0001", "sub/a.dcm"]
    assert found == [tmp_path / name for name in names]


def test_nothing_to_predict_is_refused(tmp_path, run):
    with pytest.raises(FileNotFoundError, match="`files` must name image files or folders"):
        predict(tmp_path, run)
    with pytest.raises(FileNotFoundError, match="Received: nothing"):
        find_images([])
