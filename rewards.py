"""
Rewards of a group: checker.py's, joined or replaced by a function of one's own.

A file with `def reward(response, example) -> float` (response: the whole text; example:
data.Example) is all it takes:

    python train.py --reward my_reward.py                      in the place of the accuracy reward
    python train.py --reward my_reward.py --reward_mode join   the mean of both

A response counts as correct for the switch when this is above 0.5 and the format is right. The LLM
judge that may score the thinking in the checker's place is judge.py. Left out: learned rewards.
"""

import torch

from checker import call_reward, load_reward, score  # noqa: F401
from data import InputError


def score_group(
    group: list, example, config, own_reward=None, score=score
) -> dict[str, torch.Tensor]:
    """
    The rewards of one prompt's G responses: format, accuracy, thinking, total, each (G,) float,
    and correct (G,) bool.

    score: checker.score, or a curriculum stage's. InputError, naming the example, when a reward
    function fails or gives something that isn't a finite number.
    """
    texts = [response.text for response in group]
    settings = dict(
        truncated=[response.truncated for response in group],
        reward_weights=config.reward_weights,
        tolerance=config.train_tolerance,
    )
    scored = score(texts, example, **settings)
    if own_reward is not None:
        own = torch.tensor([call_reward(own_reward, text, example) for text in texts])  # (G,)
        if config.reward_mode == "join":
            own = (own + scored["accuracy"]) / 2
        scored = score(texts, example, accuracy=own.tolist(), **settings)
    if not torch.isfinite(scored["total"]).all():
        raise InputError(
            f"{example.id}: a reward is not finite ({scored['total'].tolist()}); "
            "mend the reward function"
        )
    return scored
