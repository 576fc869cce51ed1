"""Guesses the task of samples that name none, from their media, their question and their answer."""

import re
from collections import Counter, defaultdict

from omni.data.sample import AUDIO, Sample

# Words that ask for a transcript, and those that ask for something else, in some common languages.
_TRANSCRIBE = re.compile(
    r"transcri|transkri|trascri|транскри|расшифр|распозна|speech.?to.?text|\basr\b|dictat|diktat|"
    r"(what|which words?) (is|are|was|were|did|does|do) .*(said|say|spoken)|write (down|out)|"
    r"repeat (what|the)|was (wird|wurde|sagt|ist) .*(gesagt|person|sprecher)|schreib.* (auf|nieder)|"
    r"qu.est-ce qui est dit|qu[eé] (se )?dice|o que (é|foi) dito|"
    "转写|轉寫|转录|轉錄|听写|聽寫|语音识别|語音識別|转.{0,4}文[字本]|说了什么|說了什麼|"
    "文字起こし|書き起こ|何と言|받아.?(쓰|적)|전사", re.I)
TRANSLATE = re.compile(r"translat|übersetz|tradu[cizs]|перев[ео]д|翻译|翻譯|訳し|번역", re.I)
_OTHER = re.compile(
    r"answer|respond|reply|beantwort|antworte|répond|"
    r"respond[ea]|ответ|回答|答え|대답|describ|caption|beschreib|décri|descri[bv]|опиши|描述|summar|zusammenfass|"
    r"résum|resum|总结|總結|要約|요약|emotion|music|sound|classif", re.I)
_MARKUP = re.compile(r"\n|\*\*|```|https?:")  # nobody says these
SHORT = 12  # words of an answer that can be right or wrong as a whole
LONGEST_SPOKEN = 110  # words that can be said within 30 s, the longest clip


def guess_task(messages, images, audios, transcript: str = "") -> str:
    """The task of one sample; "" where the other samples of its source must be looked at.

    asr: the answer is the words of the clip. qa: a short answer about media. text: all others, also a long
    reply.
    """
    if not images and not audios:
        return "text"
    answer = messages[-1][1]
    short = is_short(answer)
    if images:
        return "qa" if short else "text"
    prompt = _prompt(messages)
    if transcript:
        return "asr" if _plain(transcript) == _plain(answer) else "qa" if short else "text"
    if _words(answer) > LONGEST_SPOKEN or _MARKUP.search(answer):
        return "text"
    if TRANSLATE.search(prompt):
        return "text"
    if _TRANSCRIBE.search(prompt):
        return "asr"
    if not prompt:  # a spoken question and its reply have several turns, or are told how to behave
        return "text" if len(messages) > 2 else "asr"
    if _OTHER.search(prompt):
        return "qa" if short else "text"
    return ""


def guess_tasks(samples: list[Sample]) -> None:
    """Put a task in place of each "", by what the source's samples about clips have in common.

    If many samples share a question and most answers differ, they are transcripts: the question asks for them
    in words that we don't know.
    """
    open_ones = [i for i, sample in enumerate(samples) if not sample.task]
    if not open_ones:
        return
    by_question: dict[str, list[int]] = defaultdict(list)
    for i in open_ones:
        by_question[_prompt(samples[i].messages)].append(i)
    for numbers in by_question.values():
        answers = Counter(_plain(samples[i].answer) for i in numbers)
        words = sum(_words(samples[i].answer) for i in numbers) / len(numbers)
        # A question that few samples share is about its own clip.
        shared = len(numbers) >= max(3, len(open_ones) / 20)
        transcripts = shared and words >= 2 and len(answers) > 0.6 * len(numbers)
        for i in numbers:
            short = is_short(samples[i].answer)
            samples[i] = samples[i]._replace(task="asr" if transcripts else "qa" if short else "text")


def is_short(answer: str) -> bool:
    return _words(answer) <= SHORT


def _prompt(messages) -> str:
    return " ".join(content.replace(AUDIO, "") for role, content in messages if role == "user").strip()


def _words(text: str) -> int:
    """Words; where they are not separated, each character outside ASCII counts for half of one."""
    return max(len(text.split()), 0 if text.isascii() else sum(ord(c) > 0x2E80 for c in text) // 2)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
