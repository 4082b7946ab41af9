"""The errors of models, each beside the module that it belongs to.

ModelsError
├── TrainingError          here
├── CompandingError        data.companding
├── DataError              data.gathers
├── DecoderError           inversion.decoder
├── OodError               inversion.ood
├── ModelNotFoundError     released
└── FloatEncoderError      networks.float_encoder
"""


class ModelsError(Exception):
    """Base of the errors of models."""


class TrainingError(ModelsError, ValueError):
    """A training run cannot start or go on."""
