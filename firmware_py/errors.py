"""A device's errors, each beside the module that it belongs to. ``micropython`` and ``digitisers`` have their
own.

FirmwareError
├── BundleError            inference.bundle
├── GatherError            inference.companding
│   └── UnreadableError    sources.recordings
├── EncoderError           inference.encoder
├── SelfTestError          inference.self_test
├── LinkError              links.base
├── PortError              links.port
├── SealError              protocol.frame_authenticator
│   └── UnauthenticError   protocol.frame_authenticator
├── FramingError           protocol.framing
├── PacketError            protocol.packet
├── RecordingCodecError    protocol.recording_codec
├── RateError              protocol.rate
├── ConfigError            runtime.config
├── LogError               runtime.log
├── SpoolError             storage.spool
├── ArchiveError           updates.archive
└── SlotsError             updates.slots
"""


class FirmwareError(Exception):
    """Base of a device's errors."""
