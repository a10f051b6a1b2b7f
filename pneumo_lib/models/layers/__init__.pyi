from . import batch_norm as batch_norm
from . import conv_transpose as conv_transpose
from . import dropout as dropout
from .batch_norm import FusedBatchNormalization as FusedBatchNormalization
from .conv_transpose import FourierConv2DTranspose as FourierConv2DTranspose
from .conv_transpose import fourier_conv_transpose as fourier_conv_transpose
from .dropout import HashedDropout as HashedDropout
