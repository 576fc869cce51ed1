"""Pictures that are told by their objects instead of drawn, with questions, for stage A.

The scenes are those of `make_images.py`, of the training split alone.
"""

import numpy as np
from make_images import SCENES, pick, settle
from questions import DESCRIBE, WEIGHTS, Asker, Scene, describe
from wordings import plain

SHARES = {"objects": 0.52, "counting": 0.32, "digit": 0.06, "sign": 0.1}
SIDE = 128


def _object(words: list[str], x: float, y: float, width: float, height: float) -> dict:
    box = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return {"words": words, "box": [round(min(max(v / SIDE, 0.0), 1.0), 2) for v in box]}


def objects_of(rng: np.random.Generator, scene: Scene) -> list[dict]:
    """The ground and the objects of a scene, as `make_images.py` lists them: words and boxes."""
    found = [{"words": [scene.place], "box": [0.0, 0.0, 1.0, 1.0]}]
    for item in scene.items:
        size = [item.size] if scene.sort == "objects" else []
        found.append(_object([*size, item.color, item.kind], item.x, item.y, item.extent, item.extent))
    if scene.sort == "digit":
        (x, y), extent = rng.uniform(40, 88, 2), rng.uniform(40, 90)
        found.append(_object([scene.color, "number", scene.word], x, y, 0.7 * extent, extent))
    if scene.sort == "sign":
        x, y = rng.uniform(50, 78), rng.uniform(50, 90)
        found.append(_object([scene.color, "sign", scene.word], x, y, 72, 60))
    return found


def asked(rng: np.random.Generator, scene: Scene, count: int, balance: dict) -> list[tuple[str, str]]:
    """Up to `count` different questions with their answers, and sometimes a description."""
    asker, weights, found = Asker(rng, scene, False), WEIGHTS[scene.sort], {}
    names, shares = list(weights), np.cumsum(list(weights.values()))
    for _ in range(2 * count):
        question = asker.ask(names[int(np.searchsorted(shares, rng.random() * shares[-1]))])
        if question and len(found) < count:
            text, answer = settle(question, balance)
            found[text] = answer
    turns = list(found.items())
    if rng.random() < 0.2:
        turns.insert(int(rng.integers(len(turns) + 1)), (DESCRIBE, describe(scene)))
    return turns


def picture(rng: np.random.Generator, balance: dict) -> dict:
    """One line: a conversation about a picture, and what is where in it."""
    while True:
        sort = list(SHARES)[int(np.searchsorted(np.cumsum(list(SHARES.values())), rng.random() * 0.999))]
        scene = SCENES[sort](rng, False)
        turns = asked(rng, scene, int(rng.integers(3, 11)), balance)
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
