"""The tiny model: a LLaVA-OneVision of a third of a million parameters, from scratch, for a machine
without GPU or network.

The class is the paper's own (SigLIP tower, projector, Qwen2). The tokenizer knows the words of
data/charts.py, else bytes, so that any text goes through it unchanged. A random model can't be
taught to think: `train_base` gives it perception and short answers, and leaves it weak at the
format, the paper's weak instruction follower. Two such bases are in assets/, by tools/ship.py.
"""

import io
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration
from transformers import PreTrainedTokenizerFast, Qwen2Config, SiglipVisionConfig

from data.charts import TASKS, base_batch, load_charts, vocabulary
from data.forms import answer_pool, mix_forms
from data.example import say
from data.reading import write_whole, written_here
from lib.answers import grade
from lib.families import FAMILIES, load_vlm, prepare, processor_classes, save_model
from lib.log import progress
from model import completion_hidden, encode_prompts, get_tokenizer

BASE_TASKS = (*TASKS, "judge", "choice")  # of Curr-ReFT's base
SHIPPED = {  # base_folder's first five arguments: the folder in assets/
    (None, 0, 0.0, ("chart",), 0): "tiny-base",
    (None, 0, 0.1, BASE_TASKS, 1200): "tiny-base-curr",
}
ASSETS = Path(__file__).parent.parent / "assets"
LOG_STEPS = 100  # of the base stage: a mean loss, and a state to go on from, every so many

SIDE, PATCH = 32, 8  # of an image and of its patches, pixels
SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level over vocabulary(), else byte by byte: decode(encode(text)) == text."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    for word in vocabulary():
        pieces += [piece for piece, _ in byte_level.pre_tokenize_str(word)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(SPECIAL + pieces))}
    # a BPE without merges: a known word is one token (ignore_merges), anything else its bytes
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, decoders.ByteLevel()
    named = dict(eos_token="<|im_end|>", pad_token="<pad>", clean_up_tokenization_spaces=False)
    named["additional_special_tokens"] = ["<|im_start|>", "<image>", "<video>"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, **named)


def tiny_vlm(seed: int = 0):
    """The model with random weights drawn from `seed`, and its processor."""
    tokenizer, tiles = tiny_tokenizer(), {"image_grid_pinpoints": [[SIDE, SIDE]]}
    processor_class, image_class = processor_classes(FAMILIES["llava_onevision"])
    shown = dict(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    settings = dict(num_image_tokens=(SIDE // PATCH) ** 2, vision_feature_select_strategy="full")
    images = image_class(**shown, **tiles)
    processor = processor_class(images, tokenizer, chat_template=CHAT_TEMPLATE, **settings)

    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4)
    vision = SiglipVisionConfig(**sizes, image_size=SIDE, patch_size=PATCH, vision_use_head=False)
    sizes = dict(hidden_size=96, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4)
    sizes |= dict(num_key_value_heads=2, vocab_size=len(tokenizer), tie_word_embeddings=True)
    sizes["initializer_range"] = 0.08  # at 0.02 the captions stay wrong for thousands of steps
    ends = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    text = Qwen2Config(**sizes, **ends, bos_token_id=None)
    ids = {f"{kind}_token_id": SPECIAL.index(f"<{kind}>") for kind in ("image", "video")}
    parts = dict(vision_config=vision, text_config=text, tie_word_embeddings=True)
    config = LlavaOnevisionConfig(**parts, **ids, **tiles)
    torch.manual_seed(seed)
    return prepare(LlavaOnevisionForConditionalGeneration(config)), processor


def train_base(
    model, processor, steps: int, seed: int, format_rate: float, tasks: tuple, lr: float, path: Path
) -> list[float]:
    """A base stage: supervised training of ALL weights on base_batch, by AdamW, with a warm-up of
    5 % and cosine decay; a batch is one packed row. Returns mean losses (nats per token), each of
    LOG_STEPS steps. tasks: some of TASKS, and "judge", "choice" to have it asked in these forms too
    (data/forms.py). path: of a file to go on from after a kill, to the same weights.
    """
    questions = [task for task in tasks if task in TASKS]
    forms = [form for form in tasks if form not in TASKS]
    pool = answer_pool(load_charts("train", 1000, seed, tasks=questions)) if forms else {}
    tokenizer = get_tokenizer(processor)
    model.requires_grad_(True)
    knobs = dict(betas=(0.9, 0.99), weight_decay=0.01, foreach=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr, **knobs)
    start, losses, total = 0, [], 0.0
    if path.exists():
        with written_here(path):
            saved = torch.load(path, weights_only=True)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            start, losses = saved["step"], saved["losses"]
    bar = progress(range(start, steps), "base stage", total=steps, initial=start, unit="step")
    for step in bar:
        warmup = min(1.0, (step + 1) / (0.05 * steps))
        for group in optimizer.param_groups:
            group["lr"] = lr * warmup * 0.5 * (1 + math.cos(math.pi * step / steps))
        batch = base_batch(seed, step, 32, format_rate, questions)
        if forms:
            batch = mix_forms(batch, forms, pool, np.random.default_rng([seed, step]), grade)
        asked = [replace(example, instruction=text) for example, text, _ in batch]
        prompts = encode_prompts(processor, asked)
        targets = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for *_, text in batch]
        hidden = completion_hidden(model, prompts, [[ids] for ids in targets])  # (tokens, width)
        logits = model.get_output_embeddings()(hidden)  # (tokens, V)
        loss = F.cross_entropy(logits, torch.tensor(sum(targets, [])))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
        if (step + 1) % LOG_STEPS == 0:
            losses, total = [*losses, total / LOG_STEPS], 0.0
            weights = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            content = io.BytesIO()
            torch.save({**weights, "step": step + 1, "losses": losses}, content)
            write_whole(path, content.getvalue())
    return losses


def base_folder(
    base_steps: int | None = None,
    base_seed: int = 0,
    base_format_rate: float = 0.0,
    base_tasks: Sequence[str] = ("chart",),
    base_task_steps: int = 0,
    folder: str | os.PathLike = "out",
) -> Path:
    """The folder of the tiny model after its base stage: a shipped one (of base_steps None, that is
    1600), or the one in `folder`, trained now if it isn't there. With other base_tasks than charts
    alone, the charts' base is taught these for base_task_steps more.
    """
    tasks = tuple(base_tasks)
    asked = (base_steps, base_seed, base_format_rate, tasks, base_task_steps)
    if asked in SHIPPED:
        return ASSETS / SHIPPED[asked]
    steps, lr, more = base_steps or 1600, 3e-3, tasks != ("chart",)
    path = Path(folder) / f"base-seed{base_seed}-steps{steps}-format{base_format_rate:g}"
    if more:
        steps, lr = base_task_steps, 2e-3
        path = path.with_name("-".join([path.name, *tasks, f"steps{steps}"]))
    if path.exists():
        return path
    first = base_folder(base_steps, base_seed, folder=folder) if more else None
    model, processor = load_vlm(str(first)) if first else tiny_vlm(base_seed)
    say(f"the tiny model's base stage: {steps} steps, about 8 a second; kept in {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    state = path.with_name(f"{path.name}.state")
    losses = train_base(model, processor, steps, base_seed, base_format_rate, tasks, lr, state)
    # renamed when it is whole: what is at `path` is complete, whatever ends this process
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    save_model(temporary, model, processor)
    (temporary / "losses.json").write_text(json.dumps(losses))
    try:
        os.replace(temporary, path)
    except OSError:  # another run was first: the same weights
        shutil.rmtree(temporary)
    state.unlink(missing_ok=True)
    return path
