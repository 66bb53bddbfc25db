"""Text <-> ids: `tokenizer.json` by the tokenizers library, `tokenizer.model` by sentencepiece."""

from pathlib import Path

from minisoft.errors import InputError, expecting
from minisoft.io.atomic import read_json

FILES = (  # carried over when a model is saved
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


class Tokenizer:
    """The tokenizer of a Hugging Face folder; ids equal transformers'.

    Raises InputError when the folder has neither tokenizer.json nor tokenizer.model, or one that
    cannot be read.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        config = read_json(self.folder / "tokenizer_config.json")
        if (self.folder / "tokenizer.json").is_file():
            self._codec = _Json(self.folder / "tokenizer.json")
        elif (self.folder / "tokenizer.model").is_file():
            add_bos = config.get("add_bos_token", True)
            self._codec = _SentencePiece(self.folder / "tokenizer.model", add_bos)
        else:
            raise InputError(f"{folder}: expected tokenizer.json or tokenizer.model, found neither")
        self.size = self._codec.size  # number of ids, added tokens included
        self.eos_ids = self._read_eos(config.get("eos_token"))

    def encode(self, text: str) -> list[int]:
        """Text -> ids, with BOS where the tokenizer adds one."""
        return self._codec.encode(text, True)

    def decode(self, ids: list[int]) -> str:
        """Ids -> text; special tokens (BOS, EOS, padding) are left out."""
        return self._codec.decode(list(ids))

    def encode_after(self, before: str, text: str) -> list[int]:
        """The ids that `text` adds when it continues `before`: no BOS, no extra space."""
        for context in (before, "\n", ":"):  # the last two where a token would reach over the seam
            head = self._codec.encode(context, False)
            whole = self._codec.encode(context + text, False)
            if whole[: len(head)] == head:
                return whole[len(head) :]
        return self._codec.encode(text, False)

    def ids_with(self, character: str) -> list[int]:
        """Ids of the tokens that have an ASCII character: only these can bring it into a text."""
        byte = f"<0x{ord(character):02X}>"  # SentencePiece's byte fallback
        tokens = self._codec.tokens()
        return [i for i, token in tokens if character in token or token == byte]

    def _read_eos(self, token: str | dict | None) -> frozenset[int]:
        """Every id that ends a text, by generation_config.json, config.json and the eos_token."""
        if isinstance(token, dict):
            token = token.get("content")
        ids = [self._codec.token_id(token)] if token else []
        for name in ("generation_config.json", "config.json"):
            eos = read_json(self.folder / name).get("eos_token_id")
            ids += eos if isinstance(eos, list) else [eos]
        return frozenset(i for i in ids if type(i) is int)


class _Json:
    def __init__(self, path: Path):
        import tokenizers

        with expecting("a tokenizer of the tokenizers library", path):
            self.codec = tokenizers.Tokenizer.from_file(str(path))
        self.codec.no_truncation()
        self.codec.no_padding()
        self.size = self.codec.get_vocab_size(with_added_tokens=True)
        self.token_id = self.codec.token_to_id

    def encode(self, text: str, special: bool) -> list[int]:
        return self.codec.encode(text, add_special_tokens=special).ids

    def decode(self, ids: list[int]) -> str:
        return self.codec.decode(ids, skip_special_tokens=True)

    def tokens(self) -> list[tuple[int, str]]:
        return [(i, token) for token, i in self.codec.get_vocab(with_added_tokens=True).items()]


class _SentencePiece:
    def __init__(self, path: Path, add_bos: bool):
        import sentencepiece

        with expecting("a SentencePiece model", path):
            self.codec = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.size = self.codec.get_piece_size()
        self.bos = [self.codec.bos_id()] if add_bos and self.codec.bos_id() >= 0 else []

    def token_id(self, token: str) -> int | None:
        i = self.codec.piece_to_id(token)
        return None if self.codec.is_unknown(i) else i

    def encode(self, text: str, special: bool) -> list[int]:
        return (self.bos if special else []) + self.codec.encode(text)

    def decode(self, ids: list[int]) -> str:
        ids = [i for i in ids if i < self.size]  # a model's vocabulary may be padded
        return self.codec.decode(ids)

    def tokens(self) -> list[tuple[int, str]]:
        return [(i, self.codec.id_to_piece(i)) for i in range(self.size)]
