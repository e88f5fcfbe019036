"""Features for TensorBoard's projector: each image is a point with a thumbnail, its label, split and path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from featcache.arrays import Features, Pixels
from featcache.extraction.pipeline import num_threads
from featcache.extras.report.pictures import THUMBNAIL, tiled
from featcache.images.manifest import Images
from featcache.models import image_source
from featcache.models.certificate import load_pixels
from featcache.models.probe import by_digest
from featcache.spec import DECODE_VERSION, ImageRow, Preprocess, with_bits
from featcache.sweeps import Chosen
from featcache.text import printable

# Points. More make a browser slow (1,280 features of a point are 10 kB of text) and the sprite image wider than the
# 8,192 pixels that browsers draw.
MOST = 5000


@dataclass(frozen=True)
class Points:
    """The points that the projector shows."""

    name: str
    rows: Sequence[ImageRow]
    features: Features  # (N, D)
    thumbnails: Pixels  # (N, THUMBNAIL, THUMBNAIL, 3) uint8


def points_of(chosen: Chosen, images: Images | str | Path | None = None) -> Points:
    """Return the training and validation images with the features that a head reads, at most MOST of them.

    Test images are not read. Raises ImagesChanged if an image has moved or changed.
    """
    cache = chosen.run.cache()
    source = image_source(chosen, images)
    train = chosen.run.rows(cache, "train")
    val = chosen.run.rows(cache, "val")
    rows = by_digest([*train, *val])[:MOST]
    preprocess = Preprocess(THUMBNAIL, "crop", decode=with_bits(DECODE_VERSION, chosen.preprocess.bits))
    with ThreadPoolExecutor(num_threads()) as threads:
        thumbnails = load_pixels(source, rows, preprocess, threads)
    return Points(chosen.trial.tap, rows, chosen.features(rows), thumbnails)


def write_projector(folder: Path, points: Points) -> None:
    """Write features, metadata, sprite image, and the configuration that names them."""
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    folder.mkdir(parents=True, exist_ok=True)
    np.savetxt(folder / "features.tsv", points.features, fmt="%.6g", delimiter="\t")
    lines = ["label\tsplit\tpath\n"]
    for row in points.rows:
        cells = map(printable, (row.label, row.split, row.path))
        lines.append("\t".join(cells) + "\n")
    (folder / "metadata.tsv").write_text("".join(lines), "utf-8")
    sprite(points.thumbnails).save(folder / "images.png")
    config = ProjectorConfig()
    embedding = config.embeddings.add()
    embedding.tensor_name = points.name
    embedding.tensor_path = "features.tsv"
    embedding.metadata_path = "metadata.tsv"
    embedding.tensor_shape.extend(points.features.shape)
    embedding.sprite.image_path = "images.png"
    embedding.sprite.single_image_dim.extend((THUMBNAIL, THUMBNAIL))
    (folder / "projector_config.pbtxt").write_text(text_format.MessageToString(config), "utf-8")


def sprite(thumbnails: Pixels) -> Image.Image:
    """Return all thumbnails in one square image, row by row, which is how the projector cuts them out."""
    side = math.ceil(math.sqrt(len(thumbnails)))
    return Image.fromarray(tiled(thumbnails, side, side))
