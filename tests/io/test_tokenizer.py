"""Ids equal transformers'; text comes back; continuations need no extra space."""

import json
import shutil

import pytest
from conftest import SENTENCES, TOKENIZERS, corpus, write_json

from minisoft.data import PAPER_PROMPT, PREFILL_EARLY, PREFILL_LATE, STOP
from minisoft.errors import InputError
from minisoft.io.atomic import read_json
from minisoft.io.tokenizer import Tokenizer

TEXTS = SENTENCES + [
    "",
    "a",
    "\n",
    "x  y   z",
    "trailing space ",
    "a\n\n\nb\t\tc\r\n",
    "12345 67 8.90 -1,000",
    PAPER_PROMPT,
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}$$x_{1}^{2}$$",
    "naïve 東京 Ωmega \u200b zero",
    "🙂👩‍👩‍👧 flags 🇩🇪",
    "don't we'll I'm THEY'RE",
    "{{}}}:{::}",
    "control \x07 and nul \x00.",
    "e\u0301 is not \u00e9",
    "a" * 300,
    "quotes \"double\" and 'single' — dashes – and …",
]
SPACED = [
    " leading",
    "  two",
    "\n start",
    " ",
]  # here transformers leaves sentencepiece's conventions
SPECIAL = {"llama3": "<|eot_id|>", "qwen": "<|im_end|>", "llama2_json": "</s>"}
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
        path = tmp_path / name / "tokenizer_config.json"
        kept = {**json.loads(path.read_text()), **config}
        write_json(path, {key: value for key, value in kept.items() if value is not DROP})
        return tmp_path / name

    return copy


def of_transformers(folder, name):
    if name == "llama2_model":
        pytest.importorskip(
            "google.protobuf", reason="transformers needs protobuf to read tokenizer.model"
        )
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


# ---------------------------------------------------------------- ids


def test_ids_equal_those_of_transformers(name, ours, tokenizer_folders):
    theirs = of_transformers(tokenizer_folders[name], name)
    for text in TEXTS + (SPACED if name != "llama2_model" else []):
        assert ours.encode(text) == list(theirs.encode(text)), repr(text)


@pytest.mark.parametrize("name, token", SPECIAL.items())
def test_special_tokens_in_a_text_are_those_of_transformers(name, token, tokenizer_folders):
    text = f"one{token} two {token}\n{token}"
    ids = Tokenizer(tokenizer_folders[name]).encode(text)
    assert ids == list(of_transformers(tokenizer_folders[name], name).encode(text)) and len(
        set(ids)
    ) < len(ids)


def test_ids_equal_those_of_sentencepiece(tokenizer_folders):
    """Both for tokenizer.model and for the tokenizer.json with the same pieces."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(
        model_file=str(tokenizer_folders["llama2_model"] / "tokenizer.model")
    )
    for text in TEXTS + SPACED:
        for name in ("llama2_model", "llama2_json"):
            assert Tokenizer(tokenizer_folders[name]).encode(text) == [1, *pieces.encode(text)], (
                name,
                text,
            )


@pytest.mark.parametrize("name, bos", [("llama3", "<|begin_of_text|>"), ("llama2_json", "<s>")])
def test_bos_comes_where_the_tokenizer_adds_one(name, bos, tokenizer_folders):
    tokenizer = Tokenizer(tokenizer_folders[name])
    theirs = of_transformers(tokenizer_folders[name], name)
    expected = [theirs.convert_tokens_to_ids(bos)]
    assert tokenizer.encode("")[:1] == tokenizer.encode("Mia")[:1] == expected
    assert Tokenizer(tokenizer_folders["qwen"]).encode("") == []


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_add_bos_token_means_what_it_means_in_transformers(kind, flag, folder):
    """It decides for tokenizer.model; tokenizer.json has its own rule and the flag is ignored."""
    path = folder(kind, add_bos_token=flag)
    assert Tokenizer(path).encode("Mia: 3") == list(of_transformers(path, kind).encode("Mia: 3"))


@pytest.mark.parametrize(
    "flag, bos", [(True, [1]), (False, []), (DROP, [1])], ids=["true", "false", "absent"]
)
def test_a_tokenizer_model_adds_bos_unless_told_not_to(flag, bos, folder):
    """Llama 2's convention where the flag is absent."""
    tokenizer = Tokenizer(folder("llama2_model", add_bos_token=flag))
    assert tokenizer.encode("") == bos
    assert tokenizer.encode("a") == bos + Tokenizer(
        folder("llama2_model", add_bos_token=False)
    ).encode("a")


def test_tokenizer_json_comes_before_tokenizer_model(folder):
    path = folder("llama3")
    (path / "tokenizer.model").write_bytes(b"not read")
    assert Tokenizer(path).size > 256


def test_truncation_and_padding_kept_in_the_file_are_not_applied(folder):
    from tokenizers import Tokenizer as Codec

    path = folder("llama3")
    expected = Tokenizer(path).encode(PAPER_PROMPT)
    codec = Codec.from_file(str(path / "tokenizer.json"))
    codec.enable_truncation(8)
    codec.enable_padding(length=1000)
    codec.save(str(path / "tokenizer.json"))
    assert Tokenizer(path).encode(PAPER_PROMPT) == expected


# ---------------------------------------------------------------- text


def test_decoding_gives_the_text_back(name, ours):
    for text in TEXTS + SPACED + corpus():
        if name == "qwen" and "\u0301" in text:
            continue  # Qwen normalises to NFC
        ids = ours.encode(text)
        assert ours.decode(ids) == ours.decode(tuple(ids)) == text


def test_special_tokens_are_left_out_of_the_text(name, ours):
    ids = ours.encode("Mia: 3") + sorted(ours.eos_ids)
    assert len(ours.eos_ids) == 1 and ours.decode(ids) == "Mia: 3"


def test_ids_of_no_token_have_no_text(name, ours):
    """A model's vocabulary may be padded: such an id can be sampled."""
    assert ours.size < 1000
    assert ours.decode([*ours.encode("Mia"), 1000, ours.size]) == "Mia"


def test_size_is_one_more_than_the_last_id(name, ours, tokenizer_folders):
    assert ours.size == len(of_transformers(tokenizer_folders[name], name))
    assert ours.decode([ours.size - 1]) or ours.size - 1 in ours.eos_ids


# ---------------------------------------------------------------- continuations


@pytest.mark.parametrize(
    "before, text",
    [
        (STOP, PREFILL_EARLY),
        (":", PREFILL_LATE),
        ("12", PREFILL_LATE),
        (f"So 3. {STOP}", PREFILL_EARLY),
        ("The", " final"),
        ("Mia has 12", "3 apples"),
        ("x", "\n\ny"),
    ],
)
def test_a_continuation_adds_what_the_whole_text_has(ours, before, text):
    whole = ours.encode(before + text)
    assert ours.encode(before) + ours.encode_after(before, text) == whole
    assert ours.encode_after(before, text)


@pytest.mark.parametrize(
    "before, text", [("The fin", "al answer is"), ("\\box", "ed{3}"), ("ap", "ples"), ("1", "")]
)
def test_a_continuation_that_would_merge_still_reads_right(ours, before, text):
    """No BOS, and no space that `text` does not have."""
    assert ours.decode(ours.encode(before) + ours.encode_after(before, text)) == before + text
    assert not set(ours.encode_after(before, text)) & (set(ours.encode("")) | ours.eos_ids)


@pytest.mark.parametrize("character", [":", "}", "{", "\\", "3"])
def test_ids_with_a_character_are_complete(name, ours, character):
    """Every id whose token brings the character into a text, by trying them all."""
    context = ours.encode("Mia")
    known = ours.decode(context)
    expected = {
        i for i in range(ours.size) if character in ours.decode([*context, i])[len(known) :]
    }
    found = set(ours.ids_with(character))
    assert expected and found >= expected
    if (
        character == ":"
    ):  # the one that decides how often a text is decoded: several tokens, and no others
        assert len(expected) > 1 and found == expected


# ---------------------------------------------------------------- the end of a text


@pytest.mark.parametrize(
    "generation, config, expected",
    [
        (None, None, set()),
        ([3, 4], None, {3, 4}),
        (None, 5, {5}),
        ([3, 4], [5], {3, 4, 5}),
        (3, 3, {3}),
        ([], None, set()),
    ],
)
def test_eos_ids_come_from_all_files(folder, generation, config, expected):
    path = folder("llama3")
    write_json(path / "generation_config.json", {"eos_token_id": generation})
    write_json(path / "config.json", {"eos_token_id": config})
    own = Tokenizer(path).encode("<|eot_id|>")[-1]
    assert Tokenizer(path).eos_ids == expected | {own}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_eos_token_may_be_an_object(kind, folder):
    token = {"llama3": "<|end_of_text|>", "qwen": "<|endoftext|>"}.get(kind, "</s>")
    path = folder(kind, eos_token={"__type": "AddedToken", "content": token, "special": True})
    expected = 2 if kind.startswith("llama2") else Tokenizer(path).encode(token)[-1]
    assert Tokenizer(path).eos_ids == {expected}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("token", [None, "<|nobody|>"])
def test_an_eos_token_that_does_not_exist_ends_nothing(kind, token, folder):
    assert Tokenizer(folder(kind, eos_token=token)).eos_ids == frozenset()


# ---------------------------------------------------------------- what is refused


def refuses(folder, *parts):
    with pytest.raises(InputError) as error:
        Tokenizer(folder)
    assert "\n" not in str(error.value)
    assert all(str(part) in str(error.value) for part in parts), str(error.value)


def test_a_folder_without_a_tokenizer(tmp_path):
    refuses(tmp_path, tmp_path, "tokenizer.json or tokenizer.model")
    refuses(tmp_path / "nowhere", tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"{}", b"[1]", b"not a tokenizer\n at all", b"\xff\xfe\x00"]
)
def test_a_broken_tokenizer_file(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    refuses(tmp_path, tmp_path / name)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_a_broken_config_beside_it(name, content, folder):
    path = folder("llama3")
    (path / name).write_bytes(content)
    refuses(path, path / name, "JSON")


def test_read_json_of_no_file(tmp_path):
    assert read_json(tmp_path / "no.json") == {}
