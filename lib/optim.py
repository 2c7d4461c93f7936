"""AdamW whose weights and states are bf16, each store rounded stochastically; and the schedule.

bf16 keeps 8 bits of a number: at learning rate 1e-5 an update is smaller than half the distance
to the next bf16 number, so rounding to the nearest throws it away and the weights never move.
Rounding up or down at random, the nearer the likelier, is right on average. Weight, gradient and
both moments take 2 bytes each, 8 together, where fp32 master weights take 16.

AdamW: Loshchilov and Hutter, arXiv 1711.05101, algorithm 2. Stochastic rounding of bf16 weights:
Zamirai et al., arXiv 2010.06192. Left out: amsgrad, foreach kernels, sparse gradients, fp16.
"""

import math

import torch

from data.example import InputError

CHUNK = 2**22  # elements handled at once: the fp32 temporaries stay near 100 MB


def stochastic_round(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rounds fp32 `values` to bf16, up or down at random, so that the mean is the value itself.

    Of the 32 bits bf16 keeps the upper half. Adding a random number of 16 bits to the pattern
    carries into the upper half as often as the lower half is large. Sign and magnitude are stored
    apart, so the same addition does for negative numbers; infinities keep their pattern.
    """
    like = dict(generator=generator, dtype=torch.int32, device=values.device)
    bits = torch.randint(2**16, values.shape, **like)
    bits += values.view(torch.int32)
    bits &= -(2**16)
    return bits.view(torch.float32).to(torch.bfloat16)  # exact: the low bits are zero


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW for bf16 parameters; an fp32 parameter gets plain fp32 AdamW, without rounding.

    The states have their parameter's dtype. All random bits come from one generator, whose state
    is in `state_dict`: a resumed run draws what the unbroken one would have drawn, and processes
    with the same `seed` and gradients stay equal. InputError for a parameter of another dtype.
    """

    def __init__(self, params, lr, weight_decay, betas, eps, seed):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, betas=betas, eps=eps))
        everything = [param for group in self.param_groups for param in group["params"]]
        if wrong := {param.dtype for param in everything} - {torch.bfloat16, torch.float32}:
            raise InputError(f"adamw_bf16: bf16 and fp32 weights only, not {wrong.pop()}")
        self.generator = torch.Generator(everything[0].device).manual_seed(seed)

    @torch.no_grad()
    def step(self):
        """One update of every parameter that has a gradient."""
        allocate_states(self)
        pairs = [(param, group) for group in self.param_groups for param in group["params"]]
        for param, group in pairs:
            if param.grad is not None:
                state = self.state[param]
                state["step"] += 1
                tensors = (param, param.grad, state["exp_avg"], state["exp_avg_sq"])
                for pieces in zip(*(tensor.view(-1).split(CHUNK) for tensor in tensors)):
                    self._update(*pieces, state["step"], group)

    def _update(self, weight, grad, exp_avg, exp_avg_sq, step, group):
        """Algorithm 2 on one chunk: all tensors flat, (<= CHUNK,), the arithmetic in fp32."""
        beta1, beta2 = group["betas"]
        mean = exp_avg.float().lerp(grad.float(), 1 - beta1)
        square = (exp_avg_sq.float() * beta2).addcmul_(grad.float(), grad.float(), value=1 - beta2)
        # What is stored is rounded, what is used here is not yet: a rounding less per update.
        self._store(exp_avg, mean)
        self._store(exp_avg_sq, square)
        denominator = square.div_(1 - beta2**step).sqrt_().add_(group["eps"])
        decayed = weight.float() * (1 - group["lr"] * group["weight_decay"])
        rate = group["lr"] / (1 - beta1**step)
        self._store(weight, decayed.addcdiv_(mean, denominator, value=-rate))

    def _store(self, target, values):
        if target.dtype == torch.bfloat16:
            values = stochastic_round(values, self.generator)
        target.copy_(values)

    def state_dict(self):
        """torch's, and the generator's state with the kind of device that it belongs to."""
        generator = {"device": self.generator.device.type, "state": self.generator.get_state()}
        return {**super().state_dict(), "generator": generator}

    def load_state_dict(self, state_dict):
        """Bit-exact on the same kind of device; on another the generator keeps its own state."""
        state_dict = dict(state_dict)
        generator = state_dict.pop("generator")
        super().load_state_dict(state_dict)
        if generator["device"] == self.generator.device.type:
            self.generator.set_state(generator["state"].cpu())


def build_optimizer(
    model,
    optim: str,
    learning_rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    seed: int = 0,
) -> torch.optim.Optimizer:
    """The optimizer of the trainable parameters of `model`; InputError without any.

    optim: "adamw_bf16" (above; `seed` is that of its rounding) or "adamw" (torch's, which rounds
    to the nearest). Weights of two dimensions or more decay; biases and norms, of one, don't.
    """
    params = [param for param in model.parameters() if param.requires_grad]
    if not params:
        raise InputError("optimizer: every parameter of the model is frozen; nothing to train")
    matrices = [param for param in params if param.dim() >= 2]
    vectors = [param for param in params if param.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors}]
    settings = dict(lr=learning_rate, weight_decay=0.0, betas=betas, eps=1e-8)
    if optim == "adamw_bf16":
        return StochasticAdamW(groups, **settings, seed=seed)
    # One kernel for all parameters pays on a GPU; on a CPU the plain loop is as quick.
    return torch.optim.AdamW(groups, **settings, fused=all(param.is_cuda for param in params))


def allocate_states(optimizer: torch.optim.Optimizer) -> None:
    """Allocates at once what AdamW would allocate in its first step; what is there stays.

    Memory that runs out inside a step leaves weights of which some have moved.
    """
    if not isinstance(optimizer, (StochasticAdamW, torch.optim.AdamW)):
        return  # a fork's own: whatever it keeps
    for group in optimizer.param_groups:
        for param in group["params"]:
            state = optimizer.state[param]
            if state:
                continue
            state["step"] = 0
            if isinstance(optimizer, torch.optim.AdamW):  # a tensor, where its kernel wants it
                state["step"] = torch.tensor(0.0, device=param.device if group["fused"] else "cpu")
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)


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
