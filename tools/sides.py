"""
What bench.py times: our way and the usual way to do the same work, on the same Case.

Each side is a function of a Case that returns the function to be timed. The usual ways:
transformers' `generate`; an update on padded rows [G, P + C] as TRL does it, the vision tower run
G times, the head on completion rows alone; a whole step of TRL's GRPOTrainer. Left out: engines
that hold a second copy of the weights.
"""

import argparse
import copy
import tempfile
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

import dyme
import overlap
from data import Example
from lib.families import checkpoint_activations
from grpo import group_advantages, grpo_loss
from model import THINK, encode_prompt, image_features, prompt_to, token_logprobs
from lib.optim import build_optimizer
from rollout import rollout
from tools.shapes import BF16, SIZES, build_model


@dataclass
class Case:
    """
    A model, P examples and their prompts; random completions for updates: (P) lists of (G) lists
    of C token ids.
    """

    args: argparse.Namespace
    model: torch.nn.Module
    processor: object
    examples: list
    prompts: list
    completions: list
    advantages: torch.Tensor  # (P, G)
    num_generations: int
    completion_length: int


def build_case(args, num_generations: int | None = None) -> Case:
    """What the command line asks for; the same whenever it is called with the same arguments."""
    size = SIZES[args.size]
    model, processor = build_model(size, args.device, not args.train_vision)
    if args.gradient_checkpointing:
        checkpoint_activations(model)
    count, width, height = args.prompts or size.prompts, *size.image
    shape = (
        count,
        num_generations or args.num_generations,
        args.completion_length or size.completion_length,
    )
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for _ in range(count)
    ]
    examples = [
        Example(image=image, question="What is the value of red", answer="1") for image in images
    ]
    prompts = [prompt_to(encode_prompt(processor, example), args.device) for example in examples]
    completions = rng.integers(len(processor.tokenizer), size.text[-1], shape).tolist()
    advantages = torch.from_numpy(rng.standard_normal(shape[:2])).float().to(args.device)
    return Case(args, model, processor, examples, prompts, completions, advantages, *shape[1:])


# -------------------------------------------------------------------------------------------------
# the sides


def update(case: Case, groups: range | None = None):
    """Forward and backward of the explored groups (default: all) as packed rows."""
    groups = range(len(case.prompts)) if groups is None else groups
    explored = [
        dyme.Group(p, dyme.EXPLORE, case.completions[p], case.advantages[p]) for p in groups
    ]

    def run():
        case.model.train(case.args.gradient_checkpointing)
        dyme.packed_update(case.model, case.prompts, explored, normalizer=case.advantages.numel())
        case.model.eval()
        case.model.zero_grad()

    return run


def padded_logprobs(case: Case, p: int) -> torch.Tensor:
    """
    The log-probabilities (G, C) of prompt p's completions from G rows [prompt, completion] of P +
    C tokens.
    """
    prompt, rows = case.prompts[p], case.num_generations
    completions = torch.tensor(case.completions[p], device=prompt.input_ids.device)  # (G, C)
    inputs = {"input_ids": torch.cat([prompt.input_ids.expand(rows, -1), completions], dim=1)}
    inputs.update({name: torch.cat([value] * rows) for name, value in prompt.images.items()})
    if prompt.token_types is not None:
        types = torch.cat([prompt.token_types, torch.zeros_like(completions[:1])], dim=1)
        inputs["mm_token_type_ids"] = types.expand(rows, -1)
    hidden = case.model.model(**inputs, use_cache=False).last_hidden_state  # (G, P + C, width)
    predictors = hidden[:, prompt.input_ids.shape[1] - 1 : -1].flatten(0, 1)
    logprobs, _ = token_logprobs(case.model, predictors, completions.flatten())
    return logprobs.view_as(completions)


def update_padded(case: Case):
    """The same update from padded rows, one prompt after the other."""

    def run():
        case.model.train(case.args.gradient_checkpointing)
        for p in range(len(case.prompts)):
            logprobs = padded_logprobs(case, p)
            mask = torch.ones_like(logprobs)
            loss, _ = grpo_loss(
                logprobs, None, case.advantages[p], mask, normalizer=case.advantages.numel()
            )
            loss.backward()
        case.model.eval()
        case.model.zero_grad()

    return run


def own_rollout(case: Case, length: int | None = None, temperature: float = 1.0):
    """Our decode loop; length 1 is the prefill alone."""
    sizes = (case.num_generations, length or case.completion_length, temperature)
    return lambda: rollout(case.model, case.processor, case.prompts, *sizes)


def generate(case: Case, repeat: bool, greedy: bool = False):
    """
    transformers' generate: every prompt repeated G times, or num_return_sequences. Gives token ids
    (P * G, C).
    """
    rows = case.num_generations if repeat else 1
    each = [
        {"input_ids": p.input_ids, "mm_token_type_ids": p.token_types, **p.images}
        for p in case.prompts
    ]
    names = [name for name, value in each[0].items() if value is not None]
    inputs = {
        name: torch.cat([prompt[name] for prompt in each for _ in range(rows)]) for name in names
    }
    settings = dict(
        attention_mask=torch.ones_like(inputs["input_ids"]),
        num_return_sequences=case.num_generations // rows,
        max_new_tokens=case.completion_length,
        min_new_tokens=case.completion_length,
        suppress_tokens=case.model.forbidden_ids,
        pad_token_id=case.processor.tokenizer.pad_token_id,
        **(
            dict(do_sample=False)
            if greedy
            else dict(do_sample=True, temperature=1.0, top_p=1.0, top_k=0)
        ),
    )
    return lambda: case.model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]


def now(model) -> float:
    """Seconds on the clock, once the device has finished what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def reward(completion_ids, **kwargs):
    """A reward that costs nothing and differs within a group, in the form that TRL calls."""
    return [float(sum(ids) % 97) for ids in completion_ids]


def step(case: Case, skip: bool = False, judging=None):
    """
    A whole step from the image to the optimizer, as train.py does it.

    skip: every second group turns out all right. judging: a judge.Judge that is asked about every
    response.
    """
    optim = "adamw_bf16" if case.model.dtype == BF16 else "adamw"
    # at learning rate 0 every step starts from the same weights
    optimizer = build_optimizer(case.model, optim, learning_rate=0.0)
    sizes = (case.num_generations, case.completion_length)
    modes = torch.full((len(case.prompts),), dyme.EXPLORE)
    if skip:
        modes[1::2] = dyme.SKIP

    def run():
        prompts = [
            prompt_to(encode_prompt(case.processor, example), case.model.device)
            for example in case.examples
        ]
        if not case.args.train_vision:
            for prompt in prompts:
                prompt.features = image_features(case.model, prompt)
        calls = [
            overlap.Calls(example, case.num_generations, False, place)
            for place, example in enumerate(case.examples)
        ]

        def ask(p, g, response):
            overlap.add_response(
                judging,
                calls[p],
                g,
                f"{time.time()} {p} {g}\nAnswer: 1",
                formatted=True,
                correct=True,
            )

        responses = rollout(
            case.model, case.processor, prompts, *sizes, on_response=ask if judging else None
        )
        rewards = torch.tensor(
            [reward([response.token_ids for response in group]) for group in responses]
        )  # (P, G)
        advantages = group_advantages(rewards)
        case.model.train(case.args.gradient_checkpointing)
        for ready in overlap.as_ready(judging, calls):
            groups = dyme.build_groups(ready, modes, responses, advantages, {})
            dyme.packed_update(case.model, prompts, groups, normalizer=rewards.numel())
        case.model.eval()
        torch.nn.utils.clip_grad_norm_(case.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return run


def trl_step(case: Case):
    """
    A whole step of TRL's GRPOTrainer: one group to a micro-batch, no reference model, the same
    reward.
    """
    import datasets
    import trl
    from transformers import PrinterCallback, TrainerCallback

    # on a CPU TRL's head runs over every position; here as on a GPU, over the completions' alone
    trl.trainer.utils._use_triton = lambda device: True

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.start = now(case.model)

        def on_step_end(self, *args, **kwargs):
            self.seconds = now(case.model) - self.start

    clock = Clock()
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{THINK}\n{example.question}"}],
            "image": example.image,
        }
        for example in case.examples
    ]
    settings = trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=1,
        learning_rate=0.0,
        per_device_train_batch_size=case.num_generations,
        gradient_accumulation_steps=len(rows),
        num_generations=case.num_generations,
        max_completion_length=case.completion_length,
        generation_kwargs=dict(
            min_new_tokens=case.completion_length, suppress_tokens=case.model.forbidden_ids
        ),
        loss_type="grpo",
        bf16=case.model.dtype == BF16,
        gradient_checkpointing=case.args.gradient_checkpointing,
        use_cpu=case.model.device.type == "cpu",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
        model=copy.deepcopy(case.model),
        reward_funcs=reward,
        args=settings,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=case.processor,
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)

    def run():
        trainer.train()
        return clock.seconds  # without what train() itself sets up

    return run


def pair(case: Case) -> Case:
    """The case with at least two prompts, so that half of them can be skipped."""
    if len(case.prompts) > 1:
        return case
    return replace(
        case,
        prompts=case.prompts * 2,
        completions=case.completions * 2,
        advantages=case.advantages.repeat(2, 1),
    )


SIDES = {
    "update": update,
    "update_padded": update_padded,
    "rollout": own_rollout,
    "prefill": lambda case: own_rollout(case, 1),
    "generate_repeated": lambda case: generate(case, repeat=True),
    "generate_sequences": lambda case: generate(case, repeat=False),
    "grpo_step": step,
    "dyme_step": lambda case: step(case, skip=True),
    "trl_step": trl_step,
    "update_all": lambda case: update(pair(case)),
    "update_half": lambda case: update(pair(case), range(0, len(pair(case).prompts), 2)),
    "update_4g": lambda case: update(build_case(case.args, 4 * case.num_generations)),
}
ROWS = [  # what, against what, and the names of their sides
    ("update, packed", "padded rows", "update", "update_padded"),
    ("rollout", "generate, repeated prompts", "rollout", "generate_repeated"),
    ("rollout", "generate, num_return_sequences", "rollout", "generate_sequences"),
    ("GRPO step", "TRL's GRPOTrainer", "grpo_step", "trl_step"),
    ("DyME step, half of the groups skipped", "TRL's GRPOTrainer", "dyme_step", "trl_step"),
    ("update, half of the groups skipped", "all explored", "update_half", "update_all"),
    ("update, G", "4 G", "update", "update_4g"),
]
