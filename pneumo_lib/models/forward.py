"""Forward passes: compiled for any batch, over arrays larger than memory."""

from functools import partial

from pneumo_lib._startup import keras

import tensorflow as tf
from tqdm.auto import tqdm

from pneumo_lib.models.backbones import preprocess


def predict_batches(
    network, inputs, backbone=None, *, batch_size=32, start=0, flipped=None, desc=None
):
    """Outputs of `network` for `inputs` from row `start` on, a batch at a time.

    Args:
        network: `keras.Model`.
        inputs: array or memory map; images `(n, size, size)` if `backbone` is given.
        backbone: preprocess for it first; None: `inputs` are what `network` takes.
        batch_size: rows at a time, at most, see `batch_in_memory()`.
        start: first row.
        flipped: like `inputs`, of the mirrored images: outputs are then `(n, h, w, ...)`, each the
            mean of the image's and of its mirror's, mirrored back.
        desc: of the progress bar, which appears where it takes more than a second.

    Yields:
        `(slice of the rows, NumPy array of their outputs)`.
    """
    sides = [shape[1] for shape in (inputs.shape, network.output.shape) if len(shape) > 2]
    batch_size = batch_in_memory(max(sides), most=batch_size)
    predict = compiled(network, inputs.shape[1:], inputs.dtype, backbone)
    bar = tqdm(total=len(inputs), initial=start, desc=desc, unit="image", delay=1, leave=False)
    with bar:
        for first in range(start, len(inputs), batch_size):
            rows = slice(first, min(first + batch_size, len(inputs)))
            output = predict(tf.constant(inputs[rows])).numpy()
            if flipped is not None:
                mirrored = predict(tf.constant(flipped[rows])).numpy()[:, :, ::-1]
                output = (output + mirrored) / 2
            yield rows, output
            bar.update(len(output))


def batch_in_memory(size, *, most):
    """Images of `size` pixels a side that go through a network at once, in less than 2 GB.

    32 of 128 pixels, 2 of 512 pixels, one of more, and never more than `most`.
    """
    return max(1, min(most, 32 * 128**2 // size**2))


@keras.saving.register_keras_serializable(package="pneumo")
class Preprocessing(keras.layers.Layer):
    """Layer of `backbones.preprocess()`: `(batch, size, size)` grey levels to a network's input.

    Args:
        backbone: see there.
    """

    def __init__(self, backbone, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.backbone = backbone

    def call(self, images):
        return preprocess(images, self.backbone)


def with_preprocessing(network, backbone):
    """`network`, and the same weights, as a `keras.Model` of uint8 images `(batch, size, size)`.

    Args:
        network: `keras.Model` of preprocessed images.
        backbone: what they are preprocessed for.
    """
    images = keras.Input(network.input.shape[1:3], dtype="uint8", name="images")
    return keras.Model(images, network(Preprocessing(backbone)(images)), name=network.name)


def compiled(network, shape, dtype, backbone=None):
    """`network` as a function of a batch `(any length, *shape)`, compiled once for all lengths.

    Args:
        network: `keras.Model`.
        shape, dtype: of one input.
        backbone: preprocess for it first, as in `predict_batches()`.
    """

    def predict(batch):
        return network(batch if backbone is None else preprocess(batch, backbone), training=False)

    return as_graph(predict, input_signature=[tf.TensorSpec([None, *shape], dtype)])


def as_graph(function, **options):
    """`tf.function(function)` whose tracings TensorFlow counts for it alone.

    TensorFlow counts them by the Python code, which all functions made here share, so it would
    warn of retracing after a few networks, each of which was traced once. A `partial` has no code.
    """
    return tf.function(partial(function), **options)
