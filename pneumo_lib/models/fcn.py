"""Fully convolutional networks: a pretrained classifier under a decoder, and a small one."""

import itertools
import math
from functools import partial

from pneumo_lib._startup import keras

import pandas as pd
from keras import layers

from pneumo_lib.models import decoders
from pneumo_lib.models.backbones import SKIP_TAPS, TAPS, build_backbone
from pneumo_lib.models.names import DECODERS, check_name, check_size
from pneumo_lib.models.skips import align, half_view, project, skip_decoder


def build_fcn(
    backbone,
    *,
    decoder="deconvolution",
    size=128,
    weights="imagenet",
    dropout=0.5,
    seed=0,
):
    """A frozen classifier, a decoder back to the image's size, softmax.

    One flat functional model: every layer of the backbone is a layer of it.

    - "deconvolution" is the report's: transposed convolutions in a row (`DECONVOLUTIONS`), with
      dropout and no activation between them, so what is trained is one linear map of the
      features. Those of InceptionV3 multiply by 64, but its own grid has `size / 32 - 2` cells a
      side (128 pixels happen to give 2): at other sizes the grid is resized bilinearly to
      `size / 64`, rounded up, and what the rounding adds is cropped evenly before the softmax.
    - "fcn32s", "fcn16s", "fcn8s" add the scores of one, two and three grids: `fuse_scores()`.
    - "skips" joins the features of three or four grids, and two of the image at half its size
      through the same layers, each projected on few channels, and convolves them:
      `skips.project()`, `skip_decoder()`.

    Args:
        backbone: one of `backbones.BACKBONES`.
        decoder: one of `DECODERS`.
        size: height and width in pixels, a multiple of 32 (96 at least for InceptionV3).
        weights: of the backbone, see `build_backbone()`.
        dropout: share dropped in training, in [0, 1): of the values after each deconvolution but
            the last, of the coarsest features, or of the channels of each tap of "skips".
        seed: of the decoder, the dropout and random backbone weights.

    Returns:
        `keras.Model`, `(batch, size, size, 3)` preprocessed float32 -> `(batch, size, size, 2)`
        float32 softmax, channel 1 is pneumothorax. `weights_used` as in `build_backbone()`.

    Raises:
        ValueError: for an unknown `decoder` and as `build_backbone()`.
        FileNotFoundError: as `build_backbone()`.

    Reference:
        Long, Shelhamer, Darrell (2015), arXiv:1411.4038.
    """
    check_name("decoder", decoder, DECODERS)
    encoder = build_backbone(backbone, size=size, weights=weights, seed=seed)
    random = {"dropout": dropout, "seed": seed}
    if decoder == "deconvolution":
        x = decoders.deconvolutions(encoder.output, backbone, size=size, **random)
    elif decoder == "skips":
        found = _taps(encoder, SKIP_TAPS[backbone])
        context = project(half_view(encoder, found), name="project_half")
        context = align(context, size=size, name="tap_half")
        x = skip_decoder(align(project(found), size=size), context, **random)
    else:
        names = {octave: TAPS[backbone][octave] for octave in decoders.OCTAVES[decoder]}
        x = decoders.fuse_scores(align(_taps(encoder, names), size=size), **random)
    x = layers.Softmax(dtype="float32", name="softmax")(x)  # float32 under mixed precision too
    model = keras.Model(encoder.input, x, name=f"fcn_{backbone}")
    model.weights_used = encoder.weights_used
    return model


def _taps(encoder, names):
    """Dict from octave to what the named layer gives, the coarsest first."""
    return {o: encoder.get_layer(names[o]).output for o in sorted(names, reverse=True)}


def build_small_fcn(*, size=128, filters=16, seed=0):
    """Small FCN with skip connections, to be trained from scratch: what transfer must beat.

    Four grids, the first at full resolution, because half of the target is a rim one or two
    pixels wide: a stem of stride 2 lost a fifth of the Dice on phantoms. On the way back each
    grid is joined by the one of its size from the way down (`skip_*`). With batch normalisation
    ten epochs on phantoms found what took about thirty without.

    Args:
        size: height and width in pixels, a multiple of 32.
        filters: channels of the first grid; 2, 4 and 6 times as many in the next.
        seed: of the weights.

    Returns:
        `keras.Model` as of `build_fcn()`, for images preprocessed for "small"; `weights_used`
        is "from scratch".

    Raises:
        ValueError: if `size` is not a multiple of 32.

    Reference:
        Ronneberger, Fischer, Brox (2015), U-Net, arXiv:1505.04597.
    """
    check_size(size, "small")
    seeds = itertools.count(decoders.layer_seed(seed, 0))
    convolution = partial(decoders.convolution, seeds=seeds)
    image = keras.Input((size, size, 3), name="image")
    x = convolution(image, filters, "stem")
    skips = []
    for level, channels in enumerate((2 * filters, 4 * filters, 6 * filters), start=1):
        x = convolution(x, x.shape[-1], f"encode_{level}")
        skips.append(x)
        x = convolution(x, channels, f"halve_{level}", strides=2)
    x = convolution(x, x.shape[-1], "bottom_1")
    x = convolution(x, x.shape[-1], "bottom_2")
    for level, skip in zip((3, 2, 1), reversed(skips), strict=True):
        doubling = {"layer": layers.Conv2DTranspose, "kernel_size": 2, "strides": 2}
        x = convolution(x, skip.shape[-1], f"double_{level}", **doubling)
        x = layers.Concatenate(name=f"skip_{level}")([x, skip])
        x = convolution(x, skip.shape[-1], f"decode_{level}")
    x = decoders.rare_score(x, seed=next(seeds))
    model = keras.Model(image, layers.Softmax(dtype="float32", name="softmax")(x), name="small")
    model.weights_used = "from scratch"
    return model


def split_fcn(model):
    """The backbone and the decoder of a `build_fcn()` network, sharing its weights.

    The features of a frozen encoder never change: computed once, they train the head without
    running the backbone again, and the full model has learnt with it.

    Args:
        model: of `build_fcn()`, new or loaded from a file.

    Returns:
        `(encoder, head)`, two `keras.Model`: images -> features, and features -> softmax. The
        features of a decoder with several taps are packed into one vector for each image.

    Raises:
        ValueError: if the model has neither a layer `deconvolution_1` nor taps.
    """
    names = [layer.name for layer in model.layers]
    starts = [name for name in names if name == "deconvolution_1" or name.startswith("tap_")]
    if not starts:
        raise ValueError(
            "`model` must be made by build_fcn(): layers `deconvolution_1` or `tap_...` start its "
            f"head. Received: model={model.name!r}"
        )
    features = taps = [model.get_layer(name).input for name in starts]
    if len(taps) == 1:
        (features,) = taps
    head = keras.Model(features, model.output, name=f"{model.name}_head")
    if len(taps) > 1:
        head = _on_packed(head)
        # All layers are named, as the names go into the checksum of cached features.
        flat = [layers.Flatten(name=f"flat_{number}")(tap) for number, tap in enumerate(taps)]
        features = layers.Concatenate(name="packed")(flat)
    encoder = keras.Model(model.input, features, name=f"{model.name}_encoder")
    return encoder, head


def _on_packed(head):
    """`head` for one vector that holds its inputs one after the other."""
    shapes = [tap.shape[1:] for tap in head.inputs]
    ends = itertools.accumulate(map(math.prod, shapes), initial=0)
    spans = list(itertools.pairwise(ends))
    packed = keras.Input((spans[-1][1],), name="packed")
    taps = [
        layers.Reshape(shape)(packed[:, start:end])
        for shape, (start, end) in zip(shapes, spans, strict=True)
    ]
    return keras.Model(packed, head(taps), name=head.name)


def unfreeze(model, part):
    """Choose which layers of the backbone train, in place; the decoder always does.

    Batch normalisation of the backbone never does and keeps running with the statistics of
    ImageNet (a frozen one ignores `training=True`): those of small batches would spoil them.
    Nor do the projections of taps.
    The backbone's weights that train are `split_fcn(model)[0].trainable_weights`.

    Args:
        model: of `build_fcn()`, new or loaded from a file.
        part: "none"; "last": the layers on the coarsest grid, behind the tap of octave 4
            (`block5_*` of VGG, `conv5_*` of ResNet50, `mixed8` to `mixed10` of InceptionV3);
            "whole".

    Raises:
        ValueError: for an unknown `part`, and as `split_fcn()`.
    """
    if part not in ("none", "last", "whole"):
        raise ValueError(f"`part` must be 'none', 'last' or 'whole'. Received: part={part!r}")
    backbone = split_fcn(model)[0].layers
    names = [layer.name for layer in backbone]
    # All paths meet in that tap, so what comes later in the list of layers lies behind it.
    last = names.index(TAPS[model.name.removeprefix("fcn_")][4]) + 1
    first = {"none": len(names), "last": last, "whole": 0}[part]
    for number, layer in enumerate(backbone):
        fixed = isinstance(layer, layers.BatchNormalization) or layer.name.startswith("project_")
        layer.trainable = number >= first and not fixed


def layer_table(model):
    """Layers of a network in order, one row each.

    Args:
        model: any functional `keras.Model`.

    Returns:
        `DataFrame` with the columns layer (name), type, output_shape (without the batch axis),
        parameters, and trainable (whether training changes any of them).
    """
    rows = [
        {
            "layer": layer.name,
            "type": type(layer).__name__,
            "output_shape": tuple(layer.output.shape[1:]),
            "parameters": layer.count_params(),
            "trainable": bool(layer.trainable_weights),
        }
        for layer in model.layers
    ]
    return pd.DataFrame(rows)


def parameters(model):
    """Number of parameters of a network: `{"total", "trainable", "frozen"}`, frozen the rest."""
    trainable = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    total = model.count_params()
    return {"total": total, "trainable": trainable, "frozen": total - trainable}
