"""Model families: what differs between them, in one table, and the one way to load any of them.

To add a family: add its row to FAMILIES, and one to tests/test_models.py, which takes it through
encoding, rollout, update, saving and reloading. Three things would be silently wrong here, so
`load_vlm` refuses them: a head that scales or caps its logits, attention in windows, attention that
isn't causal inside an image. Left out: torchvision, video, several images, quantized weights.
"""

import functools
import importlib
import inspect
import os
import re
from typing import NamedTuple

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig

from data.example import InputError

transformers.utils.logging.disable_progress_bar()


class Family(NamedTuple):
    name: str  # of transformers' processor class, "Processor" aside
    images: str  # of the image processor that needs Pillow alone, "ImageProcessorPil" aside
    vision: str  # where the vision tower is in model.model
    boxes: str  # in "original" pixels (or unpublished), "resized" ones, "thousandths" of each side


FAMILIES = {  # by the config's model_type
    "llava_onevision": Family("LlavaOnevision", "LlavaOnevision", "vision_tower", "original"),
    "idefics3": Family("Idefics3", "Idefics3", "vision_model", "original"),
    # SmolVLM2's own processor class wants num2words for its videos; its image half is Idefics3's
    "smolvlm": Family("Idefics3", "SmolVLM", "vision_model", "original"),
    "qwen2_vl": Family("Qwen2VL", "Qwen2VL", "visual", "thousandths"),
    "qwen2_5_vl": Family("Qwen2_5_VL", "Qwen2VL", "visual", "resized"),
    "qwen3_vl": Family("Qwen3VL", "Qwen2VL", "visual", "thousandths"),
    "internvl": Family("InternVL", "GotOcr2", "vision_tower", "thousandths"),
}
TEXT_FAMILIES = ("llama", "qwen2", "qwen3")  # AutoModelForCausalLM, no image
# what of a vision tower is its projector, where that is no module of its own
PROJECTORS = ("merger", "deepstack_merger_list")
# the tokens of all families that mean an image or frame it
IMAGE_TOKENS = (
    r"<(/?img|image|video|IMG_CONTEXT|fake_token_around_image|global-img|row_\d_col_\d)>"
    r"|<\|(vision_start|vision_end|vision_pad|image_pad|video_pad)\|>"
)
NO_CODE = {"trust_remote_code": False}  # None would ask on stdin, and run what a folder brings


def load_vlm(
    name_or_path: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    freeze_vision: bool = True,
    processor=None,
):
    """A model and its processor from a hub name or a folder; a text-only model's is its tokenizer.
    InputError for what can't be had or isn't supported.

    freeze_vision: no gradient for the tower (as published); the projector always trains. device:
    "meta" is without weights and their download. processor: the model's, if it is loaded already.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(name_or_path, **NO_CODE)
        refuse_unsupported(config)
        family = FAMILIES.get(config.model_type)
        auto_class = AutoModelForImageTextToText if family else AutoModelForCausalLM
        processor = processor or load_processor(name_or_path, family)
        if torch.device(device).type == "meta":
            with torch.device("meta"):
                model = auto_class.from_config(config, dtype=dtype, **NO_CODE)
        else:
            model = auto_class.from_pretrained(name_or_path, dtype=dtype, **NO_CODE)
            refuse_other_head(model)
        ends = published_ends(name_or_path)
    except Exception as error:  # OSError, ValueError, ImportError, hub errors: "can't read it"
        reason = str(error)
        if not isinstance(error, InputError):
            wanted = "give a hub name, or a folder with config.json, tokenizer and weights"
            reason = f"{type(error).__name__}: {error}; {wanted}"
        raise InputError(f"--model {name_or_path}: {reason}") from None
    tokenizer = getattr(processor, "tokenizer", processor)
    # nothing else of it: the published sampling defaults belong to the model as it was
    published = dict(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    model.generation_config = GenerationConfig(**published)
    model = prepare(model.to(device), freeze_vision, tokenizer)
    model.generation_config.eos_token_id = model.end_ids
    return model, processor


def published_ends(name_or_path: str) -> int | list[int] | None:
    """The end tokens of a generation_config.json; a config class's own default is none."""
    try:
        return GenerationConfig.from_pretrained(name_or_path).eos_token_id
    except OSError as error:
        if isinstance(error.__context__, ValueError):  # it is there, and no JSON
            raise
        return None


def refuse_unsupported(config) -> None:
    """InputError where this project's forward can't stand in for a model's own, by its config."""
    text, supported = config.get_text_config(), [*FAMILIES, *TEXT_FAMILIES]
    window = getattr(text, "sliding_window", None)
    usual = f"windows of {window} tokens" if window else "full_attention"
    kinds = {*(getattr(text, "layer_types", None) or [usual])}
    code = type(config).__module__.replace(".configuration_", ".modeling_")
    # what transformers calls the tokens that see each other both ways, whatever its version
    masks = "block_sequence_ids|or_mask_function|token_type_ids_mask_function"
    if config.model_type not in supported:
        known = f"supported: {', '.join(supported)}; to add it: lib/families.py's FAMILIES"
        raise InputError(f"model_type {config.model_type!r} is not supported; {known}")
    if kinds != {"full_attention"}:
        raise InputError(f"has layers of {sorted(kinds)}; full_attention alone is supported")
    if re.search(masks, inspect.getsource(importlib.import_module(code))):
        raise InputError("attends both ways inside an image; causal attention alone is supported")


@torch.no_grad()
def refuse_other_head(model) -> None:
    """InputError where the model makes its logits otherwise than by its output matrix alone."""
    ids = torch.tensor([[1, 2]])
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    theirs = model(input_ids=ids, use_cache=False).logits.float()  # (1, 2, V)
    ours = model.get_output_embeddings()(hidden).float()
    if (ours - theirs).norm() > 0.01 * theirs.norm():
        raise InputError("its head scales or caps the logits; a linear head alone is supported")


def save_model(folder: str | os.PathLike, model, processor) -> None:
    """Model and processor with save_pretrained, so that transformers' Auto classes load them."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if hasattr(processor, "image_processor"):
        # where torchvision is installed, AutoProcessor makes a video processor from this file
        processor.image_processor.save_pretrained(folder)


def prepare(model, freeze_vision: bool = True, tokenizer=None):
    """Freezes the vision tower (or not), and notes on the model what a response can't contain
    (forbidden_ids: the image placeholders, with the tokenizer all IMAGE_TOKENS), what ends it
    (end_ids: the end of a turn, then the published ones), what its forward calls the cache of keys
    and values (cache_name).
    """
    family, published = FAMILIES.get(model.config.model_type), model.generation_config.eos_token_id
    model.requires_grad_(True)
    ends = [tokenizer.eos_token_id] if tokenizer else []
    ends += published if isinstance(published, list) else [published]  # or one, or None
    model.end_ids = list(dict.fromkeys(end for end in ends if end is not None))
    arguments = inspect.signature(model.model.forward).parameters
    model.cache_name = "cache" if "cache" in arguments else "past_key_values"  # up to 5.17 at least
    model.forbidden_ids = []
    if family is not None:
        tower = getattr(model.model, family.vision)
        tower.requires_grad_(not freeze_vision)
        for name, module in tower.named_children():
            module.requires_grad_(not freeze_vision or name in PROJECTORS)
        added = tokenizer.get_added_vocab() if tokenizer else {}
        ids = {i for token, i in added.items() if re.fullmatch(IMAGE_TOKENS, token)}
        ids |= {getattr(model.config, f"{kind}_token_id", None) for kind in ("image", "video")}
        model.forbidden_ids = sorted(ids - {None})
        take_features(type(model.model))
    # no dropout anywhere in the method: sampling and scoring must see the same policy
    return model.eval()


def box_scale(config, size: tuple[int, int], images: dict) -> tuple[float, float]:
    """What takes a box in the family's coordinates to pixels of the original image, of that size
    (width, height). config: the model's. images: the prompt's tensors.
    """
    boxes = FAMILIES[config.model_type].boxes
    width, height = size if boxes == "original" else (1000, 1000)
    if boxes == "resized":
        _, rows, columns = images["image_grid_thw"][0].tolist()  # in patches
        patch = config.vision_config.patch_size
        width, height = columns * patch, rows * patch
    return size[0] / width, size[1] / height


@functools.cache  # once per class
def take_features(model_class) -> None:
    """Lets the class of model.model take the tower's output in place of pixel_values.
    (transformers 5.23 has an argument for that, which 5.17 ignores.)
    """
    compute = model_class.get_image_features

    @functools.wraps(compute)  # generate looks at the signature
    def get_image_features(self, pixel_values, *args, **kwargs):
        given = hasattr(pixel_values, "pooler_output")
        return pixel_values if given else compute(self, pixel_values, *args, **kwargs)

    model_class.get_image_features = get_image_features


def checkpoint_activations(model) -> None:
    """Recomputes the layers' activations in backward instead of keeping them, in train() mode."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:  # its name up to transformers 5.17 at least
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.disable_input_require_grads()  # with them a frozen tower would keep its whole graph


def parameter_counts(model) -> tuple[int, int]:
    """(trainable, frozen) numbers of parameters."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters()) - trainable


def load_processor(name_or_path: str, family: Family | None):
    """The family's processor, from the Pillow image processor and the tokenizer, without video."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(name_or_path, **NO_CODE)
    processor = tokenizer
    if family is not None:
        processor_class, image_class = processor_classes(family)
        images = image_class.from_pretrained(name_or_path, **NO_CODE)
        settings, _ = processor_class.get_processor_dict(name_or_path)
        parts = ("image_processor", "video_processor", "tokenizer", "processor_class", "auto_map")
        settings = {name: value for name, value in settings.items() if name not in parts}
        settings["chat_template"] = settings.get("chat_template") or tokenizer.chat_template
        processor = processor_class(image_processor=images, tokenizer=tokenizer, **settings)
    if processor.chat_template is None:
        way_out = "use an instruction-tuned model, or put a chat_template.jinja in its folder"
        raise InputError(f"has no chat template, so no prompt can be written; {way_out}")
    # a response ends as the template ends a turn, not always with the tokenizer's own end token
    after = turn_edges(processor)[1].lstrip()
    candidates = [token for token in tokenizer.get_added_vocab() if after.startswith(token)]
    tokenizer.eos_token = max(candidates, key=len, default=tokenizer.eos_token)
    if tokenizer.eos_token is None:
        raise InputError("neither its chat template nor its tokenizer has an end token")
    return processor


@functools.cache
def turn_edges(processor) -> tuple[str, str]:
    """What the chat template writes before the assistant's words, after the generation prompt
    (mostly nothing; a blank in Idefics3), and after them.
    """
    said = "ANSWER"
    content = [{"type": "text", "text": said}] if hasattr(processor, "image_processor") else said
    messages = [{"role": role, "content": content} for role in ("user", "assistant")]
    whole = processor.apply_chat_template(messages, tokenize=False)
    prompt = processor.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    before, _, after = whole.rpartition(said)
    return before.removeprefix(prompt) if before.startswith(prompt) else "", after


def processor_classes(family: Family) -> tuple[type, type]:
    """The processor class without its video part, which needs torchvision; Pillow's for images."""
    whole = getattr(transformers, f"{family.name}Processor")
    attributes = classmethod(lambda cls: ["image_processor", "tokenizer"])
    processor = type(whole.__name__, (whole,), {"get_attributes": attributes})
    return processor, getattr(transformers, f"{family.images}ImageProcessorPil")
