"""Small datasets in the exact layouts and index formats of the published ones."""

import io

import numpy as np
from PIL import Image
from scipy.io import savemat


def jpeg(label, number, mode="RGB"):
    """A small photo, told apart by class and number."""
    pixels = np.random.default_rng([label, number]).integers(0, 60, (40 + number, 44, 3), dtype=np.uint8)
    pixels += np.array([label * 12 % 190, number * 20 % 190, 190 - label * 12 % 190], dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG")
    return buffer.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def cub(root, num_classes=16, num_images=4):
    """CUB_200_2011 as its archive holds it; image ids are not in the order of the file names."""
    folder = root / "CUB_200_2011"
    rows = []
    for label in range(1, num_classes + 1):
        species = f"{label:03d}.Species_{chr(90 - label)}"
        for number in range(num_images):
            name = f"{species}/{species[4:]}_{number:04d}_{900 - label - number}.jpg"
            write(folder / "images" / name, jpeg(label, number, "L" if number == 3 else "RGB"))
            rows.insert(0 if number % 2 else len(rows), (label, name))
    ids = range(1, len(rows) + 1)
    (folder / "images.txt").write_text("".join(f"{i} {name}\n" for i, (_, name) in zip(ids, rows, strict=True)))
    (folder / "image_class_labels.txt").write_text(
        "".join(f"{i} {label}\n" for i, (label, _) in zip(ids, rows, strict=True))
    )
    (root / "attributes.txt").write_text("1 has_bill_shape::curved\n")
    return folder


def _matlab(rows, name_field, with_test=False):
    """A MATLAB struct array of 1 x N, as the published annotations are."""
    fields = [(name_field, object), ("bbox_x1", object), ("class", object)]
    fields += [("test", object)] if with_test else []
    annotations = np.empty((1, len(rows)), dtype=fields)
    for position, (name, label) in enumerate(rows):
        values = (name, np.uint8(1), np.uint8(label))
        annotations[0, position] = (*values, np.uint8(position % 2)) if with_test else values
    return {"annotations": annotations}


def _cars(num_classes, num_images):
    """(class id, number within it), class by class; where a table wants another order, it shuffles."""
    return [(label, number) for label in range(1, num_classes + 1) for number in range(num_images)]


def cars_annos(root, num_classes=12, num_images=4):
    """cars_annos.mat and car_ims/NNNNNN.jpg."""
    rows = []
    for position, (label, number) in enumerate(_cars(num_classes, num_images), start=1):
        write(root / "car_ims" / f"{position:06d}.jpg", jpeg(label, number))
        rows.append((f"car_ims/{position:06d}.jpg", label))
    names = np.array([f"Model {label}" for label in range(1, num_classes + 1)], dtype=object)
    savemat(root / "cars_annos.mat", {**_matlab(rows, "relative_im_path", with_test=True), "class_names": names})
    return root


def cars_devkit(root, num_classes=12, num_images=4):
    """devkit/, cars_train/ and cars_test/, each numbered by itself."""
    tables = {"train": [], "test": []}
    for label, number in _cars(num_classes, num_images):
        part = ("train", "test")[number % 2]
        name = f"{len(tables[part]) + 1:05d}.jpg"
        write(root / f"cars_{part}" / name, jpeg(label, number))
        tables[part].append((name, label))
    (root / "devkit").mkdir()
    savemat(root / "devkit" / "cars_train_annos.mat", _matlab(tables["train"], "fname"))
    savemat(root / "cars_test_annos_withlabels.mat", _matlab(tables["test"], "fname"))
    return root


def cars_devkit_alone(root):
    """The same with the labels of the test images in the devkit folder as well."""
    cars_devkit(root)
    (root / "cars_test_annos_withlabels.mat").rename(root / "devkit" / "cars_test_annos_withlabels.mat")
    return root


def _one_deeper(folder):
    files = list(folder.iterdir())
    (folder / folder.name).mkdir()
    for file in files:
        file.rename(folder / folder.name / file.name)


def cars_kaggle(root):
    """The development kit with each folder in another one of its name."""
    cars_devkit(root)
    for name in ("cars_train", "cars_test", "devkit"):
        _one_deeper(root / name)
    return root


def cars_annos_deeper(root):
    """cars_annos.mat and car_ims/car_ims/NNNNNN.jpg."""
    cars_annos(root)
    _one_deeper(root / "car_ims")
    return root


def cars_class_folders(root, num_classes=12, num_images=4):
    """names.csv, anno_*.csv and car_data/car_data/; a slash in a model's name is a dash in its folder's."""
    models = [f"Make C/V {chr(90 - label)} 2012" for label in range(num_classes)]
    tables = {"train": [], "test": []}
    for label, number in _cars(num_classes, num_images):
        part = ("train", "test")[number % 2]
        name = f"{len(tables[part]) + 1:05d}.jpg"
        write(root / "car_data" / "car_data" / part / models[label - 1].replace("/", "-") / name, jpeg(label, number))
        tables[part].insert(0, f"{name},39,116,569,375,{label}\n")
    (root / "names.csv").write_text("".join(f"{model}\n" for model in models))
    for part, rows in tables.items():
        (root / f"anno_{part}.csv").write_text("".join(rows))
    return root


def sop(root, num_classes=14, num_images=3):
    """Stanford_Online_Products; the first half of the classes is in Ebay_train.txt."""
    folder = root / "Stanford_Online_Products"
    position = 0
    for part, labels in (
        ("train", range(1, num_classes // 2 + 1)),
        ("test", range(num_classes // 2 + 1, num_classes + 1)),
    ):
        rows = ["image_id class_id super_class_id path\n"]
        for label in labels:
            kind = ("bicycle", "chair")[label % 2]
            for number in range(num_images):
                position += 1
                name = f"{kind}_final/{111085122871 + label}_{number}.JPG"
                write(folder / name, jpeg(label, number))
                rows.append(f"{position} {label} {label % 2 + 1} {name}\n")
        (folder / f"Ebay_{part}.txt").write_text("".join(rows))
    return folder


def inshop(root, num_classes=16, num_images=4, below=("Eval", "Img")):
    """In-shop's index, count and columns first and padded with blanks; the first half of the items is train."""
    rows = []
    for label in range(num_classes, 0, -1):
        item = f"id_{label:08d}"
        for number in range(num_images):
            name = f"img/{('WOMEN', 'MEN')[label % 2]}/Tees_Tanks/{item}/{number + 1:02d}_1_front.jpg"
            write(root / below[1] / name, jpeg(label, number))
            part = "train" if label <= num_classes // 2 else ("query", "gallery")[number % 2]
            rows.append(f"{name:<80}{item:<20}{part}\n")
    index = root / below[0] / "list_eval_partition.txt"
    write(index, f"{len(rows)}\nimage_name item_id evaluation_status\n{''.join(rows)}".encode())
    return root


def inaturalist2018(root, num_classes=16, num_images=4):
    """train_val2018/GROUP/SPECIES/file.jpg and the lists of the split; every fourth species is test."""
    lines = {"train": [], "test": []}
    for label in range(num_classes):
        group = ("Plantae", "Aves")[label % 2]
        for number in range(num_images):
            name = f"train_val2018/{group}/{label * 7}/{label:08x}{number}.jpg"
            write(root / name, jpeg(label, number))
            lines["test" if label % 4 == 3 else "train"].insert(0, f"{name}\n")
    for part, rows in lines.items():
        write(root / "Inat_dataset_splits" / f"Inaturalist_{part}_set1.txt", "".join(rows).encode())
    return root
