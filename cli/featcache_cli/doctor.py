"""featcache doctor."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache_cli.output import Json, Quiet, emit, say

if TYPE_CHECKING:
    from featcache.extras.doctor import Diagnosis

WIDE = 15  # characters of the names
KINDS = {"broken": "Broken", "slow": "Slow", "watch": "Watch out"}


def command(
    speed: Annotated[
        bool, typer.Option("--speed/--no-speed", help="Also time a network, which takes a few seconds.")
    ] = True,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what this machine and installation can do, what is broken or slow, and what to do about it.

    Exits with 5 if something that is necessary is broken.

    Example: featcache doctor
    """
    from featcache.errors import EnvironmentFault
    from featcache.extras.doctor import diagnose

    if not quiet:
        say("Looking at libraries, devices, weights and disks; it takes about ten seconds.")
    found = diagnose(speed=speed)
    emit(json, document(found), lambda: text(found))
    if found.broken:
        first = found.broken[0]
        raise EnvironmentFault(f"featcache cannot work here. {first.what}. Do: {first.do}")


def document(found: Diagnosis) -> dict[str, Any]:
    """Return the result as it stands in JSON."""
    return {"usable": not found.broken, **found.facts, "findings": [asdict(one) for one in found.findings]}


def text(found: Diagnosis) -> str:
    """Return the result as a person reads it."""
    from featcache.text import printable, wrapped

    facts = found.facts
    lines = [*_versions(facts), *_extras(facts), *_machine(facts), *_keras(facts), *_weights(facts), *_disks(facts)]
    shown = [wrapped(printable(line), indent=WIDE + 1) for line in lines]
    for one in found.findings:
        shown += ["", printable(f"{KINDS[one.kind]}: {one.what}."), f"  Do: {printable(one.do)}"]
    if not found.findings:
        shown += ["", "Nothing is broken, and nothing would be slower than it must be."]
    return "\n".join(shown)


def _line(name: str, value: str) -> str:
    return f"{name:{WIDE}} {value}"


def _versions(facts: dict[str, Any]) -> list[str]:
    there = {name: version for name, version in facts["versions"].items() if version is not None}
    return [_line(name, version) for name, version in there.items()]


def _extras(facts: dict[str, Any]) -> list[str]:
    extras = facts["extras"]
    names = [name for name, one in extras.items() if one["installed"]]
    lines = [_line("extras", ", ".join(names) or "none")]
    return lines + [
        _line("", f"{name} is not there: {one['install']}") for name, one in extras.items() if name not in names
    ]


def _machine(facts: dict[str, Any]) -> list[str]:
    machine = facts["machine"]
    quota = "" if machine["cores_quota"] is None else f", {machine['cores_quota']:g} by the container's quota"
    sizes = [
        f"{machine[key] / 1e9:.1f} GB {said}"
        for key, said in {
            "memory_bytes": "",
            "memory_limit_bytes": "for this container",
            "memory_free_bytes": "free",
        }.items()
        if machine[key] is not None
    ]
    pools = sorted({f"{one['library']} {one['threads']}" for one in facts.get("threads", [])})
    return [
        _line("system", machine["system"]),
        _line("processor", f"{machine['processor']} ({' '.join(machine['vectors'] or []) or 'vectors unknown'})"),
        _line("cores", f"{machine['cores']}, {machine['cores_allowed']} for this process{quota}"),
        _line("memory", ", ".join(size.strip() for size in sizes) or "unknown"),
        _line("threads", ", ".join(pools) or "unknown"),
        _line("GPUs", "; ".join(facts["gpus"]) or "none"),
    ]


def _keras(facts: dict[str, Any]) -> list[str]:
    lines = []
    if "keras" in facts:
        lines.append(
            _line("computes on", f"{', '.join(facts['keras']['devices'])} (Keras on {facts['keras']['backend']})")
        )
    if "speed" in facts:
        speed = facts["speed"]
        lines.append(
            _line("speed", f"{speed['images_per_s']:.0f} images/s through {speed['backbone']}, {speed['engine']}")
        )
    lines += [_line(name, value) for name, value in facts["settings"].items()]
    return [*lines, _line("file locks", str(facts.get("locking", "unknown")))]


def _weights(facts: dict[str, Any]) -> list[str]:
    checked = {"digest": "right by its digest", "length": "whole by its length", "none": "comes with featcache"}
    said = [
        f"{', '.join(one['backbones'])}: {one['fault'] or checked[one['checked']]}, {one['bytes'] / 1e6:.1f} MB"
        for one in facts["weights"]
    ]
    return [_line("without network" if at == 0 else "", one) for at, one in enumerate(said)]


def _disks(facts: dict[str, Any]) -> list[str]:
    return [
        _line(
            "disk" if at == 0 else "",
            f"{one['free_bytes'] / 1e9:.1f} of {one['total_bytes'] / 1e9:.1f} GB free: {one['folder']} ({one['for']})",
        )
        for at, one in enumerate(facts["disks"])
    ]
