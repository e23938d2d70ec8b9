"""A profile is read line by line, and whole where its lines look otherwise."""

from __future__ import annotations

import json

from qcompile.backends.ort_profile import _events

LINES = """[
{"cat" : "Session","pid" :7,"tid" :7,"dur" :21,"ts" :9,"ph" : "X","name" :"model_run","args" : {}},
{"cat" : "Node","pid" :7,"tid" :7,"dur" :4,"ts" :15,"ph" : "X","name" :"/a/Conv_kernel_time",\
"args" : ARGS}
]
""".replace("ARGS", '{"op_name" : "Conv","input_type_shape" : [{"float":[1,3]}]}')


def read(text: str) -> list[tuple[str, str, float, float, object]]:
    return [(e.category, e.name, e.us, e.start, e.args()) for e in _events(text)]


WANTED = [
    ("Session", "model_run", 21.0, 9.0, {}),
    (
        "Node",
        "/a/Conv_kernel_time",
        4.0,
        15.0,
        {"op_name": "Conv", "input_type_shape": [{"float": [1, 3]}]},
    ),
]


def test_lines_are_read_one_by_one() -> None:
    assert read(LINES) == WANTED


def test_other_spellings_are_decoded_whole() -> None:
    assert read(json.dumps(json.loads(LINES))) == WANTED
    assert read(json.dumps(json.loads(LINES), indent=2)) == WANTED


def test_a_name_with_an_escape_is_decoded() -> None:
    odd = LINES.replace("/a/Conv", r"/a\"Conv")
    assert read(odd)[1][1] == '/a"Conv_kernel_time'
