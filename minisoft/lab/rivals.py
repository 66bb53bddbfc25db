"""The rollout and the replay of `minisoft.lab.bench` written with Hugging Face transformers, each in the ways at hand.

Rollouts: `generate` (hard tokens only), and a loop over the model's forward pass with the cheap sampling of
`minisoft.soft`, whose prompts run once each, with scaled-dot-product or eager attention and a growing or a static cache.
Replay: teacher forcing of prompt and continuation, logits of the continuation only.
"""

from pathlib import Path

import torch

from minisoft.engine.linear import product
from minisoft.io.checkpoint import DTYPES, find
from minisoft.rollout import ANSWER_TOKENS
from minisoft.soft import TAU, Categorical, Gaussian, entropy

TRIAL = 16  # CoT tokens of the trial from which the time of each loop is estimated


class Uniform:
    """Draws of torch's generator, for the distributions of `minisoft.soft`."""

    def __init__(self, rows: int, device: torch.device):
        self.rows, self.device = rows, device

    def uniform(self) -> torch.Tensor:
        return torch.rand(self.rows, device=self.device)

    def normal(self, n: int) -> torch.Tensor:
        return torch.randn(self.rows, n, device=self.device)


class Rivals:
    """transformers' model of the same folder, and the same Work."""

    def __init__(self, work, args):
        from transformers import AutoModelForCausalLM
        self.work, device, dtype = work, work.model.E.device, DTYPES[args.dtype]
        load = lambda attention: AutoModelForCausalLM.from_pretrained(
            Path(find(args.model)), dtype=dtype, attn_implementation=attention).to(device).eval()
        self.models = {attention: load(attention) for attention in ("sdpa", "eager")}
        longest = max(map(len, work.prompts))
        left = lambda fill: torch.tensor([[0] * (longest - len(p)) + fill(p) for p in work.prompts], device=device)
        self.ids, self.mask = left(list), left(lambda p: [1] * len(p))  # (B, longest), padded on the left

    def chosen(self, kinds: list[str], part: str) -> dict:
        """{"transformers KIND WAY": function of a seed -> {part: seconds}}: generate, and of the loops the one that is the
        fastest by an estimate, from two short trials each, for the whole rollout; the latter also replays."""
        from minisoft.lab.bench import seconds
        work, device, found = self.work, self.work.model.E.device, {}
        self.sigma = {kind: getattr(work.kind(kind), "sigma", None) for kind in kinds}
        loops = [("sdpa", "growing cache"), ("sdpa", "static cache"), ("eager", "growing cache")]
        for kind in kinds:
            whole = {}
            for loop in loops:
                self.loop(kind, *loop, 2, 2)  # warm-up
                short, long = (seconds(lambda: self.loop(kind, *loop, n, 2), device)[0] for n in (2, 2 + TRIAL))
                whole[loop] = short + (long - short) / TRIAL * (work.cot + ANSWER_TOKENS)
            attention, cache = min(whole, key=whole.get)
            print(f"transformers {kind}, estimates: "
                  + ", ".join(f"{' '.join(loop)} {took:.1f} s" for loop, took in whole.items()))

            def both(seed, kind=kind, attention=attention, cache=cache):
                torch.manual_seed(seed)
                took, record = seconds(lambda: self.loop(kind, attention, cache, work.cot, ANSWER_TOKENS), device)
                return {"rollout": took} if part == "rollout" else {
                    "rollout": took, "replay": seconds(lambda: self.replay(kind, *record), device)[0]}
            found[f"transformers {kind} loop"] = both
        if "hard" in kinds:
            found["transformers hard generate"] = lambda seed: {"rollout": seconds(lambda: self.generate(), device)[0]}
        return found

    @torch.no_grad()
    def generate(self) -> torch.Tensor:
        """Hard tokens with generate(): CoT, then the prefilled tokens and the answer on the same cache -> ids."""
        work, model = self.work, self.models["sdpa"]
        options = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0, return_dict_in_generate=True)
        out = model.generate(self.ids.repeat_interleave(work.group, 0), max_new_tokens=work.cot, min_new_tokens=work.cot,
                             attention_mask=self.mask.repeat_interleave(work.group, 0), **options)
        forced = torch.tensor([work.form.prefill[1]], device=self.ids.device).expand(work.rows, -1)
        ids = torch.cat((out.sequences, forced), 1)
        mask = torch.ones_like(ids)
        mask[:, : self.mask.shape[1]] = self.mask.repeat_interleave(work.group, 0)
        return model.generate(ids, attention_mask=mask, past_key_values=out.past_key_values, max_new_tokens=ANSWER_TOKENS,
                              min_new_tokens=ANSWER_TOKENS, **options).sequences

    @torch.no_grad()
    def loop(self, kind: str, attention: str, cache: str, cot: int, answer: int):
        """CoT, prefilled tokens at once, answer -> ids (N, S) (shadow tokens in the CoT), actions (N, C, d) or None."""
        from transformers import DynamicCache, StaticCache
        work, model, N = self.work, self.models[attention], self.work.rows
        E, forced = model.get_input_embeddings().weight, work.form.prefill[1]
        position = (self.mask.cumsum(-1) - 1).clamp(min=0)
        growing = cache == "growing cache"
        length = self.ids.shape[1] + cot + len(forced) + answer
        past = DynamicCache() if growing else StaticCache(config=model.config, max_cache_len=length)
        many = lambda x: x.repeat_interleave(work.group, 0)
        first = (lambda x: x) if growing else many  # a static cache has no way to repeat its rows
        out = model(input_ids=first(self.ids), attention_mask=first(self.mask), position_ids=first(position),
                    past_key_values=past, logits_to_keep=1, use_cache=True)
        logits, mask, position = out.logits[:, -1].float(), many(self.mask), many(self.mask.sum(-1, keepdim=True))
        if growing:
            past.batch_repeat_interleave(work.group)
            logits = many(logits)
        ids, actions = [], []
        for t in range(cot + answer):
            entropy(logits)
            if kind == "hard" or t >= cot:
                token = Categorical(logits).sample(Uniform(N, E.device))[:, None]
                x = {"input_ids": token}
            else:
                mean = torch.softmax(logits / TAU[kind], -1).to(E.dtype) @ E
                action = Gaussian(mean.float(), self.sigma[kind]).sample(Uniform(N, E.device))
                token, x = logits.argmax(-1, keepdim=True), {"inputs_embeds": action.to(E.dtype)[:, None]}
                actions.append(action)
            ids.append(token)
            if t == cot - 1:  # the prefilled tokens follow the CoT in the same pass
                more = torch.tensor([forced], device=token.device).expand(N, -1)
                ids.append(more)
                x = {"input_ids": torch.cat((token, more), 1)} if "input_ids" in x else {
                    "inputs_embeds": torch.cat((x["inputs_embeds"], model.get_input_embeddings()(more)), 1)}
            n = next(iter(x.values())).shape[1]
            mask = torch.cat((mask, mask.new_ones(N, n)), 1)
            logits = model(**x, attention_mask=mask, position_ids=position + torch.arange(n, device=mask.device),
                           logits_to_keep=1, past_key_values=past, use_cache=True).logits[:, -1].float()
            position = position + n
        return torch.cat(ids, 1), torch.stack(actions, 1) if actions else None

    def replay(self, kind: str, ids: torch.Tensor, actions: torch.Tensor | None) -> None:
        """Forward and backward passes of the update over what `loop` gave, in micro-batches."""
        work, model = self.work, self.models["sdpa"]
        S, cot, E, answer = ids.shape[1], work.cot, model.get_input_embeddings().weight, slice(-ANSWER_TOKENS, None)
        for rows in torch.arange(work.rows, device=ids.device).split(work.micro_batch):
            prompt, mask = self.ids[rows // work.group], self.mask[rows // work.group]
            mask = torch.cat((mask, mask.new_ones(len(rows), S)), 1)
            x = model.get_input_embeddings()(torch.cat((prompt, ids[rows]), 1))
            if actions is not None:
                x = torch.cat((x[:, : -S], actions[rows].to(x.dtype), x[:, cot - S:]), 1)
            position = (mask.cumsum(-1) - 1).clamp(min=0)
            logits = model(inputs_embeds=x[:, :-1], attention_mask=mask[:, :-1], position_ids=position[:, :-1],
                           logits_to_keep=S, use_cache=False).logits.float()  # (m, S, V)
            if actions is None:
                thoughts = Categorical(logits[:, :cot]).log_prob(ids[rows, :cot]).sum()
            else:
                mean = product(torch.softmax(logits[:, :cot] / TAU[kind], -1), E.t())
                thoughts = Gaussian(mean, self.sigma[kind]).log_prob(actions[rows]).sum()
            loss = thoughts + Categorical(logits[:, answer]).log_prob(ids[rows, answer]).sum()
            (loss / work.rows).backward()
        model.zero_grad()
