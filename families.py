"""
Model families: what differs between them, in one table, and the one way to load any of them.

A vision-language model is, to this project: `model.model` (vision tower + language model, one forward), `lm_head`, a chat
template, an image processor and a tokenizer. Everything else is a row of FAMILIES. To add a family: add its row, then
its line to test_models.py, which takes it through encoding, rollout, packed log-probs, a DyME step, saving and reloading.

Torchvision is not needed: the processor is put together from the Pillow image processor and the tokenizer, without the
video half. Left out: video, several images, quantised weights, models larger than one device.
"""

import os
from dataclasses import dataclass

import torch
import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from data import InputError

transformers.utils.logging.disable_progress_bar()


@dataclass
class Family:
    processor: str  # transformers' processor class
    vision: str  # where the vision tower sits in model.model
    placeholders: tuple = ("image_token_id", "video_token_id")  # ids in the config that a response can't contain


QWEN_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
FAMILIES = {  # by the config's model_type
    "llava_onevision": Family("LlavaOnevisionProcessor", "vision_tower"),
    "idefics3": Family("Idefics3Processor", "vision_model", ("image_token_id",)),
    # SmolVLM2's own processor class wants num2words for its videos; its image half is Idefics3's
    "smolvlm": Family("Idefics3Processor", "vision_model", ("image_token_id",)),
    "qwen2_vl": Family("Qwen2VLProcessor", "visual", QWEN_IDS),
    "qwen2_5_vl": Family("Qwen2_5_VLProcessor", "visual", QWEN_IDS),
    "qwen3_vl": Family("Qwen3VLProcessor", "visual", QWEN_IDS),
    "internvl": Family("InternVLProcessor", "vision_tower", ("image_token_id",)),
}
TEXT_FAMILIES = ("llama", "qwen2", "qwen3")  # AutoModelForCausalLM, no image


def load_vlm(
    name_or_path: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    freeze_vision: bool = True,
):
    """
    A model and its processor from a hub name or a folder; for a text-only model the processor is its tokenizer.

    freeze_vision: the vision tower gets no gradient (as published); the projector always trains.
    InputError, in one line, for a name that can't be had, an unsupported family, or a missing chat template.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_path)
    except Exception as error:  # transformers raises OSError, ValueError, hub errors: all mean "can't read it"
        raise InputError(f"--model {name_or_path}: {first_line(error)}; give a hub name or a folder with config.json") from None
    family = FAMILIES.get(config.model_type)
    if family is None and config.model_type not in TEXT_FAMILIES:
        known = ", ".join([*FAMILIES, *TEXT_FAMILIES])
        raise InputError(
            f"--model {name_or_path}: model_type {config.model_type!r} is not supported; supported: {known}; "
            f"to add it, give it a row in families.py's FAMILIES"
        )
    try:
        processor = load_processor(name_or_path, family)
        auto_class = AutoModelForCausalLM if family is None else AutoModelForImageTextToText
        model = auto_class.from_pretrained(name_or_path, dtype=dtype)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"--model {name_or_path}: {first_line(error)}") from None
    return prepare(model.to(device), freeze_vision), processor


def prepare(model, freeze_vision: bool = True):
    """Freeze the vision tower (or not), and note on the model the ids that a response can't contain."""
    family = FAMILIES.get(model.config.model_type)
    model.requires_grad_(True)
    model.forbidden_ids = []
    if family is not None:
        getattr(model.model, family.vision).requires_grad_(not freeze_vision)
        ids = [getattr(model.config, name, None) for name in family.placeholders]
        model.forbidden_ids = sorted({i for i in ids if i is not None})
    # no dropout anywhere in the method: sampling and scoring must see the same policy
    return model.eval()


def load_processor(name_or_path: str, family: Family | None):
    """The processor class of the family, from the Pillow image processor and the tokenizer, video left off."""
    tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    if family is None:
        processor = tokenizer
    else:
        image_processor = AutoImageProcessor.from_pretrained(name_or_path, backend="pil")
        processor_class = without_video(getattr(transformers, family.processor))
        settings, _ = processor_class.get_processor_dict(name_or_path)
        for key in ("processor_class", "image_processor", "video_processor", "tokenizer", "auto_map"):
            settings.pop(key, None)
        settings.setdefault("chat_template", tokenizer.chat_template)
        processor = processor_class(image_processor=image_processor, tokenizer=tokenizer, **settings)
    if processor.chat_template is None:
        raise InputError(
            f"--model {name_or_path}: has no chat template, so no prompt can be written; "
            f"use an instruction-tuned model, or put a chat_template.jinja beside its config.json"
        )
    return processor


def without_video(processor_class):
    """The processor class without its video part, which can't even be None where torchvision is missing."""
    parts = ["image_processor", "tokenizer"]
    return type(processor_class.__name__, (processor_class,), {"get_attributes": classmethod(lambda cls: parts)})


def save_model(folder: str | os.PathLike, model, processor) -> None:
    """Model and processor with save_pretrained, so that plain AutoModelForImageTextToText loads them again."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def parameter_counts(model) -> tuple[int, int]:
    """(trainable, frozen) numbers of parameters."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters()) - trainable


def first_line(error: Exception) -> str:
    """An exception in one line that says what kind it is."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}" if text else type(error).__name__
