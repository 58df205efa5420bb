"""CLIP's tokenizer, in small: the words of OneFormer's tasks."""

import json
from collections.abc import Iterator
from pathlib import Path


def vocabulary() -> dict[str, int]:
    """Byte pairs of CLIP's form that join the words of OneFormer's tasks."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in _merges())]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


def write_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer, in small."""
    (folder / "vocab.json").write_text(json.dumps(vocabulary()), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in _merges())]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _merges() -> list[tuple[str, str]]:
    words = ("the", "task", "is", "semantic", "instance", "panoptic")
    return list(dict.fromkeys(pair for word in words for pair in _pairs(word)))


def _pairs(word: str) -> Iterator[tuple[str, str]]:
    """Merges from the left that make one token of a word."""
    parts = [*word[:-1], f"{word[-1]}</w>"]
    while len(parts) > 1:
        yield parts[0], parts[1]
        parts = [parts[0] + parts[1], *parts[2:]]
