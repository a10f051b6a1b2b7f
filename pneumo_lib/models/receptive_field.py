"""What a layer sees: the window of the image that one of its pixels depends on."""

import math
from fractions import Fraction
from typing import NamedTuple

import pneumo_lib._startup  # noqa: F401  (before Keras)

from keras import layers

from pneumo_lib.models.skips import Coordinates

_POINTWISE = (
    layers.Activation,
    layers.ReLU,
    layers.LeakyReLU,
    layers.Softmax,
    layers.BatchNormalization,
    layers.Rescaling,
    layers.Dropout,
    layers.SpatialDropout2D,
    layers.Identity,
    Coordinates,
)
_MERGING = (
    layers.Add,
    layers.Subtract,
    layers.Multiply,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
    layers.Concatenate,
)
_POOLING = (layers.MaxPooling2D, layers.AveragePooling2D)
_WHOLE = (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D, layers.Flatten)


class ReceptiveField(NamedTuple):
    """The window in the image of one pixel of a layer, see `receptive_field()`."""

    size: int  # of the window, in pixels of the image
    stride: int | Fraction  # from one pixel's window to the next, in pixels of the image
    start: int  # first row (column) of the window of pixel 0; negative: it begins in padding

    @property
    def centre(self):
        """Middle of the window of pixel 0, in pixels of the image."""
        return self.start + (self.size - 1) / 2


def receptive_field(model, layer=None, *, axis="rows"):
    """Size, stride and place of the window of the image that one pixel of a layer depends on.

    Walks the graph from the layer back to the image with the exact range of rows that each
    layer needs for a given range of its own. Where paths meet, the range that holds both goes
    on. Pixels behind an upsampling differ in how much they see; the largest window counts.

    Args:
        model: functional `keras.Model`, channels last, its images of any (even unknown) size.
        layer: name of one of its layers; `None`: its last.
        axis: "rows" or "columns".

    Returns:
        `ReceptiveField`. A window may reach beyond the image, into what padding adds.

    Raises:
        ValueError: for an unknown `layer` or `axis`, for a layer whose window is not known, and
            for a global layer on a grid of unknown size.

    Reference:
        Araujo, Norris, Sim (2019), Computing receptive fields of convolutional neural networks,
        Distill, doi:10.23915/distill.00021.
    """
    if axis not in ("rows", "columns"):
        raise ValueError(f"`axis` must be 'rows' or 'columns'. Received: axis={axis!r}")
    output = model.outputs[0]
    if layer is not None:
        named = [t for t in _consumers_first(output) if _maker(t)[0].name == layer]
        if not named:
            raise ValueError(f"`layer` must be a layer of the model. Received: layer={layer!r}")
        output = named[0]
    axis = 0 if axis == "rows" else 1
    tensors = _consumers_first(output)
    strides = {}
    for tensor in reversed(tensors):
        operation, inputs = _maker(tensor)
        finest = min((strides[id(t)] for t in inputs), default=Fraction(1))
        strides[id(tensor)] = finest * _window(operation, inputs, axis).stride
    stride = strides[id(output)]
    # Windows repeat after so many pixels that every grid on the way has moved by whole cells.
    period = math.lcm(*((stride / other).denominator for other in strides.values()))
    if stride.denominator == 1:
        stride = int(stride)
    spans = [_span(tensors, pixel, axis) for pixel in range(period)]
    return ReceptiveField(max(end - start + 1 for start, end in spans), stride, spans[0][0])


def convolution_depth(model):
    """Number of convolutions on the longest path from the image to the output.

    What papers call a network's layers: parallel branches count once, and a transposed
    convolution does not count.

    Args:
        model: functional `keras.Model`.
    """
    depths = {}
    for tensor in reversed(_consumers_first(model.outputs[0])):
        operation, inputs = _maker(tensor)
        before = max((depths[id(source)] for source in inputs), default=0)
        depths[id(tensor)] = before + isinstance(operation, layers.Conv2D)
    return depths[id(model.outputs[0])]


class _Window(NamedTuple):
    """How a layer's grid lies on its input's: the stride, and the range that a range needs."""

    stride: Fraction
    needs: object  # (first, last) of its own pixels -> (first, last) of its input's


def _window(operation, inputs, axis):
    """`_Window` of any layer, along one axis."""
    if not inputs or isinstance(operation, (*_POINTWISE, *_MERGING)):
        return _Window(Fraction(1), lambda first, last: (first, last))
    size = inputs[0].shape[1 + axis]
    if isinstance(operation, layers.Conv2DTranspose):
        return _transposed(operation, axis)
    if isinstance(operation, _POOLING):
        return _sliding(operation.pool_size[axis], operation, size, axis)
    if isinstance(operation, (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D)):
        reach = operation.dilation_rate[axis] * (operation.kernel_size[axis] - 1) + 1
        return _sliding(reach, operation, size, axis)
    if isinstance(operation, layers.ZeroPadding2D):
        return _shifted(-operation.padding[axis][0])
    if isinstance(operation, layers.Cropping2D):
        return _shifted(operation.cropping[axis][0])
    if isinstance(operation, layers.UpSampling2D):
        return _resized(Fraction(1, operation.size[axis]), operation.interpolation)
    if isinstance(operation, layers.Resizing) and size is not None:
        target = (operation.height, operation.width)[axis]
        return _resized(Fraction(size, target), operation.interpolation)
    if isinstance(operation, _WHOLE) and size is not None:
        return _Window(Fraction(size), lambda first, last: (0, size - 1))
    raise ValueError(
        "The window of every layer must be known. Received: layer "
        f"{operation.name!r} of type {type(operation).__name__} on a grid of {size}"
    )


def _sliding(reach, layer, size, axis):
    """A convolution or pooling whose kernel spans `reach` pixels."""
    stride, padding = layer.strides[axis], 0
    if layer.padding == "same":
        # Depends on what is left over at the end; of an unknown size, nothing is.
        left_over = (size or 0) % stride or stride
        padding = max(reach - left_over, 0) // 2
    return _Window(
        Fraction(stride),
        lambda first, last: (first * stride - padding, last * stride - padding + reach - 1),
    )


def _transposed(layer, axis):
    kernel, stride = layer.kernel_size[axis], layer.strides[axis]
    crop = max(kernel - stride, 0) // 2 if layer.padding == "same" else 0
    # Input pixel i stamps the output pixels from i * stride - crop on, `kernel` of them.
    return _Window(
        Fraction(1, stride),
        lambda first, last: (-(-(first + crop - kernel + 1) // stride), (last + crop) // stride),
    )


def _shifted(step):
    return _Window(Fraction(1), lambda first, last: (first + step, last + step))


def _resized(scale, interpolation):
    """Nearest or bilinear resizing, pixels' centres kept; `scale` input pixels an output pixel."""
    half = Fraction(1, 2)
    if interpolation == "nearest":
        return _Window(
            scale, lambda first, last: tuple(math.floor((p + half) * scale) for p in (first, last))
        )
    return _Window(
        scale,
        lambda first, last: (
            math.floor((first + half) * scale - half),
            math.ceil((last + half) * scale - half),
        ),
    )


def _span(tensors, pixel, axis):
    """First and last row of the image that `pixel` of the first of `tensors` depends on."""
    needed = {id(tensors[0]): (pixel, pixel)}
    for tensor in tensors:
        operation, inputs = _maker(tensor)
        if not inputs:
            continue
        first, last = _window(operation, inputs, axis).needs(*needed[id(tensor)])
        for source in inputs:
            others = needed.get(id(source), (first, last))
            needed[id(source)] = (min(first, others[0]), max(last, others[1]))
    images = [needed[id(tensor)] for tensor in tensors if not _maker(tensor)[1]]
    return min(first for first, _ in images), max(last for _, last in images)


def _maker(tensor):
    """`(operation, its inputs)` that made a tensor of the graph."""
    # Keras names no public way from a tensor to what made it.
    operation, node, _ = tensor._keras_history
    return operation, operation._inbound_nodes[node].input_tensors


def _consumers_first(output):
    """All tensors that lead to `output`, each after those made from it."""
    found, done, stack = [], set(), [(output, False)]
    while stack:
        tensor, sources_done = stack.pop()
        if sources_done:
            found.append(tensor)
        elif id(tensor) not in done:
            done.add(id(tensor))
            stack.append((tensor, True))
            stack.extend((source, False) for source in _maker(tensor)[1])
    return found[::-1]
