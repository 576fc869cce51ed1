"""Grading of answers, and the task that is guessed for a sample that names none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni.data.tasks import guess_task
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
