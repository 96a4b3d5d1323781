"""Does an annotation file of COCO's size open quickly, and cost workers little memory?

    python tests/benchmarks/coco_index.py [--images 118000] [--boxes 860000] [--folder <folder>]

Writes a file of that many images and annotations with polygons (about 460 MB; image files are
empty, none is read) where ``--folder`` does not hold one, then opens it with an empty cache of its
own, and again in a new process. Prints the seconds and the memory of both, and what four workers
that read the boxes of every image keep for themselves together. Without ``--folder`` all of it is
written to a temporary folder and deleted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WORKERS = 4
OPEN = "import runpy, sys; runpy.run_path(sys.argv[1])['opened'](sys.argv[2])"


def write(folder: Path, images: int, boxes: int) -> None:
    """An official train split whose image files are empty."""
    generator = np.random.default_rng(0)
    (folder / "coco/train2017").mkdir(parents=True)
    (folder / "coco/annotations").mkdir()
    web = "http://images.cocodataset.org/train2017"
    with open(folder / "coco/annotations/instances_train2017.json", "w") as file:
        file.write('{"images": [')
        for number in range(images):
            name = f"{number:012}.jpg"
            row = {
                "license": 1 + number % 8,
                "file_name": name,
                "coco_url": f"{web}/{name}",
                "height": 480,
                "width": 640,
                "date_captured": "2013-11-14 16:28:13",
                "flickr_url": f"http://farm4.staticflickr.com/3153/{number:010}_cbb364bf0a_z.jpg",
                "id": number,
            }
            file.write((", " if number else "") + json.dumps(row))
            (folder / "coco/train2017" / name).touch()
        file.write('], "annotations": [')
        corners = generator.uniform((0, 0), (500, 380), (boxes, 2)).round(2)
        sides = generator.uniform(5, 100, (boxes, 2)).round(2)
        points = 3 + generator.poisson(17, boxes)
        for number, image in enumerate(np.sort(generator.integers(0, images, boxes)).tolist()):
            (x, y), (w, h) = corners[number].tolist(), sides[number].tolist()
            turn = np.linspace(0, 2 * np.pi, points[number])
            outline = np.stack([x + w / 2 * (1 + np.cos(turn)), y + h / 2 * (1 + np.sin(turn))], 1)
            row = {
                "segmentation": [outline.round(2).ravel().tolist()],
                "area": round(w * h * 0.78, 4),
                "iscrowd": 0,
                "image_id": image,
                "bbox": [x, y, w, h],
                "category_id": 1 + number % 80,
                "id": number + 1,
            }
            file.write((", " if number else "") + json.dumps(row))
        names = [{"supercategory": "x", "id": n, "name": f"class {n}"} for n in range(1, 81)]
        file.write(f'], "categories": {json.dumps(names)}}}')


def opened(root: str) -> None:
    """In a process of its own: open the data set, and say how long it took."""
    from cnnctl.data.coco_boxes import COCOBoxes

    started = time.perf_counter()
    data = COCOBoxes("train", root, validation=0.0)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{seconds:6.2f} s, {peak:6.0f} MB at the most: {len(data):,} images", flush=True)


def own_memory() -> int:
    """Bytes that only this process holds."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024


def work(data, worker: int, ready, found) -> None:
    """Read the truth of every image, as an epoch does, and say how much memory that took."""
    boxes = sum(len(data.truth(index)["labels"]) for index in range(worker, len(data), WORKERS))
    ready.wait()  # all hold what they hold at once
    found.put((boxes, own_memory()))
    ready.wait()


def workers(root: str) -> None:
    from cnnctl.data.coco_boxes import COCOBoxes

    data = COCOBoxes("train", root, validation=0.0)
    context = multiprocessing.get_context("fork")
    ready, found = context.Barrier(WORKERS), context.Queue()
    started = time.perf_counter()
    processes = [
        context.Process(target=work, args=(data, number, ready, found)) for number in range(WORKERS)
    ]
    for process in processes:
        process.start()
    said = [found.get() for _ in processes]
    for process in processes:
        process.join()
    boxes, held = (sum(column) for column in zip(*said, strict=True))
    seconds = time.perf_counter() - started
    own = f"{held / 1e6:.0f} MB of their own together"
    print(f"{WORKERS} workers: {boxes:,} boxes read in {seconds:.1f} s, {own}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--boxes", type=int, default=860_000)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "data"
        if not folder.exists():
            write(folder, arguments.images, arguments.boxes)
        file = folder / "coco/annotations/instances_train2017.json"
        print(f"{file.name}: {file.stat().st_size / 1e6:.0f} MB")
        os.environ["XDG_CACHE_HOME"] = str(Path(temporary) / "cache")
        for name in ("first", "second", "third"):
            print(f"{name:6} start", end=" ", flush=True)
            subprocess.run([sys.executable, "-c", OPEN, __file__, str(folder)], check=True)
        workers(str(folder))


if __name__ == "__main__":
    main()
