"""A tokenizer that a GGUF file cannot hold is named before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import refused, run
from conftest import need_engine
from tiny import write_checkpoint


@pytest.mark.parametrize("kind", ["Unigram", "WordPiece", "WordLevel"])
def test_a_tokenizer_of_another_kind_is_refused_as_gguf_and_taken_as_onnx(
    tmp_path: Path, tokenizer_file: Path, kind: str
) -> None:
    need_engine("gguf")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[UNK]", "a", "b", "the", "is", *map(str, range(10))]
    vocabulary = {word: index for index, word in enumerate(words)}
    model = {
        "Unigram": lambda: models.Unigram([(word, -1.0) for word in words], 0, byte_fallback=False),
        "WordPiece": lambda: models.WordPiece(vocabulary, unk_token="[UNK]"),
        "WordLevel": lambda: models.WordLevel(vocabulary, unk_token="[UNK]"),
    }[kind]()
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    source = write_checkpoint(tmp_path / "source", tokenizer_file)
    tokenizer.save(str(source / "tokenizer.json"))
    assert json.loads((source / "tokenizer.json").read_text())["model"]["type"] == kind
    refused(run("export", source, "--gguf", "-o", tmp_path / "out"), f"a {kind} tokenizer in a GGUF file")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert run("export", source, "--fp32", "-o", tmp_path / "out").exit_code == 0
