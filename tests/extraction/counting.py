"""Count the images that go through an engine, whatever the report says."""

from dataclasses import dataclass, field

from featcache.extraction import networks
from featcache.extraction.engines import KerasEngine, PixelEngine


@dataclass
class Counter:
    images: int = 0
    batches: list[int] = field(default_factory=list)
    builds: int = 0
    stop_after: int | None = None  # batches, until an engine dies


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def count(monkeypatch) -> Counter:
    """Return what counts every image and every built backbone from now on."""
    counter = Counter()
    for engine in (KerasEngine, PixelEngine):
        monkeypatch.setattr(engine, "forward", _counting(engine.forward, counter))
    build = networks.build

    def counting_build(*args):
        counter.builds += 1
        return build(*args)

    monkeypatch.setattr(networks, "build", counting_build)
    return counter


def _counting(forward, counter):
    def counted(engine, batch):
        if counter.stop_after is not None and len(counter.batches) >= counter.stop_after:
            raise Killed
        counter.images += len(batch)
        counter.batches.append(len(batch))
        return forward(engine, batch)

    return counted
