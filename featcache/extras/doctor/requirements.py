"""What featcache declares in its package, compared with what is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, metadata, version
from typing import Any

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
    facts = {}
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
    required = []
    for text in _declared("Requires-Dist"):
        requirement = Requirement(text)
        is_basic = _applies(requirement, "")
        if (is_basic and not extra) or (not is_basic and _applies(requirement, extra)):
            required.append(requirement)
    return required


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _declared(field: str) -> list[str]:
    try:
        return metadata("featcache").get_all(field) or []
    except PackageNotFoundError:
        return []


def _text(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"
