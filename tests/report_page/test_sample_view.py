"""What the page marks in the worst samples: letters, tokens and boxes that one model has alone."""

from __future__ import annotations

from typing import Any

from qcompile.report_page.sample_view import view_sample


def one(kind: str, before: Any, after: Any, **more: Any) -> dict[str, Any]:
    output = {"kind": kind, "float": before, "artifact": after, **more}
    found: dict[str, Any] = view_sample({"outputs": [output]})["outputs"][0]
    return found


def test_letters_that_differ_are_marked_and_spaces_are_seen() -> None:
    runs = one("sequence", " all over", "all ever")["runs"]
    assert runs[0] == [("␣", True), ("all ", False), ("o", True), ("ver", False)]
    assert runs[1] == [("all ", False), ("e", True), ("ver", False)]
    same = one("sequence", "ab", "ab")["runs"]
    assert same == [[("ab", False)], [("ab", False)]]


def test_tokens_are_compared_whole() -> None:
    runs = one("sequence", "29 506 787 ...", "29 50 787 ...")["runs"]
    words = [[(text, differs) for text, differs in side if text != " "] for side in runs]
    assert words[0] == [("29", False), ("506", True), ("787 ...", False)]
    assert words[1][1] == ("50", True)


def test_boxes_that_one_model_finds_alone() -> None:
    cat = {"box": [10, 10, 8, 8], "label": "cat", "score": 0.9}
    near = {"box": [11, 10, 8, 8], "label": "cat", "score": 0.5}
    dog = {"box": [50, 10, 8, 8], "label": "dog", "score": 0.5}
    found = one("boxes", [cat], [near, dog], width=64, height=64)
    drawn = [[b["alone"] for b in side["boxes"]] for side in found["drawn"]]
    assert drawn == [[False], [False, True]] and found["alone"] == 1
    left, right = found["drawn"][1]["boxes"]
    assert (left["flip"], right["flip"]) == (False, True)
    assert left["text"] == "cat 0.50"
