"""The shipped text: no question that is held out is in training, and equal seeds give equal lines."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "data"))

import assistant  # noqa: E402
import make_text  # noqa: E402
import picture_words  # noqa: E402
import talks  # noqa: E402
from facts import HELD, RELATIONS, fill  # noqa: E402
from fresh_text import ONE_QUESTION, QUESTIONS, SHARES, TEXT_ONLY, Fresh  # noqa: E402
from wordings import plain, slipped, typed  # noqa: E402
from world import HELD_OUT_PAIRS, KINDS, article  # noqa: E402


def lines(name: str) -> list[dict]:
    path = ROOT / "data" / "tiny" / "text_only" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prompt(line: dict) -> str:
    return plain(" ".join(m["content"] for m in line["messages"][:-1] if m["role"] != "system"))


@pytest.fixture(scope="module")
def drawn() -> list[dict]:
    fresh = Fresh(5)
    return [json.loads(fresh.line(named=True)) for _ in range(2500)]


def test_the_shipped_held_out_lines_are_what_the_script_makes():
    path = ROOT / "data" / "tiny" / "text_only" / "val.jsonl"
    assert path.read_text(encoding="utf-8").splitlines() == make_text.held_out(0)


def test_no_held_out_prompt_is_trained_on(drawn):
    """Except how small talk goes on, which is held out by the names in it."""
    held = {prompt(line) for line in lines("val")}
    trained = [line for line in drawn if "messages" in line and "objects" not in line] + lines("train")
    for line in trained:
        turns = line["messages"]
        users = [plain(m["content"]) for m in turns if m["role"] == "user"]
        assert held.isdisjoint(users) and prompt(line) not in held, users


def test_held_out_facts_are_stated_but_never_asked():
    fresh = Fresh(2)
    asked = {plain(turns[-2][1]) for turns in (fresh.fact() for _ in range(4000))}
    texts = [made for made in (fresh.statements() for _ in range(1500)) if isinstance(made, str)]
    stated = " ".join(map(plain, texts))
    for relation in RELATIONS:
        for s in HELD[relation.name]:
            a = relation.facts[s]
            questions = {plain(fill(q, s, a)) for q in (*QUESTIONS[relation.name], *relation.questions)}
            assert asked.isdisjoint(questions)
            assert any(plain(fill(form, s, a)) in stated for form in relation.statements), s


def test_the_held_out_wording_of_a_relation_is_not_among_those_of_training():
    for relation in RELATIONS:
        trained = {plain(q) for q in QUESTIONS[relation.name]}
        assert plain(relation.questions[-1]) not in trained and len(trained) > 25


def test_held_out_sums_spellings_and_pairs_are_not_drawn(drawn):
    fresh, held = Fresh(1), 0
    for _ in range(3000):
        words = fresh.sum()[-2][1].replace("+", " + ").replace("-", " - ").strip(".?=").split()
        numbers = [int(w.strip("?.")) for w in words if w.strip("?.").isdigit()]
        sign = "-" if {"-", "minus"} & {*words} else "+"
        if len(numbers) == 2:
            held += talks.is_held_out_sum(sign, *numbers)
    assert held == 0
    for _ in range(2000):
        answer = fresh.spelling()[-1][1]
        assert talks.may_spell(answer.replace("-", ""), False)
    for line in drawn:
        for thing in line.get("objects", ()):
            *_, color, kind = ("", *thing["words"])
            assert (kind, color) not in HELD_OUT_PAIRS


def test_the_assistant_answers_held_out_wordings_as_others():
    about = [line for line in lines("val") if line["kind"] in ("about", "definition")]
    known = {*assistant.INTENTS, *assistant.DEFINITIONS.values()}
    assert len(about) > 40
    for line in about:
        answer = line["messages"][-1]["content"]
        assert answer in known or answer.endswith("how can I help you?")
    fresh = Fresh(3)
    assert {*assistant.INTENTS} <= {fresh.about()[-1][1] for _ in range(600)}


def test_equal_seeds_give_equal_lines_for_any_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(make_text, "PART", 40)
    monkeypatch.setattr(make_text, "FRESH_VAL", 30)
    for name, procs in (("a", 1), ("b", 2)):
        make_text.write_fresh(tmp_path / name, 100, 0, procs)
    one, other = ([(tmp_path / name / f"{split}.jsonl").read_text() for split in ("train", "val")]
                  for name in ("a", "b"))
    assert one == other and len(one[0].splitlines()) == 100 and len(one[1].splitlines()) == 30
    assert len({*one[0].splitlines()}) > 95


def test_the_share_of_pictures_is_as_asked(monkeypatch):
    monkeypatch.setattr(make_text, "PART", 600)
    lines = make_text.fresh_lines(1, make_text.with_pictures(45), 1)
    assert 0.39 < sum('"objects"' in line for line in lines) / len(lines) < 0.51
    assert make_text.with_pictures(45).keys() == SHARES.keys()


@pytest.fixture(scope="module")
def told():
    """Pictures that are told by their objects, with their questions."""
    rng, balance = np.random.default_rng(0), {}
    return [picture_words.picture(rng, balance) for _ in range(800)]


def test_no_told_thing_has_its_held_out_color(told):
    pairs = {(words[-1], words[-2]) for one in told for words in (o["words"] for o in one["objects"])
             if len(words) > 1}
    assert not pairs & HELD_OUT_PAIRS
    assert len(pairs) > 400  # many more than there are drawn kinds and colors


def test_a_noun_that_is_not_drawn_is_asked_for_where_it_is_and_where_it_is_not(told):
    """Else "yes" could be told from the noun alone."""
    new = {article(kind) for kind in picture_words.MORE_KINDS} - {article(kind) for kind in KINDS}
    answers = Counter(answer["content"] for one in told
                      for question, answer in zip(one["messages"][::2], one["messages"][1::2], strict=True)
                      if any(plain(question["content"]).endswith(f" {noun}") for noun in new)
                      and answer["content"] in ("yes", "no"))
    assert min(answers["yes"], answers["no"]) > 0.25 * answers.total() > 10


def test_nothing_is_asked_again_in_other_words(told):
    """The second answer would be a copy of the first."""
    for one in told:
        counts = [a["content"] for q, a in zip(one["messages"][::2], one["messages"][1::2], strict=True)
                  if q["content"].lower().startswith(("how many", "count the"))]
        assert len(counts) == len({*counts})


def test_every_kind_is_drawn_and_is_a_method(drawn):
    assert {line["kind"] for line in drawn} == {*SHARES} >= {*TEXT_ONLY}
    assert {*ONE_QUESTION} <= {*TEXT_ONLY}


def test_a_typed_text_keeps_its_words_or_has_one_slip():
    rng, text = Fresh(0).rng, "What is the capital of France?"
    for _ in range(200):
        words = typed(rng, text).split(" ")
        assert len(words) == 6
        assert sum(plain(a) != plain(b) for a, b in zip(words, text.split(" "), strict=True)) <= 1
    assert {slipped(rng, "a cat") for _ in range(20)} == {"a cat"}
