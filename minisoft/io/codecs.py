"""Text <-> ids as transformers 5 has them.  The class decides: a generic one takes tokenizer.json
as it is, the others build their own pieces around the vocabulary and the merges of tokenizer.json,
of tokenizer.model, or of vocab.json and merges.txt.  Then come the tokens that files add."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers.pre_tokenizers import ByteLevel, Metaspace, Sequence, Split

from minisoft.errors import InputError, expect, expecting
from minisoft.io.added_tokens import NAMED, read_added
from minisoft.io.atomic import read_json
from minisoft.io.config import read_flag

GENERIC = ("PreTrainedTokenizer", "PythonBackend", "TokenizersBackend")  # without "Fast"
END_OF_TEXT = dict.fromkeys(NAMED[:3], "<|endoftext|>")
SPECIAL = {  # the named tokens of a class where its files name none
    **dict.fromkeys(GENERIC, {}),
    "GPT2Tokenizer": {**END_OF_TEXT, "pad_token": None},
    "Qwen2Tokenizer": {**END_OF_TEXT, "bos_token": None, "pad_token": "<|endoftext|>"},
    "LlamaTokenizer": dict(zip(NAMED, ("<s>", "</s>", "<unk>"))),
}
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_codec(folder: Path) -> tuple[Tokenizer, int, str | None]:
    """(the tokenizer of a folder, its number of ids, the text of its EOS).  Added tokens that are
    only named, not numbered, come last, are not counted and need no row in E.  Raises InputError.
    """
    path = folder / "tokenizer_config.json"
    config, name = read_json(path), class_of(folder)
    codec, listed = _open(folder, name)
    padding = {"pad_token": codec.padding["pad_token"]} if codec.padding else {}
    codec.no_truncation()
    codec.no_padding()
    vocabulary = codec.get_vocab_size()
    present = [token.content for token in codec.get_added_tokens_decoder().values()]
    added = read_added(folder, {**padding, **SPECIAL[name]}, listed, present)
    codec.add_tokens(added.tokens)
    if name == "Qwen2Tokenizer":  # which gives these no flags, whatever the files say
        codec.add_tokens([AddedToken(text, special=True) for text in added.unnumbered])
    for where, text, stated in added.stated:
        i = codec.token_to_id(text)
        expected = f"{i}, by the vocabulary and the ids before"
        expect(stated == i, f"{where}: {text}", expected, stated)
    if not (folder / "tokenizer.json").is_file():
        ends = read_flag(config, "add_eos_token", where=f"{path}: ")
        expect(not ends, f"{path}: add_eos_token", "false, since prompts go on", ends)
        bos = added.names.get("bos_token")
        if read_flag(config, "add_bos_token", where=f"{path}: ") and bos:
            text, special = bos.content, [(bos.content, codec.token_to_id(bos.content))]
            template = [f"{text}:0", "$A:0"]
            codec.post_processor = processors.TemplateProcessing(template, None, special)
    codec.encode_special_tokens = read_flag(config, "split_special_tokens", where=f"{path}: ")
    size = max([vocabulary, *(i + 1 for *_, i in added.stated)])
    eos = added.names.get("eos_token")
    return codec, size, eos and eos.content


def class_of(folder: Path) -> str:
    """The class that AutoTokenizer takes, without the "Fast" at its end."""
    path, vocabulary = folder / "tokenizer_config.json", folder / "tokenizer.json"
    config, model = read_json(path), read_json(folder / "config.json")
    files, code = config.get("fast_tokenizer_files"), config.get("auto_map")
    expect(not files, f"{path}: fast_tokenizer_files", "none", files)
    code = code.get("AutoTokenizer") if isinstance(code, dict) else code  # never run, but it counts
    architecture = model.get("model_type")
    default = "Qwen2Tokenizer" if architecture in ("qwen2", "qwen3") else GENERIC[0]
    named = config.get("tokenizer_class") or model.get("tokenizer_class") or default
    name = str(named).removesuffix("Fast")
    if architecture == "qwen2" and not code:  # whose folders it does not trust
        name = default
    elif name == "LlamaTokenizer" and not code and vocabulary.is_file():
        with expecting("a tokenizer of the tokenizers library", vocabulary):
            byte_level = '"ByteLevel"' in vocabulary.read_text("utf-8")
        name = GENERIC[0] if byte_level else name  # Llama 3, R1-Distill
    known = ", ".join(name for name in SPECIAL if name not in GENERIC[:2])
    expect(name in SPECIAL, f"{path}: tokenizer_class", known, named)
    return name


def _open(folder: Path, name: str) -> tuple[Tokenizer, list[AddedToken] | None]:
    """(the tokenizer of a class before files add tokens, what tokenizer.model itself adds)."""
    fits, rest, listed = SPECIAL, None, None
    if (path := folder / "tokenizer.json").is_file():
        with expecting("a tokenizer of the tokenizers library", path):
            if name in GENERIC:
                return Tokenizer.from_file(str(path)), None
            vocabulary, merges, rest = _take_apart(read_json(path))
    elif (path := folder / "tokenizer.model").is_file():
        fits = ["LlamaTokenizer"]
        with expecting("a SentencePiece model", path):
            vocabulary, merges, listed = _read_pieces(path.read_bytes())
    elif (path := folder / "vocab.json").is_file():
        fits, beside = ["Qwen2Tokenizer", "GPT2Tokenizer"], folder / "merges.txt"
        with expecting("a byte-level BPE vocabulary", f"{path}, {beside}"):
            vocabulary, merges = models.BPE.read_file(str(path), str(beside))
    else:
        expected = "tokenizer.json or tokenizer.model, or vocab.json and merges.txt"
        raise InputError(f"{folder}: expected {expected}, found none")
    where = folder / "tokenizer_config.json: tokenizer_class"
    expect(name in fits, where, f"{' or '.join(fits)} for {path.name}", name)
    codec, llama = _build(folder, name), name == "LlamaTokenizer"
    with expecting("a BPE vocabulary", path):
        codec.model = models.BPE(vocabulary, merges, fuse_unk=llama, byte_fallback=llama)
    if rest:
        codec.post_processor = rest.post_processor
        if rest.padding:
            codec.enable_padding(**rest.padding)
    return codec, listed


def _take_apart(whole: dict) -> tuple[dict, list, Tokenizer]:
    """(vocabulary, merges, all else but the tokens) of a tokenizer.json."""
    model = whole["model"]
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"a model of type {model['type']}")
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    empty = {"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    return model["vocab"], merges, Tokenizer.from_str(json.dumps({**whole, **empty}))


def _build(folder: Path, name: str) -> Tokenizer:
    """A class of transformers without its vocabulary."""
    path = folder / "tokenizer_config.json"
    config, codec, llama = read_json(path), Tokenizer(models.BPE()), name == "LlamaTokenizer"
    space = read_flag(config, "add_prefix_space", llama, f"{path}: ")
    if llama:
        each = "always" if read_flag(config, "legacy", where=f"{path}: ") else "first"
        codec.pre_tokenizer = Metaspace("▁", each if space else "never", split=False)
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        strip = [decoders.Strip(" ", 1, 0)] if space else []
        codec.decoder = decoders.Sequence([*steps, *strip])
        return codec
    codec.pre_tokenizer = ByteLevel(add_prefix_space=space)
    codec.decoder = decoders.ByteLevel()
    if name == "Qwen2Tokenizer":
        codec.normalizer = normalizers.NFC()
        split = Split(Regex(QWEN2_SPLIT), "isolated")
        codec.pre_tokenizer = Sequence([split, ByteLevel(add_prefix_space=space, use_regex=False)])
    return codec


def _read_pieces(data: bytes) -> tuple[dict, list, list[AddedToken]]:
    """(vocabulary, merges, added tokens) of a SentencePiece model of any type, as LlamaTokenizer
    takes it: each way to cut a piece in two is a merge, those of the first pieces first."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    pieces = ModelProto.FromString(data).pieces
    texts = [piece.piece for piece in pieces]
    vocabulary = {text: i for i, text in enumerate(texts)}
    if not vocabulary or len(vocabulary) < len(texts):
        raise ValueError("no pieces" if not texts else "the same piece twice")
    cuts = ((text[:k], text[k:]) for text in texts for k in range(1, len(text)))
    merges = [(a, b) for a, b in cuts if a in vocabulary and b in vocabulary]
    listed = [
        AddedToken(piece.piece, normalized=False, special=piece.type == piece.CONTROL)
        for piece in pieces
        if piece.type in (piece.CONTROL, piece.USER_DEFINED)
    ]
    return vocabulary, merges, listed
