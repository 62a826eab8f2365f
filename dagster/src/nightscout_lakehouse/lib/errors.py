"""The errors a user can meet. Each says what is wrong, where, and how to mend it."""


class LakehouseError(Exception):
    """A failure with a known cause, shown to the user without a traceback.

    Attributes:
        hint: What the user can do about it; one sentence, may be empty.
        is_transient: Whether the same may succeed a minute later.
    """

    is_transient = False

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = str(self.args[0])
        return f"{message} {self.hint}".rstrip()


class ConfigurationError(LakehouseError):
    """A setting is missing, malformed or contradicts another."""


class LakeError(LakehouseError):
    """The lake cannot be read or written, or holds something it should not."""


class WarehouseInUseError(LakeError):
    """Another process has the warehouse open."""

    is_transient = True


class ServingDatabaseError(LakehouseError):
    """The Postgres database cannot be started, reached or written."""


class ServingDatabaseUnreachableError(ServingDatabaseError):
    """The Postgres database is away, busy or restarting."""

    is_transient = True
