"""Outputs as people read them."""

from __future__ import annotations

import numpy as np

from qcompile.report_data.readings import Reader

PLAIN = Reader({}, "")


def test_classes_with_the_names_that_an_exporter_recorded() -> None:
    reader = Reader({"names": "{0: 'cat', 1: 'dog'}"}, "")
    ref, got = np.array([[2.0, 1.0, -1.0]]), np.array([[1.5, 1.75, -1.0]])
    found = reader.read(ref, got, None)
    assert found["kind"] == "classes"
    assert found["labels"] == ["cat", "dog", "2"]
    assert (found["float"], found["artifact"]) == ([2.0, 1.0, -1.0], [1.5, 1.75, -1.0])


def test_a_scalar_is_a_number() -> None:
    found = PLAIN.read(np.float32(3.5).reshape(()), np.float32(3.25).reshape(()), None)
    assert found["kind"] == "numbers"


def test_names_that_are_no_names_are_left_alone() -> None:
    assert Reader({"names": "__import__('os')"}, "").names == {}
    assert Reader({"names": "['a', 'b']"}, "").names == {0: "a", 1: "b"}


def yolo(*boxes: tuple[float, ...]) -> np.ndarray:
    rows = np.zeros((60, 6), np.float32)
    if boxes:
        rows[: len(boxes)] = boxes
    return rows.T[None]


def test_boxes_of_a_detector_without_doubles() -> None:
    reader = Reader({"names": "{0: 'cat', 1: 'dog'}"}, "yolo")
    # the second covers the first, the third is another class, the fourth is unsure
    both = (
        (20, 20, 10, 10, 0.9, 0.0),
        (21, 20, 10, 10, 0.8, 0.0),
        (20, 20, 10, 10, 0.0, 0.7),
        (50, 50, 9, 9, 0.1, 0.1),
    )
    found = reader.read(yolo(*both), yolo(both[2]), (64, 64))
    assert found["kind"] == "boxes"
    assert [(b["label"], b["score"]) for b in found["float"]] == [("cat", 0.9), ("dog", 0.7)]
    assert found["artifact"][0]["box"] == [20.0, 20.0, 10.0, 10.0]


def test_without_a_word_on_boxes_none_are_drawn() -> None:
    assert PLAIN.read(yolo(), yolo(), (64, 64))["kind"] != "boxes"


def one_hot(*indices: int, classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[list(indices)][None]


def test_text_by_the_model_s_own_alphabet() -> None:
    # blank, nine letters, space
    reader = Reader({"character": "\n".join("abcdefghi")}, "ppocr-rec")
    ref = one_hot(0, 1, 1, 0, 1, 10, 2, classes=11)
    got = one_hot(0, 1, 1, 1, 1, 10, 3, classes=11)
    found = reader.read(ref, got, None)
    assert (found["kind"], found["float"], found["artifact"]) == ("sequence", "aa b", "a c")


def test_a_sequence_without_an_alphabet_is_indices() -> None:
    found = PLAIN.read(one_hot(3, 4, classes=9), one_hot(3, 5, classes=9), None)
    assert (found["float"], found["artifact"]) == ("3 4", "3 5")


def test_a_map_is_two_pictures() -> None:
    ref = np.linspace(0, 1, 400).reshape(1, 1, 20, 20)
    found = PLAIN.read(ref, ref * 0.5, None)
    assert found["kind"] == "map"
    assert found["float"].startswith("data:image/png;base64,")
    assert found["float"] != found["artifact"]


def test_other_numbers_where_they_differ_most() -> None:
    ref = np.arange(12.0).reshape(3, 4)
    got = ref.copy()
    got[1, 2] = 9.0
    found = PLAIN.read(ref, got, None)
    assert (found["labels"][0], found["float"][0], found["artifact"][0]) == ("6", 6.0, 9.0)


def test_what_cannot_be_read_is_not_shown() -> None:
    assert PLAIN.read(np.zeros((2, 3)), np.zeros((3, 3)), None) == {}
    assert PLAIN.read(np.array(["a"]), np.array(["a"]), None) == {}
    assert PLAIN.read(np.zeros((0, 3)), np.zeros((0, 3)), None) == {}
