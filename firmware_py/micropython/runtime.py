"""Which of a board's runtimes encodes."""

from firmware_py.micropython.model import ModelError


def open_model(bundle, feed):
    """Open the encoder with OpenMV's ``ml`` if available and able, else with the viper executor.

    ``feed`` resets the watchdog during a long inference.

    Raises:
        ModelError: No runtime can run the encoder.
    """
    refused = None
    if bundle.encoder_path:
        try:
            from firmware_py.micropython.model_ml import MlModel

            return MlModel(bundle)
        except ModelError as error:
            refused = error
    if not bundle.compiled_path:
        raise refused
    if refused:
        print("model: %s; running %s" % (refused, bundle.compiled_path))
    from firmware_py.micropython.model_viper import ViperModel

    return ViperModel(bundle, bundle.compiled_path, feed)
