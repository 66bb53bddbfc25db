"""The rollout and the replay of `minisoft.lab.bench` written with Hugging Face transformers, each
in the ways at hand.

Rollouts: `generate` (hard tokens only), and a loop over the model's forward pass with the cheap
sampling of `minisoft.soft`, whose prompts run once each, with scaled-dot-product or eager attention
and a growing or a static cache.  Replay: teacher forcing of prompt and continuation, logits of the
continuation only.
Dimensions: B problems, G samples of each, N = B G rows, S positions after the prompt, d width.
"""

import inspect
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from minisoft.data import ANSWER_TOKENS
from minisoft.engine.linear import product
from minisoft.io.checkpoint import DTYPES, find
from minisoft.lab.command import seconds
from minisoft.soft import Categorical, Gaussian, entropy

TRIAL = 16  # CoT tokens of the trial from which the time of each loop is estimated


@dataclass(frozen=True)
class Uniform:
    """Draws of torch's generator, for the distributions of `minisoft.soft`."""

    rows: int
    device: torch.device

    def uniform(self) -> torch.Tensor:
        return torch.rand(self.rows, device=self.device)

    def normal(self, n: int) -> torch.Tensor:
        return torch.randn(self.rows, n, device=self.device)


@dataclass(frozen=True)
class Way:
    """A kind of token, and how transformers decodes it: attention "sdpa" or "eager", and whether
    the cache grows or is static."""

    name: str
    kind: object
    attention: str
    grows: bool

    def __str__(self) -> str:
        return f"{self.attention} {'growing' if self.grows else 'static'} cache"


class Rivals:
    """transformers' model of the same folder, and the same Work."""

    def __init__(self, work, args):
        from transformers import AutoModelForCausalLM

        self.work, self.device, self.models = work, work.model.E.device, {}
        folder, dtype = Path(find(args.model)), DTYPES[args.dtype]
        for attention in ("sdpa", "eager"):
            how = {"dtype": dtype, "attn_implementation": attention}
            model = AutoModelForCausalLM.from_pretrained(folder, **how)
            self.models[attention] = model.to(self.device).eval()
        names = inspect.signature(model.forward).parameters
        self.cache = "cache" if "cache" in names else "past_key_values"  # as the version calls it
        longest = max(map(len, work.prompts))  # shorter ones are padded on the left
        padding = [[0] * (longest - len(prompt)) for prompt in work.prompts]
        pairs = list(zip(padding, work.prompts, strict=True))
        self.ids = torch.tensor([pad + ids for pad, ids in pairs], device=self.device)
        mask = [pad + [1] * len(ids) for pad, ids in pairs]
        self.mask = torch.tensor(mask, device=self.device)  # (B, longest)

    def chosen(self, names: list[str], part: str) -> dict:
        """{"transformers KIND WAY": function of a seed -> {part: seconds}}: generate, and of the
        loops the one that is the fastest by an estimate for the whole rollout, which also
        replays."""
        contenders = {}
        for name in names:
            kind = self.work.kind(name)
            ways = [Way(name, kind, *how) for how in (("sdpa", True), ("sdpa", False))]
            ways.append(Way(name, kind, "eager", True))
            estimates = {way: self.estimate(way) for way in ways}
            told = ", ".join(f"{way} {took:.1f} s" for way, took in estimates.items())
            print(f"transformers {name}, estimates: {told}")
            best = min(estimates, key=estimates.get)
            contenders[f"transformers {name} loop"] = partial(self.time, best, part)
        if "hard" in names:
            contenders["transformers hard generate"] = self.time_generate
        return contenders

    def estimate(self, way: Way) -> float:
        """Seconds of the whole rollout, from two short trials after a warm-up."""
        self.loop(way, 2, 2)
        short, _ = seconds(lambda: self.loop(way, 2, 2), self.device)
        long, _ = seconds(lambda: self.loop(way, 2 + TRIAL, 2), self.device)
        return short + (long - short) / TRIAL * (self.work.cot + ANSWER_TOKENS)

    def time(self, way: Way, part: str, seed: int) -> dict[str, float]:
        torch.manual_seed(seed)
        cot = self.work.cot
        took, record = seconds(lambda: self.loop(way, cot, ANSWER_TOKENS), self.device)
        if part == "rollout":
            return {"rollout": took}
        return {
            "rollout": took,
            "replay": seconds(lambda: self.replay(way, *record), self.device)[0],
        }

    def time_generate(self, seed: int) -> dict[str, float]:
        return {"rollout": seconds(self.generate, self.device)[0]}

    def many(self, x: torch.Tensor) -> torch.Tensor:
        """Of each problem (B, ...) -> of each row (N, ...)."""
        return x.repeat_interleave(self.work.group, 0)

    def forced(self) -> torch.Tensor:
        """The prefilled tokens of each row, (N, F)."""
        ids = torch.tensor([self.work.form.prefill[1]], device=self.device)
        return ids.expand(self.work.rows, -1)

    @torch.no_grad()
    def generate(self) -> torch.Tensor:
        """Hard tokens with generate(): CoT, then the prefilled tokens and the answer on the same
        cache -> ids."""
        model, cot, answer = self.models["sdpa"], self.work.cot, ANSWER_TOKENS
        options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        options |= {"pad_token_id": 0, "return_dict_in_generate": True}
        ids, mask = self.many(self.ids), self.many(self.mask)
        length = {"max_new_tokens": cot, "min_new_tokens": cot}
        out = model.generate(ids, attention_mask=mask, **length, **options)
        ids = torch.cat((out.sequences, self.forced()), 1)
        mask = torch.cat((mask, mask.new_ones(len(mask), ids.shape[1] - mask.shape[1])), 1)
        length = {"max_new_tokens": answer, "min_new_tokens": answer}
        past = {self.cache: getattr(out, self.cache)}
        return model.generate(ids, attention_mask=mask, **past, **length, **options).sequences

    @torch.no_grad()
    def loop(self, way: Way, cot: int, answer: int) -> tuple:
        """CoT, prefilled tokens at once, answer -> ids (N, S) (shadow tokens in the CoT), actions
        (N, C, d) or None of hard tokens."""
        model, draws = self.models[way.attention], Uniform(self.work.rows, self.device)
        embed, forced = model.get_input_embeddings(), self.forced()
        logits, past = self.prefill(way, cot + forced.shape[1] + answer)
        mask, position = self.many(self.mask), self.many(self.mask.sum(-1, keepdim=True))
        ids, actions = [], []
        for t in range(cot + answer):
            entropy(logits)
            if way.kind.mixes and t < cot:
                mean = torch.softmax(logits / way.kind.tau, -1).to(embed.weight.dtype)
                mean = (mean @ embed.weight).float()
                action = Gaussian(mean, way.kind.sigma).sample(draws)
                token = logits.argmax(-1, keepdim=True)
                x = action.to(embed.weight.dtype)[:, None]
                actions.append(action)
            else:
                token = Categorical(logits).sample(draws)[:, None]
                x = embed(token)
            ids.append(token)
            if t == cot - 1:  # the prefilled tokens follow the CoT in the same pass
                ids.append(forced)
                x = torch.cat((x, embed(forced)), 1)
            mask = torch.cat((mask, mask.new_ones(x.shape[:2])), 1)
            at = position + torch.arange(x.shape[1], device=self.device)
            how = {"attention_mask": mask, "position_ids": at, self.cache: past}
            out = model(inputs_embeds=x, logits_to_keep=1, use_cache=True, **how)
            logits, position = out.logits[:, -1].float(), position + x.shape[1]
        return torch.cat(ids, 1), torch.stack(actions, 1) if actions else None

    def prefill(self, way: Way, length: int) -> tuple:
        """Logits (N, V) after the prompts, and their cache, with room for `length` more."""
        from transformers import DynamicCache, StaticCache

        model, ids, mask = self.models[way.attention], self.ids, self.mask
        past = DynamicCache()
        if not way.grows:  # a static cache has no way to repeat its rows
            ids, mask = self.many(ids), self.many(mask)
            past = StaticCache(config=model.config, max_cache_len=ids.shape[1] + length)
        at = (mask.cumsum(-1) - 1).clamp(min=0)
        how = {"attention_mask": mask, "position_ids": at, self.cache: past}
        logits = model(ids, logits_to_keep=1, use_cache=True, **how).logits[:, -1].float()
        if way.grows:
            past.batch_repeat_interleave(self.work.group)
            logits = self.many(logits)
        return logits, past

    def replay(self, way: Way, ids: torch.Tensor, actions: torch.Tensor | None) -> None:
        """Forward and backward passes of the update over what `loop` gave, in micro-batches."""
        work, model, embed = (
            self.work,
            self.models["sdpa"],
            self.models["sdpa"].get_input_embeddings(),
        )
        S, cot, answer = ids.shape[1], work.cot, slice(-ANSWER_TOKENS, None)
        for rows in torch.arange(work.rows, device=self.device).split(work.micro_batch):
            prompt, mask = self.ids[rows // work.group], self.mask[rows // work.group]
            mask = torch.cat((mask, mask.new_ones(len(rows), S)), 1)
            x = embed(torch.cat((prompt, ids[rows]), 1))
            if actions is not None:
                x = torch.cat((x[:, :-S], actions[rows].to(x.dtype), x[:, cot - S :]), 1)
            at = (mask.cumsum(-1) - 1).clamp(min=0)
            how = {"attention_mask": mask[:, :-1], "position_ids": at[:, :-1], "use_cache": False}
            logits = model(inputs_embeds=x[:, :-1], logits_to_keep=S, **how).logits.float()
            if actions is None:
                thoughts = Categorical(logits[:, :cot]).log_prob(ids[rows, :cot]).sum()
            else:
                p = torch.softmax(logits[:, :cot] / way.kind.tau, -1)  # (m, C, V)
                mean = product(p, embed.weight.t())
                thoughts = Gaussian(mean, way.kind.sigma).log_prob(actions[rows]).sum()
            words = Categorical(logits[:, answer]).log_prob(ids[rows, answer]).sum()
            ((thoughts + words) / work.rows).backward()
        model.zero_grad()
