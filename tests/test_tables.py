"""Tables and JSON files as people write them: with and without a header, lists, dictionaries, columns."""

import pytest
from published import clip, picture, put
from test_datasets import read, transcripts

from omni.base.errors import UserError
from omni.data import manifest


@pytest.fixture
def folder(tmp_path):
    put(tmp_path, {"img/a.png": picture(), "img/b.jpg": picture("blue", "JPEG"), "wav/c.wav": clip(),
                   "wav/d.wav": clip(0.3)})
    return tmp_path


PAIR = '{"question": "q", "answer": "a"}'
JSON = {"a list in .jsonl": ("l.jsonl", f"[{PAIR},\n {PAIR}]"),
        "a list in one line": ("l.jsonl", f"[{PAIR}, {PAIR}]\n"),
        "data": ("d.json", f'{{"version": 1, "data": [{PAIR}, {PAIR}]}}'),
        "data over lines": ("d.json", f'{{\n "data": [\n{PAIR},\n{PAIR}]\n}}'),
        "a dict of dicts": ("d.json", f'{{"17": {PAIR}, "18": {PAIR}}}'),
        "objects over lines": ("o.json", f'{{\n"question": "q",\n"answer": "a"\n}}\n{PAIR}'),
        "columns": ("c.json", '{"question": ["q", "q"], "answer": ["a", "a"]}'),
        "pandas": ("c.json", '{"question": {"0": "q", "1": "q"}, "answer": {"0": "a", "1": "a"}}')}


@pytest.mark.parametrize("name", JSON)
def test_valid_json_is_read(folder, name):
    file, text = JSON[name]
    put(folder, {file: text})
    assert [s.messages for s in read(folder / file)] == [(("user", "q"), ("assistant", "a"))] * 2


def test_a_dict_whose_keys_are_media(folder):
    put(folder, {"a.json": '{"img/a.png": "red", "img/b.jpg": "blue"}',
                 "b.json": '{"wav/c.wav": {"text": "one"}, "wav/d.wav": {"text": "two"}}'})
    assert [s.answer for s in read(folder / "a.json")] == ["red", "blue"]
    assert transcripts(read(folder / "b.json")) == ["one", "two"]


@pytest.mark.parametrize("text", ["filename,text\nwav/c.wav,hi\n", "Image,Caption\nimg/a.png,hi\n",
                                  "img,text\nimg/a.png,hi\n",
                                  "wav/c.wav,hi\n", "wav/c.wav\thi\n", "img/a.png;hi\n",
                                  "file_name\ttranscription\nwav/c.wav\thi\n"])
def test_tables_with_and_without_a_header(folder, text):
    put(folder, {"t.csv": text})
    (sample,) = read(folder / "t.csv")
    assert sample.answer == "hi" and len(sample.images + sample.audios) == 1


def test_a_stray_quote_of_a_table_swallows_no_rows(folder):
    rows = "".join(f"wav/c.wav\t{text}\n" for text in ('5" pipe', '"open', "plain", '"whole ""x"""', 'ends"',
                                                       '"two\nlines"'))
    put(folder, {"t.tsv": "path\ttext\n" + rows})
    assert [s.answer for s in read(folder / "t.tsv")] == ['5" pipe', '"open', "plain", 'whole "x"', 'ends"',
                                                          "two\nlines"]
    put(folder, {"t.csv": 'path,text\nwav/c.wav,"open\nwav/c.wav,swallowed\nwav/c.wav,end"\n'})
    with pytest.raises(UserError, match="line 2: a quote opened here is closed 2 lines further on"):
        manifest.read(str(folder / "t.csv"))
