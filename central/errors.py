"""The centre's errors, each beside the module that it belongs to.

CentralError
├── ModelNotFoundError     api
├── DecoderLoadError       cli
├── ClockError             times
├── ConfigError            config
├── QueryError             dashboard.app
├── MetricsError           dashboard.metrics
├── ExportError            export.errors
├── RateSettingError       fleet.rate_setting
├── ListenError            gateway.listener
├── ReceiverError          ingest.receiver
├── AdaptationError        learning.versions
│   └── AdaptationRejectedError  learning.versions
├── InvertError            pipeline.invert
├── InvertCommandError     pipeline.invert_cli
├── KeysError              security.keys
├── SetupError             setup
├── StoreError             storage.database
│   ├── BackupError        storage.backup
│   ├── DamagedMapError    storage.map_store
│   ├── DamagedStoreError  storage.database
│   ├── NoStoreError       storage.database
│   ├── InUseError         storage.database
│   ├── JobError           verification.refine_jobs
│   └── RecordingError     recordings.store
├── MapCodecError          storage.map_codec
├── SchemaError            storage.schema
├── RolloutError           updates.rollout_store
├── SigningError           updates.signing
└── CheckInputError        verification.check_inputs
"""


class CentralError(Exception):
    """Base of the centre's errors."""
