"""Tiny random models of every supported architecture, small tokenizers of every supported kind."""

import minisoft  # isort: skip  # before torch: how threads wait

import copy
import json
import shutil
import signal
from functools import cache

import pytest
import torch

from minisoft.errors import InputError

torch.set_num_threads(1)  # at these sizes a second thread only waits
# a shell may have started the tests with Ctrl-C ignored, nohup with SIGHUP
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

VOCABULARY = 512
SENTENCES = [
    "Mia has 12 apples, and 7 pears. How many are there now? The final answer is: \\boxed{19}",
    "First: add 3 to 45; then 48 / 2 = 24. The final answer is: \\boxed{24}.\n\n",
    "\\frac{1}{2} + \\sqrt{2} \\approx 1.914, so x^2 \\le 4 and {a: b}.\n",
    "def f(x):\n    return x + 1  # done: yes\n",
    "Über naïve Größe: déjà vu, 東京 is far: 10 000 km. Das Ergebnis lautet: 3,14 \u2212 1.",
    "User: what? Assistant: that: this. Time: 12:30:45. Ratio 3:4:: ok",
]
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


def write_json(path, value):
    path.write_text(json.dumps(value), "utf-8")


def refuses(source, *parts, by):
    """`by(source)` raises an InputError of one line that has all `parts`; returns the line."""
    with pytest.raises(InputError) as error:
        by(source)
    message = str(error.value)
    assert "\n" not in message and all(str(part) in message for part in parts), message
    return message


def corpus():
    return [" ".join(SENTENCES[(i + j) % len(SENTENCES)] for j in range(3)) for i in range(60)]


def pytest_addoption(parser):
    text = "where tests/test_on_device.py runs, in full (default: a part of it, on the CPU)"
    parser.addoption("--device", choices=("cpu", "cuda"), help=text)
    text = "folder or hub id of a model for tests/test_real_model.py (default: skipped)"
    parser.addoption("--model", help=text)


@pytest.fixture(scope="session")
def device(request):
    """The device of --device.  Raises InputError where there is none."""
    from minisoft.run.world import find_device

    return find_device(request.config.getoption("--device") or "cpu", 0)


# ---------------------------------------------------------------- tokenizers


def byte_level(folder, split, special, bos, normalizer=None, added=()):
    """A byte-level BPE tokenizer.json as Llama 3 and Qwen have."""
    from tokenizers import Regex, Tokenizer, decoders, models, processors, trainers
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    codec, alphabet = Tokenizer(models.BPE()), ByteLevel.alphabet()
    codec.normalizer = normalizer
    of_bytes = ByteLevel(add_prefix_space=False, use_regex=False)
    codec.pre_tokenizer = Sequence([Split(Regex(split), "isolated"), of_bytes])
    codec.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=440, initial_alphabet=alphabet, show_progress=False)
    codec.train_from_iterator(corpus(), trainer)
    codec.add_special_tokens(special)
    codec.add_tokens(list(added))
    codec.post_processor = processors.ByteLevel(trim_offsets=False)
    if bos:
        template = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, codec.token_to_id(bos))],
        )
        codec.post_processor = processors.Sequence([codec.post_processor, template])
    codec.save(str(folder / "tokenizer.json"))


def write_tokenizer_config(folder, name, bos, eos, **fields):
    """tokenizer_config.json of a class of transformers."""
    config = {"tokenizer_class": name, "bos_token": bos, "eos_token": eos, **fields}
    write_json(folder / "tokenizer_config.json", config)


def llama3(folder):
    bos, *others = "<|begin_of_text|> <|end_of_text|> <|eot_id|>".split()
    byte_level(folder, LLAMA3_SPLIT, [bos, *others], bos)
    write_tokenizer_config(
        folder, "PreTrainedTokenizerFast", bos, "<|eot_id|>", clean_up_tokenization_spaces=True
    )


def qwen(folder):
    from tokenizers.normalizers import NFC

    special = "<|endoftext|> <|im_start|> <|im_end|>".split()
    byte_level(folder, QWEN_SPLIT, special, None, NFC(), added=["<tool:call>"])
    fields = {"add_bos_token": False, "pad_token": special[0]}
    fields["clean_up_tokenization_spaces"] = False
    write_tokenizer_config(folder, "Qwen2Tokenizer", None, "<|im_end|>", **fields)


def llama2_model(folder):
    """A sentencepiece tokenizer.model with byte fallback, as Llama 2 and TinyLlama have."""
    text = folder / "text"
    text.write_text("\n".join(corpus()), "utf-8")
    options = {"byte_fallback": True, "split_digits": True, "allow_whitespace_only_pieces": True}
    options |= {"remove_extra_whitespaces": False, "normalization_rule_name": "identity"}
    train_sentencepiece(
        text, vocab_size=VOCABULARY, model_type="bpe", character_coverage=0.99, **options
    )
    text.unlink()
    fields = {"add_bos_token": True, "add_eos_token": False, "legacy": False, "unk_token": "<unk>"}
    write_tokenizer_config(folder, "LlamaTokenizer", "<s>", "</s>", **fields)


def train_sentencepiece(text, **options):
    """A tokenizer.model beside the file `text`."""
    import sentencepiece

    prefix = text.with_name("tokenizer")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(prefix), num_threads=1, minloglevel=2, **options
    )
    prefix.with_suffix(".vocab").unlink()


def llama2_json(folder):
    """The same pieces as a tokenizer.json, in the form that transformers converts Llama 2's to."""
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    llama2_model(folder)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    (folder / "tokenizer.model").unlink()
    vocabulary = {pieces.id_to_piece(i): i for i in range(len(pieces))}
    cuts = (
        (i, piece[:k], piece[k:])
        for piece, i in vocabulary.items()
        if i > 258
        for k in range(1, len(piece))
    )
    merges = sorted(
        (i, vocabulary[a], vocabulary[b], (a, b))
        for i, a, b in cuts
        if a in vocabulary and b in vocabulary
    )
    options = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    codec = Tokenizer(models.BPE(vocabulary, [pair for *_, pair in merges], **options))
    special = ("<unk>", "<s>", "</s>")
    codec.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    codec.normalizer = normalizers.Sequence(steps)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    codec.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    codec.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    codec.save(str(folder / "tokenizer.json"))
    write_tokenizer_config(folder, "PreTrainedTokenizerFast", "<s>", "</s>", unk_token="<unk>")


def qwen_slow(folder):
    """The same ids as `qwen` has, in the files of a tokenizer that is saved without the library."""
    qwen(folder)
    codec = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    write_json(folder / "vocab.json", codec["model"]["vocab"])
    merges = "\n".join(" ".join(pair) for pair in codec["model"]["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", "utf-8")
    ids = {token["content"]: token["id"] for token in codec["added_tokens"]}
    write_json(folder / "added_tokens.json", ids)


def llama2_chat(folder):
    """`llama2_model` with the tokens of ChatML, as a chat model that was made of Llama 2 has."""
    llama2_model(folder)
    write_json(folder / "added_tokens.json", {"<|im_end|>": 513, "<|im_start|>": 512})
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", {**config, "eos_token": "<|im_end|>"})


TOKENIZERS = (llama3, qwen, llama2_model, llama2_json, qwen_slow, llama2_chat)
TOKENIZERS = {write.__name__: write for write in TOKENIZERS}
SENTENCEPIECE = ("llama2_model", "llama2_chat")


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory):
    """Name -> folder with nothing but tokenizer files; not to be written to."""
    folders = {name: tmp_path_factory.mktemp(name) for name in TOKENIZERS}
    for name, write in TOKENIZERS.items():
        write(folders[name])
    return folders


# ---------------------------------------------------------------- models

SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48}
SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"max_position_embeddings": 2048, "rope_theta": 10000.0, "tie_word_embeddings": False}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2}
LLAMA3_SCALING = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3_SCALING |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
QWEN_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
DEEPSEEK_YARN = {**QWEN_YARN, "mscale": 0.707, "mscale_all_dim": 1.0}
DEEPSEEK_YARN |= {"beta_fast": 16, "beta_slow": 2}
ARCHITECTURES = {
    "llama-gqa": {},
    "llama-mha": {"num_key_value_heads": 4},
    "llama-tied": {"tie_word_embeddings": True},
    "llama-linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3": {"rope_scaling": LLAMA3_SCALING, "rope_theta": 500000.0},
    "llama3-tied": {"rope_scaling": LLAMA3_SCALING, "tie_word_embeddings": True},
    "llama-yarn": {"rope_scaling": DEEPSEEK_YARN},
    "llama-attention-bias": {"attention_bias": True},
    "llama-mlp-bias": {"mlp_bias": True},
    "llama-head-dim": {"head_dim": 16},
    "qwen2": {},
    "qwen2-tied": {"tie_word_embeddings": True},
    "qwen2-yarn": {"rope_scaling": QWEN_YARN, "rope_theta": 1e6, "head_dim": 16},
    "qwen3": {"head_dim": 16, "rms_norm_eps": 1e-3},
    "qwen3-tied": {"head_dim": 16, "tie_word_embeddings": True},
    "qwen3-yarn": {"head_dim": 16, "rope_scaling": {**QWEN_YARN, "attention_factor": 1.3}},
    "qwen3-bias": {"head_dim": 16, "attention_bias": True},
}


def hf_class(kind, ending, *parts, **fields):
    """transformers' class of a model_type, such as LlamaConfig, made of these."""
    import transformers

    return getattr(transformers, f"{kind.capitalize()}{ending}")(*parts, **fields)


def random_model(architecture, **changes):
    """A transformers model in which nothing is 0 or 1: norms and biases are random too."""
    kind = architecture.split("-")[0].replace("llama3", "llama")
    fields = {**SIZES, **copy.deepcopy(ARCHITECTURES[architecture]), **changes}
    config = hf_class(kind, "Config", **fields)
    torch.manual_seed(0)
    model = hf_class(kind, "ForCausalLM", config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            is_norm = parameter.dim() == 1 and parameter_name.endswith("norm.weight")
            parameter.copy_(1 + 0.3 * noise if is_norm else 0.3 * noise)
    return model


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """saved(architecture) -> (transformers model, its folder); both not to be changed."""

    @cache
    def get(architecture):
        folder, model = tmp_path_factory.mktemp(architecture), random_model(architecture)
        model.save_pretrained(folder)
        return model, folder

    return get


@pytest.fixture(scope="session")
def both(saved):
    """both(architecture) -> (transformers model, the same weights in minisoft), float32."""
    from minisoft.io.checkpoint import load_model

    @cache
    def get(architecture):
        model, folder = saved(architecture)
        return model, load_model(folder)

    return get


@pytest.fixture(scope="session")
def fast(both):
    """fast(architecture) -> (transformers model, the same weights in minisoft, accelerated)."""
    from minisoft.engine import accelerate

    @cache
    def get(architecture):
        model, plain = both(architecture)
        return model, accelerate(copy.deepcopy(plain))

    return get


def random_ids(*shape, seed=0):
    """Token ids of the models above."""
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def logits_of(model, ids):
    """The logits at every position of texts (B, T), by one plain pass of a minisoft model."""
    return model.logits(model(model.embed(ids)))


def close(result, expected, tolerance=1e-5):
    torch.testing.assert_close(result, expected, atol=tolerance, rtol=0)


@pytest.fixture
def model_folder(saved, tokenizer_folders, tmp_path):
    """A fresh whole model folder (tied Llama with the Llama 3 tokenizer), free to be spoilt."""
    folder = tmp_path / "model"
    shutil.copytree(saved("llama3-tied")[1], folder)
    shutil.copytree(tokenizer_folders["llama3"], folder, dirs_exist_ok=True)
    return folder


# ---------------------------------------------------------------- the embedded model

# every kind of token and place of its noise: (kind, noise, top_k)
KINDS = {name: (name, "embedding", None) for name in ("hard", "soft", "fuzzy")}
KINDS |= {"soft, hidden": ("soft", "hidden", None), "fuzzy, hidden": ("fuzzy", "hidden", None)}
KINDS |= {"soft, logits": ("soft", "logits", None), "soft, top 5": ("soft", "logits", 5)}
KINDS |= {name: (name, "embedding", None) for name in ("multiplex", "covariance", "gumbel")}


class Tiny:
    """The embedded model, plain and accelerated, and prompts of six of its test problems; not to
    be changed."""

    def __init__(self):
        from minisoft import data, engine
        from minisoft.io import WEIGHTS

        self.model, self.tokenizer = minisoft.load(WEIGHTS / "tiny")
        self.fast = engine.accelerate(copy.deepcopy(self.model))
        self.form = data.Format(self.tokenizer)
        problems = data.load_problems("tiny-test")[:6]
        texts = [data.prompt(p.question, "User: QUESTION Assistant:") for p in problems]
        self.prompts = [self.tokenizer.encode(text) for text in texts]

    def kind(self, name):
        """The kind of that name in KINDS, with the paper's gamma."""
        from minisoft.kinds import make_kind
        from minisoft.soft import GAMMA, noise_scale

        token, noise, top_k = KINDS[name]
        sigma = GAMMA * noise_scale(self.model, noise)
        return make_kind(token, sigma, noise=noise, top_k=top_k)

    def requests(self, problems, samples, step=0):
        from minisoft.rollout import Request

        return [Request(self.prompts[i], (0, step, i), samples) for i in problems]


@pytest.fixture(scope="session")
def tiny():
    return Tiny()


@pytest.fixture(scope="session")
def rolled(tiny):
    """rolled(name) -> Rollouts of 3 problems x 8 samples by the engine, of a kind in KINDS."""
    from minisoft import engine
    from minisoft.rollout import Decoding

    @cache
    def get(name):
        requests = tiny.requests(range(3), range(8))
        return engine.rollout(tiny.fast, tiny.form, tiny.kind(name), requests, Decoding(60))

    return get


@pytest.fixture(scope="session")
def verifier():
    from minisoft.verifier.process import Verifier

    with Verifier() as verifier:
        yield verifier
