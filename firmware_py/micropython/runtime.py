"""Which of a board's runtimes encodes."""

from firmware_py.micropython.model import ModelError


def open_model(bundle, feed):
    """OpenMV's ``ml`` where it is there and loads the encoder, else the viper executor. Raises ``ModelError``.

    ``feed`` keeps the watchdog quiet during a long inference.
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
        print("epic: %s; running %s" % (refused, bundle.compiled_path))
    from firmware_py.micropython.model_viper import ViperModel

    return ViperModel(bundle, bundle.compiled_path, feed)
