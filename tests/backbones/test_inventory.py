"""Which weights are on this machine: the file names and digests are those of Keras."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import pytest

from featcache.backbones import inventory
from featcache.backbones.registry import REGISTRY, get, weights_file
from featcache.backbones.weights import damage

WITHOUT_DIGEST = {"mobilenet", "mobilenet_v2"}
NAME = "efficientnetb0_notop.h5"


def hdf5(data: bytes = b"") -> bytes:
    """Return the least that passes for HDF5: a superblock that says how long the file is."""
    head = bytearray(b"\x89HDF\r\n\x1a\n" + bytes(88))
    head[40:48] = (96 + len(data)).to_bytes(8, "little")
    return bytes(head) + data


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def test_every_file_with_a_digest_has_keras_own_digest_and_the_others_are_mobilenets():
    folder = Path(find_spec("keras").origin).parent / "src" / "applications"
    files = inventory.weights_files()
    assert inventory._DIGESTS.keys() <= files.keys()
    for file, (backbone, *_) in files.items():
        module = get(backbone.partition(":")[0]).module
        source = (folder / f"{module}.py").read_text()
        source += (folder / "resnet.py").read_text() if module == "resnet_v2" else ""
        digest = inventory._DIGESTS.get(file)
        assert (digest is None) == (module in WITHOUT_DIGEST), file
        assert digest is None or f'"{digest}"' in source, file


def test_every_file_with_a_top_has_keras_own_digest_too():
    folder = Path(find_spec("keras").origin).parent / "src" / "applications"
    source = "".join(path.read_text() for path in sorted(folder.glob("*.py")))
    for entry in (entry for entry in REGISTRY.values() if entry.constructor):
        digest = inventory.keras_digest(weights_file(entry, {}, entry.size, top=True))
        assert (digest is None) == (entry.module in WITHOUT_DIGEST), entry.name
        assert digest is None or f'"{digest}"' in source, entry.name


def test_every_backbone_of_keras_has_a_file():
    served = {name.partition(":")[0] for names in inventory.weights_files().values() for name in names}
    assert served == {entry.name for entry in REGISTRY.values() if entry.constructor}


def test_without_weights_of_keras_there_are_those_that_pip_installed(home):
    assert inventory.stored_backbones() == ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]
    stored = [(file.backbones, file.fault, file.checked) for file in inventory.stored_weights()]
    assert stored == [((name,), None, "digest") for name in inventory.stored_backbones()]


def test_a_file_is_whole_by_its_length_only_where_keras_knows_no_digest(home):
    (home / "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_160_no_top.h5").write_bytes(hdf5())
    found, *_ = inventory.stored_weights()
    assert (found.backbones, found.fault, found.checked) == (("mobilenet_v2:alpha=0.35:size=160",), None, "length")


def test_other_bytes_of_the_right_length_are_told_by_the_digest(home, monkeypatch):
    (home / NAME).write_bytes(hdf5(b"weights"))
    assert inventory.stored_weights()[0].fault == "has other bytes than Keras' weights"
    monkeypatch.setattr(inventory, "keras_digest", {NAME: hashlib.md5(hdf5(b"weights")).hexdigest()}.get)
    assert (inventory.stored_weights()[0].fault, inventory.stored_weights()[0].checked) == (None, "digest")
    monkeypatch.setattr(inventory, "keras_digest", {NAME: hashlib.sha256(hdf5(b"weights")).hexdigest()}.get)
    assert inventory.stored_weights()[0].fault is None


def test_a_download_that_broke_off_says_how_much_is_there(home):
    (home / NAME).write_bytes(hdf5(b"weights")[:100])
    assert inventory.stored_weights()[0].fault == damage(home / NAME) == "has 100 of 103 bytes"
