"""The networks of this project by name. Needs no Keras, so a setting is checked before it loads."""

import difflib

BACKBONES = {  # name: as figures and tables print it, in their order
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
    """Refuse a `value` of `argument` that is not one of the `known` names.

    Raises:
        ValueError: with all known names, and the one that was probably meant.
    """
    if value not in tuple(known):
        raise ValueError(
            f"`{argument}` must be one of {', '.join(known)}. "
            f"Received: {argument}={value!r}{did_you_mean(value, known)}"
        )


def did_you_mean(value, known):
    """End of a sentence that names the known name most like `value`; empty if none is."""
    close = difflib.get_close_matches(str(value), map(str, known), n=1)
    return f". Did you mean {close[0]}?" if close else ""


def check_size(size, backbone):
    """Refuse a side length in pixels that `backbone` cannot take.

    Raises:
        ValueError: unless `size` is a multiple of 32 and as large as the backbone needs.
    """
    if type(size) is not int or size < 32 or size % 32:
        raise ValueError(f"`size` must be a multiple of 32. Received: size={size!r}")
    if size < (smallest := _SMALLEST.get(backbone, 32)):
        raise ValueError(
            f"`size` must be at least {smallest} for {backbone}. Received: size={size}"
        )
