"""Tokens that the files beside a vocabulary add to it, as transformers 5 reads them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken

from minisoft.errors import expect
from minisoft.io.atomic import read_json

NAMED = [f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
EXTRA, ADDITIONAL = "extra_special_tokens", "additional_special_tokens"
FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")


@dataclass
class Added:
    """The tokens that a folder's files add to a vocabulary, in the order of their ids."""

    tokens: list[AddedToken]
    stated: list[tuple[str, str, int]]  # (file and field, text, the id that it has there)
    names: dict[str, AddedToken | None]  # those with a role: bos_token, eos_token, ...
    unnumbered: list[str]  # texts of those with a role, and of those that are listed without an id


def read_added(folder: Path, special: dict, others: list | None, present: Iterable[str]) -> Added:
    """Of tokenizer_config.json, special_tokens_map.json, added_tokens.json and tokenizer.json;
    special: the tokens with a role where no file names one; others: further special ones where no
    file lists "extra" ones (None: special_tokens_map.json's); present: texts that are there."""
    path, beside = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    config, roles = read_json(path), {}
    if config.get(EXTRA) == {}:
        del config[EXTRA]
    named = _read_names(config, path)
    decoder = config.get("added_tokens_decoder")
    if decoder is None:  # else transformers opens no other file
        roles = read_json(beside)
        named |= _read_names(roles, beside)
    extra = [*_read_list(config, path), *_read_list({**roles, ADDITIONAL: None}, beside)]
    known = {token.content for token in extra}
    for role in NAMED:  # transformers does not look into the objects of tokenizer_config.json
        if named.get(role) and (role in roles or isinstance(config[role], str)):
            known.add(named[role].content)
    numbered, stated = _read_numbered(folder, decoder, known)
    if not any(field in config for field in (EXTRA, ADDITIONAL)) and EXTRA not in roles:
        extra = _read_list(roles, beside) if others is None else others
    defaults = {role: token and token_of(token, path) for role, token in special.items()}
    names = defaults | named
    order = [*NAMED, *(role for role in names if role not in NAMED)]
    named = [names[role] for role in order if names.get(role)]
    for token in numbered:
        token.special |= token.content in {role.content for role in named}
    known = {*present, *(token.content for token in numbered)}
    more = {repr(token): token for token in (*named, *extra) if token.content not in known}
    texts = [token.content for token in (*named, *extra)]
    return Added([*numbered, *more.values()], stated, names, texts)


def token_of(value, where) -> AddedToken:
    """A token as these files have it: an object with flags, or a special one's text alone."""
    flags = value if isinstance(value, dict) else {"content": value, "special": True}
    text = flags.get("content")
    expect(isinstance(text, str) and text, where, "the text of a token", text)
    flags = {flag: flags[flag] for flag in FLAGS if flag in flags}
    for flag, on in flags.items():
        expect(isinstance(on, bool), f"{where}: {text}: {flag}", "true or false", on)
    return AddedToken(text, **flags)


def _read_names(values: dict, path: Path) -> dict[str, AddedToken | None]:
    """The tokens with a role: bos_token, ..., those of other models; not add_bos_token."""
    names = {}
    for role, value in values.items():
        if role in NAMED or (role.endswith("_token") and isinstance(value, str | dict)):
            names[role] = None if value is None else token_of(value, f"{path}: {role}")
            if names[role]:
                names[role].special = True
    return names


def _read_list(values: dict, path: Path) -> list[AddedToken]:
    listed = values.get(EXTRA) or values.get(ADDITIONAL) or []
    where = f"{path}: {ADDITIONAL}"
    expect(isinstance(listed, list), where, "a list", listed)
    return [token_of(value, where) for value in listed]


def _read_numbered(folder: Path, decoder: dict | None, known: set[str]) -> tuple[list, list]:
    """(tokens, what is stated of them), by their ids in `decoder`, the added_tokens_decoder of
    tokenizer_config.json, else in added_tokens.json (special there if `known`) and tokenizer.json.
    """
    tokens = {}
    if decoder is not None:
        path = folder / "tokenizer_config.json: added_tokens_decoder"
        expect(isinstance(decoder, dict), path, "an object", decoder)
        for i, value in decoder.items():
            expect(i.isdecimal(), path, "ids", i)
            expect(isinstance(value, dict), f"{path}: {i}", "an object", value)
            tokens[int(i)] = path, token_of(value, f"{path}: {i}")
    else:
        path = folder / "added_tokens.json"
        for text, i in read_json(path).items():
            expect(type(i) is int and i not in tokens, f"{path}: {text}", "an id of its own", i)
            tokens[i] = path, AddedToken(text, normalized=text not in known, special=text in known)
        path = folder / "tokenizer.json"
        for value in read_json(path).get("added_tokens") or []:
            tokens[value["id"]] = path, token_of(value, path)
    tokens = sorted(tokens.items())
    stated = [(str(path), token.content, i) for i, (path, token) in tokens]
    return [token for _, (_, token) in tokens], stated
