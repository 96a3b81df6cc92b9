"""Write a bundle of every kind of network, and say how far what was written is from the live model.

    python -m bench.bundles                                     one of each kind of torchvision's, and our own families
    python -m bench.bundles --networks torchvision:resnet152    these alone

The networks are untrained, for the digits, which are enlarged to as few pixels as the network takes. A bundle is only written when
float32 graphs and weights, run in a fresh process, agree with the live model: a line per network says by how much, and exit status 1
that one was refused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from trainer.batches import ImageTensors
from trainer.bundle_writing import write_bundle
from trainer.data import DataConfig, load_data
from trainer.hyperparameters import unflatten
from trainer.loop import create_model, predict_split
from trainer.origin import Origin
from trainer.torchvision_names import FAMILIES, PREFIX

OURS = ("convnet", "resnet", "rnn", "transformer")
KINDS = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_0",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_32",
    "wide_resnet50_2",
)
PIXELS = {"maxvit_t": 224}


def main() -> None:
    """Write them one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = [*OURS, *(PREFIX + name for name in KINDS)]
    parser.add_argument("--networks", nargs="+", choices=[*OURS, *FAMILIES], default=everything, metavar="FAMILY")
    refused = [name for name in parser.parse_args().networks if not write(name)]
    if refused:
        sys.exit(f"refused: {', '.join(refused)}")


def write(family: str) -> bool:
    """Write a bundle of the family, print its line, and say whether it was written."""
    data = load_data(DataConfig(data="digits"))
    name = family.removeprefix(PREFIX)
    size = {"model.input_size": PIXELS.get(name, 96)} if family in FAMILIES else {}
    config = unflatten({"model.family": family} | size)
    cpu, began = torch.device("cpu"), time.perf_counter()
    model = create_model(config, data, cpu).eval()
    assert data.test is not None
    evaluations = {"test": predict_split(model, ImageTensors.of(data.test, cpu))}
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = write_bundle(
                Path(folder) / "bundle", model, config, data, evaluations, Origin(epochs=0, command="none")
            )
        except RuntimeError as error:
            print(f"{family:32} REFUSED  {error}", flush=True)
            return False
    differences = ", ".join(f"{file} {check.max_difference:.1e}" for file, check in found.checks.items())
    images = next(iter(found.checks.values())).images
    seconds = time.perf_counter() - began
    print(f"{family:32} {images} images, all labels equal; {differences}  ({seconds:.0f} s)", flush=True)
    return True


if __name__ == "__main__":
    main()
