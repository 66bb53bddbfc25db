"""Tiny random models of every supported architecture, small tokenizers of every supported kind."""

import minisoft  # isort: skip  # before torch: how threads wait

import copy
import json
import shutil
import signal

import pytest
import torch

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


def corpus():
    return [" ".join(SENTENCES[(i + j) % len(SENTENCES)] for j in range(3)) for i in range(60)]


def pytest_addoption(parser):
    text = "where tests/test_on_device.py runs, in full (default: a part of it, on the CPU)"
    parser.addoption("--device", choices=("cpu", "cuda"), help=text)


@pytest.fixture(scope="session")
def device(request):
    """The device of --device.  Raises InputError where there is none."""
    from minisoft.run.world import find_device

    return find_device(request.config.getoption("--device") or "cpu", 0)


# ---------------------------------------------------------------- tokenizers


def byte_level(folder, split, special, bos, normalizer=None, added=()):
    """A byte-level BPE tokenizer.json as Llama 3 and Qwen have."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    codec = Tokenizer(models.BPE())
    codec.normalizer = normalizer
    codec.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    codec.decoder = decoders.ByteLevel()
    codec.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=440,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    codec.add_special_tokens(special)
    codec.add_tokens(list(added))
    if bos:
        codec.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=f"{bos} $A",
                    pair=f"{bos} $A {bos}:1 $B:1",
                    special_tokens=[(bos, codec.token_to_id(bos))],
                ),
            ]
        )
    else:
        codec.post_processor = processors.ByteLevel(trim_offsets=False)
    codec.save(str(folder / "tokenizer.json"))


def llama3(folder):
    byte_level(
        folder,
        LLAMA3_SPLIT,
        ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
        "<|begin_of_text|>",
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "clean_up_tokenization_spaces": True,
        },
    )


def qwen(folder):
    from tokenizers import normalizers

    byte_level(
        folder,
        QWEN_SPLIT,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        None,
        normalizers.NFC(),
        added=["<tool:call>"],
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_bos_token": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
        },
    )


def llama2_model(folder):
    """A sentencepiece tokenizer.model with byte fallback, as Llama 2 and TinyLlama have."""
    import sentencepiece

    (folder / "text").write_text(
        "\n".join(line for text in corpus() for line in text.split("\n")), "utf-8"
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        allow_whitespace_only_pieces=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        character_coverage=0.99,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "text").unlink()
    (folder / "tokenizer.vocab").unlink()
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "add_eos_token": False,
            "legacy": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
        },
    )


def llama2_json(folder):
    """The same pieces as a tokenizer.json, in the form that transformers converts Llama 2's to."""
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    llama2_model(folder)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    (folder / "tokenizer.model").unlink()
    vocabulary = {pieces.id_to_piece(i): i for i in range(len(pieces))}
    cuts = (
        (piece[:k], piece[k:], i)
        for piece, i in vocabulary.items()
        if i > 258
        for k in range(1, len(piece))
    )
    merges = sorted(
        ((a, b, i) for a, b, i in cuts if a in vocabulary and b in vocabulary),
        key=lambda merge: (merge[2], vocabulary[merge[0]], vocabulary[merge[1]]),
    )
    codec = Tokenizer(
        models.BPE(
            vocabulary,
            [merge[:2] for merge in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    codec.add_special_tokens(
        [AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    )
    codec.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    codec.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    codec.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    codec.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
        },
    )


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


TOKENIZERS = {
    "llama3": llama3,
    "qwen": qwen,
    "llama2_model": llama2_model,
    "llama2_json": llama2_json,
    "qwen_slow": qwen_slow,
    "llama2_chat": llama2_chat,
}
SENTENCEPIECE = ("llama2_model", "llama2_chat")


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory):
    """Name -> folder with nothing but tokenizer files; not to be written to."""
    folders = {name: tmp_path_factory.mktemp(name) for name in TOKENIZERS}
    for name, write in TOKENIZERS.items():
        write(folders[name])
    return folders


# ---------------------------------------------------------------- models

SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=2048,
    rope_theta=10000.0,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
)
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
QWEN_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
DEEPSEEK_YARN = {
    **QWEN_YARN,
    "mscale": 0.707,
    "mscale_all_dim": 1.0,
    "beta_fast": 16,
    "beta_slow": 2,
}
ARCHITECTURES = {
    "llama-gqa": ("llama", {}),
    "llama-mha": ("llama", {"num_key_value_heads": 4}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama3": ("llama", {"rope_scaling": LLAMA3_SCALING, "rope_theta": 500000.0}),
    "llama3-tied": ("llama", {"rope_scaling": LLAMA3_SCALING, "tie_word_embeddings": True}),
    "llama-yarn": ("llama", {"rope_scaling": DEEPSEEK_YARN}),
    "llama-attention-bias": ("llama", {"attention_bias": True}),
    "llama-mlp-bias": ("llama", {"mlp_bias": True}),
    "llama-head-dim": ("llama", {"head_dim": 16}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-yarn": ("qwen2", {"rope_scaling": QWEN_YARN, "rope_theta": 1e6, "head_dim": 16}),
    "qwen3": ("qwen3", {"head_dim": 16, "rms_norm_eps": 1e-3}),
    "qwen3-tied": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-yarn": (
        "qwen3",
        {"head_dim": 16, "rope_scaling": {**QWEN_YARN, "attention_factor": 1.3}},
    ),
    "qwen3-bias": ("qwen3", {"head_dim": 16, "attention_bias": True}),
}


def random_model(architecture, **changes):
    """A transformers model in which nothing is 0 or 1: norms and biases are random too."""
    import transformers

    kind, own = ARCHITECTURES[architecture]
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **copy.deepcopy(own), **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            is_norm = parameter.dim() == 1 and parameter_name.endswith("norm.weight")
            parameter.copy_(1 + 0.3 * noise if is_norm else 0.3 * noise)
    return model


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """saved(architecture) -> (transformers model, its folder); both not to be changed."""
    made = {}

    def get(architecture):
        if architecture not in made:
            folder = tmp_path_factory.mktemp(architecture)
            model = random_model(architecture)
            model.save_pretrained(folder)
            made[architecture] = model, folder
        return made[architecture]

    return get


@pytest.fixture(scope="session")
def both(saved):
    """both(architecture) -> (transformers model, the same weights in minisoft), float32."""
    from minisoft.io.checkpoint import load_model

    loaded = {}

    def get(architecture):
        if architecture not in loaded:
            loaded[architecture] = load_model(saved(architecture)[1])
        return saved(architecture)[0], loaded[architecture]

    return get


@pytest.fixture(scope="session")
def fast(both):
    """fast(architecture) -> (transformers model, the same weights in minisoft, accelerated)."""
    from minisoft.engine import accelerate

    made = {}

    def get(architecture):
        if architecture not in made:
            made[architecture] = accelerate(copy.deepcopy(both(architecture)[1]))
        return both(architecture)[0], made[architecture]

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

KINDS = {  # every kind of token and place of its noise: (kind, noise, top_k)
    "hard": ("hard", "embedding", None),
    "soft": ("soft", "embedding", None),
    "fuzzy": ("fuzzy", "embedding", None),
    "soft, hidden": ("soft", "hidden", None),
    "fuzzy, hidden": ("fuzzy", "hidden", None),
    "soft, logits": ("soft", "logits", None),
    "soft, top 5": ("soft", "logits", 5),
    "multiplex": ("multiplex", "embedding", None),
    "covariance": ("covariance", "embedding", None),
    "gumbel": ("gumbel", "embedding", None),
}


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

    made = {}

    def get(name):
        if name not in made:
            requests = tiny.requests(range(3), range(8))
            kind = tiny.kind(name)
            made[name] = engine.rollout(tiny.fast, tiny.form, kind, requests, Decoding(60))
        return made[name]

    return get
