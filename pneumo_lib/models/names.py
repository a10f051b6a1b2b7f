"""Names of the networks, and the sizes they take, without importing Keras."""

from pneumo_lib._checks import refuse

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


def check_size(size, backbone):
    """Raise `ValueError` unless `size` is a multiple of 32 and large enough for `backbone`."""
    if type(size) is not int or size < 32 or size % 32:
        refuse("size", size, "a multiple of 32")
    if size < (smallest := _SMALLEST.get(backbone, 32)):
        refuse("size", size, f"at least {smallest} for {backbone}")
