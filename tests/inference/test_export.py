"""Exported networks: what other programs read gives Keras' own probabilities."""

import numpy as np
import pytest

import pneumo_lib as pl
from pneumo_lib.inference import export
from pneumo_lib.inference.export import export_network
from pneumo_lib.inference.prediction_rows import NOTE
from pneumo_lib.models.layers.conv_transpose import FourierConv2DTranspose

pytestmark = pytest.mark.skipif(
    pl.keras.backend.backend() != "tensorflow", reason="networks are exported by TensorFlow"
)


@pytest.mark.parametrize("format", ["onnx", "savedmodel", "litert"])
def test_written_network_finds_what_is_bright(bright, tmp_path, format):
    if format == "onnx":
        pytest.importorskip("onnxruntime", reason="of the extra `export`")
    path, difference = export_network(bright, tmp_path / "network", format=format)
    assert path.name == {"onnx": "network.onnx", "savedmodel": "network"}.get(
        format, "network.tflite"
    )
    assert difference < 1e-5
    images = np.zeros((3, 32, 32), np.float32)  # another batch length than it was checked with
    images[1, :, :16] = 255
    found = export._READERS[format](path, images)
    expected = images / 255
    np.testing.assert_allclose(found, expected, atol=1e-6)
    card = (tmp_path / f"{path.name}.txt").read_text()
    assert NOTE in card
    assert "bright@" in card
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, f"{path.name}.txt"]


def test_fourier_layers_are_exported_too(tmp_path):
    pytest.importorskip("onnxruntime", reason="of the extra `export`")
    keras = pl.keras
    image = keras.Input((32, 32, 3))
    x = keras.layers.AveragePooling2D(4)(image)
    layer = FourierConv2DTranspose(2, 16, strides=4, padding="same", method="fourier")
    keras.Model(image, keras.layers.Softmax()(layer(x))).save(tmp_path / "model.keras")
    fourier = pl.runs.Run(tmp_path, {"size": 32, "backbone": "small"}, None, None)
    assert export_network(fourier, tmp_path / "network")[1] < 1e-4


def test_network_that_disagrees_is_refused_and_leaves_nothing(bright, tmp_path, monkeypatch):
    read = export._READERS["savedmodel"]
    monkeypatch.setitem(export._READERS, "savedmodel", lambda *given: read(*given) + 0.001)
    with pytest.raises(ValueError, match=r"must agree with Keras.*1\.0e-03 as savedmodel"):
        export_network(bright, tmp_path / "network", format="savedmodel")
    assert not list(tmp_path.iterdir())


def test_nothing_is_replaced(bright, tmp_path):
    (tmp_path / "a.tflite").touch()
    with pytest.raises(ValueError, match="replaces nothing"):
        export_network(bright, tmp_path / "a", format="litert")


def test_unknown_format_is_refused(bright, tmp_path):
    with pytest.raises(ValueError, match="`format` must be one of onnx, savedmodel, litert"):
        export_network(bright, tmp_path / "a", format="pickle")


def test_missing_packages_of_onnx_are_named_with_the_remedy(bright, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'pneumo\[export\]'. Received: no tf2onnx"):
        export_network(bright, tmp_path / "a")
