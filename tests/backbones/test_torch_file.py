"""Files of `torch.save`: what a state dict needs is read, and nothing else in a file is run, called or trusted."""

import pickle
import re
import struct
from collections import OrderedDict

import numpy as np
import pytest

from featcache.backbones.torch_file import MAGIC_NUMBER, MAX_BYTES, PROTOCOL, read_tensors

SHAPES = {"a": (2, 3), "b": (3,)}
A, B = np.arange(6, dtype="<f4").reshape(2, 3), np.float32([7, 8, 9])


class Storage:
    """A storage as it stands in the pickle of a state dict."""

    def __init__(self, key, num_values, kind="FloatStorage"):
        self.key, self.num_values, self.kind = key, num_values, kind


class Global:
    """A name in a pickle, such as torch.FloatStorage, of modules that need not be there."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """A call in a pickle."""

    def __init__(self, module, name, *arguments):
        self.called, self.arguments = Global(module, name), arguments


class Changed:
    """A value in a pickle that gets attributes."""

    def __init__(self, value, attributes):
        self.value, self.attributes = value, attributes


def pickled(value) -> bytes:
    """Return a pickle of protocol 2 as PyTorch writes it."""
    return b"\x80\x02" + _written(value) + b"."


def _written(value) -> bytes:
    match value:
        case Global():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            return _written(value.called) + _written(value.arguments) + b"R"
        case Changed():
            return _written(value.value) + _written((None, value.attributes)) + b"b"
        case Storage():
            pid = ("storage", Global("torch", value.kind), value.key, "cpu", value.num_values, None)
            return _written(pid) + b"Q"
        case tuple():
            return b"(" + b"".join(map(_written, value)) + b"t"
        case list():
            return b"](" + b"".join(map(_written, value)) + b"e"
        case dict():
            items = b"".join(_written(key) + _written(item) for key, item in value.items())
            return b"ccollections\nOrderedDict\n)R(" + items + b"u"
    return pickle.dumps(value, 2)[2:-1]


def tensor(storage, shape=(2, 3), strides=(3, 1), offset=0):
    return Call("torch._utils", "_rebuild_tensor_v2", storage, offset, shape, strides, False, {})


def saved(path, state=None, storages=None, head=(MAGIC_NUMBER, PROTOCOL, {"little_endian": True})):
    """Write a file as PyTorch's first format is. storages: {key: (number of values that it says, bytes)}."""
    if state is None:
        state = {"a": tensor(Storage("0", 6)), "b": tensor(Storage("1", 3), (3,), (1,))}
    if storages is None:
        storages = {"0": (6, A.tobytes()), "1": (3, B.tobytes())}
    data = b"".join(map(pickled, (*head, state, list(storages))))
    data += b"".join(struct.pack("<q", length) + values for length, values in storages.values())
    path.write_bytes(data)
    return path


def test_tensors_are_read_with_their_strides_and_offsets(tmp_path):
    state = {
        "a": tensor(Storage("0", 9), strides=(1, 2), offset=3),
        "b": tensor(Storage("0", 9), (3,), (1,)),
        "unasked": tensor(Storage("2", 1, "LongStorage"), (), ()),
    }
    values = np.concatenate([B, A.T.ravel()])
    path = saved(tmp_path / "w.pth", state, {"0": (9, values.tobytes()), "2": (1, bytes(8))})
    tensors = read_tensors(path, SHAPES)
    assert tensors.keys() == SHAPES.keys()
    np.testing.assert_array_equal(tensors["a"], A)
    np.testing.assert_array_equal(tensors["b"], B)


def of_a(storage="0", **changes):
    return {"a": tensor(Storage(storage, 6), **changes), "b": tensor(Storage("1", 3), (3,), (1,))}


STATES = {
    "system": ({"a": Call("os", "system", "touch ran")}, "names os.system, which no state dict"),
    "eval": ({"a": Call("builtins", "eval", "1/0")}, "names builtins.eval"),
    "half": ({"a": tensor(Storage("0", 6, "HalfStorage"))}, "names torch.HalfStorage"),
    "no tensor": ({"a": 5}, "no tensor 'a'"),
    "missing": ({}, "no tensor 'a'"),
    "no dict": ([], "not a file of torch.save, or it is damaged"),
    "shape": (of_a(shape=(3, 2)), r"'a' has shape \(3, 2\) in the file and \(2, 3\) in the network"),
    "huge": (of_a(shape=(10**9, 10**9), strides=(0, 0)), "'a' has shape"),
    "beyond": (of_a(offset=1), "'a' reaches beyond its storage"),
    "before": (of_a(offset=3, strides=(-3, 1)), "'a' reaches beyond its storage"),
    "negative offset": (of_a(offset=-6), "'a' reaches beyond its storage"),
    "text for strides": (of_a(strides=("x", 1)), "not a file of torch.save, or it is damaged"),
    "too few strides": (of_a(strides=(1,)), "damaged"),
    "unknown storage": (of_a("9"), "damaged"),
    "too many values": (of_a() | {"c": tensor(Storage("0", 7))}, "has 6 values in place of 7"),
    "calls a type": ({"a": Call("torch", "FloatStorage", 6)}, "damaged"),
    "a function": ({"a": Global("collections", "OrderedDict")}, "no tensor 'a'"),
}


@pytest.mark.parametrize(("state", "reason"), STATES.values(), ids=STATES)
def test_a_file_that_holds_anything_else_is_refused(state, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=reason) as refused:
        read_tensors(saved(tmp_path / "w.pth", state), SHAPES)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_integers_are_refused(tmp_path):
    state = of_a() | {"a": tensor(Storage("0", 6, "LongStorage"))}
    path = saved(tmp_path / "w.pth", state, {"0": (6, bytes(48)), "1": (3, B.tobytes())})
    with pytest.raises(ValueError, match="'a' is int64 and not float32"):
        read_tensors(path, SHAPES)


@pytest.mark.parametrize("length", [5, 7, -1, 2**62])
def test_a_storage_of_another_length_is_refused(length, tmp_path):
    path = saved(tmp_path / "w.pth", storages={"0": (length, A.tobytes()), "1": (3, B.tobytes())})
    with pytest.raises(ValueError, match=f"has {length} values in place of 6"):
        read_tensors(path, SHAPES)


def test_a_length_that_the_file_does_not_have_takes_no_memory(tmp_path):
    state = {"a": tensor(Storage("0", 2**60)), "b": tensor(Storage("0", 2**60), (3,), (1,))}
    path = saved(tmp_path / "w.pth", state, {"0": (2**60, A.tobytes())})
    with pytest.raises(ValueError, match="damaged"):
        read_tensors(path, SHAPES)


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    whole = saved(tmp_path / "w.pth").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"."):
            read_tensors(tmp_path / "cut.pth", SHAPES)


PICKLES = {
    "zip": (b"PK\x03\x04" + bytes(40), r"zip archive; save it with torch.save\(.., _use_new"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "not a file of torch.save"),
    "other number": (pickled(1) * 5, "not a file of torch.save"),
    "memo": (b"\x80\x02Nr\xff\xff\xff\xff.", "asks for too much memory"),
    "stack global": (pickle.dumps(OrderedDict, 4), "uses .+, which no state dict of tensors needs"),
    "new object": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "uses NEWOBJ"),
    "old style": (b"cos\nsystem\n(Vtouch ran\ntR.", "uses UNICODE|names os.system"),
    "instance": (b"(ios\nsystem\n.", "uses INST"),
}


@pytest.mark.parametrize(("data", "reason"), PICKLES.values(), ids=PICKLES)
def test_a_file_that_is_no_file_of_torch_is_refused(data, reason, tmp_path):
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(ValueError, match=reason):
        read_tensors(tmp_path / "w.pth", SHAPES)


def test_a_file_that_is_too_long_is_not_read(tmp_path):
    with (tmp_path / "w.pth").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ValueError, match=re.escape(f"it has more than {MAX_BYTES} bytes")):
        read_tensors(tmp_path / "w.pth", SHAPES)


def test_what_a_pickle_changes_does_not_outlive_it(tmp_path):
    changed = Changed(Global("collections", "OrderedDict"), {"get": None})
    with pytest.raises(ValueError, match="no tensor 'a'"):
        read_tensors(saved(tmp_path / "hostile.pth", {"a": changed}), SHAPES)
    np.testing.assert_array_equal(read_tensors(saved(tmp_path / "good.pth"), SHAPES)["a"], A)


@pytest.mark.parametrize("begin", [b")", b"]", b"ccollections\nOrderedDict\n)R"], ids=["tuple", "list", "call"])
def test_values_that_double_are_refused_before_they_grow(tmp_path, begin):
    doubled = b"".join(b"q" + bytes([place]) + b"h" + bytes([place]) + b"\x86" for place in range(40))
    shape = b"\x80\x02" + begin + doubled + b"."
    path = saved(tmp_path / "m.pth", head=(MAGIC_NUMBER, PROTOCOL))
    path.write_bytes(pickled(MAGIC_NUMBER) + pickled(PROTOCOL) + shape)
    with pytest.raises(ValueError, match="its pickle repeats a value"):
        read_tensors(path, SHAPES)
