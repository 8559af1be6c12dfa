"""Five errors, one for each reaction.

A class exists because its catcher does something else: retry, decide again, stop, set aside, or
tell a person. A new class needs a new reaction. Each carries a `hint`, the operator's next command,
and the exit code with which a command line ends when the error reaches it.
"""


class MirrorError(Exception):
    """Base of all errors that cross a module boundary here.

    Args:
        what: What is wrong, with the value that is wrong and, where there is one, a legal value.
        hint: The command or the setting that a person should try next; may be empty.
    """

    exit_code = 1

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint


class Unavailable(MirrorError):
    """Somebody did not answer, or not now. Reaction: retry later; nothing is known to have happened."""

    exit_code = 3


class Conflict(MirrorError):
    """A condition did not hold: somebody else was faster. Reaction: read again, decide again."""

    exit_code = 1


class Fenced(MirrorError):
    """A higher epoch exists. Reaction: stop acting, step down, never retry with the old epoch."""

    exit_code = 1


class Corrupt(MirrorError):
    """Bytes are not what they claim to be. Reaction: set them aside, count them, never use them."""

    exit_code = 1


class ConfigError(MirrorError):
    """The operator has to change something. Reaction: say what, name a legal value, exit."""

    exit_code = 2
