"""Import public names when they are first used."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    module: str,
    homes: Mapping[str, Sequence[str]],
    *,
    submodules: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
) -> Callable[[str], Any]:
    """Return a module's `__getattr__`.

    `homes` lists the names that each file of the package defines, `names` those that are called
    otherwise there, and `submodules` are imported as they are.
    """
    home_of = {name: home for home, defined in homes.items() for name in defined}
    names = names or {}

    def getattribute(name: str) -> Any:
        if name in submodules:
            return import_module(f"{module}.{name}")
        if name not in home_of:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home = import_module(f"saescope.{home_of[name]}")
        return getattr(home, names.get(name, name))

    return getattribute
