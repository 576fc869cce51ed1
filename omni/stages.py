"""What each pretraining stage trains on and measures: A the Thinker, B the audio encoder, C the vision encoder."""


from collections import Counter
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from omni import audio, checkpoint, image, manifest
from omni.audio_encoder import AudioEncoder
from omni.batch import AUDIO, IGNORE, IMAGE, Batch, Sample
from omni.collate import Collator, MediaReader, pad_mels
from omni.config import AudioArch, PretrainConfig, ThinkerArch, UserError, VisionArch, build
from omni.model import OmniModel
from omni.tasks import WordErrors, correct, normalise_words, word_errors
from omni.thinker import Thinker
from omni.tokenizer import ASSISTANT, USER, SpeechPieces, Tokenizer
from omni.vision_encoder import VisionEncoder

READING_PROMPTS = ("Transcribe the audio.", "Transcribe.", "What is said?", "Write down what you hear.")


def bucketed(lengths, batch_size: int, rng: np.random.Generator) -> list[list[int]]:
    """Sample numbers in batches of like length, in random order: shuffled, sorted within 30 batches, cut."""
    order = rng.permutation(len(lengths))
    window = 30 * batch_size
    batches = []
    for start in range(0, len(order), window):
        part = sorted(order[start:start + window], key=lambda i: lengths[i])
        batches += [part[i:i + batch_size] for i in range(0, len(part), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


class Stage:
    """A model, its samples, and how both make a loss. `kind` is the checkpoint's."""

    kind: str
    model: nn.Module
    train: list
    lengths: list[int]

    def __init__(self, config: PretrainConfig):
        self.config = config

    def read(self, paths: str | list[str]) -> list[Sample]:
        """The samples of one manifest or of several."""
        paths = [paths] if isinstance(paths, str) else paths
        return [sample for path in paths for sample in
                manifest.read(path, allow_outside_paths=self.config.allow_outside_paths).check(0.05).samples]

    def rng(self, epoch: int, number: int = -1) -> np.random.Generator:
        """Random numbers of one sample in one epoch (or of the epoch's order), whatever else was drawn before."""
        return np.random.default_rng([self.config.seed, epoch, number + 1])

    def batches(self, epoch: int) -> list[list[int]]:
        return bucketed(self.lengths, self.config.batch_size, self.rng(epoch))


class ThinkerStage(Stage):
    """A: next-token prediction over text, of which `reading_share` is reading noisy pieces of speech.

    A reading sample is a sentence as an audio encoder would name it: its pieces stuttered, lost, mistaken and
    spaced by silence (the `<audio>` token), then the instruction and the sentence. A Thinker that has learned to
    read these hears after very few clips: its projector need only find the pieces' embeddings.
    """

    kind = "thinker"

    def __init__(self, config: PretrainConfig):
        super().__init__(config)
        self.train, self.val = self.read(config.train), self.read(config.val)
        texts = [content for s in self.train for _, content in s.messages]
        self.tok = Tokenizer.train(texts, config.vocab_size)
        self.spoken = [t for t in dict.fromkeys(texts) if 2 <= len(t.split()) <= 12 and t.split() == normalise_words(t)]
        self.pieces = SpeechPieces(self.spoken, config.speech_pieces)
        self.piece_ids = [self.tok.encode(self.pieces.decode([k])) for k in range(len(self.pieces))]
        self.questions = [s for s in self.train if len(s.messages) == 2 and s.messages[0][1] in set(self.spoken)]
        self.encoded = [self._encode(s) for s in self.train]
        self.encoded_val = [self._encode(s) for s in self.val]
        self.lengths = [len(ids) for ids in self.encoded]
        arch = build(ThinkerArch, {**config.arch, "vocab_size": len(self.tok)}, "arch")
        self.model = Thinker(arch)

    def _encode(self, sample: Sample) -> list[int]:
        return self.tok.chat(sample.messages, [], [])[0][:self.config.max_length]

    def reading(self, rng: np.random.Generator) -> list[int]:
        """Ids of one reading sample: a transcription, or a spoken question with its answer."""
        if self.questions and rng.random() < 0.3:
            sample = self.questions[rng.integers(len(self.questions))]
            said, answer = sample.messages[0][1], sample.answer
            prompt = "Answer the question." if rng.random() < 0.5 else ""
        else:
            said = answer = self.spoken[rng.integers(len(self.spoken))]
            prompt = READING_PROMPTS[rng.integers(len(READING_PROMPTS))]
        ids = self.tok.ids
        return [ids[USER], *self.noisy(self.pieces.encode(said), rng), *self.tok.encode(prompt), self.tok.end,
                ids[ASSISTANT], *self.tok.encode(answer), self.tok.end]

    def noisy(self, numbers: list[int], rng: np.random.Generator) -> list[int]:
        """Pieces as a CTC encoder spells them: about half of the frames are silence, 8 % are lost or mistaken."""
        silence, frames = self.tok.ids[AUDIO], []
        for number in numbers:
            frames += [silence] * rng.poisson(0.9)
            luck = rng.random()
            if luck < 0.04:
                continue
            if luck < 0.08:
                number = rng.integers(len(self.pieces))
            frames += self.piece_ids[number] * (1 + (rng.random() < 0.25))
        return frames + [silence] * (1 + rng.poisson(0.9))

    def batch(self, numbers, epoch: int) -> Batch:
        rngs = [self.rng(epoch, int(i)) for i in numbers]
        share = self.config.reading_share if self.spoken else 0.0
        return self._pad([self.reading(rng) if rng.random() < share else self.encoded[i]
                          for i, rng in zip(numbers, rngs, strict=True)])

    def _pad(self, rows: list[list[int]]) -> Batch:
        ids = torch.full((len(rows), max(map(len, rows))), self.tok.pad)
        labels = torch.full_like(ids, IGNORE)
        for b, row in enumerate(rows):
            ids[b, :len(row)] = torch.tensor(row)
            labels[b, :len(row) - 1] = ids[b, 1:len(row)]
        # Silence is given, not predicted: it would drown the rest.
        labels[labels == self.tok.audio] = IGNORE
        return Batch(ids, labels, torch.tensor([len(row) for row in rows]))

    def loss(self, batch: Batch, device) -> tuple[torch.Tensor, torch.Tensor]:
        batch = batch.to(device)
        known = batch.labels != IGNORE
        logits = self.model.logits(self.model.hidden(self.model.embed_tokens(batch.input_ids))[known])
        return F.cross_entropy(logits.float(), batch.labels[known], reduction="sum"), known.sum()

    def evaluate(self, device) -> dict:
        sums = {}
        for name, rows in (("loss", self.encoded_val),
                           ("reading_loss", [self.reading(self.rng(0, i)) for i in range(200)] if self.spoken else [])):
            parts = [self.loss(self._pad(rows[i:i + 64]), device) for i in range(0, len(rows), 64)]
            if parts:
                sums[name] = float(sum(loss for loss, _ in parts) / sum(count for _, count in parts))
        return sums

    def content(self) -> dict:
        return {**checkpoint.part(self.model), "tokenizer": self.tok.json_text}


class AudioStage(Stage):
    """B: connectionist temporal classification (Graves et al. 2006) of transcripts in pieces of words."""

    kind = "audio_encoder"

    def __init__(self, config: PretrainConfig):
        super().__init__(config)
        arch = build(AudioArch, config.arch, "arch")
        train, val = self.read(config.train), self.read(config.val)
        self.texts, self.train = self._load(train, "training clips")
        self.val_groups = [s.group or "known" for s in val]
        self.val_texts, self.val = self._load(val, "held-out clips")
        self.pieces = SpeechPieces(self.texts, config.speech_pieces)
        self.labels = [self.pieces.encode(t) for t in self.texts]
        self.model = nn.ModuleDict({"encoder": AudioEncoder(arch), "head": nn.Linear(arch.width, len(self.pieces) + 1)})
        self.blank = len(self.pieces)
        # CTC needs a frame a label and one between equal neighbours; zero_infinity would only hide their lack.
        self.needed = [len(n) + sum(a == b for a, b in zip(n, n[1:], strict=False)) for n in self.labels]
        fits = [i for i, power in enumerate(self.train)
                if 0 < self.needed[i] <= self.model["encoder"].lengths(len(power))]
        if len(fits) < len(self.train):
            print(f"{len(self.train) - len(fits)} of {len(self.train)} clips have fewer frames than pieces: left out")
        self.texts, self.train, self.labels, self.needed = (
            [values[i] for i in fits] for values in (self.texts, self.train, self.labels, self.needed))
        if not self.train:
            raise UserError(f"{config.train}: no clip with a transcript that fits; raise arch.frames_per_second")
        self.lengths = [len(power) for power in self.train]

    def _load(self, samples: list[Sample], what: str) -> tuple[list[str], list[torch.Tensor]]:
        """Transcripts and mel powers of the samples with one clip."""
        texts, powers = [], []
        for sample in tqdm(samples, desc=what, mininterval=2, disable=None, leave=False):
            if len(sample.audios) == 1:
                texts.append(" ".join(normalise_words(sample.transcript or sample.answer)))
                powers.append(audio.mel_power(audio.load(sample.audios[0])))
        return texts, powers

    def batch(self, numbers, epoch: int):
        mels = []
        for i in numbers:
            rng, power = self.rng(epoch, int(i)), self.train[i]
            if rng.random() < 0.9:
                varied = audio.augment(power, rng)
                if self.model["encoder"].lengths(len(varied)) >= self.needed[i]:  # a faster take may be too short
                    power = varied
            mels.append(audio.spec_augment(audio.log_mel(power), rng))
        return *pad_mels(mels), [self.labels[i] for i in numbers]

    def loss(self, batch, device) -> tuple[torch.Tensor, int]:
        mels, lengths, labels = batch
        features, lengths = self.model["encoder"](mels.to(device), lengths.to(device))
        scores = self.model["head"](features).float().log_softmax(-1).transpose(0, 1)  # (S, N, pieces + 1)
        targets = torch.tensor([n for row in labels for n in row], device=device)
        target_lengths = torch.tensor([len(row) for row in labels], device=device)
        loss = F.ctc_loss(scores, targets, lengths, target_lengths, blank=self.blank, reduction="sum")
        return loss, len(targets)

    def evaluate(self, device) -> dict:
        """Greedy corpus word error rate, a group of held-out clips apart."""
        sums: dict[str, WordErrors] = {}
        for start in range(0, len(self.val), 64):
            mels, lengths = pad_mels([audio.log_mel(p) for p in self.val[start:start + 64]])
            features, lengths = self.model["encoder"](mels.to(device), lengths.to(device))
            best = self.model["head"](features).argmax(-1)
            for row, length, text, group in zip(best.tolist(), lengths.tolist(), self.val_texts[start:],
                                                self.val_groups[start:], strict=False):
                row = row[:length]
                kept = [k for t, k in enumerate(row) if k != self.blank and (t == 0 or row[t - 1] != k)]
                sums[group] = sums.get(group, WordErrors()) + word_errors(self.pieces.decode(kept), text)
        return {f"wer_{group}": errors.rate for group, errors in sums.items()}

    def content(self) -> dict:
        return {**checkpoint.part(self.model["encoder"]), "pieces": self.pieces.pieces,
                "ctc_head": self.model["head"].state_dict()}


class KeepingReader(MediaReader):
    """A reader that decodes each picture once and keeps it as bytes."""

    def __init__(self, image_size: int, seed: int):
        super().__init__(image_size, seed)
        self.kept: dict[str, torch.Tensor] = {}

    def pixels(self, path: str, take: int = 0) -> torch.Tensor:
        if path not in self.kept:
            self.kept[path] = super().pixels(path).add(1).mul(127.5).round().byte()
        pixels = self.kept[path].float().div(127.5).sub(1)
        return image.augment(pixels, self.rng(path, take)) if take else pixels


def said_words(sample: Sample) -> list[str]:
    """The words of all answers."""
    return [word for role, content in sample.messages if role == "assistant" for word in normalise_words(content)]


def one_talk_a_picture(samples: list[Sample]) -> list[Sample]:
    """All that is said about a picture as one long talk, so that a step encodes the picture once for all of it."""
    talks: dict[tuple[str, ...], Sample] = {}
    for sample in samples:
        said = talks.get(sample.images)
        if said is None:
            talks[sample.images] = sample
        else:
            more = tuple((role, content.replace(IMAGE, "")) for role, content in sample.messages if role != "system")
            talks[sample.images] = replace(said, messages=said.messages + more)
    return list(talks.values())


class VisionStage(Stage):
    """C: what is said about pictures, told in two ways by heads that are thrown away afterwards.

    A small decoder with a tokenizer of its own captions and answers from the merged patch features, just as the
    Thinker will. Alone it learns for long what is usually said before it looks; so each patch also scores each word,
    and the best patches decide whether the word is said about the picture at all (multiple-instance learning of a
    caption's words, Fang et al. 2015). That puts "red" and "cat" where the red cat is.
    """

    kind = "vision_encoder"

    def __init__(self, config: PretrainConfig):
        super().__init__(config)
        self.train, self.val = ([s for s in self.read(p) if len(s.images) == 1 and not s.audios]
                                for p in (config.train, config.val))
        self.train = one_talk_a_picture(self.train)
        tokenizer = Tokenizer.train([text for s in self.train for _, text in s.messages], config.vocab_size)
        counts = Counter(word for s in self.train for word in set(said_words(s)))
        self.words = {word: i for i, word in enumerate(w for w in sorted(counts) if counts[w] >= 10)}
        arch = build(VisionArch, config.arch, "arch")
        decoder = Thinker(build(ThinkerArch, {**config.decoder, "vocab_size": len(tokenizer)}, "decoder"))
        self.omni = OmniModel(tokenizer, decoder, None, VisionEncoder(arch), freeze_encoders=False)
        self.model = nn.ModuleDict({"omni": self.omni, "words": nn.Linear(arch.width, len(self.words))})
        nn.init.constant_(self.model["words"].bias, -6.0)  # most words are said about few pictures
        reader = KeepingReader(arch.image_size, config.seed)
        self.collate = Collator(tokenizer, reader, self.omni.image_tokens, None, config.max_length)
        for sample in tqdm(self.train + self.val, desc="pictures", mininterval=2, disable=None, leave=False):
            reader.pixels(sample.images[0])
        self.lengths = [len(tokenizer.chat(s.messages, [1], [])[0]) for s in self.train]

    def batch(self, numbers, epoch: int) -> Batch:
        """Every epoch sees another take of every picture."""
        samples = [self.train[i] for i in numbers]
        said = torch.zeros(len(samples), len(self.words))
        for row, sample in zip(said, samples, strict=True):
            row[[self.words[w] for w in said_words(sample) if w in self.words]] = 1
        return self.collate(samples, [epoch + 1] * len(samples)), said

    def loss(self, batch, device) -> tuple[torch.Tensor, torch.Tensor]:
        batch, said = batch[0].to(device), batch[1].to(device)
        patches = self.omni.encode_images(batch.pixels)
        scores = self.model["words"](patches).float().logsumexp(1)  # (M, words): the best patches decide
        words = F.binary_cross_entropy_with_logits(scores, said, reduction="sum") / len(said)
        loss, count, _ = self.omni(replace(batch, pixels=None, image_features=patches))
        return loss + 0.2 * words * count, count

    def evaluate(self, device) -> dict:
        """Share of held-out answer tokens predicted, and of held-out questions answered exactly."""
        hits = count = right = asked = 0
        for start in range(0, len(self.val), 64):
            samples = self.val[start:start + 64]
            _, n, hit = self.omni(self.collate(samples).to(device))
            hits, count = hits + int(hit), count + int(n)
            questions = [s for s in samples if s.task == "qa"]
            if questions:
                answers = self.omni.generate(self.collate(questions, prompt_only=True).to(device), 24)
                right += sum(correct(self.omni.tokenizer.decode(ids), s.answer)
                             for ids, s in zip(answers, questions, strict=True))
                asked += len(questions)
        return {"token_acc": hits / count, "image_qa": right / max(asked, 1)}

    def content(self) -> dict:
        return checkpoint.part(self.omni.vision_encoder)


STAGES = {"thinker": ThinkerStage, "audio": AudioStage, "vision": VisionStage}
