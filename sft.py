"""SFT: memorize a reference.

Supervised fine-tuning raises the log-probability of a given text. Written per token its loss is
-log p, the mean over a sequence's tokens, summed over sequences and divided by a normalizer, so
that it has the shape of grpo.py's loss: DyME (arXiv 2506.23061, section 3) rests on the two having
the same gradient. GRPO's is -E[r A grad log p(y|x)] with the probability ratio r and the advantage
A; with r = 1 and A = 1 that is SFT's -E[grad log p(y|x)]. test_core.py shows that they agree.

Left out: label smoothing.
"""

from functools import cached_property

import torch

from data.boxes import asked_answer
from data.example import Example
from lib.families import turn_edges
from model import get_tokenizer


class Reference:
    """What a group could memorize; made when a rule uses it, since a judge may write it."""

    def __init__(self, group, scorer, processor):
        self.group, self.scorer, self.processor = group, scorer, processor

    @cached_property
    def text(self) -> str:
        """Thinking and answer."""
        return target_text(self.scorer.trace(self.group), self.group.example)

    @cached_property
    def token_ids(self) -> list[int]:
        """Their tokens, the end token included."""
        return target_ids(self.processor, self.text)

    def earn(self) -> float:
        """The total reward that it would have as a response."""
        return self.scorer.rewards(self.group.example, self.text)["total"].item()


def target_text(thinking: str | None, example: Example) -> str:
    """What is memorized: the thinking, where there is any, and the answer line; the bare answer
    where the example has an instruction of its own, which asks for no thinking.
    """
    if example.instruction is not None:
        return asked_answer(example)
    return "\n".join([thinking] * bool(thinking) + [f"Answer: {asked_answer(example)}"])


def target_ids(processor, text: str) -> list[int]:
    """The memorized text's token ids, as the chat template writes a turn, the end token included.

    Text is text: what looks like a special token in a trace or an answer is spelt, not meant.
    """
    tokenizer = get_tokenizer(processor)
    text = turn_edges(processor)[0] + text
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids + [tokenizer.eos_token_id]


def sft_loss(
    logprobs: torch.Tensor,
    completion_mask: torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
    token_weights: torch.Tensor | None = None,
    loss_type: str = "grpo",
    normalizer: float | None = None,
) -> tuple[torch.Tensor, float]:
    """The weighted negative log-likelihood of N sequences, over `normalizer` (by default N).

    logprobs (N, C): log p of each token, in nats. completion_mask (N, C): 1 on real tokens.
    weights (N,), token_weights (N, C): of sequences and tokens, by default 1. loss_type: "grpo"
    takes the mean over a sequence's tokens, the others of grpo_loss their sum. Returns the scalar
    loss, and the sum over the sequences of their mean negative log-likelihood, unweighted.
    ValueError for a sequence without a single token.
    """
    mask = completion_mask.to(logprobs.dtype)  # (N, C)
    lengths = mask.sum(dim=1)  # (N,)
    if (lengths == 0).any():
        raise ValueError("sft_loss: a sequence without a single token has no likelihood")
    per_token = -logprobs * mask  # (N, C)
    nll = (per_token.detach().sum(dim=1) / lengths).sum().item()
    if token_weights is not None:
        per_token = per_token * token_weights
    per_sequence = per_token.sum(dim=1)  # (N,)
    if loss_type == "grpo":
        per_sequence = per_sequence / lengths
    if weights is not None:
        per_sequence = per_sequence * weights
    return per_sequence.sum() / (len(logprobs) if normalizer is None else normalizer), nll
