"""The errors of the testbed, each beside the module that it belongs to.

TestbedError
├── SchemeError            comparison.baselines
├── LinkError              emulation.links
├── TbfError               emulation.tbf
└── SamplesError           samples
"""


class TestbedError(RuntimeError):
    """The testbed run failed. The message holds the last output of the failing process."""

    # Keep pytest from collecting this class.
    __test__ = False
