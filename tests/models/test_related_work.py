"""The related-work networks against the table of Long et al. and counts by hand."""

import numpy as np
import pytest

from pneumo_lib.models.fcn import parameters
from pneumo_lib.models.receptive_field import convolution_depth, receptive_field
from pneumo_lib.models.related_work import build_related_fcn


@pytest.fixture(scope="module")
def networks():
    names = ("fcn_alexnet", "fcn_vgg16", "fcn_googlenet")
    return {name: build_related_fcn(name) for name in names}


@pytest.mark.parametrize(
    ("name", "convolutions", "millions", "field"),
    [
        ("fcn_alexnet", 8, 57, 355),
        ("fcn_vgg16", 16, 134, 404),
        ("fcn_googlenet", 22, 6, 907),
    ],
)
def test_rows_of_the_papers_table_are_computed(networks, name, convolutions, millions, field):
    network = networks[name]
    assert convolution_depth(network) == convolutions
    assert round(parameters(network)["trainable"] / 1e6) == millions
    found = receptive_field(network, "score_fr")
    assert (found.size, found.stride) == (field, 32)


@pytest.mark.parametrize(
    ("name", "trainable", "kernel"),
    [
        (
            "fcn_alexnet",
            # channels halved by the groups of conv2, conv4 and conv5
            (11 * 11 * 3 + 1) * 96
            + (5 * 5 * 48 + 1) * 256
            + (9 * 256 + 1) * 384
            + (9 * 192 + 1) * 384
            + (9 * 192 + 1) * 256
            + (36 * 256 + 1) * 4096
            + 4097 * 4096
            + 4097 * 21,
            63,
        ),
        ("fcn_vgg16", 14_714_688 + (49 * 512 + 1) * 4096 + 4097 * 4096 + 4097 * 21, 64),
        # GoogLeNet has 6,998,552 parameters without auxiliary classifiers, 1,025,000 of them dense
        ("fcn_googlenet", 6_998_552 - 1_025_000 + 1025 * 21, 63),
    ],
)
def test_parameters_are_counted_by_hand(networks, name, trainable, kernel):
    found = parameters(networks[name])
    assert found["trainable"] == trainable
    assert found["frozen"] == kernel * kernel * 21 * 21  # bilinear upsampling, fixed


@pytest.mark.parametrize(("name", "crop"), [("fcn_alexnet", 18), ("fcn_vgg16", 19)])
def test_scores_are_cropped_as_in_the_authors_files(networks, name, crop):
    assert networks[name].get_layer("score").cropping[0][0] == crop


@pytest.mark.parametrize("size", [33, 230, 500])
def test_scores_are_as_large_as_the_image(size):
    network = build_related_fcn("fcn_googlenet", size=size, classes=2)
    assert network(np.zeros((1, size, size, 3), "float32")).shape == (1, size, size, 2)


def test_dense_layers_are_convolutions_of_the_same_weights(networks):
    fc6 = networks["fcn_vgg16"].get_layer("fc6")
    assert fc6.kernel_size == (7, 7)
    patch = np.random.default_rng(0).normal(size=(1, 7, 7, 512))
    kernel, bias = (np.random.default_rng(1).normal(size=w.shape) for w in fc6.weights)
    fc6.set_weights([kernel, bias])
    expected = np.maximum(patch.reshape(1, -1) @ kernel.reshape(-1, 4096) + bias, 0)
    np.testing.assert_allclose(fc6(patch)[0, 0], expected, rtol=1e-3, atol=1e-2)


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match=r"one of fcn_alexnet, .* Received: name='fcn_resnet'"):
        build_related_fcn("fcn_resnet")
