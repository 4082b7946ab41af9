"""The errors of boards, each beside the module that it belongs to.

BoardsError
├── CompilerError          fit.accelerator
├── CheckError             fit.check
├── EpicnnError            fit.epicnn
├── GraphError             fit.graph
├── TflmError              fit.tflm
├── InstallError           install.linux.shell
│   └── CommandError       install.linux.shell
└── BoardError             profile
"""


class BoardsError(Exception):
    """Base of the errors of boards."""
