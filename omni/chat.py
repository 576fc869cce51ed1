"""Talk to a trained system.

    python -m omni.chat --ckpt checkpoints/omni_sft_tiny/omni_final.pt --image cat.png "What animal is this?"

Without a question an interactive session starts: /image PATH and /audio PATH add a medium to the next
question, /reset forgets the talk so far, /quit (or Ctrl-D) leaves.
"""

import argparse
import sys

from omni import checkpoint
from omni.audio import MediaError
from omni.batch import AUDIO, IMAGE, Sample
from omni.collate import Collator, MediaReader
from omni.config import SFTConfig, UserError, build
from omni.device import choose_device
from omni.evaluate import Evaluator
from omni.model import OmniModel


class Chat:
    """A talk with a model: questions with media go in, answers come out, the history is kept."""

    def __init__(self, model: OmniModel, config: SFTConfig):
        self.evaluator = system_evaluator(model, config)
        self.reset()

    def reset(self) -> None:
        self.messages, self.images, self.audios = (), (), ()

    def ask(self, question: str, images: list[str] = (), audios: list[str] = ()) -> str:
        """The answer to a question. Media stand before the question unless it has placeholders of its own."""
        content = IMAGE * max(0, len(images) - question.count(IMAGE)) \
            + AUDIO * max(0, len(audios) - question.count(AUDIO)) + question
        if content.count(IMAGE) != len(images) or content.count(AUDIO) != len(audios):
            raise UserError("the question has more <image> or <audio> placeholders than files were given")
        messages = self.messages + (("user", content), ("assistant", ""))
        images, audios = self.images + tuple(images), self.audios + tuple(audios)
        answer = self.evaluator.answers([Sample(messages, images, audios)])[0]
        self.messages, self.images, self.audios = messages[:-1] + (("assistant", answer),), images, audios
        return answer


def converse(chat: Chat) -> None:
    """The interactive session."""
    print("Ask something. /image PATH, /audio PATH, /reset, /quit")
    images, audios = [], []
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        command, _, path = line.partition(" ")
        if command == "/quit":
            return
        if command == "/reset":
            chat.reset()
            images, audios = [], []
        elif command in ("/image", "/audio"):
            (images if command == "/image" else audios).append(path.strip())
        elif line or audios:
            try:
                print(chat.ask(line, images, audios), flush=True)
            except (MediaError, UserError) as err:
                print(f"that can't be used: {err}")
            images, audios = [], []


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m omni.chat", description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", required=True, help="omni_final.pt or omni_best.pt of a run")
    parser.add_argument("--image", action="append", default=[], metavar="PATH",
                        help="a picture (may be repeated)")
    parser.add_argument("--audio", action="append", default=[], metavar="PATH",
                        help="a clip (may be repeated)")
    parser.add_argument("question", nargs="?",
                        help="without it, and without --audio, an interactive session starts")
    args = parser.parse_args(arguments)
    model, config = load_system(args.ckpt)
    chat = Chat(model, config)
    if args.question is None and not args.audio:
        converse(chat)
        return
    try:
        print(chat.ask(args.question or "", args.image, args.audio))
    except MediaError as err:
        raise UserError(f"{', '.join(args.image + args.audio)}: {err}") from None


def load_system(path: str) -> tuple[OmniModel, SFTConfig]:
    """Model and config of a finished run."""
    content = checkpoint.load(path, "omni", "sft_omni.py writes it: omni_final.pt or omni_best.pt of a run")
    config = build(SFTConfig, content.get("config"), f"{path} (config)")
    model = OmniModel.from_content(content, path)
    return model.to(choose_device("auto")), config


def system_evaluator(model: OmniModel, config: SFTConfig) -> Evaluator:
    """What answers for a finished system: the code that scored it while it was trained."""
    reader = MediaReader(model.vision_encoder.arch.image_size)
    collate = Collator(model.tokenizer, reader, model.image_tokens, model.audio_encoder.lengths,
                       config.max_length)
    return Evaluator(model, collate, config.eval_batch_size, config.max_new_tokens, config.precision)


if __name__ == "__main__":
    try:
        main()
    except UserError as err:
        print(f"error: {err}", file=sys.stderr)
        sys.exit(2)
