"""What the keys of published entries and the columns of tables mean, whatever their case and spelling.

`role_of` is the one table: a medium, a text of the conversation, a time within a clip, or nothing that can be
trained on ("nothing"). A key that it doesn't know is "unknown".
"""

import re
from functools import lru_cache

# Media are recognised by the words of a key: img_path, AudioFilePath, wav, picture_1.
IMAGE_WORDS = {"image", "images", "img", "imgs", "picture", "pictures", "pic", "pics", "photo", "photos",
               "photograph", "jpg", "jpeg", "png", "webp"}
AUDIO_WORDS = {"audio", "audios", "wav", "wavs", "wave", "sound", "sounds", "clip", "clips", "speech",
               "voice", "recording", "recordings", "flac", "mp3", "ogg"}
VIDEO_WORDS = {"video", "videos", "movie", "mp4"}
PATH_WORDS = {"path", "paths", "file", "files", "filename", "filenames", "filepath", "filepaths", "fname"}
_CARRIERS = PATH_WORDS | {"name", "names", "url", "urls", "uri", "loc", "location", "local", "rel",
                          "relative", "abs", "absolute", "full", "bytes", "data", "base64", "b64", "list",
                          "src", "input", "fp", "fn"}
_MEDIUM = {*PATH_WORDS, "medium", "media"}  # an image or a clip, as the ending of the file says

# Texts. In each role the first key that has a value is used.
TEXTS = {
    "talk": ("messages", "conversations", "conversation", "dialog", "dialogue", "turns", "chat", "texts",
             "qa", "qa_pairs"),
    "system": ("system", "system_prompt", "system_message", "sys_prompt", "system_instruction"),
    "history": ("history",),
    "question": ("instruction", "question", "query", "prompt", "questions", "problem", "inputs",
                 "user_prompt", "question_text"),
    "asker": ("user", "human"),  # beside "assistant"
    "input": ("input",),  # beside an instruction: what it is about
    "source": ("source",),  # beside "target": a clip, an image or a text; otherwise where the entry is from
    "context": ("context", "passage", "hint", "document", "article", "dialogue_context", "background"),
    "choices": ("choices", "options"),
    "answer": ("output", "response", "completion", "answer", "multiple_choice_answer", "answers", "outputs",
               "target", "assistant", "reply", "summary", "highlights", "solution", "ground_truth"),
    "words": ("text", "sentence", "transcript", "transcription", "normalized_text",
              "normalized_transcription", "normalised_text", "raw_text", "txt", "caption", "captions",
              "description", "comment", "utterance"),
    "translation": ("translation", "translated_text", "translated_sentence"),
    "label": ("label", "labels", "class", "class_name", "cls", "category", "intent", "emotion", "sentiment"),
    "chosen": ("chosen",), "rejected": ("rejected", "rejected_response"),
    "task": ("task",), "group": ("group",), "objects": ("objects",), "kto_tag": ("kto_tag",),
    # [start, end] of a clip
    "span": ("segment", "timestamp", "timestamps", "time_range", "interval", "span"),
}
SPOKEN = {"sentence", "transcript", "transcription", "normalized_transcription"}  # the words of a clip
_ROLE = {name: role for role, names in TEXTS.items() for name in names}
RANK = {name: rank for names in TEXTS.values() for rank, name in enumerate(names)}

# Times within a clip, in seconds, or in milliseconds where a word says so.
_TIMES = {"start": "start", "begin": "start", "offset": "start", "onset": "start", "end": "end",
          "stop": "end", "duration": "duration", "dur": "duration"}
_TIME_WORDS = {"time", "sec", "secs", "second", "seconds", "s", "ms", "msec", "milliseconds", "audio",
               "segment", "clip", "utterance"}
_MILLISECONDS = {"ms", "msec", "milliseconds"}

# The last or only word of keys that hold metadata and no content.
_NOTHING = {"id", "ids", "idx", "index", "key", "uid", "uuid", "guid", "hash", "sha256", "md5", "len",
            "length", "size", "width", "height", "score", "scores", "rating", "votes", "count", "license",
            "licence", "url", "link", "date", "time", "created", "version", "split", "subset", "lang",
            "language", "locale", "accent", "accents", "variant", "age", "gender", "sex", "speaker", "spk",
            "rate", "sr", "source", "origin", "dataset", "status", "exif", "author", "model", "frames",
            "samples", "snr", "wer", "cer", "page", "kind", "weight"}


@lru_cache(maxsize=4096)
def words(key: str) -> tuple[str, ...]:
    """"imagePath", "Image-Path" and "image_path" -> ("image", "path")."""
    key = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()
    return tuple(re.findall(r"[^\W_]+", key))


@lru_cache(maxsize=4096)
def snake_case(key: str) -> str:
    """"imagePath" and "Image-Path" -> "image_path"."""
    return "_".join(words(key))


@lru_cache(maxsize=4096)
def role_of(key: str) -> str:
    """image, audio, video, medium, a role of TEXTS, start, end, duration, nothing or unknown."""
    parts, name = words(key), snake_case(key)
    if name in _ROLE:
        return _ROLE[name]
    if name == "voice":  # the name of a speaker
        return "nothing"
    plain = {part.rstrip("0123456789") for part in parts} - {""}  # image1, image_1
    for role, own in (("image", IMAGE_WORDS), ("audio", AUDIO_WORDS | {"utterance"}), ("video", VIDEO_WORDS)):
        if plain & own and plain <= own | _CARRIERS:
            return role
    if plain & _MEDIUM and plain <= _MEDIUM | _CARRIERS:
        return "medium"
    times = [_TIMES[part] for part in parts if part in _TIMES]
    if len(times) == 1 and all(part in _TIMES or part in _TIME_WORDS for part in parts):
        return times[0]
    if parts and (parts[-1] in _NOTHING or parts[0] in ("is", "num", "has")):
        return "nothing"
    return "unknown"


def in_milliseconds(key: str) -> bool:
    return not _MILLISECONDS.isdisjoint(words(key))


def says_medium(key: str) -> str:
    """The kind of medium that a key speaks of: image, audio, video, or medium for any; "" for none."""
    parts = {part.rstrip("0123456789") for part in words(key)} if key != "voice" else set()
    for kind, own in (("image", IMAGE_WORDS), ("audio", AUDIO_WORDS), ("video", VIDEO_WORDS),
                      ("medium", PATH_WORDS)):
        if parts & own:
            return kind
    joined = "".join(words(key))  # imagefile, audioclip
    return next((kind for kind, stem in (("image", "image"), ("audio", "audio"), ("video", "video"),
                                         ("image", "picture"), ("image", "photo"), ("medium", "filepath"))
                 if stem in joined), "")
