"""Every key of an entry is read, known to hold nothing, or named; a medium that isn't read is refused."""

import json

import pytest
from published import assistant, clip, picture, put, tar, user, write

from omni.base.errors import UserError
from omni.data import audio, manifest


@pytest.fixture
def folder(tmp_path):
    put(tmp_path, {"img/a.png": picture(), "img/b.jpg": picture("blue", "JPEG"), "wav/c.wav": clip(),
                   "wav/d.flac": clip(0.3, "FLAC"), "noending": clip()})
    return tmp_path


def one(folder, entry, **options):
    """The one sample of a source with this entry, twice, and no skipped ones."""
    source = manifest.read(write(folder, "m.jsonl", [entry, entry]), **options)
    assert not source.skipped, source.skipped
    assert source.samples[0] == source.samples[1]
    return source.samples[0]


SPELLINGS = {
    "images": ["image", "images", "img", "Image", "picture", "photo", "img_path", "image_path", "imagePath",
               "image_file",
               "image_file_name", "image_filepath", "Image Path", "jpg", "image_1", "pictures"],
    "audios": ["audio", "audios", "wav", "sound", "audio_filepath", "audio_path", "AudioFilePath", "wav_path",
               "speech_path", "clip", "sound_file", "recording", "audio_url", "voice_path"]}


@pytest.mark.parametrize("kind, key", [(kind, key) for kind, keys in SPELLINGS.items() for key in keys])
def test_a_medium_is_read_under_any_spelling_of_its_key(folder, kind, key):
    name = "img/a.png" if kind == "images" else "wav/c.wav"
    for value in (name, [name], {"path": name, "bytes": None}, [{"path": name}]):
        sample = one(folder, {key: value, "text": "a red field"})
        assert getattr(sample, kind) == (str(folder / name),) and sample.answer == "a red field"


@pytest.mark.parametrize("key", ["path", "file", "file_name", "filename", "filepath", "file_path", "media",
                                 "File"])
@pytest.mark.parametrize("name", ["img/a.png", "wav/c.wav", "wav/d.flac"])
def test_a_path_is_an_image_or_a_clip_by_its_ending(folder, key, name):
    sample = one(folder, {key: name, "text": "hello"})
    assert sample.images + sample.audios == (str(folder / name),)


UNREAD = {
    "an image's ending": {"shot": "x/y.png", "question": "q", "answer": "a"},
    "a clip's ending": {"utt": "x/y.opus", "text": "a"},
    "an unknown ending of a known key": {"file_name": "x.sphere", "text": "hi"},
    "a file without ending": {"take": "noending", "text": "hi"},
    "a key that says image": {"image_id": 7, "question": "q", "answer": "a"},
    "a key that says audio": {"audioClipRef": "abc", "text": "a"},
    "a list": {"takes": ["wav/c.wav"], "text": "a"},
    "a dictionary": {"take": {"where": "wav/c.wav"}, "text": "a"},
    "beside messages": {"messages": [user("q"), assistant("a")], "shot": "img/a.png"},
    "a key that carries nothing": {"id": "wav/c.wav", "text": "a"},
    "a second image": {"image": "img/a.png", "depth": "img/b.jpg", "caption": "a"},
    "a thumbnail in a conversation": {"messages": [user("q"), assistant("a")],
                                      "thumbnail_url": "http://x/y.jpg"},
    "no known shape": {"shot": "img/a.png", "remark": "a"}}


@pytest.mark.parametrize("name", UNREAD)
def test_a_medium_that_is_not_read_refuses_the_source(folder, name):
    entry = UNREAD[name]
    with pytest.raises(UserError) as caught:
        manifest.read(write(folder, "m.jsonl", [entry] * 3))
    message = str(caught.value)
    key = next(k for k in ("shot", "utt", "file_name", "take", "image_id", "audioClipRef", "takes", "id",
                           "depth",
                           "thumbnail_url") if k in entry)
    for part in ("m.jsonl", f'"{key}" looks like a medium', "line 1", "3x", "nearest key that is read",
                 f'"{key}"}}', '"ignore"'):
        assert part in message
    assert "\n" not in message
    if "no known shape" not in name:
        columns = {"ignore": key}
        assert len(manifest.read(write(folder, "m.jsonl", [entry] * 3), columns=columns).samples) == 3


def test_a_video_is_named(folder):
    source = manifest.read(write(folder, "m.jsonl", [{"video_path": "v.mp4", "question": "q",
                                                      "answer": "a"}]))
    assert not source.samples and source.skipped == [(1, 'video is not supported ("video_path")')]


def test_keys_that_are_not_read_are_counted_and_those_that_hold_nothing_are_not(folder):
    entry = {"id": 3, "score": 0.5, "url": "https://x.org", "source": "web", "width": 4, "up_votes": 2,
             "mood": "glad",
             "question": "q", "answer": "a", "empty": "", "lecture": None}
    source = manifest.read(write(folder, "m.jsonl", [entry, {**entry, "mood": "", "hue": 1}]))
    assert source.unread == {"mood": 1, "hue": 1} and not source.skipped
    (line,) = source.lines()
    assert '"mood" (1)' in line and '"columns"' in line


def test_the_same_medium_or_text_under_two_keys_is_read_once(folder):
    source = manifest.read(write(folder, "m.jsonl", [
        {"audio": {"path": "wav/c.wav"}, "path": "c.wav", "sentence": "hi", "text": "hi"},
        {"image": "img/a.png", "image_url": "http://images.org/1.jpg", "caption": "red", "image_width": 3}]))
    assert len(source.samples) == 2 and not source.skipped and not source.unread.keys() - {"image_url",
                                                                                           "path"}


def test_columns_say_what_a_key_is(folder):
    entry = {"take": "noending", "says": "hello", "ask": "What?", "from": "0.05", "upto": 0.15,
             "who": {"name": "Ann"},
             "text": "x", "rubbish": "img/a.png"}
    sample = one(folder, entry, columns={"audio": "take", "answer": "says", "question": "ask",
                                         "start": "from",
                                         "end": "upto", "system": "who.name", "ignore": ["rubbish", "text"]})
    assert sample.messages == (("system", "Ann"), ("user", "<audio>What?"), ("assistant", "hello"))
    assert len(audio.load(sample.audios[0])) == 1600
    with pytest.raises(UserError,
                       match='"columns" name "nowhere", which no entry has; the keys .* take, says'):
        one(folder, entry, columns={"audio": "take", "answer": "nowhere", "ignore": "rubbish"})


def test_columns_are_used_for_tables_and_tars(folder):
    put(folder, {"t.csv": "take,said,mood\nnoending,hi,glad\n"})
    (sample,) = manifest.read(str(folder / "t.csv"), columns={"audio": "take", "answer": "said"}).samples
    assert sample.audios == (str(folder / "noending"),) and sample.answer == "hi"
    tar(folder / "s.tar", {"1.snd0": clip(), "1.txt": "hi"})
    (sample,) = manifest.read(str(folder / "s.tar"), columns={"audio": "snd0"}).samples
    assert len(audio.load(sample.audios[0])) == 3200


@pytest.mark.parametrize("entry, messages", [
    ({"context": "Rome is old.", "question": "Is Rome old?", "answer": "yes"},
     ["Rome is old.\nIs Rome old?", "yes"]),
    ({"instruction": "Say it.", "context": "Rome is old.", "response": "old", "category": "closed_qa"},
     ["Say it.\nRome is old.", "old"]),  # Dolly
    ({"system_prompt": "Be kind.", "question": "q", "response": "r", "id": "niv.1"}, ["Be kind.", "q", "r"]),
    # OpenOrca
    ({"text": "great film", "label": "positive"}, ["great film", "positive"]),
    ({"text": "great film", "label": 1}, ["great film", "1"]),
    ({"input": "2+2", "output": "4"}, ["2+2", "4"]), ({"prompt": "2+2", "completion": "4"}, ["2+2", "4"]),
    ({"question": "2+1", "answer": 3}, ["2+1", "3"]), ({"question": "1/2", "answer": 0.5}, ["1/2", "0.5"]),
    ({"question": "q", "answer": 0}, ["q", "0"]), ({"question": "so?", "answer": False}, ["so?", "false"]),
    ({"source": "Hallo", "target": "Hello"}, ["Hallo", "Hello"]),
    ({"document": "long", "summary": "short"}, ["long", "short"]),
    ({"question": "q", "context": "c", "answers": {"text": ["a", "b"], "answer_start": [3, 4]}},
     ["c\nq", "a"]),
    ({"Question": "q", "Answer": "a"}, ["q", "a"]),
    ({"question": "Which?", "choices": ["red", "blue"], "answer": 1}, ["Which?\nA. red\nB. blue", "blue"]),
    ({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
     ["q", "a"]),
    ({"texts": [{"user": "q", "assistant": "a", "source": "x"}]}, ["q", "a"])])
def test_the_texts_of_published_entries(folder, entry, messages):
    assert [text for _, text in one(folder, entry).messages] == messages


def test_a_translation_is_the_answer_where_it_is_asked_for(folder):
    entry = {"audio": "wav/c.wav", "sentence": "guten Tag", "translation": "good day", "client_id": "x"}
    asked = one(folder, {**entry, "question": "Translate into English."})
    assert asked.answer == "good day" and asked.transcript == "guten Tag" and asked.task != "asr"
    assert one(folder, entry, question="Übersetze!").answer == "good day"
    source = manifest.read(write(folder, "m.jsonl", [entry]))
    assert source.samples[0].answer == "guten Tag" and source.unread == {"translation": 1}


def test_a_label_beside_words_of_a_clip_is_named(folder):
    source = manifest.read(write(folder, "m.jsonl", [{"audio": "wav/c.wav", "text": "hi", "label": "glad"}]))
    assert source.samples[0].answer == "hi" and source.unread == {"label": 1}


def test_keys_of_a_turn_are_read_or_named(folder):
    turns = [{"role": "user", "content": "What?", "image": "img/a.png"},
             {"role": "assistant", "content": "red", "reasoning_content": "It looks red.", "id": 4}]
    source = manifest.read(write(folder, "m.jsonl", [{"messages": turns}]))
    assert source.samples[0].messages[0] == ("user", "<image>What?")
    assert source.samples[0].images == (str(folder / "img/a.png"),)
    assert source.unread == {"reasoning_content (of a turn)": 1}


@pytest.mark.parametrize("flag", [{"loss": False}, {"weight": 0}, {"loss_weight": 0.0}, {"train": False},
                                  {"train": "false"}, {"trainable": 0}])
def test_a_turn_that_is_not_to_be_trained_on(folder, flag):
    turns = [user("a"), assistant("one", **flag), user("b"), assistant("two")]
    assert one(folder, {"messages": turns}).untrained == (1,)


def test_empty_answers_are_not_trained_on(folder):
    source = manifest.read(write(folder, "m.jsonl", [
        {"messages": [user("a"), assistant(" "), user("b"), assistant("two")]},
        {"messages": [user("a"), assistant("one"), user("b"), assistant("")]}]))
    assert [s.untrained for s in source.samples] == [(1,), ()]
    assert source.samples[1].messages == (("user", "a"), ("assistant", "one"))
    assert list(source.lines()) == ["an answer is empty: it is not trained on (1x)"]


def test_a_talk_that_the_assistant_begins_or_the_user_ends_keeps_its_other_turns(folder):
    turns = [assistant("Welcome."), user("a"), assistant("b"), user("bye")]
    source = manifest.read(write(folder, "m.jsonl", [{"messages": turns},
                                                     {"messages": [{"role": "system", "content": "s"},
                                                                   *turns]}]))
    assert [s.messages[-2:] for s in source.samples] == [(("user", "a"), ("assistant", "b"))] * 2
    assert sorted(source.notes.values()) == [2, 2]


def test_published_keys_of_another_meaning_are_named(folder):
    entry = {"messages": [user("<image>q"), assistant("a")], "images": ["img/a.png"], "task": "closed choice",
             "objects": {"bbox": [[1, 2, 3, 4]], "ref": ["cat"]}, "group": 4}
    source = manifest.read(write(folder, "m.jsonl", [entry]))
    assert source.samples[0].task == "qa" and source.unread == {"task": 1, "objects": 1, "group": 1}


def test_the_segment_of_a_clip_is_cut(folder):
    put(folder, {"long.wav": clip(4.0)})
    entries = [{"audio_filepath": "long.wav", "offset": 0.0, "duration": 1.5, "text": "one"},
               {"audio_filepath": "long.wav", "offset": 1.5, "duration": 1.0, "text": "two"},
               {"audio": "long.wav", "start": "2.5", "end": "3", "text": "three"},
               {"audio": "long.wav", "start_ms": 3000, "end_ms": 3250, "text": "four"},
               {"audio": "long.wav", "begin_time": "0:03.5", "text": "five"},
               {"audio": "long.wav", "segment": [1, 1.5], "text": "six"},
               {"audio_filepath": "long.wav", "duration": 4.0, "text": "whole"}]
    source = manifest.read(write(folder, "m.jsonl", entries))
    assert not source.skipped and not source.unread
    lengths = [len(audio.load(s.audios[0])) / 16000 for s in source.samples]
    assert lengths == [1.5, 1.0, 0.5, 0.25, 0.5, 0.5, 4.0]
    whole = audio.load(str(folder / "long.wav"))
    assert (audio.load(source.samples[1].audios[0]) == whole[24000:40000]).all()
    assert len({s.audios for s in source.samples}) == 7
    put(folder, {"none.jsonl": json.dumps({**entries[0], "offset": 9}) + "\n"})
    (sample,) = manifest.read(str(folder / "none.jsonl")).samples
    with pytest.raises(audio.MediaError, match="not within the clip's 4.00 s"):
        audio.load(sample.audios[0])


def test_a_row_without_its_medium_is_skipped(folder):
    put(folder, {"t.csv": "path,text\nwav/c.wav,one\n,two\n"})
    source = manifest.read(str(folder / "t.csv"))
    assert [s.answer for s in source.samples] == ["one"]
    assert source.skipped == [(3, 'its image or clip is missing: "path" is empty')]
    source = manifest.read(write(folder, "m.jsonl", [{"image": None, "question": "q", "answer": "a"},
                                                     {"image": None, "caption": "red"}]))
    assert [s.messages[0][1] for s in source.samples] == ["q"] and len(source.skipped) == 1


def test_the_name_of_a_class_is_preferred_to_its_number(folder):
    put(folder, {"esc50.csv": "filename,fold,target,category\nc.wav,1,0,dog\n"})
    (sample,) = manifest.read(str(folder / "esc50.csv"), question="What is heard?").samples
    assert sample.answer == "dog" and sample.task == "qa"
    assert one(folder, {"text": "great", "label": "good"}, question="Is it good?").messages == (
        ("user", "Is it good?\ngreat"), ("assistant", "good"))


def test_a_clip_with_an_answer_and_no_question_is_not_a_transcript(folder):
    short = one(folder, {"audio": "wav/c.wav", "answer": "Paris"})
    assert short.messages[0] == ("user", "<audio>") and short.task == "qa"
    assert one(folder, {"audio": "wav/c.wav", "response": "It is Paris. " * 9}).task == "text"


def test_lists_of_questions_and_answers_are_a_conversation(folder):
    wanted = ["<image>q1", "a1", "q2", "a2"]
    for entry in ({"questions": ["q1", "q2"], "answers": ["a1", "a2"]}, {"qa": [{"q": "q1", "a": "a1"},
                                                                                 {"q": "q2", "a": "a2"}]}):
        assert [text for _, text in one(folder, {"image": "img/a.png", **entry}).messages] == wanted


def test_places_for_objects_that_are_not_read_are_refused(folder):
    entry = {"messages": [user("<image>Find <ref-object>."), assistant("<bbox>")], "images": ["img/a.png"],
             "objects": {"ref": ["cat"], "bbox": [[1, 2, 3, 4]]}}
    ((_, reason),) = manifest.read(write(folder, "m.jsonl", [entry])).skipped
    assert "<bbox>" in reason


def test_the_name_of_a_person_is_no_question(folder):
    assert one(folder, {"user": "ann", "text": "It rains."}).messages == (("assistant", "It rains."),)
    assert one(folder, {"user": "q", "assistant": "a"}).messages == (("user", "q"), ("assistant", "a"))
