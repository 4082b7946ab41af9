"""The encoder on a board: ``model_ml.py`` runs it by the firmware's runtime, ``model_viper.py`` by native code.

Both kinds of model have ``latent``, its length, ``input``, a buffer to fill before each inference, and
``encode(latent)``.
"""

from firmware_py.micropython.errors import SetupError


class ModelError(SetupError):
    """No runtime on the board can take the model, or one computes something else."""
