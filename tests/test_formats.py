"""Reads a small file in every published format, made here as the format's documentation describes it."""

import base64
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published import assistant, clip, picture, put, tar, user, write

from omni.base.errors import UserError
from omni.data import audio, image, manifest, media
from omni.data.media import Piece
from omni.data.sample import Sample


@pytest.fixture
def folder(tmp_path):
    put(tmp_path, {"img/a.png": picture(), "img/b.jpg": picture("blue", "JPEG"), "wav/c.wav": clip()})
    return tmp_path


def read(path, kind: str, **options) -> list[Sample]:
    """The samples of a source. Checks that none is skipped, that all media can be decoded, and that samples
    without embedded media are the same after being written as our own manifest and read again.
    """
    source = manifest.read(str(path), **options)
    assert not source.skipped and source.kind == kind
    for sample in source.samples:
        for file in sample.images:
            assert image.load(file, 16).shape == (3, 16, 16)
        for file in sample.audios:
            assert len(audio.load(file)) > 800
    plain = [s for s in source.samples if not any(isinstance(f, Piece) for f in s.images + s.audios)]
    rewritten = Path(path).parent / "rewritten.jsonl"
    rewritten.write_text("".join(json.dumps(own_entry(s)) + "\n" for s in plain))
    assert manifest.read(str(rewritten), allow_outside_paths=True).samples == plain
    rewritten.unlink()
    return source.samples


def own_entry(sample: Sample) -> dict:
    """A sample as an entry of our own manifests."""
    messages = [{"role": role, "content": content, **({"loss": False} if i in sample.untrained else {})}
                for i, (role, content) in enumerate(sample.messages)]
    return {"messages": messages, "images": sample.images, "audios": sample.audios, "task": sample.task}


CONVERSATION = (("system", "Be brief."), ("user", "<image>What?"), ("assistant", "red"),
                ("user", "And <audio>?"), ("assistant", "a tone"))


@pytest.mark.parametrize("name", ["m.jsonl", "m.json"])
def test_llama_factory_and_ms_swift_messages(folder, name):
    """LLaMA-Factory data/README.md; ms-swift docs Custom-dataset.md, "Multimodal"."""
    entry = {"messages": [{"role": r, "content": c} for r, c in CONVERSATION], "images": ["img/a.png"],
             "audios": ["wav/c.wav"]}
    kind = "JSON lines: messages" if name == "m.jsonl" else "JSON: messages"
    (sample,) = read(write(folder, name, [entry]), kind)
    assert sample.messages == CONVERSATION and sample.untrained == ()
    assert sample.images == (str(folder / "img/a.png"),) and sample.audios == (str(folder / "wav/c.wav"),)


def test_content_as_a_list_of_typed_parts(folder):
    """Hugging Face and ms-swift: {"type": "image", "image": PATH}, or the path is in the entry's "images"."""
    parts = [{"type": "image", "image": "img/a.png"}, {"type": "text", "text": "and "},
             {"type": "audio", "audio": "wav/c.wav"}]
    bare = [{"type": "image"}, {"type": "text", "text": "What?"}]
    first, second = read(write(folder, "m.jsonl", [
        {"messages": [user(parts), assistant([{"type": "text", "text": "yes"}])]},
        {"messages": [user(bare), assistant("red")], "images": ["img/a.png"]}]), "JSON lines: messages")
    assert first.messages == (("user", "<image>and <audio>"), ("assistant", "yes"))
    assert first.images == second.images and second.messages[0] == ("user", "<image>What?")


def test_answers_that_are_not_trained_on(toy, folder):
    """ms-swift: "loss": false on a message. OpenAI fine-tuning guide, multi-turn chat: "weight": 0."""
    turns = [user("a"), assistant("one", loss=False), user("b"), assistant("two", weight=1), user("<image>"),
             assistant("three", weight=0)]
    (sample,) = read(write(folder, "m.jsonl", [{"messages": turns, "images": ["img/a.png"]}]),
                     "JSON lines: messages")
    assert sample.messages[-1] == ("assistant", "two") and sample.untrained == (1,) and not sample.images
    model = toy.model()
    ids, labels = model.tokenizer.chat(sample.messages, [], [], sample.untrained)
    trained = model.tokenizer.decode([label for label in labels if label >= 0])
    assert trained == "two"


def test_openai_chat_with_embedded_images_and_audio(folder):
    """OpenAI guide "Vision fine-tuning" (two user messages, data: URLs); API reference, input_audio."""
    red = "data:image/png;base64," + base64.b64encode(picture()).decode()
    blue = "data:image/jpeg;base64," + base64.b64encode(picture("blue", "JPEG")).decode()
    sound = {"data": base64.b64encode(clip()).decode(), "format": "wav"}
    sound_part = {"type": "input_audio", "input_audio": sound}
    image_parts = [{"type": "image_url", "image_url": {"url": url}} for url in (red, blue)]
    system = {"role": "system", "content": "See."}
    entries = [{"messages": [system, user("Which?"), user(image_parts[:1]), assistant("red")]},
               {"messages": [user([*image_parts, sound_part]), assistant("both")]}]
    for name, kind in (("m.jsonl", "JSON lines: messages"), ("m.json", "JSON: messages")):
        first, second = read(write(folder, name, entries), kind)
        assert first.messages[1] == ("user", "Which?\n<image>") and len(second.images) == 2
        assert image.load(first.images[0], 8)[0].min() > 0.9  # red
        assert image.load(second.images[1], 8)[2].min() > 0.9  # blue
        listed = {"messages": [user("<image>?"), assistant("red")], "images": [red]}
        assert len(read(write(folder, f"listed_{name}", [listed, listed]), kind)) == 2


def test_sharegpt(folder):
    """LLaMA-Factory data/README.md, "Sharegpt Format"; ms-swift's pairs of "human" and "assistant"."""
    entries = [{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"},
                                  {"from": "human", "value": "more"}, {"from": "gpt", "value": "no"}],
                "system": "Be kind."},
               {"system": "s", "conversation": [{"human": "q", "assistant": "a"}]}]
    first, second = read(write(folder, "s.json", entries), "JSON: ShareGPT")
    assert first.messages[:3] == (("system", "Be kind."), ("user", "hi"), ("assistant", "hello"))
    assert first.messages[3:] == (("user", "more"), ("assistant", "no"))
    assert second.messages == (("system", "s"), ("user", "q"), ("assistant", "a"))


def test_llava(folder):
    """LLaVA docs/Finetune_Custom_Data.md: id, image, conversations."""
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    (sample,) = read(write(folder, "l.json", [{"id": "1", "image": "img/a.png", "conversations": turns}]),
                     "JSON: LLaVA")
    assert sample.messages == (("user", "<image>\nWhat?"), ("assistant", "red")) and sample.task == "qa"


def test_alpaca_and_query_response(folder):
    """LLaMA-Factory data/README.md, "Alpaca Format"; ms-swift Custom-dataset.md, "Query-Response format"."""
    first, second = read(write(folder, "a.json", [
        {"instruction": "Add.", "input": "1 1", "output": "2", "system": "Count.", "history": [["q", "a"]]},
        {"instruction": "Look.", "input": "", "output": "red", "images": ["img/a.png"]}]), "JSON: Alpaca")
    assert first.messages == (("system", "Count."), ("user", "q"), ("assistant", "a"), ("user", "Add.\n1 1"),
                              ("assistant", "2"))
    assert second.messages == (("user", "<image>Look."), ("assistant", "red"))
    (asked,) = read(write(folder, "q.jsonl", [{"query": "q2", "response": "r2", "history": [["q1", "r1"]]}]),
                    "JSON lines: query and response")
    assert [text for _, text in asked.messages] == ["q1", "r1", "q2", "r2"]


def test_easy_vqa(folder):
    """vzhou842/easy-VQA, data/train: questions.json of [question, answer, image id], and images/ID.png."""
    put(folder, {"images/7.png": picture()})
    (sample,) = read(write(folder, "questions.json", [["what color?", "red", 7]]), "JSON: easy-VQA")
    assert sample.messages == (("user", "<image>what color?"), ("assistant", "red"))


@pytest.mark.parametrize("header, row, kind, question", [
    ("path,text", "wav/c.wav,hi there", "CSV: clips with text", "<audio>Transcribe the audio."),
    ("wav;sentence", "wav/c.wav;hi there", "CSV: clips with text", "<audio>Transcribe the audio."),
    ("id\taudio\ttranscript", "1\twav/c.wav\thi there", "TSV: clips with text",
     "<audio>Transcribe the audio."),
    ("path|text", "wav/c.wav|hi there", "CSV: clips with text", "<audio>Transcribe the audio."),
    ("file,caption", "img/b.jpg,hi there", "CSV: images with text", "<image>Describe the picture."),
    ('image,question,answer', 'img/b.jpg,"What, here?",hi there', "CSV: images with text",
     "<image>What, here?"),
    ("question,answer", "What?,hi there", "CSV: questions and answers", "What?"),
    ("instruction,input,output", "What?,,hi there", "CSV: Alpaca", "What?")])
def test_tables_with_a_header(folder, header, row, kind, question):
    """RFC 4180, with the columns that the README names; ms-swift reads CSV with the keys of its JSON."""
    put(folder, {"t.csv": f"\ufeff\r\n{header}\r\n{row}\r\n"})
    (sample,) = read(folder / "t.csv", kind)
    assert sample.messages == (("user", question), ("assistant", "hi there"))
    assert sample.task == ("asr" if "clips" in kind else "qa" if "images" in kind else "text")


def test_common_voice(folder):
    """Common Voice, cv-dataset README: TSVs beside clips/, `path` and `sentence` among their columns."""
    put(folder, {"clips/x.mp3": clip(form="MP3"), "train.tsv": "client_id\tpath\tsentence\tup_votes\n"
                                                              'f00\tx.mp3\t"Stop," he said.\t2\n'})
    (sample,) = read(folder / "train.tsv", "Common Voice: clips with text")
    assert sample.answer == '"Stop," he said.' and sample.task == "asr"
    with pytest.raises(UserError, match="name the table to read: train.tsv"):
        manifest.read(str(folder))


def test_ljspeech(folder):
    """The LJ Speech Dataset 1.1, README: metadata.csv of ID|transcription|normalised, wavs/ID.wav."""
    put(folder, {"wavs/LJ001-0001.wav": clip(), "metadata.csv":
                 "LJ001-0001|Printing, in 1450, \"then\"|Printing, in fourteen fifty, \"then\"\n"})
    for path in (folder, folder / "metadata.csv"):
        (sample,) = read(path, "LJSpeech: clips with text")
        assert sample.answer == 'Printing, in fourteen fifty, "then"' and sample.task == "asr"


def test_librispeech(folder):
    """LibriSpeech README (openslr.org/12): speaker/chapter/*.trans.txt with FLAC files beside."""
    put(folder, {"84/12/84-12.trans.txt": "84-12-0000 GO ON\n84-12-0001 AND HE DID\n",
                 "84/12/84-12-0000.flac": clip(form="FLAC"), "84/12/84-12-0001.flac": clip(form="FLAC")})
    samples = read(folder, "LibriSpeech folder: clips with text")
    assert [s.answer for s in samples] == ["GO ON", "AND HE DID"] and samples[0].task == "asr"


def test_image_folder(folder):
    """torchvision.datasets.ImageFolder: root/class/image; the source gives the question."""
    put(folder, {"set/hot_dog/1.png": picture(), "set/cat/2.jpg": picture("blue", "JPEG")})
    put(folder, {"set/cat/notes.txt": "", "set/cat/.hidden.png": ""})
    samples = read(folder / "set", "image folder: images with text", question="What is in the picture?")
    assert [s.answer for s in samples] == ["cat", "hot dog"]
    assert samples[0].messages[0] == ("user", "<image>What is in the picture?")
    with pytest.raises(UserError, match='needs a "question"'):
        manifest.read(str(folder / "set"))


def test_webdataset(folder):
    """webdataset README: files of a sample follow each other and share the name up to the first dot."""
    asr = {"messages": [user("<audio>Say it."), assistant("tone")], "task": "asr"}
    (folder / "wds").mkdir()
    tar(folder / "wds" / "s-000000.tar", {
        "a/0001.jpg": picture("blue", "JPEG"), "a/0001.txt": "a blue field\n",
        "a/0002.ogg": clip(1, "OGG"), "a/0002.json": json.dumps(asr)})
    tar(folder / "wds" / "s-000001.tar", {"0.png": picture(), "0.json": '{"caption": "red", "url": "http://x"}',
                                          "1.flac": clip(form="FLAC"), "1.txt": "hi"})
    before = sorted(folder.rglob("*"))
    samples = read(folder / "wds", "WebDataset, 2 shards: images with text, messages, "
                                   "clips with text")
    assert [s.answer for s in samples] == ["a blue field", "tone", "red", "hi"]
    assert [s.task for s in samples] == ["qa", "asr", "qa", "asr"]
    assert image.load(samples[0].images[0], 8)[2].min() > 0.9 and sorted(folder.rglob("*")) == before
    assert len(read(folder / "wds" / "s-000001.tar",
                    "WebDataset shard: images with text, clips with text")) == 2


def data_url(payload: bytes, kind: str) -> str:
    return f"data:{kind}/x;base64,{base64.b64encode(payload).decode()}"


def embedded(images: list[bytes], audios: list[bytes], listed: tuple[str, ...], order: list[str]) -> dict:
    """An entry with its media in base64: in `images`/`audios` if `listed`, else in the message's parts."""
    image_urls, audio_urls = ([data_url(p, kind) for p in payloads]
                              for payloads, kind in ((images, "image"), (audios, "audio")))
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in image_urls]
    sounds = [{"type": "input_audio", "input_audio": {"format": "wav", "data": base64.b64encode(p).decode()}}
              for p in audios]
    message = (pictures if "images" not in listed else []) + (sounds if "audios" not in listed else [])
    entry = {"messages": [user([*message, {"type": "text", "text": "?"}]), assistant("yes")],
             "images": image_urls, "audios": audio_urls}
    return {key: entry[key] for key in order if key == "messages" or key in listed}


ENTRIES = st.lists(st.tuples(
    st.lists(st.binary(min_size=12, max_size=14), max_size=3), st.lists(st.integers(0, 9), max_size=3),
    st.sampled_from([(), ("images",), ("audios",), ("images", "audios")]),
    st.permutations(["messages", "images", "audios"])), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(entries=ENTRIES, name=st.sampled_from(["f.jsonl", "f.json"]))
def test_embedded_media_are_found_in_any_order_of_keys(tmp_path_factory, entries, name):
    """Equal payloads are frequent, and an entry's media may stand in the file in any order."""
    entries = [(images, [bytes([number]) * 12 for number in audios], listed, order)
               for images, audios, listed, order in entries]
    path = write(tmp_path_factory.getbasetemp() / "embedded", name, [embedded(*entry) for entry in entries])
    source = manifest.read(path)
    assert not source.skipped
    for sample, (images, audios, _, _) in zip(source.samples, entries, strict=True):
        assert [media.source(piece).read() for piece in sample.images] == images
        assert [media.source(piece).read() for piece in sample.audios] == audios


@pytest.mark.parametrize("escaped", [False, True])
def test_the_cost_of_embedded_media_grows_with_the_size_of_the_file(tmp_path, escaped):
    """In the worst order of keys, and for escaped base64, which is not found at all."""
    def seconds(count: int) -> float:
        rng = np.random.default_rng(0)
        entries = [embedded([rng.bytes(1500)], [rng.bytes(1500)], ("images", "audios"),
                            ["audios", "images", "messages"]) for _ in range(count)]
        path = write(tmp_path, f"{count}.jsonl", entries)
        if escaped:
            Path(path).write_text(Path(path).read_text().replace("/", "\\/"))
        begun = time.process_time()
        source = manifest.read(path)
        assert len(source.skipped if escaped else source.samples) > 0.99 * count
        return time.process_time() - begun
    assert seconds(8_000) < 8 * 3 * max(seconds(1_000), 0.01)
