"""Grading of answers, and the task that is guessed for a sample that names none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni.data.sample import Sample
from omni.data.tasks import guess_task, guess_tasks
from omni.eval.grading import (
    WordErrors,
    correct,
    normalise_answer,
    normalise_words,
    word_distance,
    word_errors,
)

words = st.lists(st.sampled_from(["one", "two", "red", "a", "don't"]), max_size=8)


@pytest.mark.parametrize("a, b", [
    ("Yes", "yes"), ("A cat.", "cat"), ("the  Red car!", "red car"), ("two", "2"), ("Twenty dogs", "20 dogs"),
    ("an apple", "apple"), ("  blue ", "blue"), ('"green"', "green"), ("black, white", "black white"),
    ("It's", "it's"), ("no?", "no")])
def test_answers_that_vqa_counts_as_equal_are_correct(a, b):
    assert correct(a, b) and correct(b, a)


@pytest.mark.parametrize("a, b", [("cat", "dog"), ("2", "3"), ("", "cat"), ("red cat", "cat"),
                                  ("theory", "ory")])
def test_other_answers_are_wrong(a, b):
    assert not correct(a, b)


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing_more(text):
    assert normalise_answer(normalise_answer(text)) == normalise_answer(text)


def distance(a: list[str], b: list[str]) -> int:
    """Levenshtein distance by its usual recurrence."""
    table = [[max(i, j) if not i or not j else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            kept = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, kept)
    return table[-1][-1]


@given(words, words)
def test_word_errors_are_the_edit_distance(reference, answer):
    errors = word_errors(" ".join(answer), " ".join(reference))
    assert errors == WordErrors(distance(reference, answer), len(reference))


def test_corpus_word_error_rate_is_all_errors_over_all_words():
    total = word_errors("one", "two") + word_errors("one two three", "one two three")
    assert total.rate == pytest.approx(1 / 4)
    assert WordErrors().rate == 0 and word_errors("a b c", "x").rate == 3


def test_transcripts_are_compared_without_case_and_punctuation():
    assert normalise_words("Hello, World! don't") == ["hello", "world", "don't"]
    assert word_errors("hello world", "Hello, world.").errors == 0


@pytest.mark.parametrize("question, images, audios, task", [
    ("hi", (), (), "text"), ("<image>What?", ("p",), (), "qa"), ("<audio>Transcribe.", (), ("c",), "asr"),
    ("<audio>", (), ("c",), "asr"), ("<audio>How many?", (), ("c",), ""),
    ("<audio>What is said?", (), ("c",), "asr"),
    ("<image><audio>Transcribe", ("p",), ("c",), "qa")])
def test_the_task_is_guessed_from_media_and_question(question, images, audios, task):
    assert guess_task((("user", question), ("assistant", "x")), images, audios) == task


def test_word_distance_is_the_share_of_words_not_in_common():
    assert word_distance("A red cat.", "a red cat") == 0 and word_distance("", "cat") == 1
    assert word_distance("a dog", "a red cat") == pytest.approx(2 / 3)
    assert word_distance("cat " * 10, "cat") == pytest.approx(0.9)

@pytest.mark.parametrize("a, b", [
    ("the", "A"), ("", "A"), ("", "the"), ("5", "-5"), ("50", "50 %"), ("3.5", "35"), ("1.5", "15"),
    ("C", "C#"),
    ("C", "C++"), ("3/4", "34"), ("5", "$5"), ("option A", "option"), ("A", "B"), ("?", "!"), ("20 °C", "20"),
    ("R&D", "RD"), ("x²", "x2"), ("1,5", "15"), ("-5", "+5"), ("10", "1.0")])
def test_articles_signs_points_and_symbols_count(a, b):
    assert not correct(a, b) and not correct(b, a)


@pytest.mark.parametrize("a, b", [
    ("50%", "50 %"), ("−5", "-5"), ("1,000", "1000"), ("‘green’", "green"), ("“It’s”", "it's"), ("5.", "5"),
    ("(5)", "5"),
    ("+5", "5"), ("the A", "a"), ("vitamin A", "Vitamin a."), ("¿qué?", "qué"), ("你好。", "你好"),
    ("**cat**", "cat"),
    ("cafe\u0301", "café"), ("3-5", "3 – 5"), ("$5", "$ 5"), ("an apple.", "apple"), ("?", " ? ")])
def test_spellings_of_the_same_answer(a, b):
    assert correct(a, b) and correct(b, a)


@pytest.mark.parametrize("a, b", [
    ("“Hello,” she said… it’s fine!", "hello she said it's fine"), ("«Bonjour» – dit-il", "bonjour dit il"),
    ("¿Qué tal?", "qué tal"), ("‘twas the night", "twas the night"), ("cafe\u0301", "café"),
    ("नमस्ते।", "नमस्ते"),
    ("你好,世界!", "你好世界"), ("こんにちは。", "こんにちは"),
    ("rock ‘n’ roll", "rock n roll"), ("schön！", "schön")])
def test_unicode_punctuation_and_composition_are_no_word_errors(a, b):
    assert word_errors(a, b).errors == 0 and word_errors(a, b).words > 0


@pytest.mark.parametrize("reference, answer, errors, units, by_character", [
    ("今天天气好", "今天天汽好", 1, 5, True), ("お元気ですか", "元気ですか", 1, 6, True),
    ("สวัสดี", "สวัสดี", 0, 6, True),
    ("안녕 하세요", "안녕 하세", 1, 2, False), ("good day", "good 天", 1, 2, False),
    ("我喜欢 Python", "我喜欢 python", 0, 4, True)])
def test_characters_are_the_words_of_scripts_without_spaces(reference, answer, errors, units, by_character):
    found = word_errors(answer, reference)
    assert (found.errors, found.words, found.by_character) == (errors, units, by_character)


def samples_about_clips(question: str, answers: list[str]) -> list[Sample]:
    samples = [Sample(("user", f"<audio>{question}", "assistant", answer), (), (f"{i}.wav",),
                      guess_task((("user", f"<audio>{question}"), ("assistant", answer)), (), ("c",)))
               for i, answer in enumerate(answers)]
    guess_tasks(samples)
    return samples


WORDS = ["the cat sat on the mat", "it rained all day", "nobody came to see", "where is my hat",
         "go home now"]


@pytest.mark.parametrize("question, answers, task", [
    ("Transcribe.", ["yes"], "asr"), ("Bitte transkribieren.", WORDS, "asr"),
    ("请转写这段语音", WORDS, "asr"),
    ("Écris les paroles.", WORDS, "asr"), ("Skriv ned ordene.", WORDS, "asr"),
    ("書き起こしてください", WORDS, "asr"),
    ("", WORDS, "asr"), ("Hvem taler?", ["mand", "kvinde", "mand", "kvinde", "mand"], "qa"),
    ("Is it a dog?", ["yes", "no", "yes", "no", "no"], "qa"), ("How many?", ["two"], "qa"),
    ("Translate this.", WORDS, "text"), ("Answer the question.", [f"{w} " * 5 for w in WORDS], "text"),
    ("", ["**Sure.** " + w for w in WORDS], "text"), ("", ["Of course. " * 100] * 3, "text"),
    ("Describe the sound.", ["a dog barks while rain falls on the roof of a small house nearby"] * 3,
     "text")])
def test_the_task_is_guessed_from_the_question_and_the_answers(question, answers, task):
    assert {s.task for s in samples_about_clips(question, answers)} == {task}


def test_a_spoken_chat_is_neither_a_transcript_nor_a_question():
    turns = (("user", "<audio>"), ("assistant", "Sure."), ("user", "<audio>"),
             ("assistant", "You are welcome."))
    assert guess_task(turns, (), ("a", "b")) == "text"
    assert guess_task((("system", "Be kind."), *turns[:2]), (), ("a",)) == "text"
    assert guess_task(turns[:2], (), ("a",), transcript="sure") == "asr"
    assert guess_task(turns[:2], (), ("a",), transcript="can you help me") == "qa"
    assert guess_task((("user", "<image>?"), ("assistant", "long " * 30)), ("p",), ()) == "text"
