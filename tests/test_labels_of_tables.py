"""Labels as tables write them: whole numbers as floats, a column of line numbers, titles, gaps."""

from pathlib import Path

import numpy as np
import pytest

from onnxsep.data.labels import as_labels, read_labels
from onnxsep.errors import DataError
from onnxsep.options.patterns import matches

NAMES = ["a.png", "b.png", "c.png"]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode())
    return path


def test_floats_are_ordered_as_numbers(tmp_path: Path) -> None:
    """As texts they would be sorted 0.0, 1.0, 10.0, 11.0, 2.0, ..."""
    text = "".join(f"{number},{float(number % 12)}\n" for number in range(24))
    labels, classes, _ = read_labels(write(tmp_path, text), None, 24, None)
    assert labels.tolist() == [number % 12 for number in range(24)]
    assert classes is None


@pytest.mark.parametrize(
    "text",
    [
        "name,label\na.png,10.0\nb.png,2.0\nc.png,0.0\n",
        ",name,label\n0,a.png,10.0\n1,b.png,2.0\n2,c.png,0.0\n",
        "Unnamed: 0,image,score,target\n0,a.png,.3,10.0\n1,b.png,.5,2.0\n2,c.png,.1,0.0\n",
        ",whatever,else\n0,a.png,10.0\n1,b.png,2.0\n2,c.png,0.0\n",
        "0,a.png,10.0\n1,b.png,2.0\n2,c.png,0.0\n",
        "label,name\n10.0,a.png\n2.0,b.png\n0.0,c.png\n".replace("label,name\n", "split,label,name\n")
        .replace("10.0,a", "x,10.0,a")
        .replace("2.0,b", "x,2.0,b")
        .replace("0.0,c", "x,0.0,c"),
        '"name","label"\n"a.png","10.0"\n"b.png","2.0"\n"c.png","0.0"\n',
        "\ufeffname,label\r\na.png,10.0\r\nb.png,2.0\r\nc.png,0.0\r\n",
        ' name , label \n a.png , 10.0 \nb.png, "2.0"\n "c.png",0.0\n',
        "a.png,1e1\nb.png,2.\nc.png,0\n",
        ",0\na.png,10.0\nb.png,2.0\nc.png,0.0\n",
    ],
)
def test_forms_of_a_table(tmp_path: Path, text: str) -> None:
    labels, classes, notes = read_labels(write(tmp_path, text), NAMES, 3, None)
    assert labels.tolist() == [10, 2, 0]
    assert classes is None
    assert notes == ()


@pytest.mark.parametrize(
    "text", [",0\n0,10.0\n1,2.0\n2,0.0\n", "label\n10.0\n2.0\n0.0\n", "0.0,10\n1.0,2\n2.0,0\n", "10\n2.0\n0\n"]
)
def test_samples_without_names(tmp_path: Path, text: str) -> None:
    assert read_labels(write(tmp_path, text), None, 3, None)[0].tolist() == [10, 2, 0]


@pytest.mark.parametrize("label", ["nan", "NaN", "<NA>"])
@pytest.mark.parametrize("other", ["3.0", "cat"])
def test_gaps_are_refused_with_their_line(tmp_path: Path, label: str, other: str) -> None:
    path = write(tmp_path, f"name,label\na.png,{other}\nb.png,{label}\nc.png,{other}\n")
    with pytest.raises(DataError, match=f"labels.csv', line 3: the class is '{label}'"):
        read_labels(path, NAMES, 3, None)


def test_floats_that_are_no_classes(tmp_path: Path) -> None:
    for label in ("1.5", "-1.0", "inf", "1e30"):
        with pytest.raises(DataError, match=f"line 2: the class '{label}' is no number from 0 up"):
            read_labels(write(tmp_path, f"a.png,1.0\nb.png,{label}\nc.png,2.0\n"), NAMES, 3, ["cat", "dog"])


def test_classes_whose_names_look_like_floats(tmp_path: Path) -> None:
    known = ["2.0", "1.0", "3.0"]
    path = write(tmp_path, "a.png,1.0\nb.png,2.0\nc.png,3.0\n")
    assert read_labels(path, NAMES, 3, known)[0].tolist() == [1, 0, 2]
    path = write(tmp_path, "a.png,v1.5\nb.png,1.0\nc.png,v1.5\n")
    assert read_labels(path, NAMES, 3, None)[1] == ["1.0", "v1.5"]


def test_arrays_of_whole_floats() -> None:
    assert as_labels(np.array([[3.0], [11.0]]), 2, "y").tolist() == [3, 11]
    with pytest.raises(DataError, match="y: the label of sample 1 is NaN"):
        as_labels(np.array([1.0, np.nan]), 2, "y")
    for wrong in ([1.5, 2.0], [np.inf, 1.0], [-1.0, 0.0]):
        with pytest.raises(DataError, match="y: "):
            as_labels(np.array(wrong), 2, "y")


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("conv[0]", "conv[0]", True),
        ("conv0", "conv[0]", True),
        ("block[1]/conv", "block[1]/*", True),
        ("block[1]/conv", "*[1]/conv", True),
        ("block[2]/conv", "block[1]/*", False),
        ("block2/conv", "block[1-3]/*", True),
        ("a[b", "a[b", True),
        ("conv[0]", "conv[1]", False),
    ],
)
def test_brackets_of_names_and_of_globs(name: str, pattern: str, expected: bool) -> None:
    assert matches(name, pattern) is expected
