"""
The SFT loss: memorise a reference.

Supervised fine-tuning raises the log-probability of a given text. Written per token it is -log p,
the mean over a sequence's tokens, summed over sequences and divided by a normaliser, so that it
has the shape of grpo.py's loss: DyME (arXiv 2506.23061, section 3) rests on the two having the
same gradient. GRPO's is -E[r A grad log p(y|x)] with the probability ratio r and the advantage A;
with r = 1 and A = 1 that is SFT's -E[grad log p(y|x)].

So train.py never calls this file: it memorises through grpo_loss, as a sequence of advantage 1,
and one update holds both kinds. Here stands what that is equal to; test_core.py shows that the
gradients agree. Left out: label smoothing.
"""

import torch


def sft_loss(
    logprobs: torch.Tensor, completion_mask: torch.Tensor, normalizer: float | None = None
) -> torch.Tensor:
    """
    Mean negative log-likelihood of each sequence, summed, divided by `normalizer`.

    logprobs (N, C): log p of each completion token, in nats. completion_mask (N, C): 1 on real
    tokens. normalizer: what the sum over sequences is divided by; by default N. Returns a scalar.
    Every row needs at least one real token (ValueError).
    """
    mask = completion_mask.to(logprobs.dtype)
    lengths = mask.sum(dim=1)  # (N,)
    if (lengths == 0).any():
        raise ValueError("sft_loss: a sequence without a single token has no likelihood")
    per_sequence = -(logprobs * mask).sum(dim=1) / lengths  # (N,)
    return per_sequence.sum() / (len(logprobs) if normalizer is None else normalizer)
