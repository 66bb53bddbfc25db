"""Text <-> ids, the start and the end of a text; the files themselves are read in `codecs`."""

from pathlib import Path

from minisoft.errors import expect
from minisoft.io.atomic import read_json
from minisoft.io.codecs import Codec

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
    """The tokenizer of a Hugging Face folder; ids equal transformers', but for a second BOS.

    Raises InputError where `codecs.Codec` does, and where something follows every text.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._codec = Codec(self.folder)
        self.size = self._codec.size  # number of ids, added tokens included that a file numbers
        self.added_ids = self._codec.codec.get_added_tokens_decoder().keys()
        self.eos_ids = self._read_eos()
        whole, bare = (self._codec.encode("a", special) for special in (True, False))
        self._bos = whole[: len(whole) - len(bare)]
        where = f"{self.folder}: what follows a text"
        expect(whole == self._bos + bare, where, "nothing, since prompts go on", whole)

    def encode(self, text: str) -> list[int]:
        """Text -> ids, with BOS where the tokenizer adds one and the text does not begin with it,
        as what a chat template writes does."""
        ids = self._codec.encode(text, True)
        start = len(self._bos)
        return ids[start:] if ids[start : 2 * start] == self._bos else ids

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

    def _read_eos(self) -> frozenset[int]:
        """Every id that ends a text, by each of the four files that can say so."""
        texts = [self._codec.eos]
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            token = read_json(self.folder / name).get("eos_token")
            texts.append(token.get("content") if isinstance(token, dict) else token)
        ids = [self._codec.token_id(text) for text in texts if text]
        for name in ("generation_config.json", "config.json"):
            eos = read_json(self.folder / name).get("eos_token_id")
            eos = eos if isinstance(eos, list) else [eos]
            right = all(i is None or type(i) is int for i in eos)
            expect(right, f"{self.folder / name}: eos_token_id", "an id or a list of ids", eos)
            ids += eos
        return frozenset(i for i in ids if i is not None)
