"""Images a second of the input pipeline alone, against loading as torchvision's references do it; target: at least 1.5 times.

Both read the same 200 files of VOC's size (500×375, JPEG of quality 90 and palette PNG) and make float32 batches of 16 crops of
513 pixels: scaled by 0.5, 0.75, …, 2, mirrored, padded. Ours is `training_batches` with DeepLab v3's augmentation, on two threads;
theirs is references/segmentation's train preset, written with PIL and torch: resize, flip, pad and crop, to tensor, float, in two
worker processes of a DataLoader. All run on the same two cores, and take turns in one run.

Two ratios are told. "As torchvision's references do": theirs also divides by 255 and subtracts and divides by ImageNet's mean and
deviation, which ours leaves to the first layer of the network; this is what each asks of the processor before a batch can be
trained on. "Decoding and augmenting alone": theirs stops at float32 of 0–255, what ours gives, so that both do the same work. The
pictures are mixed of the three VOC photographs where KERASSEG_DATA has them, else drawn.
"""

# ruff: noqa: E402
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
CORES = 2
if hasattr(os, "sched_setaffinity"):
    # Before TensorFlow counts them.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])

import numpy as np
import torch
from PIL import Image

from kerasseg.data import Flip, RandomCrop, RandomScale, training_batches
from kerasseg.data.records import DEFAULT_MEAN, FileDataSet, Record
from kerasseg.data.shapes import Shapes
from kerasseg.labels import LABELS, voc_palette

SIZE, FILES, CROP, BATCH = (375, 500), 200, 513, 16
SCALES = tuple(0.5 + 0.25 * k for k in range(7))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def sources() -> list[tuple[Image.Image, Image.Image]]:
    """Photographs with their masks."""
    root = Path(os.environ.get("KERASSEG_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "voc3"
    found = sorted((root / "images").rglob("*.jpg"))
    if found:
        masks = [root / "masks" / path.relative_to(root / "images").with_suffix(".png") for path in found]
        return [(Image.open(path).convert("RGB"), Image.open(mask)) for path, mask in zip(found, masks, strict=True)]
    drawn = [Shapes(size=SIZE, seed=1)[k] for k in range(3)]
    return [(Image.fromarray(each.image), Image.fromarray(each.label.astype(np.uint8))) for each in drawn]


def write_files(folder: Path) -> list[Record]:
    """Cuts and mixes pictures until there are enough, by a seed."""
    rng, originals, records = np.random.default_rng(0), sources(), []
    height, width = SIZE
    for number in range(FILES):
        parts = []
        for choice in rng.choice(len(originals), 2, replace=False):
            photo, mask = originals[choice]
            share = rng.uniform(0.7, 1)
            across, down = int(photo.width * share), int(photo.height * share)
            left, top = rng.integers(photo.width - across + 1), rng.integers(photo.height - down + 1)
            box = (left, top, left + across, top + down)
            parts.append((photo.resize((width, height), box=box), mask.resize((width, height), Image.Resampling.NEAREST, box=box)))
        record = Record(f"{number:03d}", folder / f"{number:03d}.jpg", folder / f"{number:03d}.png")
        Image.blend(parts[0][0], parts[1][0], rng.uniform(0, 0.3)).save(record.image, quality=90)
        mask = Image.fromarray(np.asarray(parts[0][1]))
        mask.putpalette([channel for color in voc_palette(256) for channel in color])
        mask.save(record.mask)
        records.append(record)
    return records


class TorchvisionStyle(torch.utils.data.Dataset):
    """What references/segmentation makes of an example, step by step.

    Args:
        records: The files.
        normalized: Whether it ends with its normalisation, or before.
    """

    def __init__(self, records, normalized: bool):
        self.records, self.normalized = records, normalized

    def __len__(self):
        return 10**6

    def __getitem__(self, index):
        record = self.records[index % len(self.records)]
        image, mask = Image.open(record.image).convert("RGB"), Image.open(record.mask)
        scale = random.choice(SCALES)
        size = (int(image.width * scale), int(image.height * scale))
        image, mask = image.resize(size, Image.Resampling.BILINEAR), mask.resize(size, Image.Resampling.NEAREST)
        if random.random() < 0.5:
            image, mask = (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in (image, mask))
        across, down = max(CROP - image.width, 0), max(CROP - image.height, 0)
        if across or down:
            # torchvision pads by ImageOps.expand, which makes a canvas and pastes.
            image, mask = _padded(image, across, down, 0), _padded(mask, across, down, 255)
        left, top = random.randint(0, image.width - CROP), random.randint(0, image.height - CROP)
        box = (left, top, left + CROP, top + CROP)
        image, mask = image.crop(box), mask.crop(box)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32)
        if self.normalized:
            tensor = tensor.div(255).sub(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(STD)[:, None, None])
        return tensor, torch.from_numpy(np.array(mask)).to(torch.int64)


def _padded(picture: Image.Image, across: int, down: int, fill: int) -> Image.Image:
    canvas = Image.new(
        picture.mode, (picture.width + across, picture.height + down), (fill,) * 3 if picture.mode == "RGB" else fill
    )
    canvas.paste(picture, (0, 0))
    return canvas


def rate(batches, warm_up: int, count: int) -> float:
    """Images a second once the first batches are through."""
    for _ in range(warm_up):
        next(batches)
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * BATCH / (time.perf_counter() - start)


def main(rounds: int = 5, warm_up: int = 5, count: int = 12) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        records = write_files(Path(folder))
        data = FileDataSet(LABELS["voc"], records)
        transforms = (RandomScale(0.5, 2.0, 0.25), RandomCrop((CROP, CROP), DEFAULT_MEAN), Flip())

        def theirs(normalized: bool):
            return torch.utils.data.DataLoader(TorchvisionStyle(records, normalized), batch_size=BATCH, num_workers=CORES)

        makers = {
            "ours": lambda turn: training_batches(data, BATCH, transforms=transforms, seed=turn, threads=CORES),
            "as torchvision's references do": lambda turn: theirs(True),
            "decoding and augmenting alone": lambda turn: theirs(False),
        }
        rates = {name: [] for name in makers}
        for turn in range(rounds):
            for name, make in makers.items():
                batches = iter(make(turn))
                rates[name].append(rate(batches, warm_up, count))
                del batches
    ours = rates.pop("ours")
    print(f"input pipeline at VOC size on {CORES} cores: {statistics.median(ours):.0f} images/s on {CORES} threads")
    for name, found in rates.items():
        ratios = sorted(one / other for one, other in zip(ours, found, strict=True))
        print(
            f"  {name}: PIL and torch in {CORES} processes {statistics.median(found):.0f} images/s: "
            f"{statistics.median(ratios):.2f} times ({ratios[0]:.2f} to {ratios[-1]:.2f}; target: 1.5)"
        )


if __name__ == "__main__":
    main()
