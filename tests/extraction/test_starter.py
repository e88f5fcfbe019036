"""Engines that stay ready are used again, but not for many images if they were chosen for a few."""

import gc
import weakref

from tiny import write_images

from featcache.extraction.api import begin_extraction
from featcache.extraction.engines import WORTH_TIMING
from featcache.extraction.extract_options import Options
from featcache.extraction.starter import WarmEngines
from featcache.spec import silent


def test_an_engine_that_was_chosen_for_a_few_images_does_not_compute_many():
    warm = WarmEngines()
    chosen_for_few, chosen_for_many = object(), object()
    warm.put(("small",), 1, chosen_for_few)
    warm.put(("large",), WORTH_TIMING, chosen_for_many)
    assert warm.get(("small",), WORTH_TIMING - 1) is chosen_for_few
    assert warm.get(("small",), WORTH_TIMING) is None
    assert warm.get(("large",), 10 * WORTH_TIMING) is chosen_for_many
    assert warm.get(("large",), 1) is chosen_for_many
    assert warm.get(("other",), 1) is None


def test_the_engine_of_a_backbone_that_is_left_out_gives_its_memory_back(tmp_path):
    options = Options(["pixels:size=8", "pixels:size=4"])
    photos = write_images(tmp_path / "photos")
    extraction = begin_extraction(photos, tmp_path / "c.h5", options, force=False, progress=silent)
    finished, going = options.requests()
    paths = [row.path for row in extraction.images.rows]
    extraction.run_for([finished, going], paths[:4])
    engine = weakref.ref(extraction.starters[finished].started.engine)
    assert engine() is not None
    extraction.run_for([going], paths)
    gc.collect()
    assert engine() is None
