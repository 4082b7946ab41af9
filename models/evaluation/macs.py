"""Work of a network on a device."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers


def count_macs(network: keras.Model) -> int:
    """Count the multiply-accumulates of convolutions and dense layers for one sample.

    Other operations are fused into these on a device, or negligible.
    """
    total = 0
    for layer in network.layers:
        if isinstance(layer, layers.Conv2DTranspose):
            places = layer.input.shape[1:3]
        elif isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D):
            places = layer.output.shape[1:3]
        elif isinstance(layer, layers.Dense):
            places = ()
        else:
            continue
        total += int(np.prod(places)) * int(np.prod(layer.kernel.shape))
    return total
