"""What can go wrong and be mended by the user: one class for each place to look.

A message states the rule, then the value that broke it, then the mend.
"""


class SegpipeError(Exception):
    """Base of every error that segpipe raises on purpose."""


class SettingsError(SegpipeError):
    """A flag or a key of the configuration file."""


class InputError(SegpipeError):
    """What ``--input`` names: nothing found, names that collide, a list that cannot be read."""


class OutputError(SegpipeError):
    """The output folder: not writable, inside the input, full."""


class ModelError(SegpipeError):
    """The ONNX file, or what it computes."""


class ContractError(SegpipeError):
    """What the contract says of the model, or that there is none."""


class DeviceError(SegpipeError):
    """The device that was asked for."""


class SourceError(SegpipeError):
    """One case: it cannot be opened or decoded, or it does not fit the model."""


class WorkerError(SegpipeError):
    """A worker process that was lost with the jobs it held."""
