"""Every path from a file to pixels gives the same ones, and those that the standard asks for."""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

sys.path.insert(0, str(Path(__file__).parent))
from generated_xrays import expected, xrays
from pydicom import uid

from pneumo_lib.apps.explorer.cases import read_case
from pneumo_lib.cluster.archive_files import load
from pneumo_lib.data.images import inside_frame, read_image, read_pair, resize_image
from pneumo_lib.inference.dicom_seg import segment_studies
from pneumo_lib.inference.predict import read_file

pytest.importorskip("imagecodecs", reason="of the extra `dicom`")
SIZE = 4  # of the network, so that JPEG files of 32 x 64 are decoded at 1/8
EXAMPLES = int(os.environ.get("PNEUMO_EXAMPLES", 200))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(xrays())
def test_every_path_gives_the_pixels_of_the_standard(xray):
    with TemporaryDirectory() as folder:
        check(xray, Path(folder))


def check(xray, folder):
    path, judge = folder / "a.dcm", expected(xray)
    path.write_bytes(xray.content())
    if judge is None:
        with pytest.raises(ValueError, match="one grey level"):
            read_image(path)
        assert "one grey level" in read_file(path, size=SIZE)[0].error
        return
    image = read_image(path)
    np.testing.assert_allclose(image, judge, atol=0.51)
    assert_reduced_reading_averages(path, image)
    assert_prediction_reads(path, image, folder)
    opened = SimpleNamespace(
        cases={"image_path": [path]},
        data=SimpleNamespace(masks=[np.zeros((SIZE, SIZE))]),
        probabilities=np.zeros((1, SIZE, SIZE), np.uint8),
    )
    np.testing.assert_array_equal(read_case(opened, 0)[0], image)
    if image.shape == (8, 8):  # a twentieth of a second
        assert_segmentation_lies_on(path, image, folder)
    assert_picture_files_look_alike(xray, image, folder)


def assert_reduced_reading_averages(path, image):
    case = {"image_id": "a", "image_path": path, "rles": ["-1"], "has_pneumothorax": False}
    averaged = resize_image(image, (SIZE, SIZE)).astype(int)
    np.testing.assert_allclose(read_pair(case, SIZE)[0], averaged, atol=2)
    reduced = read_image(path, at_least=SIZE)
    np.testing.assert_allclose(resize_image(reduced, (SIZE, SIZE)), averaged, atol=2)


def assert_prediction_reads(path, image, folder):
    top, bottom, left, right = inside_frame(image)
    height, width = image.shape
    inner = image[
        round(top * height) : round(bottom * height), round(left * width) : round(right * width)
    ]
    for options in ({"keep": True}, {"load": load}):
        name = path if "keep" in options else str(path)
        prediction, given_to_network = read_file(name, size=SIZE, exact=True, **options)
        np.testing.assert_array_equal(given_to_network, resize_image(inner, (SIZE, SIZE)))
        assert prediction.xray.shape == image.shape
        if "keep" in options:
            np.testing.assert_array_equal(prediction.xray.image, image)


def assert_segmentation_lies_on(path, image, folder):
    highdicom = pytest.importorskip("highdicom", reason="of the extra `dicom`")
    mask = (image > np.median(image)).astype(np.uint8)
    (folder / "masks").mkdir()
    cv2.imwrite(str(folder / "masks" / "a.png"), 255 * mask)
    row = {"file": str(path), "error": None, "output": "a"}
    [made], failed = segment_studies(folder, [row], "net@abc")
    assert not failed
    np.testing.assert_array_equal(highdicom.seg.segread(made).pixel_array.squeeze(), mask)


def assert_picture_files_look_alike(xray, image, folder):
    """PNG of the same values, and JPEG of the same bytes, where no field says otherwise."""
    plain = not (xray.lut or xray.voi or xray.window or xray.padding or xray.signed)
    if not plain or xray.rescale or xray.bits not in (8, 12, 16):
        return
    inverted = xray.photometric == "MONOCHROME1"
    inverted = {"IDENTITY": False, "INVERSE": True}.get(xray.shape, inverted)
    upright = 255 - image if inverted else image
    values = xray.values().astype(np.uint8 if xray.bits == 8 else np.uint16)
    cv2.imwrite(str(folder / "a.png"), values)
    np.testing.assert_array_equal(read_image(folder / "a.png"), upright)
    if xray.syntax == uid.JPEGBaseline8Bit and xray.turned in (None, 1):
        (folder / "a.jpg").write_bytes(xray.frame())
        np.testing.assert_array_equal(read_image(folder / "a.jpg"), upright)
