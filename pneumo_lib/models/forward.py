"""Forward passes: compiled for any batch, over arrays larger than memory."""

from functools import partial

from pneumo_lib._startup import keras

import numpy as np
from keras import ops, tree
from tqdm.auto import tqdm

from pneumo_lib.models.backbones import preprocess
from pneumo_lib.models.devices import has_gpu


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
    predict = compiled(network, backbone, batch_size=batch_size)
    bar = tqdm(total=len(inputs), initial=start, desc=desc, unit="image", delay=1, leave=False)
    with bar:
        for first in range(start, len(inputs), batch_size):
            rows = slice(first, min(first + batch_size, len(inputs)))
            output = predict(inputs[rows])
            if flipped is not None:
                output = (output + predict(flipped[rows])[:, :, ::-1]) / 2
            yield rows, output
            bar.update(len(output))


def batch_in_memory(size, *, most):
    """Images of `size` pixels a side that go through a network at once, in less than 2 GB.

    32 of 128 pixels, 2 of 512 pixels, one of more, and never more than `most`. On a GPU, which
    has memory of its own and is slow with few images, `most`.
    """
    return most if has_gpu() else max(1, min(most, 32 * 128**2 // size**2))


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


def at_half_size(network):
    """`network`, a `keras.Model` without layers of fixed size, for images of half the size.

    The layers are the same ones, not copies: what one of the two learns, the other knows.
    """
    height, width, channels = network.input.shape[1:]
    image = keras.Input((height // 2, width // 2, channels), name="half_image")
    return keras.models.clone_model(network, image, clone_function=lambda layer: layer)


def in_bfloat16(network):
    """The same network with the same float32 weights, computing in bfloat16."""

    def convert(layer):
        return type(layer).from_config(layer.get_config() | {"dtype": "mixed_bfloat16"})

    twin = keras.models.clone_model(network, clone_function=convert)
    twin.set_weights(network.get_weights())
    return twin


def compiled(network, backbone=None, *, batch_size, xla=False):
    """Function from a batch of inputs to the outputs of `network`, compiled once.

    Keras' own `predict_on_batch()`, but on TensorFlow, where it would compile again for another
    length of a batch, and warn of it after a few networks.

    Args:
        network: `keras.Model`.
        backbone: preprocess images `(n, size, size)` for it first; None: inputs are what `network`
            takes.
        batch_size: the largest n.
        xla: whether TensorFlow compiles with XLA, as JAX always does. It halves the time of a head;
            whole backbones took 1.04 to 1.7 times as long on two cores, and seconds to compile.

    Returns:
        Function from n inputs to what `network` gives for them, as NumPy arrays.
    """
    if backbone is not None:
        network = with_preprocessing(network, backbone)
    backend = keras.backend.backend()
    if backend == "tensorflow":
        predict = _compiled_by_tensorflow(network, xla=xla)
    else:
        network = keras.Model(network.input, network.output)  # the caller's stays as compiled
        network.compile(optimizer=None, jit_compile=backend == "jax")
        predict = network.predict_on_batch
    if not xla and backend != "jax":
        return predict

    def of_one_length(inputs):  # XLA compiles each length anew
        batch = np.zeros((batch_size, *inputs.shape[1:]), inputs.dtype)
        batch[: len(inputs)] = inputs
        return tree.map_structure(lambda output: output[: len(inputs)], predict(batch))

    return of_one_length


def _compiled_by_tensorflow(network, *, xla):
    import tensorflow as tf

    (inputs,) = network.inputs
    signature = [tf.TensorSpec([None, *inputs.shape[1:]], inputs.dtype)]
    # TensorFlow counts tracings by the Python code, which all networks share, and would warn of
    # retracing though each is traced once. A `partial` has no code.
    graph = tf.function(
        partial(network, training=False), input_signature=signature, jit_compile=xla
    )
    return lambda batch: tree.map_structure(
        ops.convert_to_numpy, graph(np.asarray(batch, inputs.dtype))
    )
