"""The errors of the testbed, each beside the module that it belongs to.

TestbedError
├── SchemeError            comparison.baselines
├── LinkError              emulation.links
├── TbfError               emulation.tbf
└── SamplesError           samples
"""


class TestbedError(RuntimeError):
    """The testbed did not run to its end. The message carries the failing process's last words."""

    # pytest must not collect it.
    __test__ = False
