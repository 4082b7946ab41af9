"""The encoder on a board: ``model_ml.py`` runs it by the firmware's runtime, ``model_viper.py`` by native code.

Both kinds of model have ``latent``, its length, and ``encode(values, latent)``.
"""


class ModelError(RuntimeError):
    """No runtime on the board can take the model, or one computes something else."""
