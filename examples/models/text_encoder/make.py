"""Make a small transformer that reads text: its tokenizer is part of the artefact, clients send UTF-8 bytes.

`python -m examples.models.text_encoder.make [FOLDER]` trains it in a few seconds, on sentences made on the spot, to tell three
intents apart. What it returns beside the intent is the sentence's embedding.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from examples.models.export import export, register_command

MODEL = "text-encoder"
MAX_BYTES = 96
INPUTS = (f"text:UINT8:-1,{MAX_BYTES}",)
OUTPUTS = ("embedding:FP32:-1,48", "intent:FP32:-1,3")
INTENTS = ("weather", "music", "billing")
VOCABULARY, MAX_WORDS, WIDTH, HEADS, LAYERS = 2048, 24, 48, 4, 2

OPENINGS = ("please", "could you", "hey", "i want to know", "tell me", "quickly", "kindly", "now")
PHRASES = {
    "weather": ("will it rain in {}", "how cold is it in {}", "is there snow near {}", "what is the forecast for {}", "how windy is {}"),
    "music": ("play a song by {}", "put on some jazz from {}", "turn up the volume of {}", "skip this track of {}", "queue an album of {}"),
    "billing": (
        "why was {} charged twice",
        "send the invoice to {}",
        "refund the payment of {}",
        "cancel the plan of {}",
        "what does {} owe",
    ),
}
NAMES = ("london", "ana", "tokyo", "mister bell", "the office", "rio", "my sister", "zürich", "the band", "oslo", "jo", "madrid")


class Tokenizer(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Zero-padded UTF-8 bytes (n, `MAX_BYTES`) to word ids (n, `MAX_WORDS`): lower case, split at what is no letter, hashed.

    0 is padding. Hashing needs no vocabulary file: the artefact is complete.
    """

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Tokenize a batch."""
        codes = text.long()
        upper = (codes >= 65) & (codes <= 90)
        codes = torch.where(upper, codes + 32, codes)
        is_letter = ((codes >= 97) & (codes <= 122)) | ((codes >= 48) & (codes <= 57)) | (codes >= 128)
        rows = codes.shape[0]
        words = torch.zeros(rows, 26, dtype=torch.long, device=codes.device)  # the last column takes what is too much
        hashed = torch.zeros(rows, dtype=torch.long, device=codes.device)
        count = torch.zeros(rows, dtype=torch.long, device=codes.device)
        was_letter = torch.zeros(rows, dtype=torch.bool, device=codes.device)
        for position in range(codes.shape[1]):
            letter = is_letter[:, position]
            hashed = torch.where(letter, (hashed * 257 + codes[:, position]) % 1000003, torch.zeros_like(hashed))
            count = count + (letter & ~was_letter).long()
            was_letter = letter
            slot = torch.where(letter, torch.clamp(count, max=25), torch.zeros_like(count))
            # A letter overwrites its word's hash so far; column 0 takes what lies between words.
            words.scatter_(1, slot.unsqueeze(1), (1 + hashed % 2047).unsqueeze(1))
        return words[:, 1:25] * (torch.arange(1, 25, device=codes.device).unsqueeze(0) <= count.unsqueeze(1))


class Block(nn.Module):  # type: ignore[misc]
    """Self-attention and a feed-forward layer, each after a normalisation and added to what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_feed = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attend = nn.Linear(WIDTH, 3 * WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Transform a batch of sequences; `seen` says which positions hold a word."""
        rows, length = x.shape[0], x.shape[1]
        parts = self.attend(self.before_attention(x)).view(rows, length, 3, 4, 12).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=seen[:, None, None, :])
        x = x + self.mix(mixed.transpose(1, 2).reshape(rows, length, 48))
        y: torch.Tensor = x + self.feed(self.before_feed(x))
        return y


class TextEncoder(nn.Module):  # type: ignore[misc]
    """Zero-padded UTF-8 bytes to an embedding of length 1 and the logits of `INTENTS`."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenize = Tokenizer()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Parameter(torch.randn(MAX_WORDS, WIDTH) * 0.02)
        self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.intents = nn.Linear(WIDTH, len(INTENTS))

    def forward(self, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode a batch."""
        ids = self.tokenize(text)
        seen = ids > 0
        seen[:, 0] = True  # text without a word still has one position to attend to
        x = self.words(ids) + self.places
        for block in self.blocks:
            x = block(x, seen)
        weight = seen.unsqueeze(2).float()
        embedding = functional.normalize((x * weight).sum(1) / weight.sum(1), dim=1)
        return embedding, self.intents(8 * embedding)


def as_bytes(texts: list[str]) -> torch.Tensor:
    """Encode sentences as clients send them; what is longer than `MAX_BYTES` is cut."""
    rows = [list(text.encode()[:MAX_BYTES].ljust(MAX_BYTES, b"\0")) for text in texts]
    return torch.tensor(rows, dtype=torch.uint8)


def sentences(count: int, seed: int) -> tuple[list[str], torch.Tensor]:
    """Make sentences with their intents."""
    draw = random.Random(seed)  # noqa: S311  # sentences, not secrets
    chosen = [draw.randrange(len(INTENTS)) for _ in range(count)]
    texts = [f"{draw.choice(OPENINGS)} {draw.choice(PHRASES[INTENTS[i]]).format(draw.choice(NAMES))}" for i in chosen]
    return [draw.choice((text, text.upper(), f"{text}?", text.capitalize())) for text in texts], torch.tensor(chosen)


def train(seed: int = 0) -> TextEncoder:
    """Train the encoder."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    texts, labels = sentences(1500, seed)
    data, encoder = as_bytes(texts), TextEncoder()
    optimiser = torch.optim.Adam(encoder.parameters(), lr=2e-3)
    for _ in range(3):
        for chosen in torch.randperm(len(labels)).split(64):
            loss = functional.cross_entropy(encoder(data[chosen])[1], labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return encoder


def main(folder: Path) -> str:
    """Train and write the artefact; return the command that registers it."""
    path = folder / f"{MODEL}.pt"
    export(train(), path)
    return register_command(MODEL, path, inputs=INPUTS, outputs=OUTPUTS)


if __name__ == "__main__":
    print(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))  # its output is the next command
