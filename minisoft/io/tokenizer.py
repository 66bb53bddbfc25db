"""Text <-> ids, the start and the end of a text; the files themselves are read in `codecs`."""

from pathlib import Path

from minisoft.errors import expect
from minisoft.io.atomic import read_json
from minisoft.io.codecs import read_codec

# copied when a model is saved
FILES = "tokenizer.json tokenizer.model tokenizer_config.json special_tokens_map.json".split()
FILES += "added_tokens.json vocab.json merges.txt chat_template.jinja".split()


class Tokenizer:
    """The tokenizer of a Hugging Face folder; ids equal transformers', but for a second BOS.
    Raises InputError for one that is not supported, or puts something behind every text."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        # size: the number of ids, added tokens included that a file numbers
        self._codec, self.size, eos = read_codec(self.folder)
        self.added_ids = self._codec.get_added_tokens_decoder().keys()
        self.eos_ids = self._read_eos(eos)
        whole, bare = self._ids("a", special=True), self._ids("a")
        self._bos = whole[: len(whole) - len(bare)]
        where = f"{self.folder}: what follows a text"
        expect(whole == self._bos + bare, where, "nothing, since prompts go on", whole)

    def _ids(self, text: str, special: bool = False) -> list[int]:
        return self._codec.encode(text, add_special_tokens=special).ids

    def encode(self, text: str) -> list[int]:
        """Text -> ids, with BOS where the tokenizer adds one and a (chat) template has not."""
        ids = self._ids(text, special=True)
        start = len(self._bos)
        return ids[start:] if ids[start : 2 * start] == self._bos else ids

    def decode(self, ids: list[int]) -> str:
        """Ids -> text; special tokens (BOS, EOS, padding) are left out."""
        return self._codec.decode(list(ids), skip_special_tokens=True)

    def encode_after(self, before: str, text: str) -> list[int]:
        """The ids that `text` adds when it continues `before`: no BOS, no extra space."""
        for context in (before, "\n", ":"):  # the last two where a token would reach over the seam
            head = self._ids(context)
            whole = self._ids(context + text)
            if whole[: len(head)] == head:
                return whole[len(head) :]
        return self._ids(text)

    def ids_with(self, character: str) -> list[int]:
        """Ids of the tokens that have an ASCII character: only these can bring it into a text."""
        byte = f"<0x{ord(character):02X}>"  # SentencePiece's byte fallback
        tokens = self._codec.get_vocab(with_added_tokens=True).items()
        return [i for token, i in tokens if character in token or token == byte]

    def _read_eos(self, text: str | None) -> frozenset[int]:
        """Every id that ends a text, by each of the four files that can say so."""
        texts = [text]
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            token = read_json(self.folder / name).get("eos_token")
            texts.append(token.get("content") if isinstance(token, dict) else token)
        ids = [self._codec.token_to_id(text) for text in texts if text]
        for name in ("generation_config.json", "config.json"):
            eos = read_json(self.folder / name).get("eos_token_id")
            eos = eos if isinstance(eos, list) else [eos]
            right = all(i is None or type(i) is int for i in eos)
            expect(right, f"{self.folder / name}: eos_token_id", "an id or a list of ids", eos)
            ids += eos
        return frozenset(i for i in ids if i is not None)
