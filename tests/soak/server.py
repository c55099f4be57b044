"""A server's work: predict images of random sizes in threads.

    server.py CONFIG CHECKPOINT FOLDER OUT --threads 4 --images 2000 --keep 40
    server.py CONFIG CHECKPOINT FOLDER OUT --threads 1 --images 2000 --step 40

The images are made of those in FOLDER, resized to 32 to 512 pixels a side. Every STEPth of them is predicted.
OUT gets the predictions of every KEEPth, with checksums of their pictures, as JSON.
"""

import argparse
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config

from soft_mm.engine.predictor import Predictor
from soft_mm.fileio import set_checkpoint_reader

SIDES = 32, 512  # pixels


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ('config', 'checkpoint', 'folder', 'out'):
        parser.add_argument(name, type=Path)
    for name in ('threads', 'images', 'step', 'keep'):
        parser.add_argument(f'--{name}', type=int, default=1)
    args = parser.parse_args()
    set_checkpoint_reader(trust_pickle=False)
    predictor = Predictor(Config.fromfile(args.config), str(args.checkpoint), 'cpu')
    sources = [cv2.imread(str(path)) for path in sorted(args.folder.iterdir())]

    predictions = {}

    def predict(number: int) -> None:
        rng = np.random.default_rng(number)
        width, height = rng.integers(*SIDES, 2, endpoint=True).tolist()
        image = cv2.resize(sources[number % len(sources)], (width, height))
        ((name, picture, prediction),) = predictor([(str(number), image)])
        assert picture.shape == image.shape
        if number % args.keep == 0:
            predictions[name] = dict(prediction, picture=zlib.crc32(picture.tobytes()))

    def warm_up() -> None:
        """Let the buffers that libraries keep for each thread grow to what the largest image needs."""
        list(predictor([('', cv2.resize(sources[0], (SIDES[1], SIDES[1])))]))

    with ThreadPoolExecutor(args.threads, initializer=warm_up) as pool:
        list(pool.map(predict, range(0, args.images, args.step)))
    args.out.write_text(json.dumps(predictions))


if __name__ == '__main__':
    main()
