"""AdamW whose weights and states may be bf16, each store rounded stochastically; and the schedule.

bf16 keeps 8 bits of a number: at learning rate 1e-5 an update is less than half the distance to the
next bf16 number, and rounding to the nearest throws it away. Rounding up or down at random, the
nearer the likelier, is right on average (arXiv 2010.06192). Weight, gradient and both moments take
8 bytes together, with fp32 master weights 16. AdamW: arXiv 1711.05101, algorithm 2. Left out: fp16.
"""

import math

import torch

from data.example import InputError

CHUNK = 2**22  # elements handled at once: the fp32 temporaries stay near 100 MB


def stochastic_round(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rounds fp32 `values` to bf16, up or down at random, so that the mean is the value itself: of
    the 32 bits bf16 keeps the upper half, and a random number of 16 bits carries into it as often
    as the lower half is large. Infinities stay.
    """
    like = dict(generator=generator, dtype=torch.int32, device=values.device)
    bits = torch.randint(2**16, values.shape, **like)
    bits += values.view(torch.int32)
    bits &= -(2**16)
    return bits.view(torch.float32).to(torch.bfloat16)  # exact: the low bits are zero


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW for bf16 parameters; fp32 ones get torch's AdamW bit for bit, without rounding.

    The states are there from the start: memory that runs out inside an update would leave weights
    of which some have moved. The random bits are keyed by seed and number of the update: a resumed
    run is the unbroken one, and processes with the same gradients stay equal.
    """

    def __init__(self, params, lr: float, betas: tuple, seed: int):
        super().__init__(params, dict(lr=lr, weight_decay=0.0, betas=betas, eps=1e-8))
        self.seed = seed
        for param in (param for group in self.param_groups for param in group["params"]):
            moments = {name: torch.zeros_like(param) for name in ("exp_avg", "exp_avg_sq")}
            self.state[param] = {"step": 0, **moments}

    @torch.no_grad()
    def step(self):
        """One update of every parameter that has a gradient."""
        pairs = [(param, group) for group in self.param_groups for param in group["params"]]
        updates = 1 + max(self.state[param]["step"] for param, _ in pairs)
        generator = torch.Generator(pairs[0][0].device)
        generator.manual_seed(self.seed * 1_000_003 + updates)
        for param, group in pairs:
            if param.grad is not None:
                state = self.state[param]
                state["step"] += 1
                tensors = (param, param.grad, state["exp_avg"], state["exp_avg_sq"])
                for pieces in zip(*(tensor.view(-1).split(CHUNK) for tensor in tensors)):
                    update(*pieces, state["step"], group, generator)


def update(weight, grad, exp_avg, exp_avg_sq, step: int, group: dict, generator):
    """Algorithm 2 on one chunk: all tensors flat, (<= CHUNK,), the arithmetic in fp32."""

    def store(target, values):
        bf16 = target.dtype == torch.bfloat16
        target.copy_(stochastic_round(values, generator) if bf16 else values)

    beta1, beta2 = group["betas"]
    grad = grad.float()
    mean = exp_avg.float().lerp(grad, 1 - beta1)
    square = (exp_avg_sq.float() * beta2).addcmul_(grad, grad, value=1 - beta2)
    # What is stored is rounded, what is used here is not yet: a rounding less per update.
    store(exp_avg, mean)
    store(exp_avg_sq, square)
    denominator = square.sqrt_().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    decayed = weight.float() * (1 - group["lr"] * group["weight_decay"])
    store(weight, decayed.addcdiv_(mean, denominator, value=-group["lr"] / (1 - beta1**step)))


def build_optimizer(
    model,
    learning_rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    seed: int = 0,
) -> torch.optim.Optimizer:
    """The optimizer of the trainable parameters, of which matrices alone decay; seed: of the
    rounding. InputError without any, or for another type.
    """
    params = [param for param in model.parameters() if param.requires_grad]
    if not params:
        raise InputError("optimizer: every parameter of the model is frozen; nothing to train")
    if wrong := {param.dtype for param in params} - {torch.bfloat16, torch.float32}:
        raise InputError(f"optimizer: bf16 and fp32 weights only, not {wrong.pop()}")
    matrices = [param for param in params if param.dim() >= 2]
    vectors = [param for param in params if param.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors}]
    return StochasticAdamW(groups, learning_rate, betas, seed)


def lr_at(
    step: int, max_steps: int, learning_rate: float, warmup: int = 0, schedule: str = "linear"
) -> float:
    """The learning rate of update `step`, 0 <= step < max_steps: it rises in equal parts over the
    first `warmup` updates, then falls to 0 at `max_steps` ("linear", "cosine") or is "constant".
    """
    if step < warmup:
        return learning_rate * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, max_steps - warmup))  # share of the fall behind us
    left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return learning_rate * left[schedule]
