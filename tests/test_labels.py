"""Labels from arrays and CSV files."""

from pathlib import Path

import numpy as np
import pytest

from onnxsep.data.labels import as_labels, check_labels, read_labels
from onnxsep.errors import DataError

NAMES = ["cat/1.png", "cat/2.png", "dog/1.png", "dog/3, big.png"]
CLASSES = ["cat", "dog"]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


@pytest.mark.parametrize("header", ["", "name,class\n", "Image,whatever\n", "anything,label\n", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_numbers_in_any_order(tmp_path: Path, header: str, end: str) -> None:
    rows = ["dog/1.png,7", "cat/2.png,5", "", "2.png, 5", '"dog/3, big.png",8', "cat\\1.png,4"]
    path = write(tmp_path, header + end.join(rows))
    labels, classes, notes = read_labels(path, NAMES, 4, None)
    assert labels.tolist() == [4, 5, 7, 8]
    assert labels.dtype == np.int64
    assert classes is None
    assert notes == ()


def test_names_of_classes(tmp_path: Path) -> None:
    path = write(tmp_path, "a,zebra\nb,2nd\nc,ant\nd,zebra\n")
    labels, classes, _ = read_labels(path, ["a", "b", "c", "d"], 4, None)
    assert classes == ["2nd", "ant", "zebra"]
    assert labels.tolist() == [2, 0, 1, 2]
    known = ["zebra", "ant", "2nd", "unused"]
    labels, classes, _ = read_labels(path, ["a", "b", "c", "d"], 4, known)
    assert classes == known
    assert labels.tolist() == [0, 2, 1, 0]


def test_names_that_are_digits_come_before_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "a,10\nb,2\n")
    assert read_labels(path, ["a", "b"], 2, ["1", "10", "2"])[0].tolist() == [1, 2]
    assert read_labels(path, ["a", "b"], 2, CLASSES)[0].tolist() == [10, 2]
    assert read_labels(path, ["a", "b"], 2, None)[0].tolist() == [10, 2]


def test_samples_without_names_are_numbered(tmp_path: Path) -> None:
    path = write(tmp_path, "sample,class\n2,30\n0,10\n1,20\n")
    assert read_labels(path, None, 3, None)[0].tolist() == [10, 20, 30]


def test_a_file_may_label_more_than_the_data_holds(tmp_path: Path) -> None:
    path = write(tmp_path, "a,1\nb,2\nc,3\n")
    labels, _, notes = read_labels(path, ["b"], 1, None)
    assert labels.tolist() == [2]
    assert notes == ("2 lines of 'labels.csv' name no sample",)


def test_names_that_are_not_text(tmp_path: Path) -> None:
    assert read_labels(write(tmp_path, "\udcff.png,1\n"), ["\udcff.png"], 1, None)[0].tolist() == [1]
    assert read_labels(write(tmp_path, " odd.png ,1\n"), [" odd.png "], 1, None)[0].tolist() == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has no label for 4 of 4 samples, such as 'cat/1\.png'"),
        ("cat/1.png,1\ncat/2.png,1\n3.png,1\n", r"no label for 2 of 4 samples, such as 'dog/1\.png'; 1 of its lines"),
        ("1.png,1\n", "no label for 4 of 4"),  # two images have the name
        ("cat/1.png,1\ncat/1.png,2\n", r"lines 1 and 2 give 'cat/1\.png' different classes"),
        ("cat/1.png,1\n\ncat/2.png\n", r"line 3: expected a name and a class.*'cat/2\.png'"),
        ("cat/1.png,1,2\n", "line 1: expected a name and a class"),
        ("cat/1.png,\n", "line 1: expected a name and a class"),
        ("cat/1.png|1\n", "line 1: expected a name and a class"),
    ],
)
def test_files_that_do_not_label_the_samples(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"labels\.csv'.*{message}"):
        read_labels(write(tmp_path, text), NAMES, 4, CLASSES)


@pytest.mark.parametrize("label", ["bird", "-1", "1.5", "99999999999999999999"])
def test_classes_that_are_none(tmp_path: Path, label: str) -> None:
    with pytest.raises(DataError, match=f"line 2: the class '{label}' is no number from 0 up nor one of: cat, dog"):
        read_labels(write(tmp_path, f"a,1\nb,{label}\n"), ["a", "b"], 2, CLASSES)
    if label.lstrip("-").isdecimal():
        with pytest.raises(DataError, match=r"is no number from 0 up$"):
            read_labels(write(tmp_path, f"a,1\nb,{label}\n"), ["a", "b"], 2, None)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the labels .*missing\.csv"):
        read_labels(tmp_path / "missing.csv", NAMES, 4, None)
    with pytest.raises(DataError, match="cannot read the labels"):
        read_labels(tmp_path, NAMES, 4, None)
    with pytest.raises(DataError, match=r"labels\.csv' is not a CSV file"):
        read_labels(write(tmp_path, "a" * 200_000 + ",1\n"), NAMES, 4, None)  # one endless field


def test_arrays_of_labels() -> None:
    column = as_labels(np.array([[3], [1]], np.uint8), 2, "y")
    assert column.tolist() == [3, 1]
    assert column.dtype == np.int64
    assert as_labels([3, 1], 2, "y").tolist() == [3, 1]
    for wrong, message in (
        (np.array([1, 2, 3]), "where: there are 3 labels for 2 samples"),
        (np.array([1.5, 2.0]), "must be integers.*not float64"),
        (np.eye(2, dtype=np.int64), r"of \[2, 2\]; give the number of the class instead, array\.argmax\(1\)"),
        (np.array([4, -1]), "label of sample 1 is -1"),
        (np.array(["a", "b"]), "must be integers"),
    ):
        with pytest.raises(DataError, match=message):
            as_labels(wrong, 2, "where")


def test_labels_out_of_range() -> None:
    check_labels([0, 9, 3], 10)
    with pytest.raises(DataError, match=r"label of sample 1 is 10, but the model has 10 classes, 0 to 9; 2 of 4"):
        check_labels([5, 10, 3, 12], 10)
    with pytest.raises(DataError, match=r"label of sample 2 is 3.*counted from 1: subtract 1"):
        check_labels(np.array([1, 2, 3]), 3)
    with pytest.raises(DataError, match=r"label of sample 0 \('a\.png'\) is -1"):
        check_labels([-1, 2], 3, ["a.png", "b.png"])
