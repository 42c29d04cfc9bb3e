"""Gives a package public names whose modules are imported on first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns `__getattr__` and `__dir__` of a package that has public names of its modules.

    A configuration names a class by such an address, and ids are digests of configurations. A module can then be
    renamed or moved without a change of ids.

    Args:
        package: The package's `__name__`.
        modules: Names by the module that defines them, which is relative to the package, as in `from .splits import`.
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def getattr_(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(module_of[name], package), name)

    return getattr_, lambda: sorted(module_of)
