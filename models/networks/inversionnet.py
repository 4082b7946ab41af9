"""InversionNet and its deeper form, the centralised baselines, as published with OpenFWI.

Wu & Lin, "InversionNet", IEEE Trans. Comput. Imaging 2020, in the form of the OpenFWI benchmark (Deng et
al. 2022): every block is convolution, batch normalisation, LeakyReLU(0.2). BigFWI (Jin et al., Scientific
Reports 14, 2024, and its code) trains one network on all ten families: InversionNet itself (B) and a deeper one
(M). Its code also has a wider one (XL, 110 million parameters), which was not trained here and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
from keras import layers, ops

from physics.acquisition import Acquisition


@dataclass(frozen=True)
class Layout:
    """Channels of each level. Kernels are time x receiver; each level halves the axis that it works along.

    Attributes:
        along_time: Levels with kernels one receiver wide: one block in the first level, two in each other.
        both_ways: Levels of ``blocks`` blocks of 3 x 3.
        bottleneck: Channels of the single point that the remaining grid is reduced to.
        up: (channels, kernel, cropped cells on each side) of transposed convolutions of stride 2, each followed by
            ``blocks`` - 1 blocks of 3 x 3.
    """

    along_time: tuple[int, ...]
    both_ways: tuple[int, ...]
    bottleneck: int
    up: tuple[tuple[int, int, int], ...]
    blocks: int = 2

    @property
    def n_along_time(self) -> int:
        """Number of blocks that a device can compute from its own receivers alone."""
        return 2 * len(self.along_time) - 1

    @property
    def predicted_cells(self) -> int:
        """Side of the square map before cropping."""
        cells = 1
        for _, kernel, cut in self.up:
            cells = 2 * (cells - 1) + kernel - 2 * cut
        return cells

    def check_map(self, acquisition: Acquisition) -> None:
        """Raise ``ValueError`` if the survey's map is larger than the network's."""
        cells = self.predicted_cells
        if max(acquisition.n_depth, acquisition.n_width) > cells:
            raise ValueError(
                f"inversionnet: expected a map of at most {cells} x {cells} cells, which this network predicts, got "
                f"{acquisition.n_depth} x {acquisition.n_width}; use a smaller survey, or train epic"
            )

    @property
    def down(self) -> list[tuple[int, tuple[int, int], tuple[int, int]]]:
        """Channels, kernel and stride of each block before the bottleneck."""
        first, *others = self.along_time
        found = [(first, (7, 1), (2, 1))]
        for channels in others:
            found += [(channels, (3, 1), (2, 1)), (channels, (3, 1), (1, 1))]
        for channels in self.both_ways:
            found += [(channels, (3, 3), (2, 2)), *[(channels, (3, 3), (1, 1))] * (self.blocks - 1)]
        return found


_TO_80_CELLS = ((512, 5, 0), (256, 4, 1), (128, 4, 1), (64, 4, 1), (32, 4, 1))
# Keys are the names in `epic train`. Parameters for the benchmark's survey, including scale and shift of batch
# normalisation: 24,409,123 and 28,883,779.
LAYOUTS = {
    "inversionnet": Layout((32, 64, 64, 128), (128, 256, 256), 512, _TO_80_CELLS),
    "bigfwi-m": Layout((32, 64, 64, 128), (128, 256, 256), 512, _TO_80_CELLS, blocks=3),
}


def build_inversionnet(acquisition: Acquisition, layout: Layout = LAYOUTS["inversionnet"]) -> keras.Model:
    """Build the Keras model: gather ``(batch, n_time, n_receivers, n_sources)`` -> map ``(batch, nz, nx, 1)``.

    The input is the benchmark's log-transformed, min-max scaled gather. The output is the normalised map.

    Raises:
        ValueError: The survey's map is larger than the decoder's square output.
    """
    shape = (acquisition.n_time, acquisition.n_receivers, acquisition.n_sources)
    return build_from_layout(layout, shape, acquisition, "inversionnet")


def build_from_layout(
    layout: Layout, shape: tuple[int, int, int], acquisition: Acquisition, name: str
) -> keras.Model:
    """Build the network for gathers of ``shape`` (time, receivers, sources); see ``build_inversionnet``."""
    layout.check_map(acquisition)
    gather = keras.Input(shape, name="gather")
    predicted = _predict_map(_down(gather, layout.down), layout, acquisition)
    return keras.Model(gather, predicted, name=name)


def build_device_half(acquisition: Acquisition) -> keras.Model:
    """Build the blocks that work along time only, for one device.

    ``(batch, n_time, receivers, n_sources)`` -> ``(batch, n_time / 16, receivers, 128)``. ``copy_weights`` copies the
    weights of a trained network.
    """
    part = keras.Input(
        (acquisition.n_time, acquisition.max_device_receivers, acquisition.n_sources), name="part"
    )
    split = LAYOUTS["inversionnet"]
    return keras.Model(part, _down(part, split.down[: split.n_along_time]), name="inversionnet_device")


def build_central_half(acquisition: Acquisition) -> keras.Model:
    """Build the rest of the network after ``build_device_half``; device outputs are concatenated along receivers."""
    n_time, channels = build_device_half(acquisition).output_shape[1::2]
    inner = keras.Input((n_time, acquisition.n_receivers, channels), name="inner")
    split = LAYOUTS["inversionnet"]
    first = split.n_along_time
    predicted = _predict_map(_down(inner, split.down[first:], first), split, acquisition)
    return keras.Model(inner, predicted, name="inversionnet_central")


def copy_weights(whole: keras.Model, half: keras.Model) -> None:
    """Copy the weights of ``whole`` to the layers of ``half`` with the same names."""
    for layer in half.layers:
        if layer.weights:
            layer.set_weights(whole.get_layer(layer.name).get_weights())


def _finish(x, name: str, activation: bool = True):
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")(x)
    return layers.LeakyReLU(0.2, name=f"{name}_relu")(x) if activation else x


def _down(x, blocks: list, first: int = 0):
    for i, (channels, kernel, stride) in enumerate(blocks, start=first):
        x = layers.ZeroPadding2D((kernel[0] // 2, kernel[1] // 2), name=f"down{i}_pad")(x)
        x = _finish(layers.Conv2D(channels, kernel, stride, name=f"down{i}")(x), f"down{i}")
    return x


def _predict_map(x, layout: Layout, acquisition: Acquisition):
    # The remaining grid (8 x 9 for InversionNet on the benchmark) is reduced to one point.
    x = _finish(layers.Conv2D(layout.bottleneck, x.shape[1:3], name="bottleneck")(x), "bottleneck")
    for i, (channels, kernel, cut) in enumerate(layout.up):
        x = layers.Conv2DTranspose(channels, kernel, 2, name=f"up{i}")(x)
        x = _finish(layers.Cropping2D(cut, name=f"up{i}_cut")(x), f"up{i}")
        for block in "bc"[: layout.blocks - 1]:
            name = f"up{i}{block}"
            x = _finish(layers.Conv2D(channels, 3, padding="same", name=name)(x), name)
    spare = (x.shape[1] - acquisition.n_depth, x.shape[2] - acquisition.n_width)
    x = layers.Cropping2D([(cells // 2, cells - cells // 2) for cells in spare], name="crop")(x)
    x = _finish(layers.Conv2D(1, 3, padding="same", name="out")(x), "out", activation=False)
    return ops.tanh(x)


def count_parameters(network: keras.Model) -> int:
    """Count trainable parameters, as PyTorch does: without running statistics."""
    return sum(int(w.size if hasattr(w, "size") else ops.size(w)) for w in network.trainable_weights)
