"""The rollout and the replay of `minisoft.lab.bench` written with Hugging Face transformers.

Rollouts: a loop over the model's forward pass with fused attention, a
growing cache, each prompt run once.  (`generate`, eager attention and a static cache
were slower wherever they were tried.)  Replay: teacher forcing of prompt and continuation, logits
of the continuation only.
Dimensions: B problems, N rows, S positions after the prompt, C of them CoT, V vocabulary, d width.
"""

import inspect
from functools import partial
from pathlib import Path

import torch

from minisoft.data import ANSWER_TOKENS
from minisoft.engine.linear import product
from minisoft.io.checkpoint import DTYPES, find
from minisoft.lab.bench import seconds
from minisoft.soft import Categorical, Gaussian, entropy


class Rivals:
    """transformers' model of the same folder, and the same Work."""

    def __init__(self, work, args):
        from transformers import AutoModelForCausalLM

        self.work, self.device = work, work.model.E.device
        how = {"dtype": DTYPES[args.dtype], "attn_implementation": "sdpa"}
        model = AutoModelForCausalLM.from_pretrained(Path(find(args.model)), **how)
        self.model = model.to(self.device).eval()
        self.embed = self.model.get_input_embeddings()
        names = inspect.signature(model.forward).parameters
        self.cache = "cache" if "cache" in names else "past_key_values"  # as the version calls it
        longest = max(map(len, work.prompts))  # shorter ones are padded on the left
        ids = [[0] * (longest - len(prompt)) + prompt for prompt in work.prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in work.prompts]
        self.ids = torch.tensor(ids, device=self.device)  # (B, longest)
        self.mask = torch.tensor(mask, device=self.device)
        forced = torch.tensor([work.form.prefill[1]], device=self.device)
        self.forced = forced.expand(work.rows, -1)  # the prefilled tokens of each row

    def contenders(self, names: list[str], part: str) -> dict:
        """{"transformers KIND loop": function of a seed -> {part: seconds}}."""
        for name in names:
            self.loop(self.work.policy(name).kind, 2, 2)  # warm-up
        return {f"transformers {name} loop": partial(self.time, name, part) for name in names}

    def time(self, name: str, part: str, seed: int) -> dict[str, float]:
        torch.manual_seed(seed)
        kind, cot = self.work.policy(name).kind, self.work.cot
        took, record = seconds(lambda: self.loop(kind, cot, ANSWER_TOKENS), self.device)
        if part == "rollout":
            return {"rollout": took}
        took_replay, _ = seconds(lambda: self.replay(kind, *record), self.device)
        return {"rollout": took, "replay": took_replay}

    def many(self, x: torch.Tensor) -> torch.Tensor:
        """Of each problem (B, ...) -> of each row (N, ...)."""
        return x.repeat_interleave(self.work.group, 0)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, at: torch.Tensor, past):
        """Embeddings (., T, d) at positions (., T), after what the cache holds -> logits (., V)."""
        how = {"attention_mask": mask, "position_ids": at, self.cache: past, "use_cache": True}
        return self.model(inputs_embeds=x, logits_to_keep=1, **how).logits[:, -1].float()

    @torch.no_grad()
    def loop(self, kind, cot: int, answer: int) -> tuple:
        """CoT, prefilled tokens at once, answer -> ids (N, S) (shadow tokens in the CoT), actions
        (N, C, d) or None of hard tokens."""
        from transformers import DynamicCache

        past, at = DynamicCache(), (self.mask.cumsum(-1) - 1).clamp(min=0)
        logits = self.many(self.forward(self.embed(self.ids), self.mask, at, past))
        past.batch_repeat_interleave(self.work.group)
        mask, position = self.many(self.mask), self.many(self.mask.sum(-1, keepdim=True))
        ids, actions = [], []
        for t in range(cot + answer):
            entropy(logits)
            if kind.mixes and t < cot:
                E = self.embed.weight
                mean = torch.softmax(logits / kind.tau, -1).to(E.dtype) @ E
                action = mean.float() + kind.sigma * torch.randn_like(mean, dtype=torch.float32)
                token, x = logits.argmax(-1, keepdim=True), action.to(E.dtype)[:, None]
                actions.append(action)
            else:
                token = torch.multinomial(logits.softmax(-1), 1)
                x = self.embed(token)
            ids.append(token)
            if t == cot - 1:  # the prefilled tokens follow the CoT in the same pass
                ids.append(self.forced)
                x = torch.cat((x, self.embed(self.forced)), 1)
            mask = torch.cat((mask, mask.new_ones(x.shape[:2])), 1)
            at = position + torch.arange(x.shape[1], device=self.device)
            logits, position = self.forward(x, mask, at, past), position + x.shape[1]
        return torch.cat(ids, 1), torch.stack(actions, 1) if actions else None

    def replay(self, kind, ids: torch.Tensor, actions: torch.Tensor | None) -> None:
        """Forward and backward passes of the update over what `loop` gave, in micro-batches."""
        work, S, C = self.work, ids.shape[1], self.work.cot
        for rows in torch.arange(work.rows, device=self.device).split(work.micro_batch):
            prompt, mask = self.ids[rows // work.group], self.mask[rows // work.group]
            mask = torch.cat((mask, mask.new_ones(len(rows), S)), 1)
            x = self.embed(torch.cat((prompt, ids[rows]), 1))
            if actions is not None:
                x = torch.cat((x[:, :-S], actions[rows].to(x.dtype), x[:, C - S :]), 1)
            at = (mask.cumsum(-1) - 1).clamp(min=0)
            how = {"attention_mask": mask[:, :-1], "position_ids": at[:, :-1], "use_cache": False}
            out = self.model(inputs_embeds=x[:, :-1], logits_to_keep=S, **how)
            logits = out.logits.float()  # (m, S, V)
            if actions is None:
                thoughts = Categorical(logits[:, :C]).log_prob(ids[rows, :C]).sum()
            else:
                p = torch.softmax(logits[:, :C] / kind.tau, -1)
                mean = product(p, self.embed.weight.t())
                thoughts = Gaussian(mean, kind.sigma).log_prob(actions[rows]).sum()
            words = Categorical(logits[:, -ANSWER_TOKENS:]).log_prob(ids[rows, -ANSWER_TOKENS:])
            ((thoughts + words.sum()) / work.rows).backward()
        self.model.zero_grad()
