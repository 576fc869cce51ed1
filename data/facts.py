"""The facts of this world, by relation, with the sentences that state them and the questions that ask them.

In the templates `{s}` is the subject and `{a}` the answer; `{S}` and `{A}` begin with a capital, `{xs}` and
`{xa}` have an article.
"""

import random
from typing import NamedTuple
from zlib import crc32

from sentences import HOMES, LEGS, OPPOSITES, SOUNDS, TRUE_COLORS
from world import article


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.split(":") for pair in text.replace("\n", "|").strip("|").split("|"))


CAPITALS = _pairs("""France:Paris|Italy:Rome|Spain:Madrid|Germany:Berlin|England:London|Norway:Oslo
Sweden:Stockholm
Finland:Helsinki|Denmark:Copenhagen|Poland:Warsaw|Austria:Vienna|Greece:Athens|Ireland:Dublin|Portugal:Lisbon
Russia:Moscow|Japan:Tokyo|China:Beijing|India:Delhi|Egypt:Cairo|Kenya:Nairobi|Canada:Ottawa|Mexico:Mexico City
Cuba:Havana|Peru:Lima|Chile:Santiago|Brazil:Brasilia|Turkey:Ankara|Iran:Tehran|Iraq:Baghdad|Hungary:Budapest
Ukraine:Kyiv|Belgium:Brussels|Iceland:Reykjavik|Thailand:Bangkok|Vietnam:Hanoi|Nepal:Kathmandu|Ghana:Accra""")
YOUNG = _pairs(
    "cat:kitten|dog:puppy|cow:calf|sheep:lamb|horse:foal|pig:piglet|duck:duckling|hen:chick|bear:cub|"
    "goat:kid|deer:fawn|frog:tadpole|swan:cygnet|goose:gosling|butterfly:caterpillar|owl:owlet"
)
FOOD = _pairs(
    "cat:mice|cow:grass|rabbit:carrots|bear:honey|monkey:bananas|horse:hay|squirrel:nuts|bird:seeds|"
    "mouse:cheese|panda:bamboo|frog:flies|lion:meat|koala:leaves|hen:corn|dog:bones|spider:insects|seal:fish"
)
USES = _pairs(
    "knife:cut bread|pen:write|broom:sweep|hammer:hit nails|oven:bake|key:open doors|clock:tell the time|"
    "bed:sleep|cup:drink|spoon:eat soup|lamp:see at night|umbrella:stay dry|scissors:cut paper|"
    "phone:call friends|towel:dry hands|needle:sew|shovel:dig|brush:paint|soap:wash|map:find the way|"
    "boat:cross the water|camera:take photos|ladder:climb up|bag:carry things"
)
GROUPS = {  # group -> members; those of BARE_GROUPS take no article
    "fruit": "apple banana pear orange cherry grape lemon",
    "vegetable": "carrot potato onion cabbage bean pea",
    "animal": "tiger fox wolf goat zebra camel",
    "tool": "hammer saw drill shovel axe",
    "flower": "rose tulip lily daisy",
    "vehicle": "bus train truck car bicycle",
    "bird": "eagle owl robin swan duck",
    "fish": "salmon trout tuna shark",
    "instrument": "piano violin drum flute guitar",
    "tree": "oak pine birch maple willow",
}
BARE_GROUPS = {
    "metal": "iron gold silver copper tin",
    "color": "red blue green pink brown",
    "planet": "Mars Venus Saturn Jupiter",
    "drink": "water milk tea juice coffee",
    "game": "chess tennis football golf",
    "country": "France Italy Spain Japan Peru",
}
MEMBERS = {article(w): k for k, words in GROUPS.items() for w in words.split()}
MEMBERS |= {w: k for k, words in BARE_GROUPS.items() for w in words.split()}
PAST = _pairs("""go:went|see:saw|eat:ate|run:ran|sing:sang|swim:swam|come:came|give:gave|take:took
make:made|have:had
find:found|fly:flew|drink:drank|sit:sat|write:wrote|buy:bought|think:thought|sleep:slept|tell:told|know:knew
grow:grew|fall:fell|walk:walked|play:played|jump:jumped|help:helped|open:opened|look:looked|bring:brought""")
PLURALS = _pairs(
    "child:children|man:men|woman:women|foot:feet|tooth:teeth|mouse:mice|goose:geese|sheep:sheep|fish:fish|"
    "leaf:leaves|wolf:wolves|knife:knives|box:boxes|bus:buses|baby:babies|city:cities|dog:dogs|cat:cats|"
    "house:houses|tree:trees|person:people|dish:dishes|glass:glasses|story:stories"
)
JOBS = _pairs(
    "teacher:school|doctor:hospital|cook:kitchen|pilot:cockpit|judge:court|baker:bakery|actor:theater|"
    "waiter:restaurant|miner:mine|gardener:garden|scientist:laboratory|librarian:library|banker:bank|"
    "mechanic:garage|priest:church|zookeeper:zoo"
)
MADE_OF = _pairs(
    "window:glass|book:paper|tire:rubber|coin:metal|candle:wax|table:wood|sweater:wool|shirt:cotton|"
    "brick:clay|snowman:snow|shoe:leather|bottle:plastic|pancake:flour|cheese:milk"
)
AMOUNTS = _pairs(
    "days in a week:seven|months in a year:twelve|fingers on a hand:five|sides in a triangle:three|"
    "sides in a square:four|wheels on a car:four|wheels on a bicycle:two|wings on a bird:two|"
    "colors in a rainbow:seven|seasons in a year:four|eyes in a face:two|toes on a foot:five|"
    "eggs in a dozen:twelve|legs on a chair:four|arms on an octopus:eight|strings on a violin:four"
)
OPPOSITES_MORE = _pairs("""begin:end|buy:sell|love:hate|push:pull|win:lose|give:take|strong:weak|wide:narrow
deep:shallow|sharp:dull|smooth:rough|sweet:sour|brave:afraid|kind:cruel|wise:foolish|true:false|alive:dead
awake:asleep|cheap:expensive|easy:difficult|same:different|ancient:modern|guilty:innocent|polite:rude
tight:loose
war:peace|north:south|east:west|friend:enemy|arrive:leave|remember:forget|laugh:cry|float:sink|build:destroy
always:never|everything:nothing|inside:outside|top:bottom|front:back|question:answer|real:fake
noisy:silent|sunrise:sunset|beautiful:ugly""")
MONTHS = (
    "January February March April May June July August September October November December January".split()
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday Monday".split()


class Relation(NamedTuple):
    """Facts of one kind. The last question is used only in the held-out split."""

    name: str
    facts: dict[str, str]
    spoken: frozenset[str]  # subjects of spoken questions in training, so they are never held out
    statements: tuple[str, ...]  # the first is also the answer in a full sentence
    questions: tuple[str, ...]

    def held_out(self) -> frozenset[str]:
        """An eighth of the subjects, which training never asks about; both sides of a symmetric fact."""
        groups = {frozenset((s, a)) for s, a in self.facts.items()}
        spoken = {frozenset((s, self.facts[s])) for s in self.spoken}
        order = sorted(groups - spoken, key=lambda g: crc32(f"{self.name} {sorted(g)}".encode()))
        chosen = order[: max(1, round(len(groups) / 8))]
        return frozenset(s for s, a in self.facts.items() if frozenset((s, a)) in chosen)


def draw(rng: random.Random, held: bool) -> tuple[Relation, str, str]:
    """A random fact: relation, subject, answer. Large relations are drawn somewhat more often."""
    relation = rng.choices(RELATIONS, [len(r.facts) ** 0.6 for r in RELATIONS])[0]
    subject = rng.choice([s for s in relation.facts if (s in HELD[relation.name]) == held])
    return relation, subject, relation.facts[subject]


def fill(template: str, s: str, a: str) -> str:
    """The template with subject and answer filled in, beginning with a capital."""
    text = template.format(
        s=s, a=a, S=s[0].upper() + s[1:], A=a[0].upper() + a[1:], xs=article(s), xa=article(a)
    )
    return text[0].upper() + text[1:]


def _relation(name, facts, statements, questions, spoken=()):
    return Relation(
        name, dict(facts), frozenset(spoken), tuple(statements.split("|")), tuple(questions.split("|"))
    )


def _both(pairs):
    return {**dict(pairs), **{b: a for a, b in dict(pairs).items()}}


RELATIONS = (
    _relation(
        "capital",
        CAPITALS,
        "The capital of {s} is {a}.|{a} is the capital of {s}.|In {s} the capital is {a}.|"
        "{s} has its capital in {a}.|The capital city of {s} is {a}.|The main city of {s} is {a}.|"
        "If you go to {a}, you see the capital of {s}.",
        "What is the capital of {s}?|Which city is the capital of {s}?|Name the capital of {s}.|"
        "Tell me the capital city of {s}.",
    ),
    _relation(
        "sound",
        SOUNDS
        | _pairs(
            "horse:neigh|owl:hoot|frog:croak|mouse:squeak|bee:buzz|crow:caw|wolf:howl|"
            "donkey:hee-haw|hen:cluck"
        ),
        "The {s} says {a}.|{A} is what the {s} says.|The sound of the {s} is {a}.|"
        "{xs} goes {a}.|You hear {a} from the {s}.|The {s} makes the sound {a}.",
        "What does the {s} say?|What sound does the {s} make?|Which sound comes from the {s}?|"
        "What do you hear from the {s}?",
        SOUNDS,
    ),
    _relation(
        "legs",
        LEGS
        | _pairs(
            "ant:six|bee:six|fly:six|crab:ten|worm:zero|goat:four|wolf:four|eagle:two|owl:two|"
            "tiger:four|lizard:four|beetle:six"
        ),
        "The {s} has {a} legs.|Every {s} has {a} legs.|The number of legs of the {s} is {a}.|"
        "{A} is the number of legs of the {s}.|Count the legs of {xs} and you get {a}.|"
        "With {a} legs, that is the {s}.",
        "How many legs does the {s} have?|How many legs has the {s}?|What is the number of legs of the {s}?|"
        "Count the legs of the {s}.",
        LEGS,
    ),
    _relation(
        "home",
        HOMES
        | _pairs(
            "bee:hive|dog:kennel|horse:stable|wolf:den|camel:desert|shark:sea|monkey:jungle|"
            "mole:burrow|bat:cave|ant:hill"
        ),
        "The home of the {s} is the {a}.|The {a} is the home of the {s}.|"
        "The {s} has its home in the {a}.|Go to the {a} to see the {s}.|The {a} is home to the {s}.|"
        "If you look for the {s}, try the {a}.|The {a} is where the {s} lives.",
        "Where does the {s} live?|What is the home of the {s}?|Where do you find the {s}?|"
        "In what place does the {s} live?",
        HOMES,
    ),
    _relation(
        "food",
        FOOD,
        "The {s} eats {a}.|{A}, that is the food of the {s}.|The food of the {s} is {a}.|"
        "{xs} likes to eat {a}.|Give {a} to the {s} and it is happy.|For dinner the {s} has {a}.|"
        "The hungry {s} wants {a}.",
        "What does the {s} eat?|What is the food of the {s}?|What does the {s} like to eat?|"
        "What do you give to {xs} to eat?",
    ),
    _relation(
        "young",
        YOUNG,
        "A young {s} is called {xa}.|{xa} is a young {s}.|{xa} grows up to be {xs}.|"
        "The baby of the {s} is the {a}.|The {s} has a baby, the {a}.|A baby {s} is {xa}.",
        "What is a young {s} called?|What is the baby of the {s}?|What do you call a baby {s}?|"
        "Name the young of the {s}.",
    ),
    _relation(
        "color",
        TRUE_COLORS
        | _pairs(
            "blood:red|coal:black|an elephant:gray|chocolate:brown|a carrot:orange|"
            "a tomato:red|a swan:white|a crow:black|cheese:yellow|a plum:purple|a flamingo:pink|ivory:white|"
            "a cucumber:green|a pea:green|a cherry:red"
        ),
        "The color of {s} is {a}.|{A} is the color of {s}.|The usual color of {s} is {a}.|"
        "Think of {s} and you see {a}.|Everyone knows that {s} is {a}.|{S} is {a}.",
        "What is the color of {s}?|What color is {s}?|Name the color of {s}.|"
        "In which color do you paint {s}?",
        TRUE_COLORS,
    ),
    _relation(
        "use",
        USES,
        "You use the {s} to {a}.|The {s} is used to {a}.|To {a}, take the {s}.|"
        "With the {s} you can {a}.|The {s} helps you to {a}.|If you want to {a}, you need the {s}.",
        "What do you do with the {s}?|What is the {s} used for?|Why do people use the {s}?|"
        "For what do you need the {s}?",
    ),
    _relation(
        "group",
        MEMBERS,
        "{S} is {xa}.|One {a} is {s}.|{S} is a kind of {a}.|If you name {xa}, you can say {s}.|"
        "We know that {s} is {xa}.|Everyone calls {s} {xa}.",
        "What is {s}?|What kind of thing is {s}?|To which group does {s} belong?|What do we call {s}?",
    ),
    _relation(
        "past",
        PAST,
        "The past of {s} is {a}.|Today they {s}, yesterday they {a}.|{A} is the past of {s}.|"
        "From {s} comes the past form {a}.|We say {a} for {s} in the past.|The past form of {s} is {a}.",
        "What is the past of {s}?|What is the past form of {s}?|How do you say {s} in the past?|"
        "Put the word {s} into the past.",
    ),
    _relation(
        "plural",
        PLURALS,
        "The plural of {s} is {a}.|One {s}, two {a}.|{A} is the plural of {s}.|"
        "Here is one {s} and there are many {a}.|More than one {s}: we say {a}.|"
        "From {s} comes the plural {a}.",
        "What is the plural of {s}?|What do you call more than one {s}?|Give the plural of {s}.|"
        "Say the word {s} for more than one.",
    ),
    _relation(
        "job",
        JOBS,
        "The {s} works in the {a}.|In the {a} works the {s}.|The work place of the {s} is the {a}.|"
        "Go to the {a} to meet the {s}.|The {a} is where the {s} works.|Every day the {s} goes to the {a}.",
        "Where does the {s} work?|What is the work place of the {s}?|Where can you meet the {s}?|"
        "In which place does the {s} work?",
    ),
    _relation(
        "material",
        MADE_OF,
        "The {s} is made of {a}.|{A} makes a {s}.|To make a {s} you need {a}.|"
        "A {s} is made from {a}.|{A} is what the {s} is made of.|You take {a} and you make a {s}.",
        "What is the {s} made of?|What do you need to make a {s}?|From what is a {s} made?|"
        "Of which stuff is the {s}?",
    ),
    _relation(
        "amount",
        AMOUNTS,
        "There are {a} {s}.|We count {a} {s}.|{A} is the number of {s}.|"
        "The number of {s} is {a}.|You always find {a} {s}.|Everyone knows the {a} {s}.",
        "How many {s}?|What is the number of {s}?|Do you know the number of {s}?|Give the number of {s}.",
        [k for k in AMOUNTS if k.split()[-1] in "week hand triangle square car bicycle bird".split()],
    ),
    _relation(
        "opposite",
        _both(OPPOSITES) | _both(OPPOSITES_MORE),
        "The opposite of {s} is {a}.|{A} is the opposite of {s}.|If you turn {s} round, you get {a}.|"
        "{S} and {a} are opposites.|The other side of {s} is {a}.|{S} is not {a}.",
        "What is the opposite of {s}?|Which word is the opposite of {s}?|Give the opposite of {s}.|"
        "Name the contrary of {s}.",
        _both(OPPOSITES),
    ),
    _relation(
        "after",
        dict(zip(MONTHS, MONTHS[1:], strict=False)) | dict(zip(DAYS, DAYS[1:], strict=False)),
        "After {s} comes {a}.|{a} comes after {s}.|First comes {s}, then {a}.|{s} is followed by {a}.|"
        "Next after {s} is {a}.|{a} follows {s}.",
        "What comes after {s}?|What follows {s}?|What is next after {s}?|Say what comes when {s} is over.",
        DAYS[:-1],
    ),
)
HELD = {r.name: r.held_out() for r in RELATIONS}
