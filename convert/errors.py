"""The errors of conversion.

ConversionError               the run cannot become a bundle (bad run folder, collapsed encoder, gate failed)
├── QuantisationError         the network cannot be made fully int8 with the allowed operators
└── BudgetError               the result is too big for the target
"""


class ConversionError(ValueError):
    """A run cannot be converted; the message says what was found and what to do."""


class QuantisationError(ConversionError):
    """The network has an operator that an int8 microcontroller runtime does not support."""


class BudgetError(ConversionError):
    """The model or its arena exceeds the target's limit."""
