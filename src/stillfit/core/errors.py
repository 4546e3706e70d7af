"""One root class for everything that stillfit raises on purpose.

Every text says what happened, the value, and the likely cause or the next step.
An expected outcome (a gate's refusal, a failed budget) is a value, not an error.
"""


class StillfitError(Exception):
    """Root of all errors that stillfit raises on purpose."""


class ConfigError(StillfitError):
    """A run file, a scenario or an argument is wrong: nothing was started."""


class DataError(StillfitError):
    """A stream, a table or a batch holds something that cannot be used."""


class ShapeError(DataError):
    """An array has the wrong shape or number of features."""


class OrderError(DataError):
    """Events came twice or out of order."""


class RegistryError(StillfitError):
    """A registry cannot be read or written as asked; what it holds is untouched."""


class DamagedError(RegistryError):
    """A stored file or journal entry differs from what was written."""


class LockedError(RegistryError):
    """Another process is writing to this registry."""


class MissingExtraError(StillfitError):
    """A part of stillfit needs a package that is not installed."""
