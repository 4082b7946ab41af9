"""The encoder on the board's runtime: OpenMV's ``ml``, which is TFLite-Micro.

``predict`` takes a function that fills the input tensor: bytes as they are. An array it would convert from float
and cut off, not round. What it returns is float, (q - zero point) * scale, of which q is got back by rounding.
"""

from firmware_py.micropython.model import ModelError


class MlModel:
    """Latents of an encoder's inputs, with the quantisation of ``bundle``."""

    def __init__(self, bundle):
        try:
            import ml
        except ImportError:
            raise ModelError("model: this firmware has no module ml; install OpenMV's firmware") from None
        self._bundle = bundle
        self.latent = bundle.latent
        try:
            self._model = ml.Model(bundle.encoder_path)
        except (OSError, ValueError, MemoryError) as error:
            raise ModelError("%s: cannot be loaded (%r)" % (bundle.encoder_path, error)) from None
        self.input = bytearray(bundle.time * bundle.width * bundle.sources)
        self._inputs = [self._fill]

    def _fill(self, tensor, shape, dtype):
        if len(tensor) != len(self.input) or dtype != ord("b"):
            raise ModelError(
                "%s: takes %d values of type %r, the manifest says %d of int8; convert again"
                % (self._bundle.encoder_path, len(tensor), chr(dtype), len(self.input))
            )
        tensor[:] = self.input

    def encode(self, latent):
        """int8 ``(time, width, sources)`` in ``input`` -> int8 into ``latent``. Raises ``ModelError``."""
        output = self._model.predict(self._inputs)[0].flatten()
        if len(output) != len(latent):
            raise ModelError(
                "%s: gives %d values, the manifest says %d; convert again"
                % (self._bundle.encoder_path, len(output), len(latent))
            )
        scale = self._bundle.output_scale
        zero_point = self._bundle.output_zero_point
        for i in range(len(latent)):
            latent[i] = (round(output[i] / scale) + zero_point) & 0xFF
