"""Check that a Keras encoder fits a run and can run on devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convert.errors import ConversionError, QuantisationError


def check_encoder(encoder: Any, path: Path, input_shape: tuple[int, ...], latent: int) -> None:
    """Check an encoder that may be the user's own.

    Args:
        encoder: Keras model.
        path: Its file, for messages.
        input_shape: Shape of one companded part, ``(time, width, sources)``.
        latent: Values of a latent that the run's decoder takes.

    Raises:
        ConversionError: It has other inputs or outputs.
        QuantisationError: It has a layer that no device can run.
    """
    given = [tuple(tensor.shape[1:]) for tensor in encoder.inputs]
    if given != [input_shape]:
        raise ConversionError(
            f"{path}: expected one input of {_named(input_shape, 'time', 'receivers', 'sources')}, a companded part of "
            f"the run's survey; got {_shapes(given, 'input')}"
        )
    given = [tuple(tensor.shape[1:]) for tensor in encoder.outputs]
    if given != [(latent,)]:
        raise ConversionError(
            f"{path}: expected one output of ({latent},), the latent that the run's decoder takes; got "
            f"{_shapes(given, 'output')}; end with Dense({latent}), or take a decoder for that latent"
        )
    for layer in _layers(encoder):
        if _is_recurrent(layer):
            raise QuantisationError(
                f"{path}: layer {layer.name} ({type(layer).__name__}) is recurrent and does not run in int8 on a "
                "microcontroller; use Conv2D, DepthwiseConv2D, pooling and Dense"
            )


def _named(shape: tuple[int, ...], *names: str) -> str:
    return f"({', '.join(map(str, shape))}) = ({', '.join(names)})"


def _shapes(shapes: list[tuple], what: str) -> str:
    return f"{len(shapes)} {what}{'s' if len(shapes) != 1 else ''}: {', '.join(map(str, shapes))}"


def _layers(network: Any) -> Iterator[Any]:
    """All layers, also those within networks and wrappers."""
    for layer in network.layers:
        yield layer
        if hasattr(layer, "layers"):
            yield from _layers(layer)
        if hasattr(layer, "layer"):
            yield layer.layer


def _is_recurrent(layer: Any) -> bool:
    import keras

    return isinstance(layer, keras.layers.RNN | keras.layers.Bidirectional)
