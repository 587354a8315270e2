"""Labels as spreadsheets and other tools write them: separators, encodings, decimal commas, names from elsewhere."""

from pathlib import Path

import pytest

from onnxsep.data.labels import read_labels
from onnxsep.errors import DataError

NAMES = ["cat/a.png", "cat/b.png", "dog/c.png"]
CLASSES = [10, 2, 0]


def write(tmp_path: Path, text: str, encoding: str = "utf-8") -> Path:
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    "text",
    [
        "a.png;10\nb.png;2\nc.png;0\n",
        'file;class\r\n"a.png";"10"\r\n"b.png";"2"\r\n"c.png";"0"\r\n',
        "\ufefffile;class\r\na.png;10,0\r\nb.png;2,0\r\nc.png;0,0\r\n",
        "sep=;\nfile;class\na.png;10\nb.png;2\nc.png;0\n",
        ";file;class\n0;a.png;10\n1;b.png;2\n2;c.png;0\n",
        "file\tclass\na.png\t10\nb.png\t2\nc.png\t0\n",
        "a.png,10,\nb.png,2,\nc.png,0,\n",
        "a.png,10\nb.png,2\nc.png,0\n,\n,\n",
        "class,file\n10,a.png\n2,b.png\n0,c.png\n",
        "./a.png,10\n./cat/b.png,2\ndog\\c.png,0\n",
        "images/cat/a.png,10\n/data/images/cat/b.png,2\nC:\\images\\dog\\c.png,0\n",
        "id,label\na,10\nb,2\nc,0\n",
        "other/a.png,5\ncat/a.png,10\ncat/b.png,2\nc.png,0\n",
    ],
)
def test_tables_of_images(tmp_path: Path, text: str) -> None:
    assert read_labels(write(tmp_path, text), NAMES, 3, None)[0].tolist() == CLASSES


def test_text_in_utf_16(tmp_path: Path) -> None:
    path = write(tmp_path, "file\tclass\na.png\t10\nb.png\t2\nc.png\t0\n", "utf-16")
    assert read_labels(path, NAMES, 3, None)[0].tolist() == CLASSES


@pytest.mark.parametrize("text", ["10\n2\n0\n", "002,0\n000,10\n001,2\n", "0;10,0\n1;2,0\n2;0,0\n"])
def test_samples_without_names(tmp_path: Path, text: str) -> None:
    assert read_labels(write(tmp_path, text), None, 3, None)[0].tolist() == CLASSES


def test_one_column_whose_first_class_is_the_number_of_a_sample(tmp_path: Path) -> None:
    assert read_labels(write(tmp_path, "0\n2\n1\n"), None, 3, None)[0].tolist() == [0, 2, 1]


@pytest.mark.parametrize("label", ["1.5", "inf", "1e30", "-3", "red"])
def test_a_class_that_is_no_number_among_numbers(tmp_path: Path, label: str) -> None:
    """All would become names, and "10" would stand before "2"."""
    with pytest.raises(DataError, match=rf"labels.csv', line 2: the class '{label}' is no number"):
        read_labels(write(tmp_path, f"a.png,10\nb.png,{label}\nc.png,2\n"), NAMES, 3, None)


def test_two_images_that_a_table_may_mean(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no label for 2 of 2 samples"):
        read_labels(write(tmp_path, "elsewhere/a.png,1\na,2\n"), ["cat/a.png", "dog/a.png"], 2, None)
    with pytest.raises(DataError, match=r"lines 1 and 2 give 'val/a.png' different classes"):
        read_labels(write(tmp_path, "train/a.png,1\nval/a.png,2\n"), ["a.png"], 1, None)
