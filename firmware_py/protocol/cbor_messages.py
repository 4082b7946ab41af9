"""Encode control messages as CBOR: a map of one entry, the message's name to a map of its fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import cbor2

from firmware_py.protocol.packet import PacketError

_TYPES = {"int": int, "str": str, "bytes": bytes}


class MessageSet:
    """Messages of one record type.

    Args:
        what: Name of the record type, for errors.
        kinds: Dataclasses by their name on the wire; their fields are int, str or bytes.
        is_within_bounds: Called with a field's name and its value, which has the declared type.
    """

    def __init__(
        self, what: str, kinds: Mapping[str, Any], is_within_bounds: Callable[[str, Any], bool]
    ) -> None:
        self._what = what
        self._kinds = kinds
        self._names = {kind: name for name, kind in kinds.items()}
        self._is_within_bounds = is_within_bounds

    def encode(self, message: Any) -> bytes:
        """Return the payload of a record."""
        return cbor2.dumps({self._names[type(message)]: dict(vars(message))})

    def decode(self, payload: bytes) -> Any:
        """Decode the message in ``payload``, and check each field's type and range.

        Raises:
            PacketError: The payload is not valid.
        """
        try:
            content = cbor2.loads(payload)
        except (cbor2.CBORDecodeError, RecursionError) as error:
            raise PacketError(f"{self._what}: not CBOR ({error})") from None
        if type(content) is not dict or len(content) != 1:
            raise PacketError(f"{self._what}: expected one message")
        kind, values = next(iter(content.items()))
        if type(kind) is not str or kind not in self._kinds or type(values) is not dict:
            raise PacketError(f"{self._what}: no message that is known here; update the older side")
        message = self._kinds[kind]
        # Ignore fields added by newer versions.
        known = {field.name: values.get(field.name) for field in fields(message)}
        for field in fields(message):
            value = known[field.name]
            if type(value) is not _TYPES[str(field.type)] or not self._is_within_bounds(field.name, value):
                raise PacketError(f"{self._what}: {kind}: {field.name} is missing or out of bounds")
        return message(**known)


def cut(text: str, max_bytes: int) -> str:
    """Return ``text``, shortened to ``max_bytes`` of UTF-8."""
    return text.encode("utf-8", "replace")[:max_bytes].decode("utf-8", "ignore")
