"""Receptive fields: the window of the image that one pixel of a layer depends on."""

import math
from fractions import Fraction
from typing import NamedTuple

from pneumo_lib._startup import keras

from keras import layers

from pneumo_lib._checks import check_name, refuse
from pneumo_lib.models.skips import Coordinates

_POINTWISE = (
    *(layers.Activation, layers.ReLU, layers.LeakyReLU, layers.Softmax, layers.Identity),
    *(layers.BatchNormalization, layers.Rescaling, layers.Dropout, layers.SpatialDropout2D),
    *(layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum),
    *(layers.Minimum, layers.Concatenate, Coordinates),
)
_CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D)
_POOLING = (layers.MaxPooling2D, layers.AveragePooling2D)
_GLOBAL = (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D, layers.Flatten)


class ReceptiveField(NamedTuple):
    """Window of the image that one pixel of a layer depends on, see `receptive_field()`."""

    size: int  # of the window, in pixels of the image
    stride: int | Fraction  # from one pixel's window to the next, in pixels of the image
    start: int  # first row (column) of the window of pixel 0; negative: it begins in padding

    @property
    def centre(self):
        """Middle of the window of pixel 0, in pixels of the image."""
        return self.start + (self.size - 1) / 2


def receptive_field(model, layer=None, *, axis="rows"):
    """Size, stride and start of the receptive field of a layer.

    Follows the graph from the layer back to the image with the exact range of rows that each
    layer reads; where paths meet, the range that covers both. Pixels behind an upsampling differ
    in their windows; the largest counts.

    Args:
        model: functional `keras.Model`, channels last, its images of any (even unknown) size.
        layer: name of one of its layers; `None`: its last.
        axis: "rows" or "columns".

    Returns:
        `ReceptiveField`. The window may extend beyond the image, into padding.

    Raises:
        ValueError: for an unknown `layer` or `axis`, a layer type without a known window, and
            a global layer on a feature map of unknown size.

    Reference:
        Araujo, Norris, Sim (2019), Computing receptive fields of convolutional neural networks,
        Distill, doi:10.23915/distill.00021.
    """
    check_name("axis", axis, ("rows", "columns"))
    axis = ("rows", "columns").index(axis)
    output = model.outputs[0]
    if layer is not None:
        if layer not in [known.name for known in model.layers]:
            refuse("layer", layer, "a layer of the model")
        output = model.get_layer(layer).output
    nodes = _consumers_first(model, output)
    strides = {}
    for node in reversed(nodes):
        finest = min((strides[id(source)] for source in node.input_tensors), default=Fraction(1))
        stride, _, high = _window(node, axis)
        strides[id(node.outputs[0])] = finest * (stride or high + 1)
    stride = strides[id(output)]
    # Windows repeat after as many pixels as move every feature map on the way by whole pixels.
    period = math.lcm(*((stride / other).denominator for other in strides.values()))
    if stride.denominator == 1:
        stride = int(stride)
    spans = [_span(nodes, output, pixel, axis) for pixel in range(period)]
    return ReceptiveField(max(end - start + 1 for start, end in spans), stride, spans[0][0])


def convolution_depth(model):
    """Number of convolutions on the longest path from the image to the output.

    The "layers" of the papers: parallel branches count once, transposed convolutions do not.

    Args:
        model: functional `keras.Model`.
    """
    depths = {}
    for node in reversed(_consumers_first(model, model.outputs[0])):
        before = max((depths[id(source)] for source in node.input_tensors), default=0)
        depths[id(node.outputs[0])] = before + isinstance(node.operation, layers.Conv2D)
    return depths[id(model.outputs[0])]


def _window(node, axis):
    """`(stride, low, high)` of the layer of a `node` along one axis, in pixels of its input.

    Its pixel p depends on the input pixels within `p * stride + low` and `p * stride + high`. A
    global layer has stride 0.
    """
    operation = node.operation
    if node.is_input or isinstance(operation, _POINTWISE):
        return Fraction(1), 0, 0
    size = node.input_tensors[0].shape[1 + axis]
    if isinstance(operation, layers.Conv2DTranspose):
        # Input pixel i contributes to `kernel` output pixels from i * stride - crop on.
        kernel, stride = operation.kernel_size[axis], operation.strides[axis]
        crop = max(kernel - stride, 0) // 2 if operation.padding == "same" else 0
        return tuple(Fraction(n, stride) for n in (1, crop - kernel + 1, crop))
    if isinstance(operation, _POOLING):
        return _sliding(operation.pool_size[axis], operation, size, axis)
    if isinstance(operation, _CONVOLUTIONS):
        reach = operation.dilation_rate[axis] * (operation.kernel_size[axis] - 1) + 1
        return _sliding(reach, operation, size, axis)
    if isinstance(operation, layers.ZeroPadding2D):
        return Fraction(1), -operation.padding[axis][0], -operation.padding[axis][0]
    if isinstance(operation, layers.Cropping2D):
        return Fraction(1), operation.cropping[axis][0], operation.cropping[axis][0]
    if isinstance(operation, layers.UpSampling2D):
        return _resized(Fraction(1, operation.size[axis]), operation.interpolation)
    if isinstance(operation, layers.Resizing) and size is not None:
        target = (operation.height, operation.width)[axis]
        return _resized(Fraction(size, target), operation.interpolation)
    if isinstance(operation, _GLOBAL) and size is not None:
        return Fraction(0), 0, size - 1
    raise ValueError(
        "The window of every layer must be known. Received: layer "
        f"{operation.name!r} of type {type(operation).__name__} on a feature map of {size}"
    )


def _sliding(reach, layer, size, axis):
    """`_window()` of a convolution or pooling whose kernel spans `reach` pixels."""
    stride, padding = layer.strides[axis], 0
    if layer.padding == "same":
        # Depends on the remainder at the end; of an unknown size, none is assumed.
        remainder = (size or 0) % stride or stride
        padding = max(reach - remainder, 0) // 2
    return Fraction(stride), -padding, reach - 1 - padding


def _resized(scale, interpolation):
    """`_window()` of nearest or bilinear resizing, centres kept; `scale` = input / output size."""
    # For multiples of 1 / (2 denominator): floor(x) = ceil(x - rounding), ceil(x) = floor(x + ...).
    rounding = 1 - Fraction(1, 2 * scale.denominator)
    if interpolation == "nearest":
        return scale, scale / 2 - rounding, scale / 2
    shift = (scale - 1) / 2
    return scale, shift - rounding, shift + rounding


def _span(nodes, output, pixel, axis):
    """First and last row of the image that `pixel` of the `output` of `nodes` depends on."""
    needed = {id(output): (pixel, pixel)}
    for node in nodes:
        stride, low, high = _window(node, axis)
        first, last = needed[id(node.outputs[0])]
        first, last = math.ceil(first * stride + low), math.floor(last * stride + high)
        for source in node.input_tensors:
            others = needed.get(id(source), (first, last))
            needed[id(source)] = (min(first, others[0]), max(last, others[1]))
    images = [needed[id(node.outputs[0])] for node in nodes if node.is_input]
    return min(first for first, _ in images), max(last for _, last in images)


def _consumers_first(model, output):
    """Nodes (calls of layers) of `model` that lead to `output`, each after those that read it."""
    by_depth = keras.Model(model.inputs, output)._nodes_by_depth  # Keras has no public way to them
    read, nodes = {id(output)}, []
    for node in (node for depth in sorted(by_depth) for node in by_depth[depth]):
        if id(node.outputs[0]) in read:  # an input may lead elsewhere
            nodes.append(node)
            read.update(map(id, node.input_tensors))
    return nodes
