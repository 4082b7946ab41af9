"""Which of a board's runtimes encodes."""

from firmware_py.micropython.model import ModelError


def reserve(bundle):
    """The buffers of the executor for viper, to be taken while the heap is whole; None where the firmware has ``ml``.

    Raises:
        ModelError: The compiled encoder is damaged, or the heap is too small.
    """
    try:
        import ml  # noqa: F401
    except ImportError:
        if bundle.compiled_path:
            from firmware_py.micropython.model_viper import Memory

            return Memory(bundle.compiled_path)
    return None


def open_model(bundle, memory, feed):
    """Open the encoder with OpenMV's ``ml`` if available and able, else with the viper executor.

    ``memory`` is what ``reserve`` returned. ``feed`` resets the watchdog during a long inference.

    Raises:
        ModelError: No runtime can run the encoder.
    """
    refused = None
    if bundle.encoder_path and not memory:
        try:
            from firmware_py.micropython.model_ml import MlModel

            return MlModel(bundle)
        except ModelError as error:
            refused = error
    if not bundle.compiled_path:
        raise refused
    if refused:
        print("model: %s; running %s" % (refused, bundle.compiled_path))
    from firmware_py.micropython.model_viper import Memory, ViperModel

    return ViperModel(bundle, memory or Memory(bundle.compiled_path), feed)
