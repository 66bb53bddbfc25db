"""The rollout of `minisoft.lab.bench` written with Hugging Face transformers.

A loop over the model's forward pass, with fused attention, a growing cache, each prompt run once.
(`generate`, eager attention and a static cache were slower wherever they were tried.)
Dimensions: B problems, N rows, T positions at once, V vocabulary, d width.
"""

import inspect
from functools import partial
from pathlib import Path

import torch

from minisoft.data import ANSWER_TOKENS
from minisoft.io.checkpoint import DTYPES, find
from minisoft.lab.bench import seconds
from minisoft.soft import entropy


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

    def contenders(self, names: list[str]) -> dict:
        """{"transformers KIND loop": function of a seed -> {"rollout": seconds}}."""
        for name in names:
            self.loop(self.work.policy(name).kind, 2, 2)  # warm-up
        return {f"transformers {name} loop": partial(self.time, name) for name in names}

    def time(self, name: str, seed: int) -> dict[str, float]:
        torch.manual_seed(seed)
        kind, cot = self.work.policy(name).kind, self.work.cot
        return {"rollout": seconds(lambda: self.loop(kind, cot, ANSWER_TOKENS), self.device)[0]}

    def many(self, x: torch.Tensor) -> torch.Tensor:
        """Of each problem (B, ...) -> of each row (N, ...)."""
        return x.repeat_interleave(self.work.group, 0)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, at: torch.Tensor, past):
        """Embeddings (., T, d) at positions (., T), after what the cache holds -> logits (., V)."""
        how = {"attention_mask": mask, "position_ids": at, self.cache: past, "use_cache": True}
        return self.model(inputs_embeds=x, logits_to_keep=1, **how).logits[:, -1].float()

    @torch.no_grad()
    def loop(self, kind, cot: int, answer: int) -> None:
        """CoT, the prefilled tokens at once, answer."""
        from transformers import DynamicCache

        past, at = DynamicCache(), (self.mask.cumsum(-1) - 1).clamp(min=0)
        logits = self.many(self.forward(self.embed(self.ids), self.mask, at, past))
        past.batch_repeat_interleave(self.work.group)
        mask, position = self.many(self.mask), self.many(self.mask.sum(-1, keepdim=True))
        for t in range(cot + answer):
            entropy(logits)
            if kind.mixes and t < cot:
                E = self.embed.weight
                mean = torch.softmax(logits / kind.tau, -1).to(E.dtype) @ E
                x = (mean + kind.sigma * torch.randn_like(mean))[:, None]
            else:
                x = self.embed(torch.multinomial(logits.softmax(-1), 1))
            if t == cot - 1:  # the prefilled tokens follow the CoT in the same pass
                x = torch.cat((x, self.embed(self.forced)), 1)
            mask = torch.cat((mask, mask.new_ones(x.shape[:2])), 1)
            at = position + torch.arange(x.shape[1], device=self.device)
            logits, position = self.forward(x, mask, at, past), position + x.shape[1]
