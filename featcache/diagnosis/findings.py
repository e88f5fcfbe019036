"""Facts -> what is broken, what would be slow, what to watch; each with what to do. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Facts = Mapping[str, Any]
Kind = Literal["broken", "slow", "watch"]

LITTLE_DISK = 1e9  # bytes; ImageNet weights take 4 MB to 1.4 GB
LITTLE_MEMORY = 2e9  # TensorFlow alone takes 0.6
MUCH_SWAP = 0.1  # of the memory
PACKAGES = {"sklearn": "scikit-learn", "PIL": "pillow"}  # modules that are called otherwise than their package
GPU_BUILDS = {  # of every backend that featcache runs on
    "tensorflow": "pip install 'tensorflow[and-cuda]'",
    "jax": "pip install 'jax[cuda12]'",
    "torch": "install a CUDA build of PyTorch, see pytorch.org",
}


@dataclass(frozen=True)
class Finding:
    """Something about this machine or installation that a user would want to change."""

    kind: Kind
    what: str
    do: str


def findings_of(facts: Facts) -> tuple[Finding, ...]:
    """Return what is broken, then what would be slow, then what to watch."""
    found = [one for rule in _RULES for one in rule(facts)]
    return tuple(one for kind in ("broken", "slow", "watch") for one in found if one.kind == kind)


def usable_cores(machine: Facts) -> float:
    """Return how many cores' time there is: those that are allowed, or the quota of the container."""
    allowed, quota = machine["cores_allowed"], machine["cores_quota"]
    return float(allowed if quota is None else min(allowed, quota))


def _packages(facts: Facts) -> Iterator[Finding]:
    for requirement in facts["missing"]:
        yield Finding("broken", f"{requirement} is not installed", f"pip install '{requirement}'")
    for module, fault in facts.get("packages", {}).items():
        name = PACKAGES.get(module, module)
        if fault and not any(requirement.startswith(name) for requirement in facts["missing"]):
            yield Finding("broken", f"{name} cannot be imported: {fault}", f"pip install --force-reinstall {name}")


def _keras(facts: Facts) -> Iterator[Finding]:
    faults, backend = facts["faults"], facts.get("backend", "tensorflow")
    if fault := faults.get("keras"):
        is_there = facts["versions"].get(backend) is not None
        do = f"pip install --force-reinstall keras {backend}" if is_there else f"pip install {backend}"
        if backend not in GPU_BUILDS:
            do = f"set KERAS_BACKEND to {' or '.join(GPU_BUILDS)}"
        if "SIGILL" in fault:
            do = f"this build of {backend} takes a processor with AVX: use another machine"
        others = [name for name in GPU_BUILDS if facts["versions"].get(name) and name != backend]
        if others:
            do = f"run on {others[0]}, which is installed: KERAS_BACKEND={others[0]} featcache ..; or {do}"
        yield Finding("broken", f"Keras on {backend} does not start: {fault}", do)
    elif fault := faults.get("speed"):
        yield Finding(
            "broken", f"A network cannot be computed: {fault}", f"pip install --force-reinstall keras {backend}"
        )
    if "hdf5" in faults and not facts.get("packages", {}).get("h5py"):
        yield Finding("broken", f"HDF5 cannot be used: {faults['hdf5']}", "pip install --force-reinstall h5py")


def _gpus(facts: Facts) -> Iterator[Finding]:
    keras = facts.get("keras")
    if not keras or not facts["gpus"] or any(name.startswith("gpu") for name in keras["devices"]):
        return
    hidden = facts["settings"].get("CUDA_VISIBLE_DEVICES")
    do = GPU_BUILDS[keras["backend"]]
    if hidden is not None and not hidden.strip("-1 "):
        do = "unset CUDA_VISIBLE_DEVICES, which hides it"
    yield Finding("slow", f"There is a GPU ({facts['gpus'][0]}), but {keras['backend']} sees none", do)


def _engine(facts: Facts) -> Iterator[Finding]:
    keras, extra = facts.get("keras"), facts["extras"].get("openvino")
    on_cpu = keras and all(name.startswith("cpu") for name in keras["devices"])
    if on_cpu and extra and not extra["installed"]:
        what = (
            "OpenVINO is missing: on CPUs it is up to 6 times as fast as Keras (MobileNetV2 2.5), not for EfficientNets"
        )
        yield Finding("slow", what, f"{extra['install']}; --engine auto then takes what is faster")


def _processor(facts: Facts) -> Iterator[Finding]:
    vectors = facts["machine"]["vectors"]
    if vectors is not None and "avx2" not in vectors and "x86" in facts["machine"]["system"]:
        yield Finding(
            "slow", "The processor has no AVX2, so networks take several times as long", "use another machine"
        )
    if facts["settings"].get("TF_ENABLE_ONEDNN_OPTS") == "0":
        yield Finding("slow", "TF_ENABLE_ONEDNN_OPTS=0 turns off TensorFlow's fast kernels", "unset it")


def _cores(facts: Facts) -> Iterator[Finding]:
    machine = facts["machine"]
    cores, all_cores = usable_cores(machine), machine["cores"]
    threads = max((one["threads"] for one in facts.get("threads", [])), default=0)
    if cores < 2 and all_cores > 1:
        what = f"This process may use {cores:g} of {all_cores} cores"
        yield Finding("slow", what, "give the container or job more: docker run --cpus, srun --cpus-per-task")
    if threads > math.ceil(cores):
        whole = math.ceil(cores)
        yield Finding(
            "slow",
            f"Linear algebra runs {threads} threads on {cores:g} cores, which wait for one another",
            f"export OMP_NUM_THREADS={whole} TF_NUM_INTRAOP_THREADS={whole}",
        )
    if threads == 1 and cores >= 2 and "OMP_NUM_THREADS" in facts["settings"]:
        yield Finding("slow", f"OMP_NUM_THREADS keeps linear algebra on one of {cores:g} cores", "unset it")


def _memory(facts: Facts) -> Iterator[Finding]:
    machine = facts["machine"]
    total = machine["memory_limit_bytes"] or machine["memory_bytes"]
    free = machine["memory_free_bytes"]
    if free is not None and min(free, total or free) < LITTLE_MEMORY:
        what = f"Only {min(free, total or free) / 1e9:.1f} GB of memory are free"
        yield Finding("slow", what, "end other programs; or a smaller --batch, and sweep --memory 500M")
    if total and machine["swap_used_bytes"] > MUCH_SWAP * total:
        what = f"{machine['swap_used_bytes'] / 1e9:.1f} GB are swapped out to the disk"
        yield Finding("slow", what, "end programs that take much memory")


def _disks(facts: Facts) -> Iterator[Finding]:
    for disk in facts["disks"]:
        said = f"{disk['folder']} ({disk['for']})"
        other = "set KERAS_HOME to a folder elsewhere" if disk["for"] == "weights" else "write to another disk"
        if disk["for"] == "temporary":
            other = "set TMPDIR to a folder elsewhere"
        if disk["free_bytes"] < LITTLE_DISK:
            yield Finding("watch", f"{said} has only {disk['free_bytes'] / 1e6:.0f} MB free", f"free some, or {other}")
        if not disk["writable"]:
            yield Finding("watch", f"{said} cannot be written to", other)
        if disk["network"] and disk["for"] == "current folder":
            what = f"{said} is on a network file system ({disk['filesystem']})"
            yield Finding("slow", what, "keep the cache on a local disk while it is made")


def _locking(facts: Facts) -> Iterator[Finding]:
    found = facts.get("locking", "works")
    writable = all(disk["writable"] for disk in facts["disks"] if disk["for"] == "current folder")
    if found != "works" and writable:
        yield Finding(
            "watch",
            f"Files in the current folder cannot be locked: {found}. Nothing gets lost, but two extractions into one "
            "cache do the same work",
            "run one at a time, or keep the cache on a local disk",
        )


def _weights(facts: Facts) -> Iterator[Finding]:
    fault = facts["faults"].get("weights")
    if fault and not any(facts.get("packages", {}).values()):
        yield Finding("watch", f"The weights cannot be looked at: {fault}", "see to it that you may read KERAS_HOME")
    for one in facts["weights"]:
        if one["fault"] and one["backbones"][0] == "glyphnet":
            yield Finding("broken", f"{one['file']} {one['fault']}", "pip install --force-reinstall featcache")
        elif one["fault"]:
            do = f"featcache backbones fetch {one['backbones'][0]}"
            yield Finding("watch", f"The weights {one['file']} are damaged: the file {one['fault']}", do)


_RULES: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _packages,
    _keras,
    _weights,
    _gpus,
    _engine,
    _processor,
    _cores,
    _memory,
    _disks,
    _locking,
)
