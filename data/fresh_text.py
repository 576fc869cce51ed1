"""Text that hardly repeats: every line is drawn anew, by the same rules of what is held out.

A model of a few million weights learns to look a word up, to compare or to add from many fresh examples, not
from few that it sees often.
"""

import json
import random

import assistant
import facts
import numpy as np
import talks
from facts import RELATIONS, fill
from picture_words import picture
from scenes import Balance, Conversation, Dice, caption, conversation
from sentences import LEXICON, free_strings, template_sentence
from stories import story
from talks import FULL, SHORT, is_held_out_sum, is_small
from transcripts import spoken_questions
from wordings import more_questions, plain, typed
from world import NUMBER_WORDS

SHARES = {  # kind of line -> how often it is drawn
    "picture": 14.0,
    "scene": 13.0,
    "spoken_scene": 3.0,
    "fact": 15.0,
    "is_fact": 1.5,
    "statements": 8.0,
    "sum": 16.0,
    "list": 9.0,
    "counting": 5.5,
    "ordering": 9.0,
    "spelling": 16.0,
    "dialogue": 1.5,
    "about": 3.0,
    "definition": 1.5,
    "unknown": 3.5,
    "story": 0.6,
    "caption": 0.5,
    "spoken": 2.5,
    "spoken_question": 4.0,
}
TEXT_ONLY = {  # those that a fine-tuning keeps in its mix
    "scene": 15.0, "fact": 19.0, "is_fact": 2.0, "sum": 16.0, "list": 10.0, "counting": 7.0, "ordering": 8.0,
    "spelling": 8.0, "dialogue": 3.0, "about": 5.0, "definition": 3.0, "unknown": 5.0,
}
ONE_QUESTION = ("fact", "sum", "list", "about", "definition", "unknown", "counting", "spelling")
QUESTIONS = {r.name: (*r.questions[:-1], *more_questions(r.name)) for r in RELATIONS}
SPELL = ("Spell the word {}.", "How do you spell {}?", "Please spell {}.", "Say the letters of {}.",
         "Spell {}.", "Can you spell {}?", "Which letters are in {}?", "How is {} spelled?")
SUM = ("What is {}?", "How much is {}?", "Compute {}.", "{} = ?", "{}", "{}?", "How much is {}, please?",
       "Tell me {}.", "What's {}?", "What do you get for {}?", "Can you compute {}?")
SAY_AGAIN = ("Repeat: {}", "Say this: {}", "Say again: {}", "Remember this: {}")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Fresh:
    """Draws lines. Equal seeds give equal lines."""

    def __init__(self, seed: int):
        self.rng, self.balance = Dice(seed), Balance()
        self.pictures, self.settled = np.random.default_rng(seed), {}
        self.asked = spoken_questions(random.Random(seed))

    def line(self, shares: dict[str, float] = SHARES, named: bool = False, longer: bool = True) -> str:
        """One line of a manifest, of a random kind; with its kind, if `named`.

        If `longer`, some conversations go on with another question.
        """
        kind = self.rng.choices(list(shares), list(shares.values()))[0]
        made = self._made(kind, longer)
        return json.dumps({**made, "kind": kind} if named else made, ensure_ascii=False)

    def _made(self, kind: str, longer: bool) -> dict:
        made = getattr(self, kind)()
        if isinstance(made, str):
            return {"text": made}
        if isinstance(made, dict):
            return made
        if longer and kind in ONE_QUESTION and self.rng.random() < 0.12:
            made = made + self.later()  # talk that goes on about something else
        return {"messages": [{"role": r, "content": c} for r, c in made]}

    def later(self) -> Conversation:
        """One more question, without a system prompt."""
        kind = self.rng.choice(("sum", "list", "about", "definition", "unknown", "spelling", "counting"))
        return [turn for turn in getattr(self, kind)() if turn[0] != "system"]

    def _typed(self, turns: Conversation, typos: bool = True) -> Conversation:
        """The conversation with its questions as they are typed."""
        return [(r, typed(self.rng, t, typos) if r == "user" else t) for r, t in turns]

    def picture(self) -> dict:
        return picture(self.pictures, self.settled)

    def scene(self) -> Conversation:
        turns = conversation(self.rng, False, self.balance, self.rng.randint(1, 6))
        return [turns[0], *self._typed(turns[1:], typos=False)]

    def spoken_scene(self) -> Conversation:
        turns = conversation(self.rng, False, self.balance, self.rng.randint(1, 4))
        return [(r, plain(t)) for r, t in turns]

    def fact(self) -> Conversation:
        return self._typed(self._asked_fact())

    def _asked_fact(self) -> Conversation:
        rng = self.rng
        relation, s, a = facts.draw(self.rng, False)
        few = relation.questions[:-1]
        question = fill(rng.choice(few if rng.random() < 0.3 else QUESTIONS[relation.name]), s, a)
        style = rng.random()
        if style < 0.4:
            prompts = SHORT[2:] if " " in a else SHORT
            return [("system", rng.choice(prompts)), ("user", question), ("assistant", a)]
        system = [("system", rng.choice(FULL))] if style < 0.6 else []
        return [*system, ("user", question), ("assistant", fill(relation.statements[0], s, a))]

    def is_fact(self) -> Conversation:
        """Whether a statement is true."""
        rng, (relation, s, a) = self.rng, facts.draw(self.rng, False)
        others = [other for other in {*relation.facts.values()} if other != a]
        true = rng.random() < 0.5
        claim = fill(rng.choice(relation.statements), s, a if true else rng.choice(sorted(others)))
        form = rng.choice(("Is this true: {}", "True or false: {}", "Is it right? {}", "{} Is that right?"))
        answer = ("yes", "no") if "alse" not in form else ("true", "false")
        return [("user", typed(rng, form.format(claim))), ("assistant", answer[not true])]

    def statements(self) -> str | Conversation:
        """Facts as they are stated, those that are never asked about among them."""
        rng, said = self.rng, []
        for _ in range(rng.randint(2, 6)):
            relation, s, a = facts.draw(rng, rng.random() < 0.25)
            said.append(fill(rng.choice(relation.statements), s, a))
        if rng.random() < 0.2:
            return [("user", rng.choice(SAY_AGAIN).format(said[0])), ("assistant", said[0])]
        text = " ".join(said)
        return text.lower() if rng.random() < 0.1 else text

    def sum(self) -> Conversation:
        """A sum or difference of numbers below 100, in digits or, if small, in words."""
        rng = self.rng
        while True:
            top = rng.choice((14, 20, 20, 50, 50, 99))
            a, b, sign = rng.randint(0, top), rng.randint(0, top), rng.choice("+++--")
            if sign == "-":
                a, b = max(a, b), min(a, b)
            if not is_held_out_sum(sign, a, b):
                break
        value, word = (a + b, "plus") if sign == "+" else (a - b, "minus")
        if is_small(sign, a, b) and rng.random() < 0.6:
            text, answer = f"{NUMBER_WORDS[a]} {word} {NUMBER_WORDS[b]}", NUMBER_WORDS[value]
            question = rng.choice(SUM[:2] if rng.random() < 0.5 else SUM).format(text)
            return [("user", typed(rng, question, typos=False)), ("assistant", answer)]
        full = f"{a} {sign} {b}"
        text = full if rng.random() < 0.7 else rng.choice((f"{a} {word} {b}", f"{a}{sign}{b}"))
        question = rng.choice(SUM[:4] if rng.random() < 0.6 else SUM).format(text)
        question = question.lower() if rng.random() < 0.15 else question
        if rng.random() < 0.2:
            return [("system", rng.choice(SHORT)), ("user", question), ("assistant", str(value))]
        return [("user", question), ("assistant", f"{full} = {value}.")]

    def list(self) -> Conversation:
        return talks.lists(self.rng, False)

    def counting(self) -> Conversation:
        return talks.counting(self.rng, False)

    def ordering(self) -> Conversation:
        return talks.ordering(self.rng, False)

    def dialogue(self) -> Conversation:
        return talks.small_talk(self.rng, False)

    def spelling(self) -> Conversation:
        """Mostly words that don't exist: parts of others and random letters, so that spelling is a skill."""
        word = self._word()
        if self.rng.random() < 0.2:
            return [("user", f"Which word is this: {'-'.join(word)}?"), ("assistant", word)]
        form = self.rng.choice(SPELL)
        text = form.format(word)
        return [("user", text.lower() if self.rng.random() < 0.1 else text), ("assistant", "-".join(word))]

    def _word(self) -> str:
        """A word that may be spelled in training, or one made of two parts of words."""
        rng = self.rng
        while True:
            kind = rng.random()
            if kind < 0.25:
                word = rng.choice(LEXICON)
            elif kind < 0.9:
                one, other = rng.sample(LEXICON, 2)
                word = one[:rng.randint(1, len(one))] + other[-rng.randint(1, len(other)):]
            else:
                word = "".join(rng.choices(LETTERS, k=rng.randint(2, 6)))
            if 2 <= len(word) <= 9 and talks.may_spell(word, False):
                return word

    def about(self) -> Conversation:
        turns = assistant.about(self.rng, False)
        system = [("system", FULL[0])] if self.rng.random() < 0.15 else []
        return system + self._typed(turns)

    def definition(self) -> Conversation:
        return self._typed(assistant.definition(self.rng, False))

    def unknown(self) -> Conversation:
        return self._typed(assistant.unknown(self.rng, False))

    def story(self) -> str:
        return story(self.rng)

    def caption(self) -> str:
        return caption(self.rng)

    def spoken(self) -> str:
        """What somebody says, as in a transcript."""
        kind = self.rng.random()
        if kind < 0.4:
            return template_sentence(self.rng)[0]
        if kind < 0.6:
            return free_strings(1, self.rng)[0]
        if kind < 0.8:
            return plain(self._asked_fact()[-2][1])
        make = self.rng.choice((assistant.about, assistant.definition, assistant.unknown))
        return plain(make(self.rng, False)[0][1])

    def spoken_question(self) -> Conversation:
        question, answer = self.rng.choice(self.asked)
        return [("user", question), ("assistant", answer)]
