"""The loop that whoever has a model.onnx writes first: the least that classifying a folder of images takes.

    python bench/bare_onnxruntime.py MODEL.onnx FOLDER

Prints a JSON object: how many images there were, and how many of each class were found.
"""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

BATCH = 64


def main() -> None:
    """Classify the folder's files, 64 at a time, on one thread."""
    model, folder = sys.argv[1:]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    _, channels, height, width = entry.shape
    files = sorted(Path(folder).iterdir())
    found = collections.Counter[int]()
    for start in range(0, len(files), BATCH):
        images = []
        for file in files[start : start + BATCH]:
            image = Image.open(file).convert("L" if channels == 1 else "RGB").resize((width, height))
            pixels = np.asarray(image)
            images.append(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))
        (probabilities,) = session.run(None, {entry.name: np.stack(images)})
        found.update(probabilities.argmax(1).tolist())
    print(json.dumps({"images": len(files), "found": dict(found)}))


if __name__ == "__main__":
    main()
