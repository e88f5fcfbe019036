"""Run a frozen Keras backbone once over your images, try many heads in seconds, fine-tune from the best one.

    import featcache as fc
    cache = fc.extract("photos/", "mobilenet_v2", out="photos.h5")
    run = fc.sweep(cache)
    model = run.best.to_keras()

Names are imported when they are used, so that what needs no TensorFlow does not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featcache.cache.reader import Cache
    from featcache.errors import FeatcacheError
    from featcache.extraction import estimate, extract
    from featcache.extras.export import export
    from featcache.extras.leaks import leaks
    from featcache.extras.main_job import quickstart
    from featcache.extras.ranking import rank
    from featcache.extras.similar import similar
    from featcache.extras.transformer import FeatureExtractor
    from featcache.images.manifest import scan
    from featcache.models import handoff, load_model
    from featcache.prediction import predict
    from featcache.progress import show_progress
    from featcache.sweeps import Run, advise, compare, sweep
    from featcache.trust import allow
    from featcache.tuning import finetune

__version__ = "0.1.0"

_HOMES = {
    "Cache": "featcache.cache.reader",
    "FeatcacheError": "featcache.errors",
    "FeatureExtractor": "featcache.extras.transformer",
    "Run": "featcache.sweeps",
    "advise": "featcache.sweeps",
    "allow": "featcache.trust",
    "compare": "featcache.sweeps",
    "estimate": "featcache.extraction",
    "export": "featcache.extras.export",
    "extract": "featcache.extraction",
    "finetune": "featcache.tuning",
    "handoff": "featcache.models",
    "leaks": "featcache.extras.leaks",
    "load_model": "featcache.models",
    "predict": "featcache.prediction",
    "quickstart": "featcache.extras.main_job",
    "rank": "featcache.extras.ranking",
    "scan": "featcache.images.manifest",
    "show_progress": "featcache.progress",
    "similar": "featcache.extras.similar",
    "sweep": "featcache.sweeps",
}

__all__ = [
    "Cache",
    "FeatcacheError",
    "FeatureExtractor",
    "Run",
    "__version__",
    "advise",
    "allow",
    "compare",
    "estimate",
    "export",
    "extract",
    "finetune",
    "handoff",
    "leaks",
    "load_model",
    "predict",
    "quickstart",
    "rank",
    "scan",
    "show_progress",
    "similar",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'featcache' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
