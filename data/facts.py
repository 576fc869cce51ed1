"""What this world knows: relations with their facts, how each is stated and how it is asked.

A relation has statements (the first is the full answer), questions (the last wording is kept for the held-out split
where there are four) and facts (subject -> answer). `{s}` is the subject, `{a}` the answer.
"""

from typing import NamedTuple

from sentences import BY_SIZE, HOMES, LEGS, OPPOSITES, SOUNDS, TRUE_COLORS

CAPITALS = dict(pair.split(":") for pair in """France:Paris|Italy:Rome|Spain:Madrid|Germany:Berlin|England:London
Norway:Oslo|Sweden:Stockholm|Finland:Helsinki|Denmark:Copenhagen|Poland:Warsaw|Austria:Vienna|Greece:Athens
Ireland:Dublin|Portugal:Lisbon|Russia:Moscow|Japan:Tokyo|China:Beijing|India:Delhi|Egypt:Cairo|Kenya:Nairobi
Canada:Ottawa|Mexico:Mexico City|Cuba:Havana|Peru:Lima|Chile:Santiago|Brazil:Brasilia|Turkey:Ankara|Iran:Tehran
Iraq:Baghdad|Israel:Jerusalem|Hungary:Budapest|Ukraine:Kyiv|Belgium:Brussels|Iceland:Reykjavik|Thailand:Bangkok
Vietnam:Hanoi|Nepal:Kathmandu|Ghana:Accra|Ethiopia:Addis Ababa|Jamaica:Kingston""".replace("\n", "|").split("|"))
YOUNG = dict(pair.split(":") for pair in (
    "cat:kitten|dog:puppy|cow:calf|sheep:lamb|horse:foal|pig:piglet|duck:duckling|hen:chick|bear:cub|goat:kid|"
    "deer:fawn|frog:tadpole|swan:cygnet|goose:gosling|butterfly:caterpillar|owl:owlet").split("|"))
FOOD = dict(pair.split(":") for pair in (
    "cat:mice|cow:grass|rabbit:carrots|bear:honey|monkey:bananas|horse:hay|squirrel:nuts|bird:seeds|mouse:cheese|"
    "panda:bamboo|frog:flies|lion:meat|koala:leaves|hen:corn|dog:bones|goat:weeds|spider:insects|seal:fish").split("|"))
USES = dict(pair.split(":") for pair in (
    "knife:cut|pen:write|broom:sweep|hammer:hit nails|oven:bake|key:open doors|clock:tell time|bed:sleep|cup:drink|"
    "spoon:eat soup|lamp:see at night|umbrella:stay dry|scissors:cut paper|phone:call friends|towel:dry hands|"
    "needle:sew|shovel:dig|brush:paint|soap:wash|map:find the way|boat:cross water|camera:take photos").split("|"))
KINDS_OF = {word: kind for kind, words in {
    "fruit": "apple banana pear orange cherry grape lemon", "vegetable": "carrot potato onion cabbage bean pea",
    "metal": "iron gold silver copper tin", "animal": "tiger fox wolf goat zebra camel",
    "color": "red blue green pink brown", "tool": "hammer saw drill shovel axe", "month": "May June July March",
    "planet": "Mars Venus Saturn Jupiter", "drink": "water milk tea juice coffee", "flower": "rose tulip lily daisy",
    "vehicle": "bus train truck car bicycle", "bird": "eagle owl robin swan duck", "fish": "salmon trout tuna shark",
    "instrument": "piano violin drum flute guitar", "tree": "oak pine birch maple willow",
}.items() for word in words.split()}
PAST = dict(pair.split(":") for pair in (
    "go:went|see:saw|eat:ate|run:ran|sing:sang|swim:swam|come:came|give:gave|take:took|make:made|have:had|find:found|"
    "fly:flew|drink:drank|sit:sat|write:wrote|read:read|buy:bought|think:thought|sleep:slept|tell:told|know:knew|"
    "grow:grew|fall:fell|walk:walked|play:played|jump:jumped|help:helped|open:opened|look:looked").split("|"))
PLURALS = dict(pair.split(":") for pair in (
    "child:children|man:men|woman:women|foot:feet|tooth:teeth|mouse:mice|goose:geese|sheep:sheep|fish:fish|leaf:leaves|"
    "wolf:wolves|knife:knives|box:boxes|bus:buses|baby:babies|city:cities|dog:dogs|cat:cats|house:houses|tree:trees|"
    "person:people|half:halves|dish:dishes|glass:glasses").split("|"))
JOBS = dict(pair.split(":") for pair in (
    "teacher:school|doctor:hospital|farmer:farm|cook:kitchen|pilot:plane|judge:court|baker:bakery|sailor:ship|"
    "actor:theater|waiter:restaurant|miner:mine|gardener:garden|scientist:laboratory|librarian:library|"
    "banker:bank|mechanic:garage").split("|"))
MONTHS = ("January February March April May June July August September October November December").split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MORE_OPPOSITES = dict(pair.split(":") for pair in (
    "begin:end|buy:sell|love:hate|push:pull|win:lose|give:take|strong:weak|wide:narrow|deep:shallow|sharp:dull|"
    "smooth:rough|sweet:sour|brave:afraid|kind:cruel|wise:foolish|true:false|alive:dead|awake:asleep|cheap:expensive|"
    "easy:difficult|same:different|ancient:modern|guilty:innocent|polite:rude|tight:loose|war:peace|heaven:hell|"
    "north:south|east:west|friend:enemy|king:queen|arrive:leave|remember:forget|laugh:cry|float:sink|build:destroy|"
    "always:never|everything:nothing|inside:outside|top:bottom|front:back").split("|"))
COLORS_OF = {k.split()[-1]: v for k, v in TRUE_COLORS.items()} | dict(pair.split(":") for pair in (
    "blood:red|coal:black|an elephant:gray|chocolate:brown|a carrot:orange|a tomato:red|a swan:white|a crow:black|"
    "an orange:orange|cheese:yellow|a plum:purple|a flamingo:pink|ivory:white|a cucumber:green").split("|"))
COLORS_OF = {k.split()[-1]: v for k, v in COLORS_OF.items()}


class Relation(NamedTuple):
    name: str
    facts: dict[str, str]
    statements: tuple[str, ...]
    questions: tuple[str, ...]


def _relation(name, facts, statements, questions):
    return Relation(name, dict(facts), tuple(statements.split("|")), tuple(questions.split("|")))


RELATIONS = (
    _relation("capital", CAPITALS, "The capital of {s} is {a}.|{a} is the capital of {s}.|In {s} the capital is {a}.|"
              "{s} has its capital in {a}.|The capital city of {s} is {a}.|{s}: capital {a}.",
              "What is the capital of {s}?|Which city is the capital of {s}?|Name the capital of {s}.|"
              "Tell me the capital city of {s}."),
    _relation("sound", SOUNDS | {"horse": "neigh", "owl": "hoot", "frog": "croak", "mouse": "squeak", "bee": "buzz",
                                 "crow": "caw", "wolf": "howl", "donkey": "hee-haw", "hen": "cluck"},
              "The {s} says {a}.|{a} is what the {s} says.|The sound of the {s} is {a}.|A {s} goes {a}.|"
              "You hear {a} from the {s}.|The {s} makes the sound {a}.",
              "What does the {s} say?|What sound does the {s} make?|Which sound comes from the {s}?|"
              "How does the {s} sound?"),
    _relation("legs", LEGS | {"ant": "six", "bee": "six", "fly": "six", "crab": "ten", "worm": "zero", "goat": "four",
                              "wolf": "four", "eagle": "two", "owl": "two", "tiger": "four", "lizard": "four"},
              "The {s} has {a} legs.|A {s} walks on {a} legs.|{a} is the number of legs of the {s}.|"
              "Every {s} has {a} legs.|Count the legs of the {s}: {a}.|The legs of the {s} are {a}.",
              "How many legs does the {s} have?|How many legs has the {s}?|What is the number of legs of the {s}?|"
              "Count the legs of the {s}."),
    _relation("home", HOMES | {"bee": "hive", "dog": "kennel", "horse": "stable", "wolf": "den", "camel": "desert",
                               "shark": "sea", "monkey": "jungle", "mole": "burrow", "bat": "cave", "penguin": "ice"},
              "The {s} lives in the {a}.|The home of the {s} is the {a}.|In the {a} lives the {s}.|"
              "You find the {s} in the {a}.|The {a} is home to the {s}.|A {s} makes its home in the {a}.",
              "Where does the {s} live?|What is the home of the {s}?|Where do you find the {s}?|"
              "In what place does the {s} live?"),
    _relation("food", FOOD, "The {s} eats {a}.|{a} are food for the {s}.|The food of the {s} is {a}.|"
              "A {s} likes to eat {a}.|Give the {s} some {a}.|For dinner the {s} has {a}.",
              "What does the {s} eat?|What is the food of the {s}?|What does the {s} like to eat?"),
    _relation("young", YOUNG, "A young {s} is called a {a}.|The {a} is a young {s}.|A {a} grows up to be a {s}.|"
              "The baby of the {s} is the {a}.|The {s} has a baby, the {a}.|A baby {s} is a {a}.",
              "What is a young {s} called?|What is the baby of the {s}?|What do you call a baby {s}?|"
              "Name the young of the {s}."),
    _relation("color", COLORS_OF, "The color of {s} is {a}.|{a} is the color of {s}.|The usual color is {a} for {s}.|"
              "Think of {s} and you see {a}.|Everyone knows that {s} is {a}.|Paint it {a} if it is {s}.",
              "What is the color of {s}?|Which color is usual for {s}?|Name the color of {s}."),
    _relation("use", USES, "You use the {s} to {a}.|The {s} is used to {a}.|To {a}, take the {s}.|"
              "With the {s} you can {a}.|The {s} helps you to {a}.|If you want to {a}, you need the {s}.",
              "What is the {s} used for?|What do you do with the {s}?|Why do people use the {s}?|"
              "For what do you need the {s}?"),
    _relation("kind", KINDS_OF, "The word {s} names a {a}.|{s} is a kind of {a}.|One {a} is {s}.|"
              "Among the things called {a} is {s}.|A {a} that you know is {s}.|We call {s} a {a}.",
              "What kind of thing is {s}?|To which group does {s} belong?|What is {s}?|What do we call {s}?"),
    _relation("past", PAST, "The past of {s} is {a}.|Today I {s}, yesterday I {a}.|{a} is the past form of {s}.|"
              "Yesterday it was {a}, today it is {s}.|From {s} comes the past form {a}.|We say {a} for {s} in the past.",
              "What is the past of {s}?|What is the past form of {s}?|How do you say {s} in the past?|"
              "Put {s} into the past."),
    _relation("plural", PLURALS, "The plural of {s} is {a}.|One {s}, two {a}.|{a} is the plural of {s}.|"
              "Many of {s} are {a}.|More than one {s} are {a}.|From {s} comes the plural {a}.",
              "What is the plural of {s}?|What do you call more than one {s}?|Give the plural of {s}."),
    _relation("job", JOBS, "The {s} works in the {a}.|In the {a} works the {s}.|The work place of the {s} is the {a}.|"
              "Go to the {a} to meet the {s}.|The {a} is where the {s} works.|Every day the {s} goes to the {a}.",
              "Where does the {s} work?|What is the work place of the {s}?|Where can you meet the {s}?|"
              "In which place does the {s} do the work?"),
    _relation("opposite", dict(OPPOSITES) | {b: a for a, b in OPPOSITES} | MORE_OPPOSITES,
              "The opposite of {s} is {a}.|{a} is the opposite of {s}.|If it is not {s}, it is {a}.|"
              "{s} and {a} are opposites.|The contrary of {s} is {a}.|Not {s} but {a}.",
              "What is the opposite of {s}?|Which word is the opposite of {s}?|Tell me the opposite of {s}.|"
              "Name the contrary of {s}."),
    _relation("after", {**dict(zip(MONTHS, MONTHS[1:] + MONTHS[:1], strict=True)),
                        **dict(zip(DAYS, DAYS[1:] + DAYS[:1], strict=True))},
              "After {s} comes {a}.|{a} comes after {s}.|First {s}, then {a}.|{s} is followed by {a}.|"
              "Next after {s} is {a}.|{a} follows {s}.",
              "What comes after {s}?|What follows {s}?|What is next after {s}?"),
)
SIZES = BY_SIZE[:-1]
