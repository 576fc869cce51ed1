"""Pictures that are told by their objects instead of drawn, with questions, for stage A.

The scenes are those of `make_images.py`, of the training split alone.
"""

from dataclasses import replace

import numpy as np
from make_images import SCENES, pick, settle
from questions import DESCRIBE, HELD_COLOR, WEIGHTS, Asker, Scene, describe
from wordings import plain
from world import COLORS, KINDS

SHARES = {"objects": 0.33, "counting": 0.55, "digit": 0.04, "sign": 0.08}
SIDE = 128
# With the few drawn kinds alone a Thinker learns by heart which colors they have, and fails on new
# combinations. So most scenes get other nouns and colors, and it must look.
RENAMED = 0.9  # share of the scenes
MORE_KINDS = KINDS + tuple("""
    book chair table apple key lamp ball cup shoe hat flower train plane horse cow duck frog bear bee ring
    door clock bell spoon plate egg cake cloud rock bottle bag coat bed ship truck spider pig goat lemon
    banana carrot potato drum flag guitar hammer ladder pencil robot rocket rope shirt sock window wheel
""".split())
MORE_COLORS = (*COLORS, "gray", "silver", "violet", "beige", "navy", "crimson", "ivory", "teal")


def _object(words: list[str], x: float, y: float, width: float, height: float) -> dict:
    box = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return {"words": words, "box": [round(min(max(v / SIDE, 0.0), 1.0), 2) for v in box]}


def objects_of(rng: np.random.Generator, scene: Scene) -> list[dict]:
    """The ground and the objects of a scene, as `make_images.py` lists them: words and boxes."""
    found = [{"words": [scene.place], "box": [0.0, 0.0, 1.0, 1.0]}]
    for item in scene.items:
        found.append(_object([item.size, item.color, item.kind], item.x, item.y, item.extent, item.extent))
    if scene.sort == "digit":
        (x, y), extent = rng.uniform(40, 88, 2), rng.uniform(40, 90)
        found.append(_object([scene.color, "number", scene.word], x, y, 0.7 * extent, extent))
    if scene.sort == "sign":
        x, y = rng.uniform(50, 78), rng.uniform(50, 90)
        found.append(_object([scene.color, "sign", scene.word], x, y, 72, 60))
    return found


def renamed(rng: np.random.Generator, scene: Scene) -> Scene:
    """The scene with other kinds and colors. None becomes a combination that is held out."""
    while True:
        kinds = dict(zip(KINDS, rng.choice(MORE_KINDS, len(KINDS), replace=False).tolist(), strict=True))
        colors = dict(zip(COLORS, rng.choice(MORE_COLORS, len(COLORS), replace=False).tolist(), strict=True))
        items = [item._replace(kind=kinds[item.kind], color=colors[item.color]) for item in scene.items]
        if not any(HELD_COLOR.get(item.kind) == item.color for item in items):
            return replace(scene, items=items)


def asked(rng: np.random.Generator, asker: Asker, count: int, balance: dict) -> list[tuple[str, str]]:
    """Up to `count` different questions with their answers, and sometimes a description.

    Nothing is asked again in other words, since its answer could be copied.
    """
    scene, weights, found = asker.scene, WEIGHTS[asker.scene.sort], {}
    names, shares = list(weights), np.cumsum(list(weights.values()))
    for _ in range(2 * count):
        question = asker.ask(names[int(np.searchsorted(shares, rng.random() * shares[-1]))])
        if question and len(found) < count:
            text, answer = settle(question, balance)
            found[text if question.kind == "yesno" else (question.kind, answer)] = text, answer
    turns = list(found.values())
    if rng.random() < 0.2:
        turns.insert(int(rng.integers(len(turns) + 1)), (DESCRIBE, describe(scene)))
    return turns


def picture(rng: np.random.Generator, balance: dict) -> dict:
    """One line: a conversation about a picture, and what is where in it."""
    while True:
        sort = list(SHARES)[int(np.searchsorted(np.cumsum(list(SHARES.values())), rng.random() * 0.999))]
        scene, names = SCENES[sort](rng, False), ()
        if scene.items and rng.random() < RENAMED:
            scene, names = renamed(rng, scene), (MORE_KINDS, MORE_COLORS)
        turns = asked(rng, Asker(rng, scene, False, *names), int(rng.integers(3, 11)), balance)
        if turns:
            break
    if rng.random() < 0.35:  # as it is spoken
        turns = [(plain(text), answer) for text, answer in turns]
    messages = []
    for i, (text, answer) in enumerate(turns):
        if i == 0 and rng.random() < 0.12:
            text = pick(rng, ("Look at the picture. ", "Here is a picture. ", "Picture: ")) + text
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "objects": objects_of(rng, scene)}
