"""More wordings of the facts' questions, for training alone, and how a text is typed in a hurry.

None is the held-out wording of its relation (the last of `Relation.questions`).
"""

import random
import re

# relation -> (noun phrases that name what is asked for, whole questions)
_PHRASES = {
    "capital": ("the capital of {s}|the main city of {s}",
                "{s} has which capital?|Which city is the main city of {s}?|What is {s}'s capital?|"
                "The capital of {s}?"),
    "sound": ("the sound of the {s}|the sound that the {s} makes|what the {s} says",
              "How does the {s} sound?|How does {xs} go?|What does {xs} say?|What noise does the {s} make?|"
              "Which sound do you hear from the {s}?"),
    "legs": ("the number of legs of the {s}|how many legs the {s} has",
             "How many legs are there on the {s}?|On how many legs does the {s} walk?|"
             "How many legs does {xs} have?|How many legs do you count on the {s}?"),
    "home": ("the home of the {s}|the place where the {s} lives|where the {s} lives",
             "Where is the home of the {s}?|Where does {xs} live?|In which place do you find the {s}?|"
             "Where can I see the {s}?|What place is the home of the {s}?"),
    "food": ("the food of the {s}|what the {s} eats|what the {s} likes to eat",
             "What does {xs} eat?|What does the {s} have for dinner?|What food does the {s} want?|"
             "What can I give to the {s}?|Which food does the {s} like?"),
    "young": ("the baby of the {s}|the word for a young {s}|what a young {s} is called",
              "How do you call a young {s}?|What do we call the baby of the {s}?|What is a baby {s}?|"
              "What is the name of a young {s}?|A young {s} is called what?"),
    "color": ("the color of {s}|the usual color of {s}|which color {s} has",
              "Which color is {s}?|What color does {s} have?|Which color has {s}?|"
              "In which color do you see {s}?|"
              "How do you paint {s}?"),
    "use": ("the use of the {s}|what the {s} is used for|what you do with the {s}",
            "What can you do with the {s}?|What is the {s} for?|What does the {s} help you to do?|"
            "Why do you need the {s}?|When do you need the {s}?"),
    "group": ("what {s} is|what kind of thing {s} is|the group of {s}",
              "{S} is what kind of thing?|What sort of thing is {s}?|What do you call {s}?|"
              "Which group has {s} in it?|What would you say {s} is?"),
    "past": ("the past of {s}|the past form of {s}|the word {s} in the past",
             "What is {s} in the past?|How does {s} sound in the past?|Which word is the past of {s}?|"
             "Today {s}, yesterday what?|What do we say for {s} in the past?"),
    "plural": ("the plural of {s}|the plural form of {s}|the word for many of {s}",
               "One {s}, two what?|How do you say {s} in the plural?|Which word is the plural of {s}?|"
               "What do we say for more than one {s}?|Put {s} into the plural."),
    "job": ("the work place of the {s}|where the {s} works|the place where the {s} works",
            "Where do you find the {s}?|Where does {xs} work?|Where does the {s} go every day?|"
            "At which place is the {s}?|In what place can you meet the {s}?"),
    "material": ("the material of the {s}|what the {s} is made of|what a {s} is made from",
                 "What is a {s} made from?|What material is the {s}?|What do you take to make a {s}?|"
                 "Which material is the {s} made of?|What stuff makes a {s}?"),
    "amount": ("the number of {s}|how many {s} there are",
               "How many {s} are there?|What number of {s} is there?|How many {s} do we count?|"
               "Can you say how many {s}?"),
    "opposite": ("the opposite of {s}|the word that is the opposite of {s}",
                 "What is not {s}?|What do you get if you turn {s} round?|What stands against {s}?|"
                 "Which word means the opposite of {s}?|What is the other side of {s}?|"
                 "What is contrary to {s}?"),
    "after": ("what comes after {s}|the next after {s}|what follows {s}",
              "Which comes after {s}?|First comes {s}, and then?|What do we have after {s}?|"
              "{s} is followed by what?|When {s} is over, what is next?"),
}
_FRAMES = ("What is {}?", "Tell me {}.", "Name {}.", "Give me {}.", "Say {}.", "Do you know {}?",
           "I want to know {}.",
           "Please tell me {}.", "Can you tell me {}?", "Can you name {}?", "What would you say is {}?",
           "Let me know {}.", "I ask for {}.", "And {}?")


def plain(text: str) -> str:
    """Text as in a transcript: lower case, no punctuation."""
    return " ".join(re.sub(r"[^a-z0-9+\-= ]", " ", text.lower()).split())


def more_questions(name: str, held_out: str) -> list[str]:
    """Templates of questions about the relation `name`, without its `held_out` one."""
    phrases, questions = (text.split("|") for text in _PHRASES[name])
    found = questions + [frame.format(phrase) for phrase in phrases for frame in _FRAMES]
    return [text for text in found if plain(text) != plain(held_out)]


def typed(rng: random.Random, text: str, typos: bool = True) -> str:
    """The text as people type it: mostly as it is, or in lower case, without punctuation, with a slip."""
    style = rng.random()
    if style < 0.6:
        return text
    if style < 0.8:
        text = text.lower()
    if style < 0.92:
        text = re.sub(r"[.?!,]+(?=\s|$)", "", text)
    if typos and rng.random() < 0.4:
        text = slipped(rng, text)
    return text


def slipped(rng: random.Random, text: str) -> str:
    """The text with one slip in one longer word: a letter lost, doubled, or two in the wrong order."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not long:
        return text
    i = rng.choice(long)
    word, at = words[i], rng.randint(1, len(words[i]) - 2)
    words[i] = rng.choice((word[:at] + word[at + 1:], word[:at] + word[at] + word[at:],
                           word[:at] + word[at + 1] + word[at] + word[at + 2:]))
    return " ".join(words)
