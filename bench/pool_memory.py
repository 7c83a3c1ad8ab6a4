"""Memory of an embedding worker beyond its model, for a pool of large images.

    python -m bench.pool_memory [--images 192] [--width 4000] [--height 3000] [--rows 64]

One worker in its own process embeds noise images with the pocket base, which scales them down to a few thousand pixels, so that the
model costs little; anonymous memory is sampled every 20 ms. The peak is printed for the first half of the pool and for the whole
pool; they are equal if memory does not grow with the pool.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import typer
from PIL import Image

WORKER = """
import sys, threading
from pathlib import Path
from pipeline.mbeir.stores import plain_store
from pocket.training.train_models import MODELS
from schemas.mbeir import Candidate
from schemas.training import LoraSettings, ModelSettings
from trainer.embedding.pool_embedder import PoolEmbedder
from trainer.model.embedder import Embedder

root, images, rows = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
settings = ModelSettings(base=str(MODELS / "base"), lora=LoraSettings(r=4, alpha=8), max_pixels=12544)
embedder = Embedder.create(settings, "pocket").fold_adapter().eval()
worker = PoolEmbedder(embedder, plain_store(root), batch_size=rows, max_chars=200)
pool = [Candidate(did=f"5:{n + 1}", img_path=f"mbeir_images/{n % 4}.jpg", modality="image") for n in range(images)]

def anonymous():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) / 1024

worker.embed_part(pool[:4])
before, most, over = anonymous(), [0.0], threading.Event()

def watch():
    while not over.wait(0.02):
        most[0] = max(most[0], anonymous())

thread = threading.Thread(target=watch)
thread.start()
peaks = []
for part in (pool[: images // 2], pool):
    worker.embed_part(part)
    peaks.append(most[0] - before)
over.set()
thread.join()
print(f"model {before:.0f} MiB; beyond it at most {peaks[0]:.0f} MiB over half of the pool, {peaks[1]:.0f} MiB over all of it")
"""


def main(images: int = 192, width: int = 4000, height: int = 3000, rows: int = 64) -> None:
    """Prints the worker's anonymous memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "mbeir_images").mkdir()
        for n in range(4):
            noise = np.random.default_rng(n).integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(noise).save(root / "mbeir_images" / f"{n}.jpg")
        subprocess.run([sys.executable, "-c", WORKER, folder, str(images), str(rows)], check=True)


if __name__ == "__main__":
    typer.run(main)
