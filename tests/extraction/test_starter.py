"""Engines that stay ready are used again, but not for many images if they were chosen for a few."""

from featcache.extraction.engines import WORTH_TIMING
from featcache.extraction.starter import WarmEngines


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
