"""The commands that are killed: from what they start, what they are told, and what of their result may differ."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import zipfile
from dataclasses import dataclass

import numpy as np

PHOTOS, LEAKY = "../inputs/photos", "../inputs/leaky"
PIXELS = ("-b", "pixels:size=8")
TOY = ("-b", "glyphnet:weights=none")
FEW = ("--heads", "ridge,logreg", "--jobs", "1")
TUNE = ("--epochs", "2", "--unfreeze", "last", "--batch", "16")

# a folder to start from: the one before it, and the commands that lead from there to it
STAGES = {
    "nothing": (None, []),
    "cache": ("nothing", [("extract", PHOTOS, "-o", "c.h5", *PIXELS)]),
    "two caches": (
        "nothing",
        [("extract", PHOTOS, "-o", "one.h5", *PIXELS), ("extract", LEAKY, "-o", "two.h5", *PIXELS)],
    ),
    "leaky cache": ("nothing", [("extract", LEAKY, "-o", "c.h5", *PIXELS)]),
    "run": ("cache", [("sweep", "c.h5", "-o", "r.run", *FEW)]),
    "toy run": (
        "nothing",
        [("extract", PHOTOS, "-o", "c.h5", *TOY), ("sweep", "c.h5", "-o", "r.run", *FEW)],
    ),
    "model": ("toy run", [("handoff", "r.run@best", "-o", "m.keras")]),
}


@dataclass(frozen=True)
class Victim:
    """A command, and the stage it starts from."""

    name: str
    stage: str
    command: tuple[str, ...]


VICTIMS = [
    Victim("extract", "nothing", ("extract", PHOTOS, "-o", "c.h5", *PIXELS, "--batch", "8")),
    Victim("extract in parts", "nothing", ("extract", PHOTOS, "-o", "c", "--layout", "parts", *PIXELS, "--batch", "8")),
    Victim("sweep", "cache", ("sweep", "c.h5", *FEW)),
    Victim("sweep with refit", "cache", ("sweep", "c.h5", "-o", "r.run", "--refit", *FEW)),
    Victim("report as a page", "run", ("report", "r.run", "--html", "page.html")),
    Victim("final report", "run", ("report", "r.run", "--final", "--html", "page.html")),
    Victim("report for TensorBoard", "run", ("report", "r.run", "--tensorboard", "logs")),
    Victim("leaks, mended", "leaky cache", ("leaks", "c.h5", "--fix")),
    Victim("leaks, as a table", "leaky cache", ("leaks", "c.h5", "--fix-to", "images.csv", "--force")),
    Victim("merge", "two caches", ("cache", "merge", "one.h5", "two.h5", "-o", "both.h5")),
    Victim("cache as npz", "cache", ("cache", "export", "c.h5", "-o", "c.npz")),
    Victim("cache as parquet", "cache", ("cache", "export", "c.h5", "-o", "c.parquet")),
]
WITH_KERAS = [
    Victim("handoff", "toy run", ("handoff", "r.run@best", "-o", "m.keras")),
    Victim("finetune", "toy run", ("finetune", "r.run@best", "-o", "t.keras", *TUNE)),
    Victim("finetune into the run", "toy run", ("finetune", "r.run@best", "--logs", "logs", *TUNE)),
    Victim("predict to csv", "model", ("predict", "m.keras", PHOTOS, "--csv", "p.csv")),
    Victim("predict to jsonl", "model", ("predict", "m.keras", PHOTOS, "-o", "p.jsonl")),
    Victim("predict to parquet", "model", ("predict", "m.keras", PHOTOS, "-o", "p.parquet")),
    Victim("predict as JSON", "model", ("predict", "m.keras", PHOTOS, "--json")),
    Victim("export to keras", "model", ("export", "m.keras", "--to", "keras", "-o", "e.keras")),
    Victim("export to savedmodel", "model", ("export", "m.keras", "--to", "savedmodel", "-o", "e")),
    Victim("export to litert", "model", ("export", "m.keras", "--to", "litert", "-o", "e.tflite")),
    Victim("export to onnx", "model", ("export", "m.keras", "--to", "onnx", "-o", "e.onnx")),
    Victim("export to openvino", "model", ("export", "m.keras", "--to", "openvino", "-o", "e.xml")),
    Victim("import", "model", ("backbones", "import", "m.keras", "--tap", "top", "-o", "i.keras")),
]

# seconds, dates, the checksum over them, and what Keras numbers in every process
PASSING = {"seconds", "fit_s", "at", "seconds_per_epoch", "date_saved", "digest", "shared_object_id"}
PASSING_ON_PAGE = re.compile(rb"[\d.]+ (s|min)\b|\d{4}-\d\d-\d\d[T ][\d:]+|The test split was opened [^<]*")
LOOK = re.compile(r"/test-\d{8}T\d+-[0-9a-f]{8}\.json$")  # a record that the test split was opened
# TensorFlow numbers the parts of a graph anew in every process; `export` itself compares what these files compute
EXPORTED = (".pb", ".index", ".data-00000-of-00001", ".tflite", ".onnx", ".xml", ".bin")


def comparable(name: str, content: bytes) -> object:
    """Return what of a file must be equal however often its command was killed: all but what time tells."""
    if LOOK.search(name):
        return "look"  # a look that was killed stays: somebody may have seen a score
    if name.endswith((".json", ".h5.index", ".state")) or name.endswith("trials.csv"):
        return without_times(name, content)
    if name.endswith(".keras"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {member: comparable(member, archive.read(member)) for member in archive.namelist()}
    if "tfevents" in name:  # a training that goes on writes a second file of events
        return len(content) if name.endswith(".featcache") else "events"
    if name.endswith(".html"):
        return hashlib.sha256(PASSING_ON_PAGE.sub(b"", content)).hexdigest()
    if name.endswith(EXPORTED):
        return "exported"
    return hashlib.sha256(content).hexdigest()


def without_times(name: str, content: bytes) -> object:
    """Return what a table or a document says, without its times."""
    if name.endswith((".json", ".h5.index")):
        return json.loads(content, object_hook=lambda facts: {key: facts[key] for key in facts.keys() - PASSING})
    if name.endswith(".csv"):
        rows = csv.DictReader(io.StringIO(content.decode()))
        return [{key: value for key, value in row.items() if key not in PASSING} for row in rows]
    with np.load(io.BytesIO(content)) as arrays:
        found = {key: arrays[key].tobytes() for key in arrays.files}
    return found | {"said": without_times("said.json", found["said"])}
