"""Texts of labels: two different ones are two classes, in every reader of labels."""

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from mlrc_lightning.data.datasets.cars196 import Cars196
from mlrc_lightning.data.datasets.image_csv import ImageCsv
from mlrc_lightning.data.datasets.image_folder import ImageFolder
from mlrc_lightning.data.datasets.inaturalist2018 import INaturalist2018
from mlrc_lightning.data.datasets.sop import StanfordOnlineProducts
from mlrc_lightning.data.images import ImageFiles
from mlrc_lightning.errors import DatasetError
from tests.data.datasets import layouts

# each pair is one number, or one word, to some parser of texts
ALIKE = [
    ("01", "1"), ("1.0", "1"), ("1e3", "1000"), ("+1", "1"), ("-0", "0"), ("\u0661", "1"), ("\uff11", "1"),
    ("1_000", "1000"), (" 1", "1"), ("1 ", "1"), ("1\u00a0", "1"), ("0x10", "16"), ("-01", "1"), ("1.", "1"),
    ("a", "A"), ("a", "a "), ("caf\u00e9", "cafe\u0301"), ("\ufb01n", "fin"), ("True", "1"),
]  # fmt: skip


def table(folder, rows, header="path,label"):
    path = folder / "table.csv"
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(("first", "second"), ALIKE)
def test_two_texts_are_two_classes(tmp_path, first, second, caplog):
    images = ImageCsv(table(tmp_path, [("a.jpg", first), ("b.jpg", second), ("c.jpg", first)]))
    assert len(images.class_names) == 2
    assert images.labels[0] == images.labels[2] != images.labels[1]
    assert set(images.class_names) == {first, second}
    assert len(caplog.messages) >= 1 or (first, second) in [("0x10", "16"), ("True", "1")]


def test_blanks_around_a_label_are_reported(tmp_path, caplog):
    ImageCsv(table(tmp_path, [("a.jpg", "cat"), ("b.jpg", "dog ")]))
    assert "1 labels begin or end with blanks, which count (first: 'dog ')" in caplog.text


def test_one_other_text_makes_all_labels_text(tmp_path, caplog):
    assert ImageCsv(table(tmp_path, [("a.jpg", "10"), ("b.jpg", "9"), ("c.jpg", "02")])).class_names == [
        "02", "10", "9",
    ]  # fmt: skip
    assert "Labels sort as text, because 1 of them are not written as integers are (first: '02')" in caplog.text


def test_plain_labels_are_not_talked_about(tmp_path, caplog):
    ImageCsv(table(tmp_path, [("a.jpg", "10"), ("b.jpg", "9"), ("c.jpg", "0")]))
    ImageCsv(table(tmp_path, [("a.jpg", "cat"), ("b.jpg", "dog")]))
    assert not caplog.messages


def test_folders_that_look_alike_are_reported(tmp_path, caplog, image_folder):
    (image_folder / "class_01").rename(image_folder / "Class_00")
    assert len(ImageFolder(str(image_folder)).class_names) == 12
    assert (
        "1 labels look like another one and are classes of their own (first: 'Class_00' and 'class_00')" in caplog.text
    )


def test_an_empty_label_of_blanks_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="line 2: expected a path and a label"):
        ImageCsv(table(tmp_path, [("a.jpg", "  ")]))


def test_a_cell_too_many_is_no_label(tmp_path):
    with pytest.raises(DatasetError, match="line 2: expected 2 cells, found 3. Put a cell with a comma into quotes"):
        ImageCsv(table(tmp_path, [("a", "b.jpg", "1")]))
    with pytest.raises(DatasetError, match="expected one column label, found 2"):
        ImageCsv(table(tmp_path, [("a.jpg", "1", "2")], "path,label,label"))


def test_labels_of_two_kinds_are_refused(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    for labels in ([1, True], [1, "1"], [1.0, 1]):
        with pytest.raises(DatasetError, match="expected labels that are all integers or all strings"):
            ImageFiles(paths, labels, tmp_path)
    assert ImageFiles(paths, np.array([3, 1]), tmp_path).class_names == ["1", "3"]


def test_a_class_may_have_a_name(tmp_path):
    rows = [("a.jpg", "10", "ox"), ("b.jpg", "9", "cat"), ("c.jpg", "10", "ox")]
    images = ImageCsv(table(tmp_path, rows, "path,label,class_name"))
    assert images.class_names == ["cat", "ox"]
    assert images.labels.tolist() == [1, 0, 1]
    with pytest.raises(DatasetError, match="expected one name of class 10, found 'ox' and 'cow'"):
        ImageCsv(table(tmp_path, [*rows, ("d.jpg", "10", "cow")], "path,label,class_name"))
    with pytest.raises(DatasetError, match="line 2: expected a name of the class"):
        ImageCsv(table(tmp_path, [("a.jpg", "1", "")], "path,label,class_name"))


def changed(path, old, new):
    path.write_text(path.read_text().replace(old, new, 1))


def test_published_tables_have_integers_only(tmp_path):
    products = layouts.sop(tmp_path / "sop")
    changed(products / "Ebay_train.txt", "\n2 1 ", "\n2 01 ")
    with pytest.raises(DatasetError, match="Ebay_train.txt, line 3: expected image_id"):
        StanfordOnlineProducts(str(tmp_path / "sop"))
    cars = layouts.cars_class_folders(tmp_path / "cars")
    changed(cars / "anno_train.csv", ",12\n", ",\u0661\u0662\n")
    with pytest.raises(DatasetError, match="anno_train.csv, line 1: expected a file, four corners and a class id"):
        Cars196(str(cars))
    species = layouts.inaturalist2018(tmp_path / "inat")
    index = species / "Inat_dataset_splits" / "Inaturalist_train_set1.txt"
    text = index.read_text()
    index.write_text(text.replace("/7/", "/07/", 1))
    with pytest.raises(DatasetError, match="expected train_val2018/GROUP/NUMBER/file.jpg"):
        INaturalist2018(str(species))
    index.write_text(text.replace("Aves/7/", "Plantae/7/", 1))
    with pytest.raises(DatasetError, match="expected species 7 in one group, found"):
        INaturalist2018(str(species))


def test_a_fraction_is_no_class_of_cars(tmp_path):
    root = layouts.cars_annos(tmp_path)
    rows = loadmat(root / "cars_annos.mat")
    rows["annotations"][0, 0]["class"] = 1.5
    savemat(root / "cars_annos.mat", {"annotations": rows["annotations"]})
    with pytest.raises(DatasetError, match="a class that is no integer"):
        Cars196(str(root))
