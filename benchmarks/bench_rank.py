"""What `rank` costs against extracting everything, and whether its winner is the same: one line for each seed.

    python benchmarks/bench_rank.py                                                         # embedded digits
    python benchmarks/bench_rank.py --images photos/ -b mobilenet,mobilenet_v2,pixels --budget 120s --seeds 10

The baseline extracts all images with all backbones, once. For each seed, which also decides the split, `rank` begins
with an empty cache. Then ridge with each training image left out once ranks the features of the baseline: this is the
winner of extracting everything. Another winner of `rank` is the same within the interval if the paired 95 % interval of
their difference, on all training images, holds 0. "forward" is the time through the networks as a share of what all
images through all of them would take; seconds and CPU seconds are of this process, starting the backbones included.
Machines are shared and noisy: read the shares.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["FEATCACHE_HOME"] = ""  # no network is kept from one ranking for the next

import featcache as fc
from featcache.extraction.loss import paired_interval
from featcache.extras.ranking import Ranking
from featcache.images.embedded import write_digits
from featcache.sweeps.left_out import LeftOut, left_out

DIGITS_BACKBONES = "glyphnet,glyphnet:weights=none,pixels:size=4,pixels:size=8,pixels:size=16"


def main() -> None:
    """Print a line for each seed, and the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("-b", "--backbone", default=DIGITS_BACKBONES)
    parser.add_argument("--budget")
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = arguments.images or write_digits(Path(folder) / "digits")
        measure(images, arguments.backbone, arguments.budget, arguments.seeds, Path(folder))


def measure(images: Path, backbone: str, budget: str | None, num_seeds: int, folder: Path) -> None:
    """Extract everything once, then rank with each seed."""
    began, cpu_began = time.perf_counter(), time.process_time()
    everything = fc.extract(images, backbone, out=folder / "everything.h5")
    full_s, full_cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    print(f"{len(everything.rows)} images, {backbone}, budget {budget}")
    print(f"everything: {full_s:.0f} s, {full_cpu_s:.0f} s of CPU", flush=True)

    num_same, num_within = 0, 0
    shares: list[float] = []
    ratios: list[float] = []
    for seed in range(num_seeds):
        began, cpu_began = time.perf_counter(), time.process_time()
        try:
            ranking = fc.rank(images, backbone, out=folder / f"{seed}.h5", budget=budget, seed=seed)
        except fc.FeatcacheError as error:
            print(f"seed {seed}: {error}", file=sys.stderr)
            continue
        rank_s, rank_cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
        best, low, high = against_everything(ranking, everything)
        num_same += best == ranking.winner.tap
        num_within += low <= 0 <= high
        shares.append(ranking.share or 0.0)
        ratios.append(rank_cpu_s / full_cpu_s)
        rungs = ", ".join(f"{rung.images} x {len(rung.backbones)}" for rung in ranking.rungs)
        print(
            f"seed {seed}: {ranking.winner.tap} (everything: {best}, difference {low:+.3f} to {high:+.3f}); forward "
            f"{ranking.share or 0:.0%}; {rank_s:.0f} s, {rank_cpu_s:.0f} s of CPU; rungs {rungs}; "
            f"{len(ranking.ties)} ties; estimate {ranking.estimate and round(ranking.estimate.value, 3)}",
            flush=True,
        )
    print(f"the same winner: {num_same} of {num_seeds}; the same within the interval: {num_within} of {num_seeds}")
    print(f"forward: median {statistics.median(shares):.0%}, largest {max(shares):.0%}")
    print(f"CPU time, rank / everything: median {statistics.median(ratios):.2f}, largest {max(ratios):.2f}")


def against_everything(ranking: Ranking, everything: fc.Cache) -> tuple[str, float, float]:
    """Return the winner of extracting everything, and the interval of rank's winner minus it, on the same images."""
    rows = [row for row in fc.Cache.open(ranking.cache).usable("train") if row.label]
    ridges: dict[str, LeftOut] = {}
    for tap in everything.vectors:
        ridges[tap] = left_out(everything.features(rows, tap), everything.labels(rows))
    best = max(ridges, key=lambda tap: ridges[tap].is_right.sum())
    low, high = paired_interval(ridges[best].is_right, ridges[ranking.winner.tap].is_right)
    return best, low, high


if __name__ == "__main__":
    main()
