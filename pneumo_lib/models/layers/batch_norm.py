"""Batch normalization with a fused training step."""

from pneumo_lib._startup import keras


@keras.saving.register_keras_serializable(package="pneumo")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` whose training step is one fused TensorFlow operation.

    Keras 3 computes mean, squared differences and scaling in separate passes over memory, again in
    the gradient: a fifth of a training step of a U-Net. XLA fuses the stock layer just as well.
    Results are equal up to rounding. The stock layer computes what TensorFlow has no fused
    operation for: inference, `synchronized`, masks, shapes other than `(batch, h, w, channels)`,
    other backends.

    Reference:
        Ioffe and Szegedy (2015), arXiv:1502.03167.
    """

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable and mask is None and self._is_fused(inputs)):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs, self.gamma, self.beta, epsilon=self.epsilon, is_training=True
        )
        # unbiased, while the stock layer averages the biased variance
        count = tf.cast(tf.size(inputs) / inputs.shape[-1], variance.dtype)
        variance *= (count - 1) / count
        for average, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            average.assign(average * self.momentum + new * (1 - self.momentum))
        return outputs

    def _is_fused(self, inputs):
        image_like = len(inputs.shape) == 4 and self.axis in (-1, 3)
        usual = self.scale and self.center and not (self.renorm or self.synchronized)
        return image_like and usual and keras.backend.backend() == "tensorflow"
