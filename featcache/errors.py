"""What can go wrong, one class per kind of mistake.

Every message is one line: what happened with the values received, where (file, tap, row), what to do.
A message names an argument of the library in backticks, with a value if there is one: `cv`, `cv=5`. The command line
prints its own words instead, --cv and --cv 5. Nothing but arguments stands in backticks.

The four families are what a caller can act on; the command line turns each into an exit code. What users of
scikit-learn catch as ValueError or FileNotFoundError is that, too. UsageError itself is none: a room that catches
ValueError, such as that of `float`, must not catch ours.
"""


class FeatcacheError(Exception):
    """Base of every error that featcache raises on purpose."""


class UsageError(FeatcacheError):
    """An option, name or argument that cannot be meant."""


class GateError(FeatcacheError):
    """A check that guards a result has failed; the result is withheld."""


class DataError(FeatcacheError):
    """The images, cache, weights or run that were given cannot be used."""


class EnvironmentFault(FeatcacheError):
    """The machine lacks something: weights, network, disk space."""


class InvalidParameter(UsageError, ValueError):
    """A parameter of a transformer that cannot be meant."""


class UnknownBackbone(UsageError):
    """No backbone of that name."""


class UnknownBlock(UsageError):
    """No block or layer of that name in the backbone."""


class UnknownHead(UsageError):
    """No head of that name, or no trial of that number."""


class ParityFailed(GateError):
    """The assembled model does not compute what the cached head computed."""


class CalibrationFailed(GateError):
    """An 8-bit network loses more than chance explains."""


class ExportFailed(GateError):
    """A file for another runtime cannot be made, computes something else, or misses what was asserted."""


class NoImages(DataError):
    """A folder that is missing, or holds no image."""


class TooFewClasses(DataError):
    """A classifier needs at least two classes with at least two images each."""


class TooFewImages(DataError):
    """Too few images to calibrate an 8-bit network."""


class NotImages(DataError, ValueError):
    """What stands where images should is none: another type, shape or kind of number."""


class ImagesNotFound(NoImages, FileNotFoundError):
    """Some of the files in a list do not exist."""


class UnreadableImages(DataError, ValueError):
    """Images that cannot be decoded, where each must have features."""


class NotACache(DataError):
    """The file is no featcache cache, or a damaged one."""


class CacheVersion(DataError):
    """The cache was written in another format version."""


class UnknownTap(DataError):
    """The cache holds no such tap, or the tap lacks rows."""


class NotARun(DataError):
    """The folder is no run of a sweep, or lacks a file of it."""


class NotAModel(DataError):
    """The file is no model that featcache can use."""


class NoOwnClassifier(DataError):
    """The classifier in a model file cannot be trained on, because its outputs are not the classes of the images."""


class ImagesChanged(DataError):
    """Images no longer lie where, or are no longer what, the cache says."""


class WeightsMismatch(DataError):
    """The weights do not fit the backbone, or are not those the features were made with."""


class ShapeMismatch(DataError):
    """Two arrays that must agree in shape do not."""


class WeightsMissing(EnvironmentFault):
    """Pretrained weights are neither on this machine nor to be had from the network."""


class NotDownloaded(WeightsMissing):
    """Keras would download these weights, and there is no network."""


class DiskFault(EnvironmentFault):
    """Reading or writing failed: full disk, no permission, input/output error, too many open files."""


# In the name or the message of an exception of TensorFlow, JAX, PyTorch, OpenVINO or Python when memory runs out.
_OUT_OF_MEMORY = (
    "resourceexhausted",
    "resource_exhausted",
    "outofmemory",
    "out of memory",
    "oom when",
    "memoryerror",
    "bad_alloc",
    "failed to allocate",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception of any backend says that memory has run out.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("no such layer"))
    (True, False)
    """
    description = f"{type(error).__name__}: {error}".lower()
    return any(words in description for words in _OUT_OF_MEMORY)
