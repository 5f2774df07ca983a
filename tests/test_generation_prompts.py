"""Prompts: what files of each kind give, what is no row and where, and names that stay what they are."""

import json

import pytest

from nsfw_guard import SettingError
from nsfw_guard.generation.prompts import read_rows


def written(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_text_is_one_prompt_per_line(tmp_path):
    path = written(tmp_path, "p.txt", "\ufeffa circle\r\n\n  a square \n# no comment\nü \u2028 a\n")
    rows, bad = read_rows(path)
    assert [(row.prompt, row.line) for row in rows] == [
        ("a circle", 1),
        ("a square", 3),
        ("# no comment", 4),
        ("ü \u2028 a", 5),
    ]
    assert bad == []
    assert all(row.arguments == {} and row.folder == tmp_path for row in rows)


def test_jsonl_and_csv_say_the_same(tmp_path):
    objects = [
        {"id": "one", "prompt": 'a "red" circle, large', "seed": 7, "width": 64, "guidance_scale": 2.5},
        {"id": "007", "prompt": "12", "negative_prompt": "true", "clip": True},
        {"id": "x", "prompt": "a\nb", "sigmas": [1, 0.5]},
    ]
    lines = written(tmp_path, "p.jsonl", "\n".join(json.dumps(one) for one in objects))
    table = written(
        tmp_path,
        "p.csv",
        "id, prompt,seed,width,guidance_scale,negative_prompt,clip,sigmas\r\n"
        'one,"a ""red"" circle, large",7,64,2.5,,,\r\n'
        ",,,,,,,\r\n"
        "007,12,,,,true,true\r\n"
        'x,"a\nb",,,,,,"[1, 0.5]"\r\n',
    )
    from_lines, bad = read_rows(lines)
    from_table, bad_cells = read_rows(table)
    assert bad == bad_cells == []
    assert [row.line for row in from_table] == [2, 4, 5]
    for one, other in zip(from_lines, from_table, strict=True):
        assert (one.id, one.prompt, one.seed, one.arguments) == (other.id, other.prompt, other.seed, other.arguments)
        assert one.request == other.request
    assert from_lines[0].seed == 7
    assert from_lines[0].arguments == {"width": 64, "guidance_scale": 2.5}
    assert from_lines[1].arguments == {"negative_prompt": "true", "clip": True}


def test_ids_are_of_the_content_so_that_a_new_line_changes_no_other():
    before, _ = read_rows(["a circle", "a square", "a circle"])
    after, _ = read_rows(["a heart", "a circle", "a square", "a circle"])
    assert [row.id for row in before] == [row.id for row in after][1:]
    assert [row.seed for row in before] == [row.seed for row in after][1:]
    assert len({row.id for row in after}) == len({row.seed for row in after}) == 4
    assert before[2].id == before[0].id + "-2"


def test_default_seeds_are_derived_from_the_seed_of_the_run_and_the_id():
    (one,), _ = read_rows([{"prompt": "a", "id": "x"}], seed=1)
    (other,), _ = read_rows([{"prompt": "a", "id": "x"}], seed=2)
    assert one.seed != other.seed
    (own,), _ = read_rows([{"prompt": "a", "id": "x", "seed": 5}], seed=2)
    assert own.seed == 5
    assert len({one.request, other.request, own.request}) == 3


def test_several_images_of_a_prompt_have_ids_and_seeds_of_their_own():
    rows, _ = read_rows([{"prompt": "a", "id": "x", "seed": 2**63 - 1}], num_images=3)
    assert [(row.id, row.seed) for row in rows] == [("x-0", 2**63 - 1), ("x-1", 0), ("x-2", 1)]


BAD_OBJECTS = [
    ("{", "it is not JSON"),
    ("[1]", "expected a prompt, or an object"),
    ('"a prompt"', None),  # text is a prompt
    ("3", "expected a prompt, or an object"),
    ('{"prompt": 3}', "prompt is 3; expected text"),
    ('{"prompt": "a\\u0000b"}', "without zero characters"),
    ('{"prompt": "a", "prompt": "b"}', "a name is there twice"),
    ('{"prompt": "a", "seed": -1}', "seed is -1; expected a whole number in [0, 2**63)"),
    ('{"prompt": "a", "seed": 9223372036854775808}', "seed is 9223372036854775808"),
    ('{"prompt": "a", "seed": true}', "seed is True"),
    ('{"prompt": "a", "seed": 1.0}', "seed is 1.0"),
    ('{"prompt": "a", "seed": NaN}', "NaN is no JSON"),
    ('{"prompt": "a", "guidance_scale": 1e999}', "cannot be written as JSON"),
    ('{"prompt": "a\\ud800"}', "cannot be written as JSON in UTF-8"),
    ('{"prompt": "a", "id": "../a"}', "id is '../a'; expected up to 100 letters"),
    ('{"prompt": "a", "id": "a/b"}', "a file name"),
    ('{"prompt": "a", "id": ".hidden"}', "a file name"),
    ('{"prompt": "a", "id": ""}', "a file name"),
    ('{"prompt": "a", "id": "a\\n"}', "a file name"),
    ('{"prompt": "a", "id": true}', "a file name"),
    ('{"prompt": "a", "id": "con"}', "a file name"),
    ('{"prompt": "a", "id": "LPT1.x"}', "a file name"),
    (json.dumps({"prompt": "a", "id": "a" * 101}), "a file name"),
    ("[" * 100_000, "it is not JSON"),
    (b"a\xff", "it is not UTF-8"),
    ("null", "expected a prompt, or an object"),
]


def test_bad_rows_are_said_by_line_and_the_others_stay(tmp_path):
    lines = [line if isinstance(line, bytes) else line.encode() for line, _ in BAD_OBJECTS]
    good = b'{"prompt": "good", "id": "good"}'
    path = written(tmp_path, "p.jsonl", b"\n".join([*lines, good]))
    rows, bad = read_rows(path)
    assert [row.prompt for row in rows] == ["a prompt", "good"]
    said = {one.line: one.problem for one in bad}
    for number, (line, problem) in enumerate(BAD_OBJECTS, start=1):
        assert (problem is None) == (number not in said), line
        assert problem is None or problem in said[number], line
    assert str(bad[0]).startswith("line 1: it is not JSON (")


def test_duplicate_ids_are_bad_also_where_only_case_or_copies_make_them_equal(tmp_path):
    given = [
        {"prompt": "a", "id": "x"},
        {"prompt": "b", "id": "X"},
        {"prompt": "c", "id": 5},
        {"prompt": "d", "id": "5"},
    ]
    rows, bad = read_rows(given)
    assert [row.prompt for row in rows] == ["a", "c"]
    assert [(one.line, one.problem) for one in bad] == [
        (2, "the id 'X' is that of line 1 already"),
        (4, "the id '5' is that of line 3 already"),
    ]
    rows, bad = read_rows([{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x-1"}], num_images=2)
    assert [row.id for row in rows] == ["x-0", "x-1", "x-1-0", "x-1-1"]
    rows, bad = read_rows([{"prompt": "a", "id": "x-1"}, {"prompt": "b", "id": "x"}, {"prompt": "b", "id": "x-1-0"}])
    assert bad == []


def test_bad_rows_of_csv(tmp_path):
    path = written(tmp_path, "p.csv", 'prompt,seed\na circle,1,extra\na square,two\na heart,2\n"open,3\na cross,4\n')
    rows, bad = read_rows(path)
    assert [row.prompt for row in rows] == ["a heart"]
    assert [one.line for one in bad] == [2, 3, 5]
    assert "it has 3 cells; the header has 2" in bad[0].problem
    assert "seed is 'two'" in bad[1].problem
    assert "it is not CSV" in bad[2].problem


@pytest.mark.parametrize(
    ("first", "why"),
    [('"' + "x" * 200_000 + '\nthe rest of it\nand its end"', "field larger"), ('"a"b\nc', "expected")],
)
def test_after_what_is_not_csv_nothing_is_taken_for_a_row(tmp_path, first, why):
    rows, bad = read_rows(written(tmp_path, "p.csv", f"\nprompt\na circle\n{first}\na square\n"))
    assert [row.prompt for row in rows] == ["a circle"]
    assert [one.line for one in bad] == [4]
    assert why in bad[0].problem
    assert "nothing from here on is read" in bad[0].problem


def test_text_in_utf_16_makes_no_prompts(tmp_path):
    rows, bad = read_rows(written(tmp_path, "p.txt", "a circle\r\na square\r\n".encode("utf-16")))
    assert rows == []
    assert all("UTF-8" in one.problem for one in bad)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "", "holds no prompts"),
        ("p.txt", "\n \n", "holds no prompts"),
        ("p.jsonl", "", "holds no prompts"),
        ("p.csv", "", "holds no prompts"),
        ("p.csv", "prompt\n", "holds no prompts"),
        ("p.csv", "prompt,prompt\na,b\n", "each of them once"),
        ("p.csv", "prompt,\na,b\n", "each of them once"),
        ("p.csv", b"prompt\n\xff\n", "cannot be read as CSV in UTF-8"),
        ("p.yaml", "a", "expected a name that ends with .txt, .jsonl, .csv"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, text, message):
    with pytest.raises(SettingError, match=message):
        read_rows(written(tmp_path, name, text))


def test_a_missing_file_and_numbers_out_of_range(tmp_path):
    with pytest.raises(SettingError, match="No such file"):
        read_rows(tmp_path / "missing.txt")
    for more in ({"num_images": 0}, {"num_images": True}, {"seed": -1}, {"seed": "1"}):
        with pytest.raises(SettingError, match="expected a whole number"):
            read_rows(["a"], **more)
    with pytest.raises(SettingError, match="holds no prompts"):
        read_rows([])


def test_values_that_are_no_json_are_bad_rows():
    rows, bad = read_rows([{"prompt": "a", "image": object()}, {1: 2}, None, "b"])
    assert [row.prompt for row in rows] == ["b"]
    assert [one.line for one in bad] == [1, 2, 3]
