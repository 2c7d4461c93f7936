"""
Every supported family through the real path, from a hub-like folder on disk to a trained and saved
model.

Each is a tiny model of the real class with random weights, and a real tokenizer, image processor
and chat template. Large initial weights keep the logits apart, so that a greedy choice doesn't
hang on the last bit of a float.
"""

import gc
import importlib.util
import json
from dataclasses import dataclass, field, replace

import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

import dyme
from data import Example, InputError, open_image
from lib.families import (
    FAMILIES,
    TEXT_FAMILIES,
    checkpoint_activations,
    load_vlm,
    one_line,
    parameter_counts,
    prepare,
)
from lib.families import save_model
from lib.memory import memory_estimate, report_memory, shape_of
from model import (
    completion_hidden,
    completion_logprobs,
    encode_prompt,
    get_tokenizer,
    image_features,
    token_logprobs,
)
from lib.optim import build_optimizer
from rollout import rollout

torch.set_num_threads(1)

# -------------------------------------------------------------------------------------------------
# a hub checkpoint of each family, tiny

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOLVLM = (  # as in HuggingFaceTB/SmolVLM-500M-Instruct
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] == "
    "'image' %}{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}"
    "{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
ROWS_COLUMNS = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
QWEN_SPECIAL = [
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


@dataclass
class Kind:
    """What a family's hub folder holds beyond weights."""

    special: list  # tokens
    image: str = ""  # what the template writes for an image
    image_processor: str = ""
    image_settings: dict = field(default_factory=dict)
    processor_settings: dict = field(default_factory=dict)
    token_names: dict = field(default_factory=dict)
    image_token: str = "<image>"
    end: str = "<|im_end|>"
    template: str = CHATML


IDEFICS3 = Kind(
    ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *ROWS_COLUMNS],
    image_processor="Idefics3ImageProcessor",
    image_settings=dict(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
    processor_settings=dict(image_seq_len=4),
    end="<end_of_utterance>",
    template=SMOLVLM,
)
QWEN = Kind(
    QWEN_SPECIAL,
    QWEN_IMAGE,
    "Qwen2VLImageProcessor",
    dict(
        patch_size=4,
        temporal_patch_size=2,
        merge_size=2,
        size={"shortest_edge": 256, "longest_edge": 1600},
    ),
    image_token="<|image_pad|>",
)
KINDS = {
    "llava_onevision": Kind(
        ["<image>", "<video>"],
        "<image>\n",
        "LlavaOnevisionImageProcessor",
        dict(
            size={"height": 32, "width": 32},
            image_grid_pinpoints=[[32, 32], [32, 64], [64, 32], [64, 64]],
        ),
        dict(num_image_tokens=16, vision_feature_select_strategy="full"),
    ),
    "idefics3": IDEFICS3,
    "smolvlm": replace(IDEFICS3, image_processor="SmolVLMImageProcessor"),
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
    "internvl": Kind(
        ["<IMG_CONTEXT>", "<img>", "</img>", "<video>"],
        "<IMG_CONTEXT>\n",
        "GotOcr2ImageProcessorFast",
        dict(
            size={"height": 32, "width": 32}, crop_to_patches=False, max_patches=4
        ),  # which the processor turns on
        dict(image_seq_length=4),
        dict(
            start_image_token="<img>",
            end_image_token="</img>",
            context_image_token="<IMG_CONTEXT>",
            video_token="<video>",
        ),
        "<IMG_CONTEXT>",
    ),
    "llama": Kind([]),
    "qwen2": Kind([]),
    "qwen3": Kind([]),
}


def byte_tokenizer(kind):
    """Bytes and the family's special tokens."""
    special = ["<pad>", "<|im_start|>", "<|im_end|>", *kind.special]
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet()) + special
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=kind.end,
        pad_token="<pad>",
        extra_special_tokens=kind.token_names,
        clean_up_tokenization_spaces=False,
    )


def family_config(name, kind, tokenizer):
    """The config class of the hub's checkpoints, at a width of 32 and with two layers."""
    text = dict(
        model_type={"idefics3": "llama", "smolvlm": "llama"}.get(name, "qwen2"),
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,  # an image enters Qwen3-VL after the first two as well
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=4096,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    if name in TEXT_FAMILIES:
        return transformers.AutoConfig.for_model(**{**text, "model_type": name})
    small = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    small["initializer_range"] = 0.1
    tiles = dict(small, image_size=32, patch_size=8)
    blocks = dict(
        depth=2,
        num_heads=4,
        patch_size=4,
        spatial_merge_size=2,
        temporal_patch_size=2,
        initializer_range=0.1,
    )
    ids = {
        key: tokenizer.convert_tokens_to_ids(token)
        for key, token in (
            ("image_token_id", kind.image_token),
            ("video_token_id", kind.image_token.replace("image", "video")),
            ("vision_start_token_id", "<|vision_start|>"),
            ("vision_end_token_id", "<|vision_end|>"),
        )
    }
    sections = [1, 1, 2] if name == "qwen3_vl" else [2, 1, 1]
    mrope = {"rope_type": "default", "mrope_section": sections, "rope_theta": 1e4}
    if name.startswith("qwen"):
        text = {**text, "model_type": f"{name}_text", "rope_parameters": mrope}
    image_id = {"image_token_id": ids["image_token_id"]}
    more = {
        "llava_onevision": dict(
            vision_config=dict(tiles, model_type="siglip_vision_model", vision_use_head=False),
            image_grid_pinpoints=kind.image_settings.get("image_grid_pinpoints"),
            vision_feature_select_strategy="full",
            vision_feature_layer=-1,
            video_token_id=ids["video_token_id"],
            **image_id,
        ),
        "idefics3": dict(vision_config=tiles, scale_factor=2, **image_id),
        "smolvlm": dict(vision_config=tiles, scale_factor=2, **image_id),
        "qwen2_vl": dict(vision_config=dict(blocks, embed_dim=32, hidden_size=32), **ids),
        "qwen2_5_vl": dict(
            vision_config=dict(
                blocks,
                hidden_size=32,
                out_hidden_size=32,
                intermediate_size=48,
                window_size=16,
                fullatt_block_indexes=[1],
            ),
            **ids,
        ),
        "qwen3_vl": dict(
            vision_config=dict(
                blocks,
                hidden_size=32,
                out_hidden_size=32,
                intermediate_size=48,
                num_position_embeddings=16,
                deepstack_visual_indexes=[0, 1],
            ),
            **ids,
        ),
        "internvl": dict(
            vision_config=dict(tiles, image_size=[32, 32], patch_size=[8, 8]),
            downsample_ratio=0.5,
            image_seq_length=4,
            **image_id,
        ),
    }[name]
    return transformers.AutoConfig.for_model(
        name, text_config=text, tie_word_embeddings=False, **more
    )


def write_checkpoint(folder, name, seed=0):
    """A folder as the hub has it; the names of the files and what stands in which of them, too."""
    kind = KINDS[name]
    tokenizer = byte_tokenizer(kind)
    config = family_config(name, kind, tokenizer)
    torch.manual_seed(seed)
    auto_class = AutoModelForCausalLM if name in TEXT_FAMILIES else AutoModelForImageTextToText
    model = auto_class.from_config(config)
    folder.mkdir(exist_ok=True)
    with torch.no_grad():
        model.get_output_embeddings().weight[tokenizer.eos_token_id] *= (
            3  # so that some responses end
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    template = kind.template.replace("IMAGE", kind.image)
    if name == "qwen2_vl":
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    else:
        (folder / "chat_template.jinja").write_text(template)
    if name in FAMILIES:
        image = {
            "image_processor_type": kind.image_processor,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        }
        (folder / "preprocessor_config.json").write_text(
            json.dumps({**image, **kind.image_settings})
        )
        if kind.processor_settings:
            (folder / "processor_config.json").write_text(json.dumps(kind.processor_settings))
    return folder


# -------------------------------------------------------------------------------------------------


def picture(width, height, seed):
    """An RGB image that differs everywhere."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def examples(vision):
    """Images of several sizes and shapes, two alike in size, and a question without one."""
    sizes = [(40, 28), (28, 70), (90, 80), (33, 17), (40, 28)] if vision else [None] * 3
    images = [size and picture(*size, seed) for seed, size in enumerate(sizes)] + [None]
    return [
        Example(image, f"Q{i * 7}?", "3", trace="two and one") for i, image in enumerate(images)
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """family -> its folder, written when first asked for."""
    written = {}

    def folder(name):
        if name in FAMILIES:
            try:
                getattr(transformers, FAMILIES[name].image_processor)()
            except (
                ImportError
            ) as error:  # transformers 5.17: Idefics3's needs torchvision, the Pillow one too
                pytest.skip(" ".join(str(error).split())[:100])
        if name not in written:
            written[name] = write_checkpoint(tmp_path_factory.mktemp(name), name)
        return written[name]

    return folder


def loaded(folders, name, **options):
    """Model, processor and encoded prompts."""
    model, processor = load_vlm(str(folders(name)), **options)
    prompts = [encode_prompt(processor, example) for example in examples(name in FAMILIES)]
    return model, processor, prompts


def generate_inputs(prompt):
    inputs = {
        "input_ids": prompt.input_ids,
        "attention_mask": torch.ones_like(prompt.input_ids),
        **prompt.images,
    }
    if prompt.token_types is not None and "image_grid_thw" in prompt.images:
        inputs["mm_token_type_ids"] = prompt.token_types
    return inputs


ALL = [*FAMILIES, *TEXT_FAMILIES]


@pytest.mark.parametrize("name", ALL)
def test_greedy_rollout_equals_generate(folders, name):
    model, processor, prompts = loaded(folders, name)
    responses = rollout(model, processor, prompts, 2, 12, temperature=0.0)
    tokenizer = get_tokenizer(processor)
    for prompt, group in zip(prompts, responses):
        whole = model.generate(
            **generate_inputs(prompt),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            suppress_tokens=model.forbidden_ids or None,
        )
        expected = whole[0, prompt.input_ids.shape[1] :].tolist()
        assert [response.token_ids for response in group] == [expected] * 2


def some_completions(processor, prompts, seed=0):
    """
    Two or three sequences of random letters for each prompt, of several lengths, each with the end
    token.
    """
    generator = torch.Generator().manual_seed(seed)
    end = get_tokenizer(processor).eos_token_id
    lengths = [[5, 1, 9], [4, 7], [6, 3], [2, 8], [5, 6], [3, 3]]
    draw = lambda n: torch.randint(200, (n,), generator=generator).tolist() + [end]
    return [[draw(n) for n in row] for row, _ in zip(lengths, prompts)]


def single_logprobs(model, prompt, completion):
    """
    The same log-probabilities from a row of its own, pixels and all, through the model's own
    forward.
    """
    inputs = generate_inputs(prompt)
    ids = torch.tensor([completion])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat(
            [inputs["mm_token_type_ids"], torch.zeros_like(ids)], dim=1
        )
    logits = model(**inputs).logits[0, -len(completion) - 1 : -1]  # (C, V)
    logits[:, model.forbidden_ids] = -torch.inf
    return logits.log_softmax(dim=-1).gather(1, ids.T)[:, 0]


@pytest.mark.parametrize("name", ALL)
def test_packed_logprobs_and_gradients_equal_single_rows(folders, name):
    model, processor, prompts = loaded(folders, name, freeze_vision=False)
    completions = some_completions(processor, prompts)
    hidden = completion_hidden(model, prompts, completions)
    targets = torch.tensor([token for group in completions for row in group for token in row])
    packed, _ = token_logprobs(model, hidden, targets)
    weights = torch.linspace(-1, 1, len(packed))
    (packed * weights).sum().backward()
    gradients = {key: value.grad for key, value in model.named_parameters()}
    model.zero_grad(set_to_none=True)

    single = [
        single_logprobs(model, prompt, row)
        for prompt, group in zip(prompts, completions)
        for row in group
    ]
    (torch.cat(single) * weights).sum().backward()
    assert (packed - torch.cat(single)).abs().max() < 1e-5
    for key, value in model.named_parameters():
        if value.grad is not None:  # a tower's last layer or pooling may be unused
            assert (gradients[key] - value.grad).abs().max() <= 1e-5 * max(
                1, value.grad.abs().max()
            ), key
        else:
            assert gradients[key] is None, key


def explored_and_memorized(processor, prompts):
    """One group of each kind for the first prompts, the third is skipped, the rest explored."""
    completions = some_completions(processor, prompts)
    groups = [dyme.Group(0, dyme.EXPLORE, completions[0], torch.tensor([1.0, 0.5, -1.5]))]
    target = dyme.target_ids(processor, "two and one", "3")
    groups.append(dyme.Group(1, dyme.MEMORIZE, [target], torch.ones(1)))
    for p in range(3, len(prompts)):
        groups.append(dyme.Group(p, dyme.EXPLORE, completions[p], torch.tensor([1.0, -1.0])))
    return groups


def gradients_of_a_step(model, processor, prompts, **options):
    model.zero_grad(set_to_none=True)
    groups = explored_and_memorized(processor, prompts)
    sums = dyme.packed_update(
        model, prompts, groups, normalizer=12, head_chunk_tokens=16, **options
    )
    assert sums["tokens"] == sum(len(row) for group in groups for row in group.completions)
    return {key: value.grad for key, value in model.named_parameters() if value.grad is not None}


def logits_of(model, prompt):
    with torch.no_grad():
        return model(**generate_inputs(prompt)).logits


@pytest.mark.parametrize("name", ALL)
def test_a_dyme_step_saves_what_the_plain_class_and_load_vlm_read_back(folders, name, tmp_path):
    model, processor, prompts = loaded(folders, name)
    for prompt in prompts:
        prompt.features = image_features(model, prompt)
    before = logits_of(model, prompts[0])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    gradients_of_a_step(model, processor, prompts, micro_batch_prompts=2)
    optimizer.step()
    after = logits_of(model, prompts[0])
    assert (after - before).abs().max() > 1e-3

    save_model(tmp_path, model, processor)
    auto_class = AutoModelForImageTextToText if name in FAMILIES else AutoModelForCausalLM
    plain = auto_class.from_pretrained(tmp_path).eval()
    assert torch.equal(logits_of(plain, prompts[0]), after)
    again, same_processor = load_vlm(str(tmp_path))
    for example, prompt in zip(examples(name in FAMILIES), prompts):
        assert torch.equal(encode_prompt(same_processor, example).input_ids, prompt.input_ids)
    assert again.forbidden_ids == model.forbidden_ids
    assert torch.equal(logits_of(again, prompts[0]), after)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_token_that_belongs_to_an_image_is_ever_sampled(folders, name):
    model, processor, prompts = loaded(folders, name)
    tokenizer = get_tokenizer(processor)
    kind = KINDS[name]
    expected = [token for token in kind.special if token != kind.end]
    assert sorted(tokenizer.convert_ids_to_tokens(model.forbidden_ids)) == sorted(expected)

    def favour_them(module, inputs, logits):
        logits[..., model.forbidden_ids] += 1e4

    model.get_output_embeddings().register_forward_hook(favour_them)
    for temperature in (0.0, 1.0):
        for group in rollout(model, processor, prompts[:2], 2, 6, temperature=temperature):
            for response in group:
                assert not set(response.token_ids) & set(model.forbidden_ids)
                logprobs, _ = completion_logprobs(model, prompts[0], [response.token_ids])
                assert logprobs.min() > -100


HOSTILE = dict(
    do_sample=True,
    temperature=0.01,
    top_k=1,
    top_p=0.1,
    repetition_penalty=5.0,
    max_length=3,
    eos_token_id=5,
    bad_words_ids=[[7]],
    suppress_tokens=[8, 9],
    forced_eos_token_id=5,
)


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_vl", "llama"])
def test_the_models_own_generation_config_changes_nothing(folders, name, tmp_path):
    model, processor, prompts = loaded(folders, name)
    hostile = write_checkpoint(tmp_path, name)
    (hostile / "generation_config.json").write_text(json.dumps(HOSTILE))
    auto_class = AutoModelForImageTextToText if name in FAMILIES else AutoModelForCausalLM
    assert auto_class.from_pretrained(hostile).generation_config.top_k == 1
    other, _ = load_vlm(str(hostile))
    assert other.generation_config.top_k != 1
    assert other.generation_config.eos_token_id == get_tokenizer(processor).eos_token_id
    for temperature in (0.0, 1.0):
        responses = [
            rollout(m, processor, prompts, 3, 8, temperature=temperature) for m in (model, other)
        ]
        assert responses[0] == responses[1]
    assert len({tuple(response.token_ids) for group in responses[1] for response in group}) > len(
        prompts
    )


def test_a_model_with_an_invalid_generation_config_can_be_saved(folders, tmp_path):
    folder = write_checkpoint(tmp_path / "in", "llama")
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": False, "temperature": 0.1, "top_k": 1})
    )
    model, processor = load_vlm(str(folder))
    save_model(tmp_path / "out", model, processor)
    load_vlm(str(tmp_path / "out"))


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_frozen_tower_gets_no_gradient_and_its_projector_does(folders, name, freeze):
    model, processor, prompts = loaded(folders, name, freeze_vision=freeze)
    if freeze:
        for prompt in prompts:
            prompt.features = image_features(model, prompt)
    gradients = gradients_of_a_step(model, processor, prompts)
    parts = ("multi_modal_projector", "connector", "merger", "deepstack_merger_list")
    part_of = {key: part for key in gradients for part in key.split(".") if part in parts}
    tower = [
        key
        for key in gradients
        if key.startswith(f"model.{FAMILIES[name].vision}.") and key not in part_of
    ]
    expected = {"idefics3": {parts[1]}, "smolvlm": {parts[1]}, "qwen3_vl": {*parts[2:]}}
    assert set(part_of.values()) == expected.get(
        name, {"merger"} if name.startswith("qwen") else {parts[0]}
    )
    assert all(gradients[key].any() for key in part_of)
    assert bool(tower) is not freeze
    trainable, frozen = parameter_counts(model)
    assert (frozen > 0) is freeze
    assert trainable + frozen == sum(p.numel() for p in model.parameters())
    embedding = model.get_input_embeddings().weight
    assert embedding.grad is not None


@pytest.mark.parametrize("name", FAMILIES)
def test_max_pixels_caps_the_image_before_the_processor(folders, name):
    _, processor = load_vlm(str(folders(name)))
    image = picture(100, 50, 0)
    free, capped = (
        encode_prompt(processor, Example(image, "Q?", "3"), max_pixels=limit)
        for limit in (None, 300)
    )
    small = encode_prompt(processor, Example(open_image(image, 300), "Q?", "3"))
    assert torch.equal(capped.images["pixel_values"], small.images["pixel_values"])
    if name.startswith(("qwen", "llava")):  # the others' tiles depend on the image's shape alone
        assert capped.input_ids.shape[1] < free.input_ids.shape[1]


@pytest.mark.parametrize("name", ALL)
def test_bf16_weights_roll_out_and_learn(folders, name):
    model, processor, prompts = loaded(folders, name, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for prompt in prompts:
        prompt.features = image_features(model, prompt)
    responses = rollout(model, processor, prompts, 2, 4)
    assert all(len(response.token_ids) > 0 for group in responses for response in group)
    gradients = gradients_of_a_step(model, processor, prompts)
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize(
    "name", ["llava_onevision", "idefics3", "qwen2_5_vl", "qwen3_vl", "internvl", "llama"]
)
def test_gradient_checkpointing_gives_the_same_gradients(folders, name, freeze):
    model, processor, prompts = loaded(folders, name, freeze_vision=freeze)
    expected = gradients_of_a_step(model, processor, prompts)
    checkpoint_activations(model)
    model.train()
    gradients = gradients_of_a_step(model, processor, prompts, micro_batch_prompts=2)
    assert gradients.keys() == expected.keys()
    for key, value in expected.items():
        assert (gradients[key] - value).abs().max() <= 1e-5 * max(1, value.abs().max()), key


def test_a_frozen_tower_keeps_no_activations_under_checkpointing(folders):
    model, _, prompts = loaded(folders, "llava_onevision")
    checkpoint_activations(model)
    outputs = []
    model.model.vision_tower.register_forward_hook(
        lambda module, inputs, output: outputs.append(output)
    )
    features = image_features(model, prompts[0])
    assert features.pooler_output[0].requires_grad
    assert not outputs[0].last_hidden_state.requires_grad


def message_of(folder, **options):
    with pytest.raises(InputError) as caught:
        load_vlm(str(folder), **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_unsupported_family_is_told_what_is_supported_and_what_to_add(tmp_path):
    transformers.BertConfig(hidden_size=8, num_attention_heads=1).save_pretrained(tmp_path)
    message = message_of(tmp_path)
    assert "'bert'" in message and "FAMILIES" in message
    assert all(name in message for name in ALL)


@pytest.mark.parametrize("name", ["llava_onevision", "llama"])
def test_a_missing_chat_template_is_told(tmp_path, name):
    folder = write_checkpoint(tmp_path, name)
    (folder / "chat_template.jinja").unlink()
    assert "chat_template.jinja" in message_of(folder)


def test_a_folder_without_config_or_without_weights_is_told(tmp_path):
    assert "config.json" in message_of(tmp_path)
    folder = write_checkpoint(tmp_path / "llama", "llama")
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in message_of(folder)


def test_a_missing_package_is_told_with_the_command_that_installs_it(tmp_path):
    told = one_line(
        ImportError(
            "\nIdefics3 requires the Torchvision library but it was not found in\nyour environment."
        )
    )
    assert told.endswith("pip install torchvision") and "\n" not in told
    assert one_line(ModuleNotFoundError("No module named 'num2words'")).endswith(
        "pip install num2words"
    )
    assert "pip install" not in one_line(OSError("no such file"))
    if importlib.util.find_spec("tiktoken") is None:  # a folder that needs what isn't here
        folder = write_checkpoint(tmp_path, "llama")
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(b"a tokenizer of another library")
        edit_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
        assert message_of(folder).endswith("pip install tiktoken")


def test_sliding_windows_are_refused(tmp_path):
    folder = write_checkpoint(tmp_path, "qwen2")
    edit_json(
        folder / "config.json",
        use_sliding_window=True,
        sliding_window=16,
        max_window_layers=0,
        layer_types=["sliding_attention"] * 3,
    )
    assert "sliding_attention" in message_of(folder)


def test_a_response_ends_where_the_chat_template_ends_a_turn(tmp_path):
    folder = write_checkpoint(tmp_path, "qwen2")
    edit_json(folder / "tokenizer_config.json", eos_token="<pad>")
    model, processor = load_vlm(str(folder))
    assert processor.eos_token == "<|im_end|>"
    assert (
        model.generation_config.eos_token_id
        == processor.eos_token_id
        == dyme.target_ids(processor, "a", "b")[-1]
    )


def test_a_text_only_model_refuses_an_image(folders):
    _, processor = load_vlm(str(folders("llama")))
    with pytest.raises(InputError, match="text only"):
        encode_prompt(processor, Example(picture(8, 8, 0), "Q?", "3"))


def test_a_question_that_contains_the_image_token_is_refused(folders):
    _, processor = load_vlm(str(folders("llava_onevision")))
    with pytest.raises(InputError, match="<image>"):
        encode_prompt(processor, Example(picture(8, 8, 0), "<image> Q?", "3"))


# -------------------------------------------------------------------------------------------------


def peak_bytes(function):
    """
    The most that `function` holds beyond what is there before it, from the allocator's own events.
    """
    gc.collect()  # else what other tests left might be freed, and counted, in here
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [
        event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


MEMORY_SHAPES = {  # the language model's sizes, and the knobs: where learning takes the most, and where sampling does
    "learning": (
        dict(num_hidden_layers=4, num_key_value_heads=2),
        dict(prompts_per_step=2, num_generations=8),
    ),
    "sampling": (
        dict(num_hidden_layers=4, num_key_value_heads=4),
        dict(prompts_per_step=24, num_generations=2),
    ),
    "checkpointed": (
        dict(num_hidden_layers=6, num_key_value_heads=2),
        dict(prompts_per_step=2, num_generations=8, gradient_checkpointing=True),
    ),
}


@pytest.mark.parametrize("name", MEMORY_SHAPES)
def test_the_memory_estimate_is_within_15_percent_of_the_measured_peak(folders, name):
    sizes, knobs = MEMORY_SHAPES[name]
    folder = str(folders("llava_onevision"))
    _, processor = load_vlm(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    for key, value in dict(sizes, hidden_size=128, intermediate_size=384, head_dim=32).items():
        setattr(config.text_config, key, value)
    config.text_config.layer_types = ["full_attention"] * sizes["num_hidden_layers"]
    model = prepare(AutoModelForImageTextToText.from_config(config, dtype=torch.float32))
    generations, length = knobs["num_generations"], 12
    model.forbidden_ids.append(
        get_tokenizer(processor).eos_token_id
    )  # all responses reach their full length
    if knobs.get("gradient_checkpointing"):
        checkpoint_activations(model)
    example = Example(picture(64, 64, 0), "how much " * 8, "3")
    prompts = [encode_prompt(processor, example) for _ in range(knobs["prompts_per_step"])]
    estimate = memory_estimate(
        model, shape_of(model, prompts[0], max_completion_length=length, **knobs)
    )
    optimizer = build_optimizer(model, "adamw", 1e-3)

    def step():
        for prompt in prompts:
            prompt.features = None
            prompt.features = image_features(model, prompt)
        responses = rollout(model, processor, prompts, generations, length)
        advantages = torch.linspace(-1, 1, generations)
        # as in real groups, no two lengths are alike
        groups = [
            dyme.Group(
                p,
                dyme.EXPLORE,
                [r.token_ids[: length - g // 2] for g, r in enumerate(row)],
                advantages,
            )
            for p, row in enumerate(responses)
        ]
        model.train(knobs.get("gradient_checkpointing", False))
        dyme.packed_update(model, prompts[:2], groups[:2], normalizer=generations)
        model.eval()
        optimizer.step()
        optimizer.zero_grad()
        for prompt in prompts:
            prompt.features = None

    step()
    measured = peak_bytes(step) + estimate["weights"] + estimate["optimizer"]
    assert 0.85 < estimate["peak"] / measured < 1.15
    caches = estimate["caches"] > estimate["gradients"] + estimate["activations"]
    assert caches is (name == "sampling")


def test_the_memory_estimate_needs_no_weights_and_is_one_line(folders):
    folder = str(folders("qwen2_5_vl"))
    model, processor, prompts = loaded(folders, "qwen2_5_vl")
    knobs = dict(prompts_per_step=4, num_generations=8, max_completion_length=300)
    shape = shape_of(model, prompts[0], **knobs)
    assert shape.patches == 4 * shape.image_tokens > 0
    with torch.device("meta"):
        bare = prepare(
            AutoModelForImageTextToText.from_config(transformers.AutoConfig.from_pretrained(folder))
        )
    assert memory_estimate(bare, shape) == memory_estimate(model, shape)
    (line,) = report_memory(memory_estimate(bare, shape))
    assert all(
        part in line for part in ("weights", "optimizer", "activations", "caches", "head", "peak")
    )
