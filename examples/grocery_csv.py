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
    rows = []
    for name in ("train.txt", "val.txt", "test.txt"):
        for line in (arguments.dataset / name).read_text(encoding="utf-8").splitlines():
            path, fine, _ = line.split(", ")
            rows.append(((arguments.dataset / path).resolve(), int(fine)))
    with arguments.csv.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows(rows)
    print(f"{len(rows):,} images of {len({label for _, label in rows})} classes in {arguments.csv}")


if __name__ == "__main__":
    main()
