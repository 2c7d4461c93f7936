"""GRPO: explore by one's own samples (Shao et al. 2024, arXiv 2402.03300; used by DyME and
Curr-ReFT).

G responses to one prompt are scored; a response's advantage is how much better it did than its
group, in standard deviations. No value network. Then PPO's clipped surrogate pushes the tokens of
good responses up and of bad ones down. When all G rewards are equal, as they mostly are when all G
answers are wrong, every advantage is 0 and the group teaches nothing: *advantage collapse*, the
failure that DyME's switch (dyme.py) answers with a memorized reference.

In the first update on a batch of rollouts the ratio is exactly 1 (the loss value is then about 0
while its gradient isn't); with --num_iterations above 1 the later ones are kept in bounds by
clipping. Left out: importance sampling per sequence.
"""

import torch


def group_advantages(rewards: torch.Tensor, scale: bool = True, eps: float = 1e-4) -> torch.Tensor:
    """Advantages relative to the group (GRPO, eq. in section 4.1.2; DyME, section 2).

    rewards (P, G), or (G,) of one group. Returns the same shape: (r - mean) / (std + eps), std
    unbiased; with scale=False (Dr. GRPO) only r - mean. ValueError for a group of one.
    """
    if rewards.shape[-1] < 2:
        raise ValueError("num_generations must be at least 2: a group compares with itself")
    # exactly 0 where all rewards are equal: the mean of equal floats isn't always the float, and an
    # optimizer that normalizes would make a full step of what is left
    equal = (rewards == rewards[..., :1]).all(dim=-1, keepdim=True)  # (P, 1)
    centred = (rewards - rewards.mean(dim=-1, keepdim=True)).masked_fill(equal, 0)  # (P, G)
    if not scale:
        return centred
    return centred / (rewards.std(dim=-1, keepdim=True) + eps)


def grpo_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    completion_mask: torch.Tensor,
    *,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    beta: float = 0.0,
    ref_logprobs: torch.Tensor | None = None,
    loss_type: str = "grpo",
    normalizer: float | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The clipped surrogate (PPO, eq. 7) with GRPO's advantages and, for beta > 0, a KL term to a
    frozen reference.

    logprobs (N, C): log p of each token, in nats, with gradient; old_logprobs: under the policy
    that sampled it (None: the same, ratio 1); ref_logprobs: under the reference. advantages (N,).
    completion_mask (N, C): 1 on real tokens. loss_type: what a token weighs: "grpo" 1 / its
    sequence's length; "bnpo", "dapo" (one thing here), "dr_grpo" all alike. normalizer: what the
    sum is divided by; in training the whole step's, so that micro-batches and processes change
    nothing; by default N (grpo), all tokens (bnpo, dapo), or N * C (dr_grpo: a constant, so that a
    long wrong answer isn't cheaper). Returns the loss and means per token: shares clipped, ratio,
    k3 to the policy that sampled and to the reference. ValueError: loss_type, no reference.
    """
    if loss_type not in ("grpo", "bnpo", "dr_grpo", "dapo"):
        raise ValueError(f"loss_type {loss_type!r}: not one of grpo, bnpo, dr_grpo, dapo")
    if beta > 0 and ref_logprobs is None:
        raise ValueError("grpo_loss: beta > 0 needs ref_logprobs")
    mask = completion_mask.to(logprobs.dtype)  # (N, C)
    tokens = mask.sum().clamp(min=1)
    old_logprobs = logprobs.detach() if old_logprobs is None else old_logprobs
    advantages = advantages[:, None]  # (N, 1)
    ratio = torch.exp(logprobs - old_logprobs)  # (N, C)
    clipped = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    per_token = -torch.min(ratio * advantages, clipped * advantages)  # (N, C)
    kl = torch.zeros_like(logprobs)
    if beta > 0:  # Schulman's k3 estimator of KL(policy || reference): unbiased, never negative
        log_ratio = ref_logprobs - logprobs
        kl = torch.exp(log_ratio) - log_ratio - 1
        per_token = per_token + beta * kl
    total = per_token * mask  # (N, C)
    if loss_type == "grpo":
        total = total / mask.sum(dim=1, keepdim=True).clamp(min=1)
    if normalizer is None:
        normalizer = {"grpo": len(mask), "dr_grpo": mask.numel()}.get(loss_type, tokens)
    loss = total.sum() / normalizer

    stats = {
        "clip_low": (ratio < 1 - epsilon_low) & (advantages < 0),
        "clip_high": (ratio > 1 + epsilon_high) & (advantages > 0),
        "ratio": ratio,
        "approx_kl": ratio - 1 - (logprobs - old_logprobs),
        "kl": kl,
    }
    count = tokens.item()
    means = {name: (each.detach() * mask).sum().item() / count for name, each in stats.items()}
    return loss, means
