"""List files: what is read of them, and what a user is told of wrong lines, counts and pictures."""

import logging

import pytest

from tasks.vtab1k.lists import Picture, read_list, read_lists
from tests.tiny_vtab import COUNTS, write_vtab


def written(folder, text: str, name: str = "test.txt"):
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_a_list(tmp_path):
    path = written(tmp_path, "images/test/1.jpg 3\nimages/test/a b.jpg 0\n\n./images/test/2.jpg 1\r\n")
    assert read_list(path, classes=4) == [
        Picture("images/test/1.jpg", 3, 1),
        Picture("images/test/a b.jpg", 0, 2),
        Picture("images/test/2.jpg", 1, 4),  # blank lines are passed over, and counted
    ]


def test_a_byte_order_mark_and_a_missing_last_newline(tmp_path):
    assert read_list(written(tmp_path, "\ufeffa.jpg 1"), classes=2) == [Picture("a.jpg", 1, 1)]


@pytest.mark.parametrize("label", ["x", "1.0", "4", "-1", "+1", "9" * 30, "٣"])
def test_a_wrong_label(tmp_path, label):
    path = written(tmp_path, f"a.jpg 0\n\nb.jpg {label}\n")
    with pytest.raises(ValueError) as error:
        read_list(path, classes=4)
    assert str(error.value) == (
        f"{path}, line 3: the label is {label!r}, but this data set has 4 classes: labels are 0 to 3. "
        "Correct the line, or set task.data.classes."
    )


def test_no_label(tmp_path):
    path = written(tmp_path, "a.jpg 0\nimages/test/b.jpg\n")
    with pytest.raises(ValueError) as error:
        read_list(path, classes=4)
    assert str(error.value) == (
        f"{path}, line 2: 'images/test/b.jpg' has no label. A line is 'images/<split>/<name>.jpg <label>'."
    )


@pytest.mark.parametrize("name", ["/etc/a.jpg", "../a.jpg", "images/../../a.jpg"])
def test_a_path_that_leaves_the_folder(tmp_path, name):
    path = written(tmp_path, f"{name} 0\n")
    with pytest.raises(ValueError) as error:
        read_list(path, classes=4)
    assert str(error.value) == f"{path}, line 1: {name} leaves the folder {tmp_path}. Paths are relative to it."


def test_a_picture_with_two_labels(tmp_path):
    path = written(tmp_path, "a.jpg 0\nb.jpg 1\na.jpg 2\n")
    with pytest.raises(ValueError) as error:
        read_list(path, classes=4)
    assert str(error.value) == f"{path}, line 3: a.jpg has the label 2, but 0 on line 1. Remove one of the two."


def test_a_picture_listed_twice_is_said(tmp_path, caplog):
    path = written(tmp_path, "a.jpg 0\nb.jpg 1\na.jpg 0\n")
    with caplog.at_level(logging.WARNING):
        assert len(read_list(path, classes=2)) == 3
    assert caplog.messages == [f"{path} lists 1 pictures more than once."]


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_list(tmp_path, text):
    path = written(tmp_path, text)
    with pytest.raises(ValueError) as error:
        read_list(path, classes=2)
    assert str(error.value) == f"{path} lists no picture. Its lines are 'images/<split>/<name>.jpg <label>'."


def test_what_is_no_text(tmp_path):
    path = tmp_path / "test.txt"
    path.write_bytes(b"a.jpg 0\n\xff\xd8")
    with pytest.raises(ValueError, match=r"test\.txt is not UTF-8 text: "):
        read_list(path, classes=2)


def test_a_list_that_is_not_there(tmp_path):
    path = tmp_path / "cifar/test.txt"
    with pytest.raises(FileNotFoundError) as error:
        read_list(path, classes=2)
    assert str(error.value) == f"No list {path}. Set task.data.root to the folder that holds cifar/test.txt."


# --- a whole data set ---------------------------------------------------------------------------------------------------


def test_the_lists_of_a_run(tmp_path):
    lists = read_lists(write_vtab(tmp_path), ["train800", "val200"], classes=4, counts=COUNTS)
    assert {name: len(pictures) for name, pictures in lists.items()} == {"train800": 12, "val200": 4}


@pytest.mark.parametrize(("expected", "said"), [(800, "800"), ([6084, 6085], "6084 or 6085")])
def test_a_wrong_count(tmp_path, expected, said):
    folder = write_vtab(tmp_path)
    with pytest.raises(ValueError) as error:
        read_lists(folder, ["test"], classes=4, counts={"test": expected})
    assert str(error.value) == (
        f"{folder / 'test.txt'} lists 6 pictures, but {said} are expected. Get the whole list, or set "
        "task.data.counts.test to 6 (null: any number) where that is right."
    )


@pytest.mark.parametrize("counts", [{}, {"test": None}, {"test": [5, 6]}])
def test_counts_that_are_right(tmp_path, counts):
    assert len(read_lists(write_vtab(tmp_path), ["test"], classes=4, counts=counts)["test"]) == 6


def test_lists_that_a_run_does_not_read_are_checked_too(tmp_path):
    """A damaged data set is found out at once, not by the first run with the other protocol."""
    folder = write_vtab(tmp_path)
    with (folder / "val200.txt").open("a") as file:
        file.write("images/val200/more.jpg 9\n")
    with pytest.raises(ValueError, match=r"val200\.txt, line 5: the label is '9'"):
        read_lists(folder, ["train800val200", "test"], classes=4, counts=COUNTS)
    (folder / "val200.txt").unlink()
    read_lists(folder, ["train800val200", "test"], classes=4, counts=COUNTS)  # but they need not be there


def test_missing_pictures(tmp_path):
    folder = write_vtab(tmp_path)
    for number in range(6):
        (folder / f"images/test/{number:06d}.png").unlink()
    with pytest.raises(FileNotFoundError) as error:
        read_lists(folder, ["test"], classes=4, counts=COUNTS)
    assert str(error.value) == (
        f"6 of the 6 pictures of {folder}/test.txt are not in {folder}: images/test/000000.png (line 1), "
        "images/test/000001.png (line 2), images/test/000002.png (line 3), images/test/000003.png (line 4), "
        "images/test/000004.png (line 5) and 1 more. Set task.data.root to the folder that holds tiny/ with its images/."
    )
    read_lists(folder, ["train800"], classes=4, counts=COUNTS)  # pictures that nothing reads need not be there


def test_a_missing_folder_of_pictures(tmp_path):
    path = written(tmp_path, "images/test/1.jpg 0\n")
    with pytest.raises(FileNotFoundError, match=rf"1 of the 1 pictures of {path} are not in {tmp_path}: "):
        read_lists(tmp_path, ["test"], classes=2, counts={})
