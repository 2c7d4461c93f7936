"""
SFT: memorize a reference.

Supervised fine-tuning raises the log-probability of a given text. Written per token its loss is
-log p, the mean over a sequence's tokens, summed over sequences and divided by a normalizer, so
that it has the shape of grpo.py's loss: DyME (arXiv 2506.23061, section 3) rests on the two having
the same gradient. GRPO's is -E[r A grad log p(y|x)] with the probability ratio r and the advantage
A; with r = 1 and A = 1 that is SFT's -E[grad log p(y|x)]. test_core.py shows that they agree.

Left out: label smoothing.
"""

import torch

from model import get_tokenizer


def target_text(thinking: str | None, answer: str) -> str:
    """What is memorized: the thinking and the answer line; without thinking the bare answer."""
    return answer if thinking is None else f"{thinking}\nAnswer: {answer}"


def target_ids(processor, text: str) -> list[int]:
    """The memorized text's token ids, the end token included.

    Text is text: what looks like a special token in a trace or an answer is spelt, not meant.
    """
    tokenizer = get_tokenizer(processor)
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids + [tokenizer.eos_token_id]


def sft_loss(
    logprobs: torch.Tensor,
    completion_mask: torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
    loss_type: str = "grpo",
    normalizer: float | None = None,
) -> tuple[torch.Tensor, float]:
    """The weighted negative log-likelihood of N sequences, over `normalizer`.

    logprobs (N, C): log p of each token, in nats. completion_mask (N, C): 1 on real tokens.
    weights (N,): of the sequences, by default 1. loss_type: as grpo_loss has it; "grpo" takes the
    mean over a sequence's tokens, the others their sum. normalizer: by default N. Returns the
    scalar loss, and the sum over the sequences of their mean negative log-likelihood, unweighted.
    ValueError for a sequence without a single token.
    """
    mask = completion_mask.to(logprobs.dtype)
    lengths = mask.sum(dim=1)  # (N,)
    if (lengths == 0).any():
        raise ValueError("sft_loss: a sequence without a single token has no likelihood")
    per_sequence = -(logprobs * mask).sum(dim=1)  # (N,)
    nll = (per_sequence.detach() / lengths).sum().item()
    if loss_type == "grpo":
        per_sequence = per_sequence / lengths
    if weights is not None:
        per_sequence = per_sequence * weights
    return per_sequence.sum() / (len(logprobs) if normalizer is None else normalizer), nll
