"""Small copies of published data sets, laid out and written as their makers publish them."""

import json

import pytest
from published import assistant, clip, picture, put, user, write

from omni.base.errors import MediaError, UserError
from omni.data import audio, image, manifest, media
from omni.data.media import Piece
from omni.data.sample import Sample

ASK = "<audio>Transcribe the audio."


@pytest.fixture
def folder(tmp_path):
    put(tmp_path, {"img/a.png": picture(), "img/b.jpg": picture("blue", "JPEG"), "wav/c.wav": clip(),
                   "wav/d.wav": clip(0.3)})
    return tmp_path


def read(path, **options) -> list[Sample]:
    """The samples of a source of which nothing is skipped or unread, and whose media can be decoded."""
    source = manifest.read(str(path), **options)
    assert not source.skipped and not source.unread and not source.notes
    for sample in source.samples:
        assert all(image.load(file, 8).shape == (3, 8, 8) for file in sample.images)
        assert all(len(audio.load(file)) > 800 for file in sample.audios)
    return source.samples


def transcripts(samples) -> list[str]:
    assert all(s.task == "asr" and len(s.audios) == 1 and s.messages[0] == ("user", ASK) for s in samples)
    return [s.answer for s in samples]


def test_nemo(folder):
    """NeMo: a line of audio_filepath, duration, text."""
    entries = [{"audio_filepath": f"wav/{name}.wav", "duration": 0.2, "text": text, "lang": "en"}
               for name, text in (("c", "the cat sat"), ("d", "on it"))]
    assert transcripts(read(write(folder, "m.json", entries))) == ["the cat sat", "on it"]
    put(folder, {"manifest.json": "".join(json.dumps(e) + "\n" for e in entries)})
    assert transcripts(read(folder / "manifest.json")) == ["the cat sat", "on it"]


def test_funasr_and_slam_llm(folder):
    """FunASR and SLAM-LLM: key, source, target; SLAM-LLM may add a prompt."""
    lines = [{"key": "u1", "source": "wav/c.wav", "source_len": 90, "target": "hello you", "target_len": 2},
             {"key": "u2", "source": "wav/d.wav", "target": "well"}]
    assert transcripts(read(write(folder, "m.jsonl", lines))) == ["hello you", "well"]
    (asked,) = read(write(folder, "m.jsonl", [{**lines[0], "prompt": "Transcribe speech to text."}]))
    assert asked.messages[0] == ("user", "<audio>Transcribe speech to text.") and asked.task == "asr"


def test_qwen_audio_and_qwen_vl(folder):
    """Qwen-VL and Qwen-Audio: paths in tags; Qwen2-Audio and Qwen2.5-VL: typed parts."""
    first, second, third, fourth = read(write(folder, "m.jsonl", [
        {"id": "1", "conversations": [
            {"from": "user", "value": "Picture 1: <img>img/a.png</img>\nWhat?"},
            {"from": "assistant", "value": "red"},
            {"from": "user", "value": "And Picture 2: <img>img/b.jpg</img>?"},
            {"from": "assistant", "value": "blue"}]},
        {"messages": [user("Audio 1: <audio>wav/c.wav</audio>\nwhat does the person say?"), assistant("hi")]},
        {"messages": [user([{"type": "audio", "audio_url": "wav/c.wav"},
                            {"type": "text", "text": "What is it?"}]),
                      assistant("a tone")]},
        {"messages": [user([{"type": "image", "image": "file://img/a.png"},
                            {"type": "text", "text": "What?"}]),
                      assistant([{"type": "text", "text": "red"}])]}]))
    assert first.messages[0] == ("user", "Picture 1: <image>\nWhat?")
    assert first.images == (str(folder / "img/a.png"), str(folder / "img/b.jpg")) == first.images
    assert second.messages[0] == ("user",
                                  "Audio 1: <audio>\nwhat does the person say?") and second.task == "asr"
    assert third.messages[0] == ("user", "<audio>What is it?") and len(third.audios) == 1
    assert fourth.messages == (("user", "<image>What?"), ("assistant", "red"))


@pytest.mark.parametrize("text, wanted", [
    ("<audio&gt;\nWhat?", "<audio>\nWhat?"), ("&LT;Audio&GT;What?", "<audio>What?"),
    ("<|AUDIO|>What?", "<audio>What?"),
    ("<sound>What?", "<audio>What?"),
    ("<|audio_bos|><|AUDIO|><|audio_eos|>What?", "<audio>What?"), ("<audio_1>What?", "<audio>What?"),
    ("<Speech><SpeechHere></Speech> What?", "<audio> What?"), ("Hear [AUDIO]: what?",
                                                                                "Hear <audio>: what?")])
def test_other_spellings_of_a_placeholder(folder, text, wanted):
    (sample,) = read(write(folder, "m.jsonl", [{"messages": [user(text), assistant("a")],
                                                "audios": ["wav/c.wav"]}]))
    assert sample.messages[0] == ("user", wanted)


@pytest.mark.parametrize("text, order", [
    ("<image_1> or <image_2>?", "ab"), ("<image_2>, then <image_1>?", "ba"),
    ("<|image_1|>\n<|image_2|>\n?", "ab"),
    ("<image_0><image_1>?", "ab"), ("<image_1><image_2> Is <image_1> red?", "aba"), ("<img><img>?", "ab")])
def test_numbered_placeholders_name_their_image(folder, text, order):
    (sample,) = read(write(folder, "m.jsonl", [{"messages": [user(text), assistant("a")],
                                                "images": ["img/a.png", "img/b.jpg"]}]))
    assert sample.images == tuple(str(folder / {"a": "img/a.png", "b": "img/b.jpg"}[c]) for c in order)
    assert sample.messages[0][1].count("<image>") == len(order)


def test_placeholders_are_text_where_there_are_no_media(toy, folder):
    texts = [("What does <image> mean in HTML?", "It was an early name of <img>."),
             ("q", "Write <audio> here."),
             ("See <b>it</b> in <image>x</image>", "ok")]
    samples = read(write(folder, "m.jsonl", [{"instruction": q, "output": a} for q, a in texts]))
    assert [(s.messages[0][1], s.answer) for s in samples] == texts
    tokenizer = toy.model().tokenizer
    ids, _ = tokenizer.chat(samples[0].messages, [], [])
    assert tokenizer.image not in ids and "<image>" in tokenizer.decode(ids)
    entries = [{"messages": [user(q), assistant("a")]} for q in
               ("<image>\nWhat?", "What?\n<image>", "<audio>", "<|image_1|> What?", "<video>What?")]
    source = manifest.read(write(folder, "m.jsonl", entries))
    assert not source.samples and len(source.skipped) == 5


def test_media_as_paths_and_bytes(folder):
    """Hugging Face datasets written as JSON: {"path", "bytes"}, or a plain string where a list is usual."""
    import base64
    red = base64.b64encode(picture()).decode()
    samples = read(write(folder, "m.jsonl", [
        {"images": "img/a.png", "messages": [user("<image>?"), assistant("red")]},
        {"images": [{"path": "none.png", "bytes": red}], "texts": [{"user": "?", "assistant": "red",
                                                                    "source": "x"}]},
        {"audio": {"path": "wav/c.wav", "bytes": None, "sampling_rate": 16000}, "sentence": "hi"},
        {"image": {"url": "img/b.jpg"}, "caption": "blue"}]))
    assert image.load(samples[1].images[0], 8)[0].min() > 0.9 and isinstance(samples[1].images[0], Piece)
    assert samples[2].task == "asr"


def test_the_cauldron(folder):
    """HuggingFaceM4/the_cauldron: images, and texts of user, assistant and source."""
    (sample,) = read(write(folder, "m.jsonl", [{
        "images": [{"bytes": None, "path": "img/a.png"}],
        "texts": [{"user": "What?", "assistant": "red", "source": "VQAv2"},
                  {"user": "Sure?", "assistant": "yes", "source": "VQAv2"}]}]))
    assert [t for _, t in sample.messages] == ["<image>What?", "red", "Sure?",
                                               "yes"] and len(sample.images) == 1


def test_science_qa(folder):
    """derek-thomas/ScienceQA: the answer is the number of a choice; `task` says how closed the question
    is."""
    source = manifest.read(write(folder, "m.jsonl", [{
        "image": {"path": "img/a.png"}, "question": "Which is it?", "choices": ["Iowa", "Ohio"], "answer": 1,
        "hint": "Look.",
        "task": "closed choice", "grade": "grade2", "lecture": "Maps...", "solution": "It is Ohio."}]))
    (sample,) = source.samples
    assert sample.messages == (("user", "<image>Look.\nWhich is it?\nA. Iowa\nB. Ohio"),
                               ("assistant", "Ohio"))
    assert sample.task == "qa" and {*source.unread} == {"task", "grade", "lecture", "solution"}


def test_coco_captions(folder):
    """COCO: annotations/captions_val2017.json beside val2017/; in one folder with its images too."""
    file = {"info": {}, "licenses": [], "images": [{"id": 9, "file_name": "000000000009.jpg", "height": 3}],
            "annotations": [{"image_id": 9, "id": 1, "caption": "A field."},
                            {"image_id": 9, "id": 2, "caption": "Blue."}]}
    put(folder, {"coco/val2017/000000000009.jpg": picture("blue", "JPEG"),
                 "000000000009.jpg": picture("red", "JPEG"),
                 "coco/annotations/captions_val2017.json": json.dumps(file),
                 "c.json": json.dumps(file, indent=1)})
    for path, place in (("coco/annotations/captions_val2017.json", "coco/val2017"), ("c.json", "")):
        samples = read(folder / path)
        assert [s.answer for s in samples] == ["A field.", "Blue."] and samples[0].task == "qa"
        assert samples[0].images == (str(folder / place / "000000000009.jpg"),)
    put(folder, {"i.json": json.dumps({**file, "annotations": [{"image_id": 9, "bbox": [1, 2, 3, 4]}]})})
    with pytest.raises(UserError, match="without captions"):
        manifest.read(str(folder / "i.json"))


def test_vqa_v2(folder):
    """VQAv2: questions and annotations in two files, images by the number in their names."""
    name = "v2_{}mscoco_val2014_{}.json"
    put(folder, {
        "val2014/COCO_val2014_000000000042.jpg": picture("blue", "JPEG"),
        name.format("OpenEnded_", "questions"): json.dumps({"data_subtype": "val2014", "questions": [
            {"image_id": 42, "question": "What color?", "question_id": 420}]}),
        name.format("", "annotations"): json.dumps({"annotations": [
            {"question_id": 420, "image_id": 42, "multiple_choice_answer": "blue", "question_type": "what",
             "answers": [{"answer": "blue", "answer_id": 1}]}]})})
    for kind in (("OpenEnded_", "questions"), ("", "annotations")):
        (sample,) = read(folder / name.format(*kind))
        assert sample.messages == (("user", "<image>What color?"), ("assistant", "blue"))
        assert sample.images == (str(folder / "val2014/COCO_val2014_000000000042.jpg"),)


def test_librispeech_as_wav(folder):
    put(folder, {"set/84/12/84-12.trans.txt": "84-12-0000 GO ON\n", "set/84/12/84-12-0000.wav": clip()})
    assert transcripts(read(folder / "set")) == ["GO ON"]


@pytest.mark.parametrize("row, place", [
    ("LJ1|in 1450|in fourteen fifty", "wavs/LJ1.wav"), ("LJ1.wav|in 1450|in fourteen fifty", "wavs/LJ1.wav"),
    ("wavs/LJ1.wav|in 1450|in fourteen fifty", "wavs/LJ1.wav"), ("LJ1|in fourteen fifty|", "wavs/LJ1.wav"),
    ("LJ1|in fourteen fifty", "LJ1.wav"), ("x/LJ1.wav|in fourteen fifty|speaker_0", "x/LJ1.wav"),
    ("LJ1|in fourteen fifty|Ann Smith", "wavs/LJ1.wav"), ("x/LJ1.wav|7|in fourteen fifty", "x/LJ1.wav"),
    ("LJ1|in fourteen fifty|speaker_0", "wavs/LJ1.wav")])
def test_ljspeech_and_its_relatives(folder, row, place):
    """LJSpeech, Coqui and Piper (path|text|speaker), VITS (path|speaker|text)."""
    put(folder, {f"set/{place}": clip(), "set/metadata.csv": f"{row}\n{row}\n"})
    source = manifest.read(str(folder / "set"))
    assert transcripts(source.samples) == ["in fourteen fifty"] * 2 and not source.skipped
    assert source.samples[0].audios == (str(folder / "set" / place),)
    assert len(source.unread) == any(word in row for word in ("speaker", "|7|", "Ann"))


@pytest.mark.parametrize("name, place", [("x.mp3", "clips/x.mp3"), ("x", "clips/x.mp3"),
                                         ("clips/x.mp3", "clips/x.mp3"),
                                         ("x.mp3", "x.mp3"), ("x", "x.mp3")])
def test_common_voice(folder, name, place):
    put(folder, {f"cv/{place}": clip(form="MP3"), "cv/train.tsv":
                 f'client_id\tpath\tsentence\tup_votes\tage\n1\t{name}\t"Stop," he said.\t2\t\n'
                 f'2\t{name}\tA stray " quote.\t2\t\n3\t{name}\t"Open.\t2\t\n'
                 f'4\t{name}\t"Whole ""row""."\t2\t\n'})
    samples = read(folder / "cv" / "train.tsv")
    assert transcripts(samples) == ['"Stop," he said.', 'A stray " quote.', '"Open.', 'Whole "row".']


def test_avif_is_read_and_other_endings_are_named(folder):
    from PIL import features
    put(folder, {"m.jsonl": '{"img": "x.avif", "text": "red"}\n{"file_name": "x.heic", "text": "red"}\n'
                            '{"file_name": "x.m4a", "text": "red"}\n', "x.heic": b"0", "x.m4a": b"0",
                 "x.avif": picture(form="AVIF") if features.check("avif") else b"0"})
    first, second, third = manifest.read(str(folder / "m.jsonl")).samples
    if features.check("avif"):
        assert image.load(first.images[0], 8)[0].min() > 0.8
    for load, path in ((lambda p: image.load(p, 8), second.images[0]), (audio.load, third.audios[0])):
        with pytest.raises(MediaError):
            load(path)


def test_several_captions_of_an_image_are_several_samples(folder):
    samples = read(write(folder, "m.jsonl", [{"image": "img/a.png",
                                              "caption": ["red", "a red field", "plain red"]}]))
    assert [s.answer for s in samples] == ["red", "a red field",
                                           "plain red"] and len({s.images for s in samples}) == 1


def test_flickr8k(folder):
    """Flickr8k: captions.txt beside Images/, or tokens with the number of the caption."""
    put(folder, {"f/Images/1.jpg": picture("red", "JPEG"),
                 "f/captions.txt": "image,caption\n1.jpg,A red field .\n",
                 "f/tokens.txt": "1.jpg#0\tA red field .\n1.jpg#1\tRed .\n"})
    for name, count in (("captions.txt", 1), ("tokens.txt", 2)):
        samples = read(folder / "f" / name)
        assert samples[0].answer == "A red field ." and len(samples) == count
        assert samples[0].images == (str(folder / "f/Images/1.jpg"),)


def test_the_size_of_a_segment_is_that_of_its_clip(folder):
    cut = Piece.segment(str(folder / "wav/c.wav"), 0.05, None)
    assert cut.endswith("c.wav#t=0.05,") and media.size(cut) == media.size(folder / "wav/c.wav")
    assert len(audio.load(cut)) == 2400
