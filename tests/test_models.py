"""Every supported family through the real path, from a hub-like folder on disk to a trained and
saved model.

Each is a tiny model of the real class with random weights, and a real image processor and chat
template. Large initial weights keep the logits apart, so that a greedy choice doesn't hang on the
last bit of a float.
"""

import json
import os
from dataclasses import dataclass, field, replace

import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

from checker import score
from config import Config
from data.example import Example, InputError
from dyme import update
from lib import families
from lib.checkpoint import find_checkpoint, save_checkpoint
from lib.families import FAMILIES, TEXT_FAMILIES, checkpoint_activations, load_vlm, one_line
from lib.families import parameter_counts, prepare, processor_classes, save_model
from lib.memory import image_patches, memory_estimate, report_memory
from lib.optim import build_optimizer
from lib.tiny import CHAT_TEMPLATE, tiny_tokenizer
from model import completion_hidden, completion_logprobs, encode_prompt, get_tokenizer
from model import image_features, token_logprobs
from rollout import Row, make_groups, rollout
from sft import target_ids, target_text
from tools.bench import peak

torch.set_num_threads(1)
ALL = [*FAMILIES, *TEXT_FAMILIES]
EXTRA = {"optimizer.pt", "state.json"}  # what a checkpoint holds besides a model

# ---- a hub checkpoint of each family, tiny ------------------------------------------------------

SMOLVLM = (  # as in HuggingFaceTB/SmolVLM-500M-Instruct
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclass
class Kind:
    """What a family's hub folder holds beyond weights."""

    special: list  # tokens
    image: str = "<image>"  # what the template writes for an image
    image_processor: str = ""
    image_settings: dict = field(default_factory=dict)
    processor_settings: dict = field(default_factory=dict)
    image_token: str = "<image>"
    token_names: dict = field(default_factory=dict)
    end: str = "<|im_end|>"
    template: str = CHAT_TEMPLATE


SQUARE = {"size": {"height": 32, "width": 32}}
PINPOINTS = [[32, 32], [32, 64], [64, 32], [64, 64]]
PATCHES = dict(patch_size=4, temporal_patch_size=2, merge_size=2)
INTERN = {"start_image": "<img>", "end_image": "</img>", "context_image": "<IMG_CONTEXT>"}
IDEFICS3 = Kind(
    ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    + [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)],
    image_processor="Idefics3ImageProcessor",
    image_settings=dict(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
    processor_settings=dict(image_seq_len=4),
    end="<end_of_utterance>",
    template=SMOLVLM,
)
QWEN = Kind(
    [f"<|{name}|>" for name in "vision_start vision_end vision_pad image_pad video_pad".split()],
    "<|vision_start|><|image_pad|><|vision_end|>",
    "Qwen2VLImageProcessor",
    dict(PATCHES, size={"shortest_edge": 256, "longest_edge": 1600}),
    image_token="<|image_pad|>",
)
KINDS = {
    **dict.fromkeys(TEXT_FAMILIES, Kind([])),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), QWEN),
    "llava_onevision": Kind(
        ["<image>", "<video>"],
        "<image>\n",
        "LlavaOnevisionImageProcessor",
        dict(SQUARE, image_grid_pinpoints=PINPOINTS),
        dict(num_image_tokens=16, vision_feature_select_strategy="full"),
    ),
    "idefics3": IDEFICS3,
    "smolvlm": replace(IDEFICS3, image_processor="SmolVLMImageProcessor"),
    "internvl": Kind(
        [*INTERN.values(), "<video>"],
        "<IMG_CONTEXT>\n",
        "GotOcr2ImageProcessorFast",
        dict(SQUARE, crop_to_patches=False, max_patches=4),  # which the processor turns on
        dict(image_seq_length=4),
        "<IMG_CONTEXT>",
        {"video_token": "<video>", **{f"{name}_token": text for name, text in INTERN.items()}},
    ),
}


def family_tokenizer(kind):
    """The tiny model's, with the family's special tokens."""
    tokenizer = tiny_tokenizer().backend_tokenizer
    tokenizer.add_special_tokens(kind.special)
    named = dict(eos_token=kind.end, pad_token="<pad>", extra_special_tokens=kind.token_names)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def family_config(name, kind, tokenizer, **own):
    """The config class of the hub's checkpoints, at a width of 32 and with three layers."""
    # three layers: an image enters Qwen3-VL after the first two as well
    text = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
    text |= dict(num_key_value_heads=2, head_dim=8, max_position_embeddings=4096)
    text |= dict(vocab_size=len(tokenizer), initializer_range=0.3, tie_word_embeddings=False)
    text |= {f"{part}_token_id": getattr(tokenizer, f"{part}_token_id") for part in ("eos", "pad")}
    text |= dict(bos_token_id=None, model_type="llama" if kind.template == SMOLVLM else "qwen2")
    if name not in FAMILIES:
        return transformers.AutoConfig.for_model(**{**text, "model_type": name, **own})
    id_of = tokenizer.convert_tokens_to_ids
    ids = {"image_token_id": id_of(kind.image_token)}
    small = dict(hidden_size=32, intermediate_size=48, initializer_range=0.1)
    tiles = dict(small, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
    blocks = dict(small, depth=2, num_heads=4, patch_size=4, spatial_merge_size=2)
    vision, more = tiles, {}
    if name.startswith("qwen"):
        ids["video_token_id"] = id_of("<|video_pad|>")
        ids |= {f"{part}_token_id": id_of(f"<|{part}|>") for part in ("vision_start", "vision_end")}
        sections = [1, 1, 2] if name == "qwen3_vl" else [2, 1, 1]
        mrope = {"rope_type": "default", "mrope_section": sections, "rope_theta": 1e4}
        text.update(model_type=f"{name}_text", rope_parameters=mrope)
        own = {
            "qwen2_vl": dict(embed_dim=32),
            "qwen2_5_vl": dict(window_size=16, fullatt_block_indexes=[1]),
            "qwen3_vl": dict(num_position_embeddings=16, deepstack_visual_indexes=[0, 1]),
        }
        out = {} if name == "qwen2_vl" else {"out_hidden_size": 32}
        vision = dict(blocks, temporal_patch_size=2, **own[name], **out)
    elif name == "llava_onevision":
        ids["video_token_id"] = id_of("<video>")
        vision = dict(tiles, model_type="siglip_vision_model", vision_use_head=False)
        more = dict(image_grid_pinpoints=PINPOINTS, vision_feature_layer=-1)
        more["vision_feature_select_strategy"] = "full"
    elif name == "internvl":
        vision = dict(tiles, image_size=[32, 32], patch_size=[8, 8])
        more = dict(downsample_ratio=0.5, image_seq_length=4)
    else:
        more = dict(scale_factor=2)
    more |= dict(text_config=text, vision_config=vision, tie_word_embeddings=False)
    return transformers.AutoConfig.for_model(name, **more, **ids)


def auto_class(name):
    return AutoModelForImageTextToText if name in FAMILIES else AutoModelForCausalLM


def write_checkpoint(folder, name, config=None):
    """A folder as the hub has it; config: what its text model's config says besides."""
    kind = KINDS[name]
    tokenizer = family_tokenizer(kind)
    torch.manual_seed(0)
    model = auto_class(name).from_config(family_config(name, kind, tokenizer, **(config or {})))
    model.get_output_embeddings().weight.data[tokenizer.eos_token_id] *= 3  # some responses end
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    template = kind.template.replace("<image>", kind.image)
    if name == "qwen2_vl":
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    else:
        (folder / "chat_template.jinja").write_text(template)
    if name in FAMILIES:
        image = {"image_processor_type": kind.image_processor, **kind.image_settings}
        image |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(image))
    if kind.processor_settings:
        (folder / "processor_config.json").write_text(json.dumps(kind.processor_settings))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """family -> its folder, written when first asked for."""
    written = {}

    def folder(name):
        if name in FAMILIES:
            try:
                processor_classes(FAMILIES[name])[1]()
            except ImportError as error:  # transformers 5.17: Idefics3's needs torchvision
                pytest.skip(one_line(error))
        if name not in written:
            written[name] = write_checkpoint(tmp_path_factory.mktemp(name), name)
        return written[name]

    return folder


# ---- what goes through it -----------------------------------------------------------------------


def picture(width, height, seed):
    """An RGB image that differs everywhere."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def examples(vision):
    """Images of several sizes and shapes, two alike in size, and a question without one."""
    sizes = [(40, 28), (28, 70), (90, 80), (33, 17), (40, 28)] if vision else [None] * 3
    images = [size and picture(*size, seed) for seed, size in enumerate(sizes)] + [None]
    return [Example(image, f"Q{i * 7}?", "3") for i, image in enumerate(images)]


def loaded(folders, name, features=False, **options):
    """Model, processor and groups; features: of the images, made once."""
    model, processor = load_vlm(str(folders(name)), **options)
    groups = make_groups(model, processor, examples(name in FAMILIES))
    for group in groups if features else ():
        group.prompt.features = image_features(model, [group.prompt])[0]
    return model, processor, groups


def respond(model, processor, groups, count, length, **knobs):
    knobs |= dict(num_generations=count, max_completion_length=length)
    rollout(model, processor, groups, **knobs)
    return [group.responses for group in groups]


def generate_inputs(prompt, more=()):
    """What the model's own forward takes, with `more` tokens after the prompt."""
    ids = torch.cat([prompt.input_ids, torch.tensor([more], dtype=torch.long)], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **prompt.images}
    if "image_grid_thw" in prompt.images:
        types = torch.cat([prompt.token_types, torch.zeros(1, len(more), dtype=torch.long)], dim=1)
        inputs["mm_token_type_ids"] = types
    return inputs


def logits_of(model, prompt):
    with torch.no_grad():
        return model(**generate_inputs(prompt)).logits


def some_completions(processor, groups):
    """Two or three sequences of random letters per prompt, of several lengths, with end token."""
    generator = torch.Generator().manual_seed(0)
    end = get_tokenizer(processor).eos_token_id
    lengths = [[5, 1, 9], [4, 7], [6, 3], [2, 8], [5, 6], [3, 3]][: len(groups)]
    draw = lambda n: torch.randint(200, (n,), generator=generator).tolist() + [end]
    return [[draw(n) for n in row] for row in lengths]


def gradients_of_a_step(model, processor, groups, **knobs):
    """Those of one update: the first group is explored, the second memorized, the third skipped."""
    model.zero_grad(set_to_none=True)
    for group, completions in zip(groups, some_completions(processor, groups)):
        group.rows = [Row(ids, 1.5 * (-1) ** i - i) for i, ids in enumerate(completions)]
    groups[1].rows = [Row(target_ids(processor, "two and one\nAnswer: 3"), 1.0, "sft")]
    groups[2].rows = []
    update(model, groups, 12, Config(**{"micro_batch_prompts": 1, **knobs}))
    return {key: value.grad for key, value in model.named_parameters() if value.grad is not None}


def assert_close(gradients, expected):
    for key, value in expected.items():
        assert (gradients[key] - value).abs().max() <= 1e-5 * max(1, value.abs().max()), key


# ---- every family -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("name", ALL)
def test_greedy_rollout_equals_generate(folders, name):
    model, processor, groups = loaded(folders, name)
    tokenizer = get_tokenizer(processor)
    for group, responses in zip(groups, respond(model, processor, groups, 2, 12, temperature=0.0)):
        whole = model.generate(
            **generate_inputs(group.prompt),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=model.end_ids,
            pad_token_id=tokenizer.pad_token_id,
            suppress_tokens=model.forbidden_ids or None,
        )
        expected = whole[0, group.prompt.input_ids.shape[1] :].tolist()
        assert [response.token_ids for response in responses] == [expected] * 2


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_vl", "llava_onevision"])
def test_a_box_is_memorized_and_graded_in_the_familys_own_coordinates(folders, name):
    example = Example(picture(90, 80, 0), "Where?", "[0, 0, 45, 40]", kind="box")
    (group,) = make_groups(*loaded(folders, name)[:2], [example], max_pixels=1600)
    grid = group.prompt.images.get("image_grid_thw", torch.zeros(1, 3))[0].tolist()
    width = {"qwen2_5_vl": grid[2] * 4, "qwen2_vl": 1000, "llava_onevision": 90}[name]
    target = target_text("It is seen there.", group.example)
    assert float(target.split(", ")[2]) == width / 2
    assert score([target], group.example)["correct"].item()


@pytest.mark.parametrize("name", ALL)
def test_prompts_and_features_made_together_are_those_made_alone(folders, name):
    model, processor, groups = loaded(folders, name)
    prompts = [group.prompt for group in groups]
    together = image_features(model, prompts)
    for group, features in zip(groups, together):
        alone = encode_prompt(processor, group.example)
        assert torch.equal(alone.input_ids, group.prompt.input_ids)
        assert alone.token_types is None or torch.equal(alone.token_types, group.prompt.token_types)
        assert alone.images.keys() == group.prompt.images.keys()
        assert all(torch.equal(alone.images[key], group.prompt.images[key]) for key in alone.images)
        (own,) = image_features(model, [alone])
        for mine, other in zip(*([] if f is None else f[0] for f in (own, features))):
            assert torch.allclose(mine, other, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_packed_logprobs_and_gradients_equal_single_rows(folders, name):
    model, processor, groups = loaded(folders, name, freeze_vision=False)
    completions = some_completions(processor, groups)
    prompts = [group.prompt for group in groups]
    hidden = completion_hidden(model, prompts, completions)
    targets = torch.tensor([token for group in completions for row in group for token in row])
    packed, _ = token_logprobs(model, hidden, targets)
    weights = torch.linspace(-1, 1, len(packed))
    (packed * weights).sum().backward()
    gradients = {key: value.grad for key, value in model.named_parameters()}
    model.zero_grad(set_to_none=True)

    single = []  # each from a row of its own, pixels and all, through the model's own forward
    for prompt, group in zip(prompts, completions):
        for ids in group:
            logits = model(**generate_inputs(prompt, ids)).logits[0, -len(ids) - 1 : -1]  # (C, V)
            logits[:, model.forbidden_ids] = -torch.inf
            single.append(logits.log_softmax(dim=-1).gather(1, torch.tensor([ids]).T)[:, 0])
    (torch.cat(single) * weights).sum().backward()
    assert (packed - torch.cat(single)).abs().max() < 1e-5
    expected = {key: value.grad for key, value in model.named_parameters()}
    unused = [key for key, value in expected.items() if value is None]  # a tower's last layer
    assert [key for key, value in gradients.items() if value is None] == unused
    assert_close(gradients, {key: value for key, value in expected.items() if key not in unused})


BF16 = [(name, torch.bfloat16) for name in ("llava_onevision", "qwen3_vl")]


@pytest.mark.parametrize("name, dtype", [*((name, torch.float32) for name in ALL), *BF16])
def test_a_step_saves_what_the_plain_class_and_load_vlm_read_back(folders, name, dtype, tmp_path):
    model, processor, groups = loaded(folders, name, features=True, dtype=dtype)
    assert {param.dtype for param in model.parameters()} == {dtype}
    prompt = groups[0].prompt
    before = logits_of(model, prompt)
    respond(model, processor, groups, 2, 4)
    optimizer = build_optimizer(model, 1e-2)
    gradients = gradients_of_a_step(model, processor, groups, micro_batch_prompts=2)
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    optimizer.step()
    after = logits_of(model, prompt)
    assert (after - before).abs().max() > 1e-3

    save_model(tmp_path / "final", model, processor)
    plain = auto_class(name).from_pretrained(tmp_path / "final", dtype=dtype).eval()
    assert torch.equal(logits_of(plain, prompt), after)
    save_checkpoint(tmp_path, 1, model, processor, optimizer, {})
    checkpoint = find_checkpoint(tmp_path)  # loads like the final folder, in all that is in there
    assert {*os.listdir(checkpoint)} - {*os.listdir(tmp_path / "final")} == EXTRA
    again, same_processor = load_vlm(str(checkpoint), dtype=dtype)
    encoded = encode_prompt(same_processor, groups[0].example)
    assert torch.equal(encoded.input_ids, prompt.input_ids)
    assert again.forbidden_ids == model.forbidden_ids
    assert torch.equal(logits_of(again, prompt), after)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_token_that_belongs_to_an_image_is_ever_sampled(folders, name):
    model, processor, groups = loaded(folders, name)
    expected = [token for token in KINDS[name].special if token != KINDS[name].end]
    tokens = get_tokenizer(processor).convert_ids_to_tokens(model.forbidden_ids)
    assert set(tokens) == {*expected, "<image>", "<video>"}  # the tiny tokenizer's own besides

    def favour_them(module, inputs, logits):
        logits[..., model.forbidden_ids] += 1e4

    model.get_output_embeddings().register_forward_hook(favour_them)
    for temperature in (0.0, 1.0):
        for response in sum(respond(model, processor, groups, 2, 6, temperature=temperature), []):
            assert not set(response.token_ids) & set(model.forbidden_ids)
    logprobs, _ = completion_logprobs(model, groups[0].prompt, [response.token_ids])
    assert logprobs.min() > -100


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_frozen_tower_gets_no_gradient_and_its_projector_does(folders, name, freeze):
    model, processor, groups = loaded(folders, name, features=freeze, freeze_vision=freeze)
    gradients = gradients_of_a_step(model, processor, groups)
    parts = ("multi_modal_projector", "connector", "merger", "deepstack_merger_list")
    part_of = {key: part for key in gradients for part in key.split(".") if part in parts}
    expected = {"idefics3": {"connector"}, "smolvlm": {"connector"}, "qwen3_vl": {*parts[2:]}}
    other = {"merger"} if name.startswith("qwen") else {"multi_modal_projector"}
    assert set(part_of.values()) == expected.get(name, other)
    assert all(gradients[key].any() for key in part_of)
    tower = f"model.{FAMILIES[name].vision}."
    assert any(key.startswith(tower) and key not in part_of for key in gradients) is not freeze
    assert (parameter_counts(model)[1] > 0) is freeze


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("name", ["llava_onevision", "qwen3_vl", "llama"])
def test_checkpointing_gives_the_same_gradients_and_keeps_nothing_of_a_frozen_tower(
    folders, name, freeze
):
    model, processor, groups = loaded(folders, name, freeze_vision=freeze)
    expected = gradients_of_a_step(model, processor, groups)
    checkpoint_activations(model)
    model.train()
    gradients = gradients_of_a_step(model, processor, groups, micro_batch_prompts=2)
    assert gradients.keys() == expected.keys()
    assert_close(gradients, expected)
    if name == "llava_onevision":
        outputs = []
        model.model.vision_tower.register_forward_hook(lambda *call: outputs.append(call[-1]))
        features = image_features(model, [groups[0].prompt])[0]
        assert features[0][0].requires_grad
        assert outputs[0].last_hidden_state.requires_grad is not freeze


# ---- what a folder says -------------------------------------------------------------------------


def test_the_models_own_sampling_defaults_change_nothing(folders, tmp_path):
    model, processor, groups = loaded(folders, "llava_onevision")
    hostile = dict(do_sample=False, temperature=0.01, top_k=1, repetition_penalty=5.0, max_length=3)
    hostile |= dict(bad_words_ids=[[7]], suppress_tokens=[8, 9], forced_eos_token_id=5)
    folder = write_checkpoint(tmp_path, "llava_onevision")
    (folder / "generation_config.json").write_text(json.dumps(hostile))  # and invalid
    other, _ = load_vlm(str(folder))
    for temperature in (0.0, 1.0):
        knobs = dict(count=3, length=8, temperature=temperature)
        same = [respond(m, processor, groups, **knobs) for m in (model, other)]
        assert same[0] == same[1]
    assert len({tuple(response.token_ids) for group in same[1] for response in group}) > len(groups)
    save_model(tmp_path / "saved", other, processor)
    assert load_vlm(str(tmp_path / "saved"))[0].generation_config.top_k != 1


def test_every_end_token_of_the_model_is_kept_the_templates_first(tmp_path):
    folder = write_checkpoint(tmp_path, "qwen2")
    edit_json(folder / "tokenizer_config.json", eos_token="<pad>")
    for own in (5, [7, 5]):
        edit_json(folder / "generation_config.json", eos_token_id=own)
        model, processor = load_vlm(str(folder))
        assert processor.eos_token == "<|im_end|>"
        ends = [processor.eos_token_id, *([5] if own == 5 else own)]
        assert model.end_ids == model.generation_config.eos_token_id == ends
        save_model(tmp_path / "saved", model, processor)
        assert load_vlm(str(tmp_path / "saved"))[0].end_ids == ends


@pytest.mark.parametrize("name", ALL)
def test_prompt_and_target_are_a_turn_of_the_template(folders, name):
    _, processor = load_vlm(str(folders(name)))
    content = [{"type": "text", "text": "It is 3."}] if name in FAMILIES else "It is 3."
    turns = [{"role": role, "content": content} for role in ("user", "assistant")]
    prompt = processor.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=False)
    learned = get_tokenizer(processor).decode(target_ids(processor, "It is 3."))
    assert processor.apply_chat_template(turns, tokenize=False).startswith(prompt + learned)
    assert learned.endswith(get_tokenizer(processor).eos_token)
    assert learned.startswith(" It" if name in ("idefics3", "smolvlm") else "It")


def message_of(folder):
    with pytest.raises(InputError) as caught:
        load_vlm(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_a_folder_lacks_or_a_family_needs_is_told(tmp_path):
    assert "config.json" in message_of(tmp_path)
    transformers.BertConfig(hidden_size=8, num_attention_heads=1).save_pretrained(tmp_path)
    message = message_of(tmp_path)
    assert all(name in message for name in ("'bert'", "FAMILIES", *ALL))
    folder = write_checkpoint(tmp_path / "llama", "llama")
    for name in ("model.safetensors", "chat_template.jinja"):
        (folder / name).unlink()
        assert name in message_of(folder)


def test_a_torn_generation_config_is_told_and_without_one_the_templates_end_is_all(tmp_path):
    folder = write_checkpoint(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())
    del config["eos_token_id"]  # which the class then says is 2
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"eos_token')
    assert "generation_config.json" in message_of(folder)
    (folder / "generation_config.json").unlink()
    model, processor = load_vlm(str(folder))
    assert model.end_ids == [processor.eos_token_id]


WRONG = {  # families that someone might add: what their config says, what is told
    "granite": (dict(logits_scaling=8.0), "head scales"),
    "gemma2": (dict(layer_types=["full_attention"] * 3, final_logit_softcapping=1.0), "or caps"),
    "qwen2": (dict(layer_types=["sliding_attention"] * 3), "sliding_attention"),
    "mistral": (dict(sliding_window=16), "windows of 16"),
    "gemma3": ({}, "both directions"),
    "paligemma": ({}, "both directions"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_would_be_silently_wrong_in_a_new_family_is_refused(tmp_path, monkeypatch, name):
    changes, reason = WRONG[name]
    if name in ("gemma3", "paligemma"):
        monkeypatch.setitem(FAMILIES, name, FAMILIES["llava_onevision"])
        transformers.AutoConfig.for_model(name).save_pretrained(tmp_path)
        full = dict(num_hidden_layers=1, layer_types=["full_attention"])
        text = json.loads((tmp_path / "config.json").read_text())["text_config"]
        edit_json(tmp_path / "config.json", text_config={**text, **full})
    else:
        monkeypatch.setattr(families, "TEXT_FAMILIES", (name,))
        monkeypatch.setitem(KINDS, name, Kind([]))
        write_checkpoint(tmp_path, name, config=changes)
    assert reason in message_of(tmp_path)


def test_code_that_a_folder_brings_is_never_run(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path, "llama")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    own = {"AutoConfig": "own.A", "AutoModelForCausalLM": "own.B", "AutoTokenizer": ["own.C", None]}
    for name in ("config.json", "tokenizer_config.json"):
        edit_json(folder / name, auto_map=own, model_type="own", tokenizer_class="Own")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr(families, "TEXT_FAMILIES", ("own",))
    message_of(folder)
    assert not (tmp_path / "ran").exists()


# ---- memory -------------------------------------------------------------------------------------


FEW = dict(prompts_per_step=2, num_generations=8)
MEMORY_SHAPES = {  # the language model's layers and key heads, and the knobs
    "learning": (4, 2, FEW),
    "sampling": (4, 4, dict(prompts_per_step=24, num_generations=2)),
    "checkpointed": (6, 2, dict(FEW, gradient_checkpointing=True)),
}


@pytest.mark.parametrize("name", MEMORY_SHAPES)
def test_the_memory_estimate_is_within_15_percent_of_the_measured_peak(folders, name):
    layers, key_heads, knobs = MEMORY_SHAPES[name]
    prompts = (knobs := dict(knobs)).pop("prompts_per_step")
    folder = str(folders("llava_onevision"))
    _, processor = load_vlm(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    sizes = dict(hidden_size=128, intermediate_size=384, head_dim=32, num_hidden_layers=layers)
    sizes |= dict(num_key_value_heads=key_heads, layer_types=["full_attention"] * layers)
    for key, value in sizes.items():
        setattr(config.text_config, key, value)
    model = prepare(AutoModelForImageTextToText.from_config(config, dtype=torch.float32))
    model.forbidden_ids.append(processor.tokenizer.eos_token_id)  # all reach their full length
    if knobs.get("gradient_checkpointing"):
        checkpoint_activations(model)
    example = Example(picture(64, 64, 0), "how much " * 8, "3")
    groups = make_groups(model, processor, [example] * prompts)
    config = Config(max_completion_length=12, micro_batch_prompts=1, **knobs)
    estimate = memory_estimate(model, groups[0].prompt, config, prompts)
    optimizer = build_optimizer(model, 1e-3)

    def step():
        for group in groups:
            group.prompt.features = image_features(model, [group.prompt])[0]
        respond(model, processor, groups, knobs["num_generations"], 12)
        for group in groups[:2]:  # as in real groups, no two lengths are alike
            rows = enumerate(group.responses)
            group.rows = [Row(r.token_ids[: 12 - g // 2], g - 3.5) for g, r in rows]
        model.train(knobs.get("gradient_checkpointing", False))
        update(model, groups[:2], 8, config)
        model.eval()
        optimizer.step()
        optimizer.zero_grad()
        for group in groups:
            group.prompt.features, group.rows = None, []

    step()
    measured = peak(step) + estimate["weights"] + estimate["optimizer"]
    assert 0.85 < estimate["peak"] / measured < 1.15


def test_the_memory_estimate_needs_no_weights_and_is_one_line(folders):
    model, _, groups = loaded(folders, "qwen2_5_vl")
    prompt, config = groups[0].prompt, Config(micro_batch_prompts=1, max_completion_length=300)
    image_tokens = int((prompt.input_ids == model.config.image_token_id).sum())
    assert image_patches(model, prompt) == 4 * image_tokens > 0
    bare, _ = load_vlm(str(folders("qwen2_5_vl")), device="meta")
    estimate = memory_estimate(bare, prompt, config, 4)
    assert estimate == memory_estimate(model, prompt, config, 4)
    line = report_memory(estimate, torch.device("cpu"))
    assert all(part in line for part in ("weights", "activations", "caches", "head", "peak"))


def test_an_estimate_above_the_machines_memory_is_an_error_unless_forced():
    cpu, much = torch.device("cpu"), {"peak": 2**50}
    with pytest.raises(InputError, match="need 1048576.0 GiB of memory, .* are there; .* --force"):
        report_memory(much, cpu)
    assert "are there" in report_memory(much, cpu, force=True)
