"""What featcache declares in its package, compared with what is installed.

Declarations are read with `packaging`, which may itself be missing from a broken installation.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, metadata, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OURS = ("test", "dev", "docs", "train")  # extras for people who work on featcache


def installed_version(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def missing() -> list[str]:
    """Return the requirements that are not installed."""
    if _requirement_class() is None:
        return ["packaging"]  # without it no other requirement can be read
    return [_text(needed) for needed in _required("") if installed_version(needed.name) is None]


def outdated() -> dict[str, str]:
    """Return {requirement: the version that is installed, which does not meet it}."""
    versions: dict[str, str] = {}
    for needed in _required(""):
        installed = installed_version(needed.name)
        if installed is not None and not needed.specifier.contains(installed, prereleases=True):
            versions[_text(needed)] = installed
    return versions


def extras() -> dict[str, dict[str, Any]]:
    """Return {extra: whether it is installed, the versions of its packages, the command that installs it}."""
    facts: dict[str, dict[str, Any]] = {}
    if _requirement_class() is None:
        return facts
    for extra in _declared("Provides-Extra"):
        if extra in OURS:
            continue
        packages = {needed.name: installed_version(needed.name) for needed in _required(extra)}
        facts[extra] = {
            "installed": None not in packages.values(),
            "packages": packages,
            "install": f"pip install 'featcache[{extra}]'",
        }
    return facts


def _required(extra: str) -> list[Requirement]:
    """Return what this machine needs for an extra and nothing else; for "" what featcache always needs."""
    required: list[Requirement] = []
    requirement_class = _requirement_class()
    if requirement_class is None:
        return required
    for text in _declared("Requires-Dist"):
        requirement = requirement_class(text)
        is_basic = _applies(requirement, "")
        if (is_basic and not extra) or (not is_basic and _applies(requirement, extra)):
            required.append(requirement)
    return required


def _requirement_class() -> type[Requirement] | None:
    """Return the class that reads a requirement; None if `packaging` is missing."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return None
    return Requirement


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _declared(field: str) -> list[str]:
    try:
        return metadata("featcache").get_all(field) or []
    except PackageNotFoundError:
        return []


def _text(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"
