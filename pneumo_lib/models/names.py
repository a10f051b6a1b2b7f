"""Names of the networks and checks of settings, without importing Keras."""

import difflib

BACKBONES = {  # name: label in figures and tables, in their order
    "vgg16": "VGG16",
    "vgg19": "VGG19",
    "resnet50": "ResNet50",
    "inceptionv3": "InceptionV3",
    "small": "small FCN (from scratch)",
}
PRETRAINED = tuple(name for name in BACKBONES if name != "small")
DECODERS = {
    "deconvolution": "transposed convolutions (report)",
    "fcn32s": "FCN-32s",
    "fcn16s": "FCN-16s",
    "fcn8s": "FCN-8s",
    "skips": "skips",
}
_SMALLEST = {"inceptionv3": 96}  # Keras asks for 75


def check_name(argument, value, known):
    """Raise `ValueError` unless `value` is one of the `known` names; suggest the closest."""
    if value not in tuple(known):
        raise ValueError(
            f"`{argument}` must be one of {', '.join(known)}. "
            f"Received: {argument}={value!r}{did_you_mean(value, known)}"
        )


def did_you_mean(value, known):
    """Text that asks "Did you mean" the known name closest to `value`; or empty."""
    close = difflib.get_close_matches(str(value), map(str, known), n=1)
    return f". Did you mean {close[0]}?" if close else ""


def check_size(size, backbone):
    """Raise `ValueError` unless `size` is a multiple of 32 and large enough for `backbone`."""
    if type(size) is not int or size < 32 or size % 32:
        raise ValueError(f"`size` must be a multiple of 32. Received: size={size!r}")
    if size < (smallest := _SMALLEST.get(backbone, 32)):
        raise ValueError(
            f"`size` must be at least {smallest} for {backbone}. Received: size={size}"
        )
