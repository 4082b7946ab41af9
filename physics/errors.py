"""The errors of physics, each beside the module that it belongs to.

PhysicsError
├── AcquisitionError       acquisition
├── ClusterError           cluster
├── DatasetError           dataset
├── UnknownFamilyError     families.__init__
├── FieldFileError         files.field_files
├── RecordError            files.live_buffers
├── OpenFWIFileError       files.openfwi_files
├── SeedLinkError          files.seedlink_session
│   └── ConnectionLostError files.seedlink_session
├── MetricError            metrics
└── ModellingError         here
"""


class PhysicsError(Exception):
    """Base of the errors of physics."""


class ModellingError(PhysicsError, ValueError):
    """A map cannot be modelled, or an engine is not available."""
