"""Ids equal transformers'; text comes back; continuations need no extra space."""

import shutil
from functools import partial

import pytest
from conftest import SENTENCEPIECE, SENTENCES, TOKENIZERS, corpus, refuses, write_json
from conftest import train_sentencepiece as train_pieces
from tokenizers import Tokenizer as Codec

from minisoft.data import PAPER_PROMPT, PREFILL_EARLY, PREFILL_LATE, STOP
from minisoft.io.atomic import read_json
from minisoft.io.tokenizer import FILES, Tokenizer

refuses = partial(refuses, by=Tokenizer)
TEXTS = [*SENTENCES, PAPER_PROMPT, "a" * 300, "", "\n", "a\n\n\nb\t\tc\r\n", "\x07, nul \x00."]
TEXTS += ["naïve 東京 Ωmega \u200b zero", "e\u0301 is not \u00e9", "trailing space "]
TEXTS += r"""a
x  y   z
12345 67 8.90 -1,000
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}$$x_{1}^{2}$$
🙂👩‍👩‍👧 flags 🇩🇪
don't we'll I'm THEY'RE
{{}}}:{::}
quotes "double" and 'single' — dashes – and …""".splitlines()
SPACED = [" leading", "  two", "\n start", " "]  # transformers drops a space in SENTENCEPIECE
SPECIAL = "<|eot_id|> <|im_end|> </s> </s> <|im_end|> <|im_start|>".split()
DROP = ...  # a field that is to be absent


@pytest.fixture(scope="session", params=TOKENIZERS)
def name(request):
    return request.param


@pytest.fixture(scope="session")
def ours(name, tokenizer_folders):
    return Tokenizer(tokenizer_folders[name])


@pytest.fixture
def folder(tokenizer_folders, tmp_path):
    """folder(name, ...) -> a copy of a tokenizer's folder, with these fields in its config."""

    def copy(name, **config):
        shutil.copytree(tokenizer_folders[name], tmp_path / name, dirs_exist_ok=True)
        return with_fields(tmp_path / name, config)

    return copy


def with_fields(path, fields):
    """The folder, with these fields in its tokenizer_config.json."""
    file = path / "tokenizer_config.json"
    kept = {**read_json(file), **fields}
    write_json(file, {key: value for key, value in kept.items() if value is not DROP})
    return path


def of_transformers(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


# ---------------------------------------------------------------- ids


def test_ids_equal_those_of_transformers(name, ours, tokenizer_folders):
    theirs, token = of_transformers(tokenizer_folders[name]), dict(zip(TOKENIZERS, SPECIAL))[name]
    special = f"one{token} two {token}\n{token}"
    for text in [*TEXTS, *SPACED, special]:
        assert ours.encode(text) == list(theirs.encode(text)), repr(text)
    assert len(set(ours.encode(special))) < len(ours.encode(special))


def test_ids_equal_those_of_sentencepiece(tokenizer_folders):
    """Both for tokenizer.model and for the tokenizer.json with the same pieces."""
    import sentencepiece

    file = str(tokenizer_folders["llama2_model"] / "tokenizer.model")
    pieces = sentencepiece.SentencePieceProcessor(model_file=file)
    for name, texts in (("llama2_model", TEXTS), ("llama2_json", TEXTS + SPACED)):
        tokenizer = Tokenizer(tokenizer_folders[name])
        for text in texts:
            assert tokenizer.encode(text) == [1, *pieces.encode(text)], (name, text)


BOS = [("llama3", "<|begin_of_text|>"), ("llama2_json", "<s>"), ("llama2_model", "<s>")]


@pytest.mark.parametrize("name, bos", BOS)
def test_bos_comes_once_where_the_tokenizer_adds_one(name, bos, tokenizer_folders):
    tokenizer = Tokenizer(tokenizer_folders[name])
    first = of_transformers(tokenizer_folders[name]).convert_tokens_to_ids(bos)
    assert tokenizer.encode("") == tokenizer.encode("Mia")[:1] == [first]
    ids = tokenizer.encode(f"{bos}User: 3{bos}")
    assert ids[0] == first and ids[1] != first and ids[-1] == first
    assert ids == tokenizer._ids(f"{bos}User: 3{bos}")
    assert Tokenizer(tokenizer_folders["qwen"]).encode("") == []


@pytest.mark.parametrize("flag", [True, False, DROP])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_add_bos_token_means_what_it_means_in_transformers(kind, flag, folder):
    """It decides for tokenizer.model, which adds no BOS without it (transformers 4 did);
    tokenizer.json has its own rule and the flag is ignored."""
    path = folder(kind, add_bos_token=flag)
    for text in ("", "Mia: 3"):
        ids = Tokenizer(path).encode(text)
        assert ids == list(of_transformers(path).encode(text))
        assert kind != "llama2_model" or (ids[:1] == [1]) == (flag is True)


def test_tokenizer_json_comes_before_tokenizer_model(folder):
    path = folder("llama3")
    (path / "tokenizer.model").write_bytes(b"not read")
    assert Tokenizer(path).size > 256


def test_truncation_and_padding_kept_in_the_file_are_not_applied(folder):
    path = folder("llama3")
    expected = Tokenizer(path).encode(PAPER_PROMPT)
    codec = Codec.from_file(str(path / "tokenizer.json"))
    codec.enable_truncation(8)
    codec.enable_padding(length=1000)
    codec.save(str(path / "tokenizer.json"))
    assert Tokenizer(path).encode(PAPER_PROMPT) == expected


# ---------------------------------------------------------------- added tokens

CHAT = "<|im_start|>user\nMia has 3 apples.<|im_end|>\n<|im_start|>assistant\n"
FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
ADDED = [CHAT, "\n<|im_end|>\n<|im_end|> "]  # texts around added tokens
ADDED += """a <|im_start|> b  <|im_end|>  c
<|im_end|>
<s>Mia</s> has</s>3
x<|im_start|>y_<|im_start|>_
cut <|im_st art|> <|im_end
<unk> is <|endoftext|>""".splitlines()


def same(path, texts=tuple(ADDED)):
    """Are the ids of these texts those of transformers?"""
    ours, theirs = Tokenizer(path), of_transformers(path)
    for text in texts:
        assert ours._ids(text, special=True) == theirs.encode(text), repr(text)
    assert theirs.eos_token_id in ours.eos_ids


@pytest.mark.parametrize("kind", ["qwen_slow", *SENTENCEPIECE])
def test_added_tokens_in_a_text_are_those_of_transformers(kind, folder):
    same(folder(kind))


@pytest.mark.parametrize("legacy", [True, False, DROP])
@pytest.mark.parametrize("class_name", ["LlamaTokenizer", "LlamaTokenizerFast"])
def test_a_space_behind_an_added_token_in_both_behaviours(class_name, legacy, folder):
    same(folder("llama2_chat", tokenizer_class=class_name, legacy=legacy))


@pytest.mark.parametrize("flag", [None, *FLAGS])
@pytest.mark.parametrize("kind", ["qwen_slow", "llama2_chat"])
def test_flags_of_added_tokens_are_those_of_transformers(kind, flag, folder):
    path = folder(kind)
    ids = read_json(path / "added_tokens.json")
    flags = FLAGS | ({flag: True} if flag else {})
    decoder = {i: {**flags, "content": text, "special": True} for text, i in ids.items()}
    (path / "added_tokens.json").unlink()
    same(folder(kind, added_tokens_decoder=decoder))


def test_special_tokens_that_are_only_named_follow_the_last_id(folder):
    """They are found in a text, but `size`, what a model must have rows for, is without them."""
    for kind in ("qwen_slow", "llama2_chat"):
        size = Tokenizer(folder(kind)).size
        path = folder(kind, pad_token="[PAD]", additional_special_tokens=["<b>"])
        same(path, ["[PAD]<b> x"])
        assert Tokenizer(path).size == size and max(Tokenizer(path).encode("<b>")) == size + 1


def test_roles_of_special_tokens_map(folder):
    path = folder("qwen_slow", eos_token=DROP)
    roles = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<a>", "<|im_start|>"]}
    write_json(path / "special_tokens_map.json", roles)
    same(path, [*ADDED, "<a>"])


def test_what_is_not_special_stays_in_the_text(folder):
    path = folder("llama2_chat")
    write_json(path / "added_tokens.json", {"<|im_start|>": 512, "<|im_end|>": 513})
    tokenizer = Tokenizer(path)
    ids = tokenizer.encode("Mia<|im_start|> has<|im_end|>")
    assert tokenizer.decode(ids) == "Mia<|im_start|> has"


@pytest.mark.parametrize("prefix", [True, False])
def test_add_prefix_space_is_that_of_transformers(prefix, folder):
    for kind in TOKENIZERS:
        for named in (DROP, "Qwen2Tokenizer", "GPT2Tokenizer", "LlamaTokenizer"):
            fits = {"qwen_slow": named != "LlamaTokenizer"}.get(kind, named == "LlamaTokenizer")
            if fits and named != DROP or kind not in ("qwen_slow", *SENTENCEPIECE):
                path = folder(kind, add_prefix_space=prefix, tokenizer_class=named)
                same(path, [CHAT, "Mia has"])


OPTIONS = [{}, {"model_type": "unigram", "vocab_size": 360}]
OPTIONS += [{"user_defined_symbols": [*"0123456789", "<|im_start|>"], "vocab_size": 385}]
OPTIONS += [{"control_symbols": ["<|im_start|>"], "byte_fallback": False, "vocab_size": 200}]


@pytest.mark.parametrize("options", OPTIONS)
def test_any_tokenizer_model_is_what_its_class_makes_of_it(options, folder):
    """LlamaTokenizer takes the pieces and nothing else: it merges whatever the type of the model,
    and leaves a text as it is, whatever normalizer_spec the model was trained with."""
    path = folder("llama2_model")
    text = path / "sentences"
    text.write_text("\n".join(SENTENCES * 20), "utf-8")
    defaults = {"vocab_size": 400, "model_type": "bpe", "byte_fallback": True}
    train_pieces(text, **defaults | options)
    texts = ["two  spaces ", "\uff11 \u2460 \ufb01ne", "a\nb\t c", *ADDED, *SENTENCES]
    same(path, texts)
    if not options:
        assert Tokenizer(path).decode(Tokenizer(path).encode(texts[0])) == texts[0]


def test_without_a_prefix_space_decoding_takes_none_away(folder):
    tokenizer = Tokenizer(folder("llama2_chat", add_prefix_space=False))
    assert tokenizer.decode(tokenizer.encode(" Mia")) == " Mia"


def test_gpt2_has_no_normaliser_and_its_own_split(folder):
    for flag in (True, False):
        config = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}
        path = folder("qwen_slow", tokenizer_class="GPT2Tokenizer", add_bos_token=flag, **config)
        same(path, [*TEXTS, *SPACED, *ADDED])


@pytest.mark.parametrize("named", [DROP, "GPT2Tokenizer"])
@pytest.mark.parametrize("model", ["qwen2", "qwen3"])
def test_config_json_says_the_class_where_it_does_in_transformers(model, named, folder):
    path = folder("qwen_slow", tokenizer_class=named)
    write_json(path / "config.json", {"model_type": model})
    same(path, ["12345 e\u0301 don't"])


def test_the_files_that_an_export_copies_are_the_whole_tokenizer(name, ours, folder):
    path = folder(name)
    for file in path.iterdir():
        if file.name not in FILES:
            file.unlink()
    copied = Tokenizer(path)
    assert copied.eos_ids == ours.eos_ids
    for text in [*TEXTS, *ADDED]:
        assert copied.encode(text) == ours.encode(text)


# ---------------------------------------------------------------- tokenizer.json is not alone


def own_object(text):
    return {"__type": "AddedToken", "content": text, **FLAGS, "normalized": True}


def of_file(path):
    """(added_tokens_decoder as it is saved beside a tokenizer.json, with three more; their first
    id)"""
    value = read_json(path / "tokenizer.json")
    decoder = {token.pop("id"): token for token in value["added_tokens"]}
    first = max(*value["model"]["vocab"].values(), *decoder) + 1
    for i, text in enumerate(("<think>", "</think>", "<|later|>"), first):
        decoder[i] = {"content": text, **FLAGS, "special": text == "<|later|>"}
    return decoder, first


def digits_and_spaces(path):
    """SmolLM2's tokenizer.json, whose class drops the digits' own pre-tokenizer."""
    value = read_json(path / "tokenizer.json")
    value["normalizer"] = None
    digits = {"type": "Digits", "individual_digits": True}
    of_bytes = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    both = [digits, {"type": "ByteLevel", **of_bytes}]
    value["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": both}
    write_json(path / "tokenizer.json", value)


def digits_added(path):
    """Yi's tokenizer.json: no BOS, and digits, stops and chat markers that are added tokens."""
    value = read_json(path / "tokenizer.json")
    flags = {**FLAGS, "special": False}
    texts = [*"0123456789", ".", "<|im_start|>", "<|im_end|>"]
    for text in texts:
        i = value["model"]["vocab"].setdefault(text, len(value["model"]["vocab"]))
        value["added_tokens"].append({"id": i, "content": text, **flags})
    value["post_processor"] = None
    write_json(path / "tokenizer.json", value)


LLAMA = {"tokenizer_class": "LlamaTokenizer", "legacy": True}
LISTED = {"additional_special_tokens": ["<|im_start|>", "<|later|>"], "extra_special_tokens": {}}
R1 = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True}
R1 |= {"bos_token": own_object("<|begin_of_text|>"), "eos_token": own_object("<|end_of_text|>")}
YI = {**LLAMA, "add_prefix_space": True, "eos_token": "<|im_end|>"}
PUBLISHED = {  # name: (files, model_type, what tokenizer_config.json has besides, change of files)
    "Llama 3": ("llama3", "llama", {}, None),
    "Qwen2.5, -Math, -Coder": ("qwen", "qwen2", LISTED, None),
    "Qwen3": ("qwen", "qwen3", {"split_special_tokens": False}, None),
    "R1-Distill-Qwen": ("llama3", "qwen2", R1, None),
    "R1-Distill-Llama": ("llama3", "llama", LLAMA, None),
    "SmolLM2": ("qwen", "llama", {"tokenizer_class": "GPT2Tokenizer"}, digits_and_spaces),
    "Llama 2": ("llama2_json", "llama", {**LLAMA, "legacy": False, "add_bos_token": True}, None),
    "Yi 1.5": ("llama2_json", "llama", YI, digits_added),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_ids_of_published_models_are_those_of_transformers(model, folder):
    """The structure of their files, and the same as a fine-tune leaves them: with more tokens."""
    kind, architecture, fields, change = PUBLISHED[model]
    path = folder(kind)
    if change:
        change(path)
    write_json(path / "config.json", {"model_type": architecture})
    texts = [*TEXTS, *SPACED, *ADDED, "<think>\n3 </think>\n4<|later|>", "12 345.6 12,3"]
    decoder, first = of_file(path)
    same(with_fields(path, fields), texts)
    same(with_fields(path, {"added_tokens_decoder": decoder}), texts)
    write_json(path / "added_tokens.json", {"<think>": first})
    same(with_fields(path, {"added_tokens_decoder": DROP}), texts)


def test_the_eos_of_a_class_counts_where_no_file_names_one(folder):
    own = {"qwen": ("Qwen2Tokenizer", "<|endoftext|>"), "llama2_json": ("LlamaTokenizer", "</s>")}
    for kind, (named, token) in own.items():
        path = folder(kind, tokenizer_class=named, eos_token=DROP)
        same(path)
        assert Tokenizer(path).eos_ids == {Tokenizer(path)._codec.token_to_id(token)}


def test_special_tokens_are_split_where_the_files_say_so(folder):
    same(folder("llama3", split_special_tokens=True), ["one<|eot_id|> two"])


def test_an_eos_behind_every_text_is_refused(folder):
    from tokenizers.processors import TemplateProcessing

    path = folder("llama2_json")
    codec = Codec.from_file(str(path / "tokenizer.json"))
    tokens = [("<s>", 1), ("</s>", 2)]
    codec.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=tokens)
    codec.save(str(path / "tokenizer.json"))
    refuses(path, path, "prompts go on")


# ---------------------------------------------------------------- text


def test_decoding_gives_the_text_back(name, ours):
    for text in TEXTS + corpus() + (SPACED if name not in SENTENCEPIECE else []):
        if name.startswith("qwen") and "\u0301" in text:
            continue  # Qwen normalises to NFC
        ids = ours.encode(text)
        assert ours.decode(ids) == ours.decode(tuple(ids)) == text


def test_special_tokens_and_ids_of_no_token_have_no_text(name, ours):
    """A model's vocabulary may be padded: such an id can be sampled."""
    assert ours.size < 1000 and len(ours.eos_ids) == 1
    assert ours.decode([*ours.encode("Mia"), 1000, *ours.eos_ids, ours.size]) == "Mia"


def test_size_is_one_more_than_the_last_id(name, ours, tokenizer_folders):
    assert ours.size == len(of_transformers(tokenizer_folders[name]))
    assert ours.decode([ours.size - 1]) or ours.size - 1 in ours.eos_ids


# ---------------------------------------------------------------- continuations


CONTINUATIONS = [(STOP, PREFILL_EARLY), (":", PREFILL_LATE), ("12", PREFILL_LATE), ("x", "\n\ny")]
CONTINUATIONS += [(f"So 3. {STOP}", PREFILL_EARLY), ("The", " final"), ("Mia has 12", "3 apples")]


@pytest.mark.parametrize("before, text", CONTINUATIONS)
def test_a_continuation_adds_what_the_whole_text_has(ours, before, text):
    whole = ours.encode(before + text)
    assert ours.encode(before) + ours.encode_after(before, text) == whole
    assert ours.encode_after(before, text)


MERGING = [("The fin", "al answer is"), ("\\box", "ed{3}"), ("ap", "ples"), ("1", "")]


@pytest.mark.parametrize("before, text", MERGING)
def test_a_continuation_that_would_merge_still_reads_right(ours, before, text):
    """No BOS, and no space that `text` does not have."""
    assert ours.decode(ours.encode(before) + ours.encode_after(before, text)) == before + text
    assert not set(ours.encode_after(before, text)) & (set(ours.encode("")) | ours.eos_ids)


@pytest.mark.parametrize("character", [":", "}", "{", "\\", "3"])
def test_ids_with_a_character_are_complete(name, ours, character):
    """Every id whose token brings the character into a text, by trying them all."""
    context = ours.encode("Mia")
    known = ours.decode(context)
    texts = {i: ours.decode([*context, i])[len(known) :] for i in range(ours.size)}
    expected = {i for i, text in texts.items() if character in text}
    found = set(ours.ids_with(character))
    assert expected and found >= expected
    if character == ":":  # which decides how often a text is decoded: several tokens, no others
        assert len(expected) > 1 and found == expected


# ---------------------------------------------------------------- the end of a text


EOS = [(None, None, []), ([3, 4], None, [3, 4]), (None, 5, [5]), ([3, 4], [5], [3, 4, 5])]
EOS += [(3, 3, [3]), ([], None, [])]


def test_eos_ids_come_from_all_files(folder):
    path = folder("llama3")
    own = Tokenizer(path).encode("<|eot_id|>")[-1]
    for generation, config, expected in EOS:
        write_json(path / "generation_config.json", {"eos_token_id": generation})
        write_json(path / "config.json", {"eos_token_id": config})
        assert Tokenizer(path).eos_ids == {*expected, own}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_eos_token_of_the_files_ends_a_text(kind, folder):
    """It may be an object; special_tokens_map.json may name another.  Where none is named nothing
    ends, and one that is in no vocabulary has no row (transformers gives it the id behind the last
    one, which a model cannot say)."""
    tokens = {"llama2": "</s>", "llama3": "<|end_of_text|>", "qwen": "<|endoftext|>"}
    token = {"content": tokens[kind.split("_")[0]], "special": True}
    own, path = Tokenizer(folder(kind)).eos_ids, folder(kind)
    write_json(path / "special_tokens_map.json", {"eos_token": token})
    both = Tokenizer(path).eos_ids
    (path / "special_tokens_map.json").unlink()
    found = Tokenizer(folder(kind, eos_token={"__type": "AddedToken", **token}))
    expected = {found._codec.token_to_id(token["content"])}
    assert found.eos_ids == expected and both == own | expected
    assert Tokenizer(folder(kind, eos_token=None)).eos_ids == frozenset()
    nobody = Tokenizer(folder(kind, eos_token="<|nobody|>"))
    assert all(i >= nobody.size for i in nobody.eos_ids)


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("ids", ["2", [2, "3"], 2.0, True, {"a": 2}])
def test_an_eos_token_id_that_is_no_id(name, ids, folder):
    path = folder("llama3")
    write_json(path / name, {"eos_token_id": ids})
    refuses(path, path / name, "eos_token_id", "an id or a list of ids")


# ---------------------------------------------------------------- what is refused


def test_a_folder_without_a_tokenizer(tmp_path):
    refuses(tmp_path, tmp_path, "tokenizer.json or tokenizer.model")
    refuses(tmp_path / "nowhere", tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["qwen_slow", "llama2_chat"])
def test_added_ids_that_do_not_follow_are_named(kind, folder):
    path = folder(kind, eos_token=None)
    for ids in ({"<pad>": 600}, {"<pad>": "512"}, {"a": 5}, {"<a>": 600, "<b>": 600}):
        write_json(path / "added_tokens.json", ids)
        refuses(path, path / f"added_tokens.json: {[*ids][-1]}:")


ANYWHERE = {"pad_token": [3], "additional_special_tokens": ["<a>"], "add_eos_token": [True]}
ANYWHERE |= {"tokenizer_class": ["RobertaTokenizer"], "add_bos_token": ["yes"]}
ANYWHERE |= {"add_prefix_space": [1], "added_tokens_decoder": [[1], {"512": "<a>"}]}
ANYWHERE["added_tokens_decoder"] += [{"x": {"content": "<a>"}}, {"700": {"content": "<a>"}}]
ANYWHERE["added_tokens_decoder"] += [{"512": {"content": "<a>", "lstrip": 1}}]
BAD = [(field, value) for field, values in ANYWHERE.items() for value in values]
BAD = [(kind, *field) for kind in ("qwen_slow", "llama2_chat") for field in BAD]
BAD += [  # what transformers would read otherwise
    ("llama2_chat", "tokenizer_class", "PreTrainedTokenizerFast"),
    ("llama2_chat", "tokenizer_class", DROP),
    ("qwen_slow", "tokenizer_class", "LlamaTokenizer"),
    ("llama3", "tokenizer_class", "RobertaTokenizer"),
    ("llama3", "fast_tokenizer_files", ["tokenizer.4.0.0.json"]),
]


@pytest.mark.parametrize("kind, field, value", BAD)
def test_fields_that_cannot_be_used_are_named(kind, field, value, folder):
    path = folder(kind, **{field: value})
    refuses(path, path / "tokenizer_config.json", field)


def test_extra_special_tokens_that_are_no_list_are_refused(folder):
    path = folder("llama3", extra_special_tokens={"image_token": "<image>"})
    refuses(path, path / "tokenizer_config.json", "special_tokens")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_broken_vocabulary(name, folder):
    path = folder("qwen_slow")
    (path / name).write_bytes(b"[1 2 3\n")
    refuses(path, path / name)
    (path / "merges.txt").unlink()
    refuses(path, path / "merges.txt")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_a_broken_tokenizer_file(name, tmp_path, tokenizer_folders):
    cut = (tokenizer_folders["llama2_model"] / "tokenizer.model").read_bytes()[:-1]
    for content in (b"", b"{", b"{}", b"[1]", b"not a tokenizer\n at all", b"\xff\xfe\x00", cut):
        (tmp_path / name).write_bytes(content)
        for named in ("PreTrainedTokenizerFast", "LlamaTokenizer"):
            if named == "LlamaTokenizer" or name == "tokenizer.json":
                write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": named})
                refuses(tmp_path, tmp_path / name)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_a_broken_config_beside_it(name, content, folder):
    path = folder("llama3")
    (path / name).write_bytes(content)
    refuses(path, path / name, "JSON")
