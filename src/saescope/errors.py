"""Every error of saescope, as one tree.

SaescopeError                 one clear line: what, which value, what to do; exit code 2 of the CLI
├── PromptError               unusable prompts, prompt sets or settings
│   └── ArgumentError         an argument outside its range; it knows the argument's name
├── SourceError               a model or SAE that is missing, damaged, or does not fit the other
│   └── NotCachedError        a model or SAE that is not in the local cache, when offline
├── RunError                  a run that is missing, damaged, or conflicting with the output path
├── EditError                 an invalid edit, or an edit for another model or SAE
├── JudgeError                a judge of replies that does not answer, or gives no label
└── ResourceError             too little memory or disk
"""


class SaescopeError(Exception):
    """Base of all errors that a user can cause and correct; its text is one line.

    >>> import saescope as ss
    >>> try:
    ...     ss.bundled_prompts("klingon")
    ... except ss.SaescopeError as error:
    ...     print(type(error).__name__)
    PromptError
    """


class PromptError(SaescopeError):
    """Unusable prompts, prompt sets or settings."""


class ArgumentError(PromptError):
    """An argument outside its range; `name` is the argument, and the message begins with it.

    >>> import saescope as ss
    >>> try:
    ...     ss.ContrastSettings(alpha=2.0).check()
    ... except ss.ArgumentError as error:
    ...     print(error.name, "|", error)
    alpha | alpha must lie between 0 and 1, got 2
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name} {self.reason}"


class SourceError(SaescopeError):
    """A model or SAE that is missing, damaged, or does not fit the other."""


class NotCachedError(SourceError):
    """A model or SAE that is not in the local cache, when offline."""


class RunError(SaescopeError):
    """A run that is missing, damaged, or conflicting with the output path."""


class EditError(SaescopeError):
    """An invalid edit, or an edit for another model or SAE."""


class JudgeError(SaescopeError):
    """A judge of replies that does not answer, or gives no label."""


class ResourceError(SaescopeError):
    """Too little memory or disk."""


class Interrupted(KeyboardInterrupt):
    """An interrupt of work that keeps what is finished; its text says what that is.

    `onward` introduces the command that goes on, if more than running it again is needed.
    """

    def __init__(self, kept: str, onward: str = "") -> None:
        super().__init__(kept)
        self.onward = onward


class CheckpointWarning(UserWarning):
    """Something in a checkpoint that is not used, although its numbers might have been meant."""


def whole_reason(error: Exception) -> str:
    """Return all lines of another library's exception as one, or its class name if it has no text.

    For libraries that put what is wrong on a later line.
    """
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: Exception) -> str:
    """Return the first line of another library's exception, or its class name if it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
