"""Joins the three lists of the Grocery Store Dataset into one CSV of path,label for `dataset=image_csv`.

    python examples/grocery_csv.py grocery_128/dataset grocery.csv

The lists hold `path, fine id, coarse id` a line; the label is the fine id, so that classes sort as the dataset's own.
Dataset: Klasson, Zhang, Kjellström (2019), A Hierarchical Grocery Store Image Dataset, WACV.
"""

import argparse
import csv
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="folder of train.txt, val.txt and test.txt")
    parser.add_argument("csv", type=Path, help="table to write")
    arguments = parser.parse_args()
    print(write_csv(arguments.dataset, arguments.csv))


def write_csv(dataset: Path, target: Path) -> str:
    """Writes the table of a folder with train.txt, val.txt and test.txt; returns what is in it, in a sentence."""
    rows = []
    for name in ("train.txt", "val.txt", "test.txt"):
        for line in (dataset / name).read_text(encoding="utf-8").splitlines():
            path, fine, _ = line.split(", ")
            rows.append(((dataset / path).resolve(), int(fine)))
    partial = target.with_name(f"{target.name}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows(rows)
    partial.replace(target)
    return f"{len(rows):,} images of {len({label for _, label in rows})} classes in {target}"


if __name__ == "__main__":
    main()
