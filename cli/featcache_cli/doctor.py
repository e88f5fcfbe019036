"""featcache doctor."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache_cli.output import Json, Quiet, emit, say

if TYPE_CHECKING:
    from featcache.extras.doctor import Diagnosis

WIDE = 15  # characters for the name of a line
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
    diagnosis = diagnose(speed=speed)
    emit(json, document(diagnosis), lambda: text(diagnosis))
    # After the result, which a script reads even if the exit code is 5.
    if diagnosis.broken:
        first = diagnosis.broken[0]
        raise EnvironmentFault(f"featcache cannot work here. {first.what}. Do: {first.do}")


def document(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the diagnosis as it stands in JSON."""
    findings = [asdict(finding) for finding in diagnosis.findings]
    return {"usable": not diagnosis.broken, **diagnosis.facts, "findings": findings}


def text(diagnosis: Diagnosis) -> str:
    """Return the diagnosis as a person reads it."""
    from featcache.text import printable, wrapped

    facts = diagnosis.facts
    fact_lines = []
    for name, version in facts["versions"].items():
        if version is not None:
            fact_lines.append(_line(name, version))
    for section in (_extras, _machine, _keras, _weights, _disks):
        fact_lines += section(facts)

    lines = [wrapped(printable(line), indent=WIDE + 1) for line in fact_lines]
    for finding in diagnosis.findings:
        lines += ["", printable(f"{KINDS[finding.kind]}: {finding.what}."), f"  Do: {printable(finding.do)}"]
    if not diagnosis.findings:
        lines += ["", "Nothing is broken, and nothing would be slower than it must be."]
    return "\n".join(lines)


def _line(name: str, value: str) -> str:
    return f"{name:{WIDE}} {value}"


def _extras(facts: dict[str, Any]) -> list[str]:
    installed = []
    missing = []
    for name, extra in facts["extras"].items():
        if extra["installed"]:
            installed.append(name)
        else:
            missing.append(_line("", f"{name} is not there: {extra['install']}"))
    return [_line("extras", ", ".join(installed) or "none"), *missing]


def _machine(facts: dict[str, Any]) -> list[str]:
    machine = facts["machine"]
    cores = f"{machine['cores']}, {machine['cores_allowed']} for this process"
    if machine["cores_quota"] is not None:
        cores += f", {machine['cores_quota']:g} by the container's quota"
    meanings = {"memory_bytes": "", "memory_limit_bytes": " for this container", "memory_free_bytes": " free"}
    sizes = []
    for key, meaning in meanings.items():
        if machine[key] is not None:
            sizes.append(f"{machine[key] / 1e9:.1f} GB{meaning}")
    vectors = " ".join(machine["vectors"] or []) or "vectors unknown"
    # Several libraries may bring the same pool.
    pools = {f"{pool['library']} {pool['threads']}" for pool in facts.get("threads", [])}
    return [
        _line("system", machine["system"]),
        _line("processor", f"{machine['processor']} ({vectors})"),
        _line("cores", cores),
        _line("memory", ", ".join(sizes) or "unknown"),
        _line("threads", ", ".join(sorted(pools)) or "unknown"),
        _line("GPUs", "; ".join(facts["gpus"]) or "none"),
    ]


def _keras(facts: dict[str, Any]) -> list[str]:
    lines = []
    if "keras" in facts:
        keras = facts["keras"]
        lines.append(_line("computes on", f"{', '.join(keras['devices'])} (Keras on {keras['backend']})"))
    if "speed" in facts:
        speed = facts["speed"]
        rate = f"{speed['images_per_s']:.0f} images/s"
        lines.append(_line("speed", f"{rate} through {speed['backbone']}, {speed['engine']}"))
    lines += [_line(name, value) for name, value in facts["settings"].items()]
    return [*lines, _line("file locks", str(facts.get("locking", "unknown")))]


def _weights(facts: dict[str, Any]) -> list[str]:
    checked = {"digest": "right by its digest", "length": "whole by its length", "none": "comes with featcache"}
    states = []
    for file in facts["weights"]:
        state = file["fault"] or checked[file["checked"]]
        states.append(f"{', '.join(file['backbones'])}: {state}, {file['bytes'] / 1e6:.1f} MB")
    return _section("without network", states)


def _disks(facts: dict[str, Any]) -> list[str]:
    states = []
    for disk in facts["disks"]:
        free = f"{disk['free_bytes'] / 1e9:.1f} of {disk['total_bytes'] / 1e9:.1f} GB free"
        states.append(f"{free}: {disk['folder']} ({disk['for']})")
    return _section("disk", states)


def _section(name: str, values: list[str]) -> list[str]:
    """Return a line for each value; only the first line has the name."""
    lines = [_line("", value) for value in values]
    if values:
        lines[0] = _line(name, values[0])
    return lines
