"""Text <-> ids as each kind of tokenizer file has it.

Ids are those of transformers 5: added tokens (special ones such as <|im_end|>, and others) are
found in a text first, and what lies between them is encoded by the vocabulary.
"""

from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from minisoft.errors import InputError, expect, expecting
from minisoft.io.added_tokens import NAMED, check_ids, read_added, read_bos, read_flag, token_of
from minisoft.io.atomic import read_json

END_OF_TEXT = dict.fromkeys(NAMED[:3], "<|endoftext|>")
SPECIAL = {  # the named tokens of a class where its files name none
    "GPT2Tokenizer": END_OF_TEXT,
    "Qwen2Tokenizer": {**END_OF_TEXT, "bos_token": None, "pad_token": "<|endoftext|>"},
    "LlamaTokenizer": dict(zip(NAMED, ("<s>", "</s>", "<unk>"))),
}
ANY_CLASS = ("PreTrainedTokenizer", "TokenizersBackend")  # as the files say
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Fields of a SentencePiece model's normalizer_spec.  Protocol buffers are merged by joining them,
# and the last value counts: these bytes behind a model change its settings.
NO_CHARSMAP, PREFIX, NO_PREFIX, KEEP_SPACES = b"\x12\x00", b"\x18\x01", b"\x18\x00", b"\x20\x00"


def open_codec(folder: Path):
    """The codec of a folder: tokenizer.json, else tokenizer.model, else vocab.json + merges.txt.

    Raises InputError where there is none of them, or one that cannot be read or is not supported.
    """
    if (folder / "tokenizer.json").is_file():
        with expecting("a tokenizer of the tokenizers library", folder / "tokenizer.json"):
            codec = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        return Bpe(codec, codec.get_vocab_size(with_added_tokens=True))
    if (folder / "tokenizer.model").is_file():
        return SentencePiece(folder)
    if (folder / "vocab.json").is_file():
        return _read_vocabulary(folder)
    expected = "tokenizer.json or tokenizer.model, or vocab.json and merges.txt"
    raise InputError(f"{folder}: expected {expected}, found none")


def _class_of(config: dict) -> str:
    """The tokenizer_class of a tokenizer_config.json, without the "Fast" at its end."""
    return str(config.get("tokenizer_class") or ANY_CLASS[0]).removesuffix("Fast")


# ---------------------------------------------------------------- tokenizer.json, vocab.json


def _read_vocabulary(folder: Path) -> "Bpe":
    """vocab.json and merges.txt with the pieces of code that their class has in transformers."""
    path, merges = folder / "tokenizer_config.json", folder / "merges.txt"
    config, model = read_json(path), read_json(folder / "config.json").get("model_type")
    name = _class_of(config)
    if model == "qwen2" or (model == "qwen3" and "tokenizer_class" not in config):
        name = "Qwen2Tokenizer"  # transformers does not trust the class of a Qwen2 folder
    supported = name in ("GPT2Tokenizer", "Qwen2Tokenizer")
    expected = "GPT2Tokenizer or Qwen2Tokenizer for vocab.json and merges.txt"
    expect(supported, f"{path}: tokenizer_class", expected, config.get("tokenizer_class"))
    expect(merges.is_file(), merges, "the merges of vocab.json", "no such file")
    with expecting("a byte-level BPE vocabulary", f"{folder / 'vocab.json'}, {merges}"):
        codec = tokenizers.Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(merges)))
    space = read_flag(config, "add_prefix_space", path)
    if name == "Qwen2Tokenizer":
        codec.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated")
        of_bytes = pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=False)
        codec.pre_tokenizer = pre_tokenizers.Sequence([split, of_bytes])
    else:
        codec.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    codec.decoder = decoders.ByteLevel()
    vocabulary, added = codec.get_vocab_size(), read_added(folder, SPECIAL[name])
    codec.add_tokens(added.tokens)
    if name == "Qwen2Tokenizer":  # which gives these no flags, whatever the files say
        codec.add_tokens([AddedToken(text, special=True) for text in added.unnumbered])
    check_ids(added, codec.token_to_id)
    if bos := read_bos(folder, added):
        codec.post_processor = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0", special_tokens=[(bos, codec.token_to_id(bos))]
        )
    return Bpe(codec, added.size(vocabulary), added.eos)


class Bpe:
    """A tokenizer of the tokenizers library; `eos`: the text of the EOS that its class gives it."""

    def __init__(self, codec: tokenizers.Tokenizer, size: int, eos: str | None = None):
        self.codec, self.size, self.eos = codec, size, eos
        self.codec.no_truncation()
        self.codec.no_padding()
        self.token_id = self.codec.token_to_id

    def encode(self, text: str, special: bool) -> list[int]:
        return self.codec.encode(text, add_special_tokens=special).ids

    def decode(self, ids: list[int]) -> str:
        return self.codec.decode(ids, skip_special_tokens=True)

    def tokens(self) -> list[tuple[int, str]]:
        return [(i, token) for token, i in self.codec.get_vocab(with_added_tokens=True).items()]


# ---------------------------------------------------------------- tokenizer.model


class SentencePiece:
    """A tokenizer.model, and the tokens added to it.

    The model puts a space before a text, and behind an added token only in the `legacy` behaviour,
    which is that of no class and no longer LlamaTokenizer's own.  A space that a text itself begins
    with comes on top, as in sentencepiece, so that decoding gives the text back; transformers'
    LlamaTokenizer drops one of the two.
    """

    def __init__(self, folder: Path):
        path = folder / "tokenizer_config.json"
        config = read_json(path)
        name = _class_of(config)
        self.llama = name == "LlamaTokenizer"
        expected = "LlamaTokenizer or PreTrainedTokenizerFast for tokenizer.model"
        supported = self.llama or name in ANY_CLASS
        expect(supported, f"{path}: tokenizer_class", expected, config.get("tokenizer_class"))
        self.legacy = read_flag(config, "legacy", path, not self.llama)
        prefix = PREFIX if read_flag(config, "add_prefix_space", path, True) else NO_PREFIX
        # LlamaTokenizer does not ask the model how a text is normalised
        own = NO_CHARSMAP + prefix + KEEP_SPACES if self.llama else b""
        self.codec = _open_model(folder / "tokenizer.model", own)
        self.bare = _open_model(folder / "tokenizer.model", own + NO_PREFIX + KEEP_SPACES)
        self.spaces = self.codec.encode("a") != self.bare.encode("a")  # puts one before a text
        self.pieces = [self.codec.id_to_piece(i) for i in range(self.codec.get_piece_size())]
        self.ids = {piece: i for i, piece in enumerate(self.pieces)}
        self._add(folder, SPECIAL[name] if self.llama else self._roles())

    def _roles(self) -> dict[str, str]:
        roles = zip(NAMED, (self.codec.bos_id(), self.codec.eos_id(), self.codec.unk_id()))
        return {role: self.pieces[i] for role, i in roles if i >= 0}

    def _add(self, folder: Path, special: dict[str, str | None]) -> None:
        control = [i for i in range(len(self.pieces)) if self.codec.is_control(i)]
        added = read_added(folder, special, [token_of(self.pieces[i], folder) for i in control])
        for token in added.tokens:
            if token.content not in self.ids:
                self.ids[token.content] = len(self.pieces)
                self.pieces.append(token.content)
        check_ids(added, self.ids.get)
        self.size = added.size(self.codec.get_piece_size())
        self.token_id, self.eos = self.ids.get, added.eos
        self.added = {self.ids[token.content]: token.special for token in added.tokens}
        bos = read_bos(folder, added)
        self.bos = [self.ids[bos]] if bos else []
        # To this tokenizer all that is no added token is one unknown word
        self.cut = tokenizers.Tokenizer(models.WordLevel({"": 0}, unk_token=""))
        self.cut.add_tokens(added.tokens)

    def encode(self, text: str, special: bool) -> list[int]:
        ids = self.bos.copy() if special else []
        cut = self.cut.encode(text, add_special_tokens=False)
        for i, (start, end) in zip(cut.ids, cut.offsets):
            if i > 0:
                ids.append(self.ids[self.cut.id_to_token(i)])
            else:
                ids += self._encode_between(text[start:end], start == 0)
        return ids

    def _encode_between(self, text: str, first: bool) -> list[int]:
        """Text without added tokens -> ids; `first`: nothing stands before it."""
        has_space = self.llama and text.startswith((" ", "▁"))
        spaced = first or (self.legacy and not has_space)
        return (self.codec if spaced else self.bare).encode(text)

    def decode(self, ids: list[int]) -> str:
        text, run = "", []
        for i in [*ids, None]:
            if i is not None and i < self.codec.get_piece_size() and i not in self.added:
                run.append(i)
                continue
            text, run = text + self.bare.decode(run), []
            if self.added.get(i) is False:  # not a special one
                text += self.pieces[i]
        return text.removeprefix(" ") if self.spaces else text

    def tokens(self) -> list[tuple[int, str]]:
        return list(enumerate(self.pieces))


def _open_model(path: Path, normalizer: bytes):
    """The model with these fields of its normalizer_spec (field 3) changed."""
    import sentencepiece

    with expecting("a SentencePiece model", path):
        changed = path.read_bytes() + bytes([0x1A, len(normalizer)]) + normalizer
        model = sentencepiece.SentencePieceProcessor(model_proto=changed)
    expect(model.get_piece_size(), path, "a SentencePiece model", "no pieces")
    return model
