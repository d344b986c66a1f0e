"""Imported first: shapes are checked at each call, where there are shapes to check.

pytest's option `--jaxtyping-packages` wraps every function of the package. The wrapper compares
shapes between arguments, which takes 10 to 20 µs a call, and a third of the suite's time. Functions
without arrays in their signature need none of it: beartype alone checks them in 1 µs.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

_ARRAY = re.compile(r"jaxtyping|\b(?:Float|Int|UInt|Bool|Shaped|Num|Real|Inexact|Key)\d*\[")
_Typechecker = Callable[[Any], Any]
_jaxtyped = jaxtyping.jaxtyped
# The same exception for both checks.
_checked_types = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))


def _checked(*, typechecker: _Typechecker) -> Callable[[Any], Any]:
    """What jaxtyping's import hook puts on every function and class."""

    def decorate(wrapped: Any) -> Any:
        if any(map(_may_have_arrays, _functions(wrapped))):
            return _jaxtyped(wrapped, typechecker=typechecker)
        if not inspect.isclass(wrapped):
            return _checked_types(wrapped)
        if dataclasses.is_dataclass(wrapped) and "__init__" in vars(wrapped):
            wrapped.__init__ = _checked_types(wrapped.__init__)
        return wrapped

    return decorate


def _functions(wrapped: Any) -> Iterator[Any]:
    """The functions that would be checked."""
    if inspect.isclass(wrapped):
        yield wrapped.__init__
    elif isinstance(wrapped, property):
        yield from (f for f in (wrapped.fget, wrapped.fset, wrapped.fdel) if f is not None)
    else:
        yield inspect.unwrap(getattr(wrapped, "__func__", wrapped))


def _may_have_arrays(function: Any) -> bool:
    """Whether an annotation has an array or is a name, which may not be known yet."""
    annotations = getattr(function, "__annotations__", {}).values()
    return any(isinstance(a, str) or _ARRAY.search(str(a)) for a in annotations)


jaxtyping.jaxtyped = _checked
