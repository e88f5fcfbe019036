"""How time and memory of the commands grow with the number of images: a Markdown table for docs/performance.md.

    python benchmarks/bench_growth.py > growth.md
    python benchmarks/bench_growth.py --sizes 1000,5000 --skip leaks,handoff --limit 60

For every size it writes JPEG files of 48 x 48 pixels in 10 classes to a temporary folder and runs each command on them
once, in a process of its own, as a user types it. The features are 21 x 21 x 3 = 1,323 raw pixels, about as many as
mobilenet_v2 has and quick to compute. CPU time counts the command with the processes that it starts. Memory is the
largest sum of their proportional set sizes, in which shared pages count once; it is read ten times a second. A command
over --limit seconds of CPU time is stopped and printed as such, and left out for larger sizes.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

SIDE, NUM_CLASSES, BLOCKS = 48, 10, 6
BACKBONE = "pixels:size=21"
COMMANDS = {  # name in the table -> arguments, run in this order: later ones need the files of earlier ones
    "scan": ["scan", "photos"],
    "extract, first time": ["extract", "photos", "-o", "photos.h5", "-b", BACKBONE],
    "extract, nothing to do": ["extract", "photos", "-o", "photos.h5", "-b", BACKBONE],
    "leaks": ["leaks", "photos.h5"],
    "sweep --heads ridge": ["sweep", "photos.h5", "--heads", "ridge", "-o", "ridge"],
    "report --html": ["report", "ridge", "--html", "report.html"],
    "handoff": ["handoff", "ridge@best", "-o", "model.keras"],
    "predict": ["predict", "model.keras", "photos", "--csv", "labels.csv"],
    "sweep, default heads": ["sweep", "photos.h5", "-o", "default"],
}
FOUND_SOMETHING = 3  # the exit code of `leaks` if test images are in train


@dataclass(frozen=True)
class Cost:
    """What one command took."""

    wall_s: float
    cpu_s: float
    memory_mb: float
    stopped: bool


def main() -> None:
    """Run all commands on all sizes and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,5000,20000,50000", help="numbers of images")
    parser.add_argument("--limit", type=float, default=300, help="seconds of CPU time that one command may take")
    parser.add_argument("--skip", default="", help="beginnings of the commands to leave out, joined by commas")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    skipped = tuple(name for name in arguments.skip.split(",") if name)

    costs: dict[tuple[str, int], Cost] = {}
    too_slow: set[str] = set()
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder) / "photos", size)
            for name, command in COMMANDS.items():
                if name in too_slow or (skipped and name.startswith(skipped)):
                    continue
                cost = run(command, Path(folder), arguments.limit)
                print(f"{size} images, {name}: {cost}", file=sys.stderr, flush=True)
                costs[name, size] = cost
                if cost.stopped:
                    too_slow.add(name)
    print_tables(costs, sizes, arguments.limit)


def write_images(folder: Path, num_images: int) -> None:
    """Write JPEG files of random blocks in a colour that tells the class, though not surely."""
    rng = np.random.default_rng(0)
    colours = rng.uniform(80, 180, (NUM_CLASSES, 3))
    for number in range(num_images):
        label = number % NUM_CLASSES
        blocks = colours[label] + rng.normal(0, 60, (BLOCKS, BLOCKS, 3))
        pixels = blocks.repeat(SIDE // BLOCKS, axis=0).repeat(SIDE // BLOCKS, axis=1) + rng.normal(
            0, 10, (SIDE, SIDE, 3)
        )
        path = folder / f"class{label}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def run(command: list[str], folder: Path, limit: float) -> Cost:
    """Run one command of featcache in the folder. Raises RuntimeError if it fails."""
    began, cpu_before = time.perf_counter(), cpu_of_children()
    program = Path(sys.executable).with_name("featcache")
    with (folder / "output.txt").open("w+") as output:
        process = subprocess.Popen(
            [str(program), *command], cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        memory, stopped = 0, False
        while process.poll() is None:
            memory_now, cpu_s = use_of(process.pid)
            memory = max(memory, memory_now)
            time.sleep(0.1)
            if not stopped and cpu_s > limit:
                stopped = True
                os.killpg(process.pid, signal.SIGTERM)
        if not stopped and process.returncode not in (0, FOUND_SOMETHING):
            output.seek(0)
            raise RuntimeError(f"featcache {' '.join(command)} ended with {process.returncode}:\n{output.read()}")
    return Cost(time.perf_counter() - began, cpu_of_children() - cpu_before, memory / 1e6, stopped)


def cpu_of_children() -> float:
    """Return the CPU seconds of all processes that have ended, with the processes that they started."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def use_of(number: int) -> tuple[int, float]:
    """Return the bytes of memory and the CPU seconds of a process and of those that it started, as far as they run."""
    memory, cpu_s = 0, 0.0
    try:
        parent = psutil.Process(number)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return 0, 0.0
    for process in processes:
        try:
            memory += process.memory_full_info().pss
            times = process.cpu_times()
        except psutil.Error:  # it has just ended
            continue
        cpu_s += times.user + times.system
    return memory, cpu_s


def print_tables(costs: dict[tuple[str, int], Cost], sizes: list[int], limit: float) -> None:
    """Print wall time, CPU time and memory, a line for each command, with the growth between the two largest sizes."""
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    last = f"{sizes[-1]:,} / {sizes[-2]:,}" if len(sizes) > 1 else ""
    print("| | " + " | ".join(f"{size:,} images" for size in sizes) + f" | {last} |")
    print("|---|" + "--:|" * (len(sizes) + 1))
    for unit, attribute in (("s", "wall_s"), ("s of CPU", "cpu_s"), ("MB", "memory_mb")):
        for name in COMMANDS:
            values: list[float | None] = []
            cells: list[str] = []
            for size in sizes:
                cost = costs.get((name, size))
                values.append(None if cost is None or cost.stopped else getattr(cost, attribute))
                cells.append(cell(cost, attribute, limit))
            if set(cells) == {""}:
                continue
            growth = ""
            if len(values) > 1 and values[-1] and values[-2]:
                growth = f"{values[-1] / values[-2]:.1f}"
            print(f"| `{name}`, {unit} | {' | '.join(cells)} | {growth} |")


def cell(cost: Cost | None, attribute: str, limit: float) -> str:
    """Return one value as text; "" if the command was not run."""
    if cost is None:
        return ""
    if cost.stopped:
        return f"over {limit:.0f} s"
    value = getattr(cost, attribute)
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


if __name__ == "__main__":
    main()
