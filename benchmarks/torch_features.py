"""Images to features in PyTorch, as its users write it: timm, channels_last, a DataLoader with two workers.

    python benchmarks/torch_features.py photos/ mobilenetv2_100

Prints the images a second of the second pass over the folder, when everything is loaded. It needs only torch,
torchvision and timm; `bench_extract.py --torch` runs it in the environment of another Python.
"""

from __future__ import annotations

import sys
import time

import timm
import torch
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

BATCH = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Run the network twice over the folder and print the rate of the second time."""
    folder, name = sys.argv[1:]
    model = timm.create_model(name, pretrained=False, num_classes=0).eval().to(memory_format=torch.channels_last)
    transform = v2.Compose(
        [
            v2.Resize((224, 224), antialias=True),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    images = ImageFolder(folder, transform)
    loader = torch.utils.data.DataLoader(images, batch_size=BATCH, num_workers=2, persistent_workers=True)
    for _ in range(2):
        started = time.perf_counter()
        num_done = 0
        with torch.inference_mode():
            for pixels, _ in loader:
                model(pixels.to(memory_format=torch.channels_last))
                num_done += len(pixels)
        rate = num_done / (time.perf_counter() - started)
    print(rate)


if __name__ == "__main__":
    main()
