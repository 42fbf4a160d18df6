"""The texts of tokens join to the decoded text, for tokenizers of each family."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lightrft.models.pieces import pieces

TEXTS = [
    "It is 7, isn't it ?",
    "  two  spaces\n\tand é ü ß",
    "日本語 と 한국어",
    "🙂👩‍👩‍👧 😀!",
    "",
    "�x",
    "مرحبا",
]
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level():
    merges = [("Ġ", "i"), ("Ġi", "s"), ("Ã", "©"), ("I", "t"), ("ð", "Ł")]
    names = [*LETTERS, *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentencepiece():
    """As Llama 2's: ▁ for a space, none at the beginning of a text, and bytes for unknown letters."""
    names = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *"Itis7,nwopacedé?'", "▁is", "▁it"]
    merges = [("▁", "i"), ("▁i", "s"), ("▁i", "t")]
    names.append("▁i")
    vocabulary = {name: i for i, name in enumerate(dict.fromkeys(names))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def unigram():
    """As T5's and XLNet's: the likeliest pieces, ▁ for a space."""
    names = ["<unk>", "▁", *dict.fromkeys("Itis7,nwopacedé?'日本語"), "▁is", "▁it", "two", "▁two"]
    tokenizer = Tokenizer(
        models.Unigram([(name, -float(len(names) - n)) for n, name in enumerate(names)], 0, False)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return tokenizer


def unigram_of_bytes():
    """As Gemma's: no space is put in front, and bytes for unknown letters."""
    names = [
        "<unk>",
        *(f"<0x{b:02X}>" for b in range(256)),
        "▁",
        *dict.fromkeys("Itis7,nwopac?'"),
        "▁is",
        "▁▁",
    ]
    scores = [(name, -float(n)) for n, name in enumerate(names)]
    tokenizer = Tokenizer(models.Unigram(scores, 0, True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def wordpiece():
    """As BERT's: ## continues a word, and the decoder puts the spaces and takes some away before signs."""
    names = [
        "[UNK]",
        *dict.fromkeys("itis7,nwopacedé?'"),
        *(f"##{c}" for c in dict.fromkeys("itsnwo7é")),
        "is",
        "##is",
        "two",
    ]
    tokenizer = Tokenizer(models.WordPiece({name: n for n, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return tokenizer


def words():
    """Whole words, joined by spaces."""
    names = ["[UNK]", "It", "is", "two", "spaces", "?", "日本語"]
    tokenizer = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


MAKERS = [byte_level, sentencepiece, unigram, unigram_of_bytes, wordpiece, words]


@pytest.mark.parametrize("cleans", [False, True])
@pytest.mark.parametrize("make", MAKERS)
def test_pieces_join_to_the_decoded_text(make, cleans):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make(), clean_up_tokenization_spaces=cleans)
    draw = random.Random(1)
    known = [tokenizer(text)["input_ids"] for text in TEXTS]
    torn = [ids[a : a + draw.randrange(1, 9)] for ids in known for a in range(0, len(ids), 3)]
    noise = [[draw.randrange(len(tokenizer)) for _ in range(draw.randrange(200))] for _ in range(60)]
    for ids in [*known, *torn, *noise]:
        found = pieces(tokenizer.decode, ids)
        assert len(found) == len(ids)
        assert "".join(found) == tokenizer.decode(ids)


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_a_letter_of_several_tokens_stands_with_the_last_of_them(make):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make())
    ids = tokenizer("it日")["input_ids"]
    found = pieces(tokenizer.decode, ids)
    assert found[-3:] == ["", "", "日"]
    assert "".join(found) == "it日"


def test_a_decoder_that_nothing_fits_still_loses_no_letter():
    assert "".join(pieces(lambda ids: "abc"[::-1] if len(ids) == 3 else "x", [1, 2, 3])) == "cba"
    assert pieces(lambda _ids: "", []) == []
