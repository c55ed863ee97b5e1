"""Errors that a user can cause.

Every one derives from :class:`FoloError` and says in one line which value was given and what
would have been accepted. The command line prints that line and exits with 2; Python callers
catch the type. ``assert`` is kept for mistakes of our own.
"""


class FoloError(Exception):
    """Base of every error that a user, a model folder or a machine can cause."""


class ConfigError(FoloError, ValueError):
    """A config value is outside its range, or two values contradict each other."""


class UnsupportedOptionError(ConfigError):
    """An engine option that this stage does not have (the message names the stage that does)."""


class UnsupportedModelError(FoloError, ValueError):
    """The checkpoint needs something this project does not implement."""


class ModelNotFoundError(FoloError, FileNotFoundError):
    """A model name resolves to no folder, or the folder is not a model."""


class CheckpointError(FoloError, ValueError):
    """The weights on disk are broken, incomplete or of the wrong shape."""


class InvalidRequestError(FoloError, ValueError):
    """A prompt or a sampling parameter that cannot be served."""


class OutOfMemoryError(FoloError, MemoryError):
    """What was asked for does not fit this device; the message holds both sizes."""
