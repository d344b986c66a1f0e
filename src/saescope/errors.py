"""Everything saescope refuses, as one tree.

SaescopeError                 one clear line: what, which value, what to do; exit code 2 on the command line
├── PromptError               prompts or prompt sets that cannot be used
├── SourceError               a model or SAE that is missing, damaged, or does not fit
│   └── NotCachedError        one that is asked for offline and was never fetched
├── RunError                  a stored run that is missing, damaged, or in the way
├── EditError                 an edit that cannot be, or does not belong to this model and SAE
├── JudgeError                a judge of replies that cannot be asked, or gives no label
└── ResourceError             the machine ran out: disk, memory
"""


class SaescopeError(Exception):
    """Base of every error a user can cause and mend."""


class PromptError(SaescopeError):
    """Prompts or prompt sets that cannot be used."""


class SourceError(SaescopeError):
    """A model or SAE that is missing, damaged, or does not fit the other."""


class NotCachedError(SourceError):
    """A model or SAE that is asked for offline and was never fetched."""


class RunError(SaescopeError):
    """A stored run that is missing, damaged, or in the way."""


class EditError(SaescopeError):
    """An edit that cannot be, or does not belong to this model and SAE."""


class JudgeError(SaescopeError):
    """A judge of replies that cannot be asked, or gives no label."""


class ResourceError(SaescopeError):
    """The machine ran out of something."""


def first_line(error: Exception) -> str:
    """What another library's exception says in its first line, or its name if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
