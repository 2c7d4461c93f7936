"""Every supported family through the real path, from a hub-like folder to a trained, saved model.

Each is a tiny model of the real class, with a real image processor and chat template. Its random
weights are large: a greedy choice doesn't hang on the last bit of a float.
"""

import functools
import json
import os
import random
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

import dyme
from config import Config
from data.example import Example, InputError
from dyme import update
from lib import families
from lib.checkpoint import find_checkpoint, save_checkpoint
from lib.families import FAMILIES, TEXT_FAMILIES, checkpoint_activations, load_vlm
from lib.families import parameter_counts, processor_classes, save_model
from lib.memory import memory_estimate
from lib.optim import build_optimizer
from lib.tiny import CHAT_TEMPLATE, tiny_tokenizer
from model import completion_hidden, completion_logprobs, encode_prompt, get_tokenizer
from model import image_features, token_logprobs
from rollout import Row, make_groups, rollout
from sft import target_ids, target_text
from tools.bench import peak
from tools.sides import SIZES, Size, build_case, step

ALL = [*FAMILIES, *TEXT_FAMILIES]

# ---- a hub checkpoint of each family, tiny ------------------------------------------------------

SMOLVLM = (  # in short; an answer begins with a blank
    "{% for message in messages %}{{ message.role | capitalize }}:{% for part in message.content %}"
    "{{ '<image>' if part.type == 'image' else ' ' + part.text }}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
SQUARE, PINPOINTS = {"height": 16, "width": 16}, [[16, 16], [16, 32], [32, 16], [32, 32]]
# of whatever config has such a field; an image enters Qwen3-VL after two layers as well
TEXT = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
TEXT |= dict(num_key_value_heads=2, head_dim=8, max_position_embeddings=4096, initializer_range=0.3)
TEXT |= dict(layer_types=["full_attention"] * 3, bos_token_id=None, tie_word_embeddings=False)
TEXT["rope_parameters"] = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
VISION |= dict(image_size=16, patch_size=4, initializer_range=0.1, vision_use_head=False)
VISION |= dict(depth=2, num_heads=4, embed_dim=32, out_hidden_size=32, num_position_embeddings=16)
VISION |= dict(window_size=16, fullatt_block_indexes=[1], deepstack_visual_indexes=[0, 1])
WHOLE = dict(image_grid_pinpoints=PINPOINTS, image_seq_length=4, tie_word_embeddings=False)
QWEN = dict(
    tokens={"image": "<|image_pad|>", "video": "<|video_pad|>"}  # special ones, and their names
    | {name: f"<|{name}|>" for name in ("vision_start", "vision_end", "vision_pad")},
    image="<|vision_start|><|image_pad|><|vision_end|>",  # as the template writes it
    preprocessor=dict(patch_size=4, size={"shortest_edge": 256, "longest_edge": 1600}),
)
IDEFICS3 = dict(
    tokens={"image": "<image>", "fake": "<fake_token_around_image>", "global": "<global-img>"}
    | {name: f"<{name}>" for name in "row_1_col_1 row_1_col_2 row_2_col_1 row_2_col_2".split()},
    preprocessor=dict(size={"longest_edge": 32}, max_image_size={"longest_edge": 16}),
    processor=dict(image_seq_len=4),
    end="<end_of_utterance>",
    template=SMOLVLM,
)
KINDS = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), QWEN),
    **dict.fromkeys(("idefics3", "smolvlm"), IDEFICS3),
    "llava_onevision": dict(
        tokens={"image": "<image>", "video": "<video>"},
        image="<image>\n",
        preprocessor=dict(size=SQUARE, image_grid_pinpoints=PINPOINTS),
        processor=dict(num_image_tokens=16, vision_feature_select_strategy="full"),
    ),
    "internvl": dict(
        tokens={"start_image": "<img>", "end_image": "</img>", "video": "<video>"}
        | dict.fromkeys(("image", "context_image"), "<IMG_CONTEXT>"),
        image="<IMG_CONTEXT>\n",
        preprocessor=dict(size=SQUARE, crop_to_patches=False, max_patches=4),  # the processor crops
        processor=dict(image_seq_length=4),
        vision=dict(image_size=[16, 16], patch_size=[4, 4]),
    ),
}


def fill(config, sizes, **own):
    """A config gets what it has of the sizes, and all of its own."""
    for key, value in {**{k: v for k, v in sizes.items() if hasattr(config, k)}, **own}.items():
        setattr(config, key, value)


def auto_class(name):
    return AutoModelForImageTextToText if name in FAMILIES else AutoModelForCausalLM


def write_checkpoint(folder, name, **sizes):
    """A folder as the hub has it; sizes: of its language model, other ones than TEXT's."""
    kind = KINDS.get(name, {})
    tokenizer, end = tiny_tokenizer().backend_tokenizer, kind.get("end", "<|im_end|>")
    tokens = {f"{key}_token": token for key, token in kind.get("tokens", {}).items()}
    tokenizer.add_special_tokens([*dict.fromkeys(tokens.values()), end])
    named = dict(eos_token=end, pad_token="<pad>", extra_special_tokens=tokens)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    tokenizer.save_pretrained(folder)

    config = transformers.AutoConfig.for_model(name)
    ids = {f"{key}_id": tokenizer.convert_tokens_to_ids(token) for key, token in tokens.items()}
    fill(config, WHOLE, **ids)
    ends = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    fill(config.get_text_config(), TEXT | sizes, **ends, vocab_size=len(tokenizer))
    if name in FAMILIES:
        fill(config.vision_config, VISION, **kind.get("vision", {}))
    torch.manual_seed(0)
    model = auto_class(name).from_config(config)
    model.get_output_embeddings().weight.data[tokenizer.eos_token_id] *= 3  # some responses end
    model.save_pretrained(folder)

    for part in {"preprocessor", "processor"} & kind.keys():
        (folder / f"{part}_config.json").write_text(json.dumps(kind[part]))
    template = kind.get("template", CHAT_TEMPLATE)
    template = template.replace("<image>", kind.get("image", "<image>"))
    if name == "qwen2_vl":
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    else:
        (folder / "chat_template.jinja").write_text(template)
    return folder


FOLDERS = tempfile.TemporaryDirectory()


@functools.cache
def folder_of(name):
    """A family's folder, written when first asked for."""
    try:
        name in FAMILIES and processor_classes(FAMILIES[name])[1]()
    except ImportError as error:  # transformers 5.17: Idefics3's needs torchvision
        pytest.skip(str(error))
    return write_checkpoint(Path(FOLDERS.name, name), name)


# ---- what goes through it -----------------------------------------------------------------------


def picture(width, height, seed=0):
    """An RGB image that differs everywhere."""
    pixels = random.Random(seed).randbytes(3 * width * height)
    return Image.frombytes("RGB", (width, height), pixels)


def loaded(name, freeze_vision=True, **options):
    """Model, processor and groups, of images of several sizes and shapes, two alike in size, and of
    a question without one; with a frozen tower their features are made once.
    """
    model, processor = load_vlm(str(folder_of(name)), freeze_vision=freeze_vision, **options)
    sizes = [(40, 28), (28, 70), (90, 80), (33, 17), (40, 28)]
    images = [picture(*size, i) if name in FAMILIES else None for i, size in enumerate(sizes)]
    asked = [Example(image, f"Q{i * 7}?", "3") for i, image in enumerate([*images, None])]
    groups = make_groups(model, processor, asked)
    for group in groups if freeze_vision else ():
        (group.prompt.features,) = image_features(model, [group.prompt])
    return model, processor, groups


def respond(model, processor, groups, count, length, **knobs):
    knobs |= dict(num_generations=count, max_completion_length=length)
    rollout(model, processor, groups, **knobs)
    return [group.responses for group in groups]


def logits_of(model, prompt, more=()):
    """By the model's own forward, with `more` tokens after the prompt: (1, tokens, V)."""
    return model(**generate_inputs(prompt, more)).logits


def generate_inputs(prompt, more=()):
    ids = torch.cat([prompt.input_ids, torch.tensor([more], dtype=torch.long)], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **prompt.images}
    if "image_grid_thw" in prompt.images:
        inputs["mm_token_type_ids"] = F.pad(prompt.token_types, (0, len(more)))
    return inputs


def some_completions(processor):
    """Two or three sequences of letters per prompt, of several lengths, with end token."""
    end = get_tokenizer(processor).eos_token_id
    lengths = [[5, 1, 9], [4, 7], [6, 3], [2, 8], [5, 6], [3, 3]]
    return [[[*range(11 * n, 12 * n), end] for n in row] for row in lengths]


def gradients_of(model):
    named = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return named


def gradients_of_a_step(model, processor, groups, **knobs):
    """Those of one update: the first group is explored, the second memorized, the third skipped."""
    for group, completions in zip(groups, some_completions(processor)):
        group.rows = [Row(ids, 1.5 * (-1) ** i - i) for i, ids in enumerate(completions)]
    groups[1].rows = [Row(target_ids(processor, "two and one\nAnswer: 3"), 1.0, "sft")]
    groups[2].rows = []
    update(model, groups, 12, Config(**{"micro_batch_prompts": 1, **knobs}))
    return gradients_of(model)


def assert_equal(gradients, expected):
    """Each within 1e-5 of its largest number."""
    assert gradients.keys() == expected.keys()
    for key, value in expected.items():
        assert (gradients[key] - value).abs().max() <= 1e-5 * max(1, value.abs().max()), key


# ---- every family -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("name", ALL)
def test_greedy_rollout_equals_generate(name):
    model, processor, groups = loaded(name)
    pad, forbidden = get_tokenizer(processor).pad_token_id, model.forbidden_ids or None
    ends = dict(eos_token_id=model.end_ids, pad_token_id=pad, suppress_tokens=forbidden)
    for group, responses in zip(groups, respond(model, processor, groups, 2, 12, temperature=0.0)):
        inputs = generate_inputs(group.prompt)
        whole = model.generate(**inputs, do_sample=False, max_new_tokens=12, **ends)
        expected = whole[0, group.prompt.input_ids.shape[1] :].tolist()
        assert [response.token_ids for response in responses] == [expected] * 2


def test_a_box_is_asked_for_in_the_familys_own_coordinates():
    example = Example(picture(90, 80), "Where?", "[0, 0, 45, 40]", kind="box")
    (group,) = make_groups(*loaded("qwen2_vl")[:2], [example])
    assert target_text("It is seen.", group.example).endswith("[0, 0, 500, 500]")


@pytest.mark.parametrize("name", ALL)
def test_packed_logprobs_and_gradients_equal_single_rows(name):
    model, processor, groups = loaded(name, freeze_vision=False)
    completions = some_completions(processor)
    prompts = [group.prompt for group in groups]
    targets = torch.tensor([token for group in completions for row in group for token in row])
    packed, _ = token_logprobs(model, completion_hidden(model, prompts, completions), targets)
    single = []  # each from a row and a prompt of its own, through the model's own forward
    for group, rows in zip(groups, completions):
        alone = encode_prompt(processor, group.example)
        for ids in rows:
            logits = logits_of(model, alone, ids)[0, -len(ids) - 1 : -1]  # (C, V)
            logits[:, model.forbidden_ids] = -torch.inf
            single.append(logits.log_softmax(dim=-1).gather(1, torch.tensor([ids]).T)[:, 0])
    single = torch.cat(single)
    assert (packed - single).abs().max() < 1e-5
    gradients = []
    for logprobs in (packed, single):
        (logprobs * torch.linspace(-1, 1, len(logprobs))).sum().backward()
        gradients.append(gradients_of(model))
    assert_equal(*gradients)


BF16 = [(name, torch.bfloat16) for name in ("llava_onevision", "qwen3_vl")]


@torch.no_grad()
@pytest.mark.parametrize("name, dtype", [*((name, torch.float32) for name in ALL), *BF16])
def test_a_step_saves_what_the_plain_class_and_load_vlm_read_back(name, dtype, tmp_path):
    model, processor, groups = loaded(name, dtype=dtype)
    prompt, optimizer = groups[0].prompt, build_optimizer(model, 1e-2)
    before = logits_of(model, prompt)
    with torch.enable_grad():
        gradients = gradients_of_a_step(model, processor, groups, micro_batch_prompts=2)
    for key, param in model.named_parameters():
        param.grad = gradients.get(key)
    optimizer.step()
    after = logits_of(model, prompt)
    assert after.isfinite().all() and (after - before).abs().max() > 1e-3

    save_model(tmp_path / "final", model, processor)
    plain = auto_class(name).from_pretrained(tmp_path / "final", dtype=dtype).eval()
    assert torch.equal(logits_of(plain, prompt), after)
    save_checkpoint(tmp_path, 1, model, processor, optimizer, {})
    checkpoint = find_checkpoint(tmp_path)  # loads like the final folder, in all that is in there
    more = {*os.listdir(checkpoint)} - {*os.listdir(tmp_path / "final")}
    assert more == {"optimizer.pt", "state.json"}
    again, same_processor = load_vlm(str(checkpoint), dtype=dtype)
    assert torch.equal(logits_of(again, encode_prompt(same_processor, groups[0].example)), after)
    assert again.forbidden_ids == model.forbidden_ids


@pytest.mark.parametrize("name", FAMILIES)
def test_no_token_that_belongs_to_an_image_is_ever_sampled(name):
    model, processor, groups = loaded(name)
    tokens = get_tokenizer(processor).convert_ids_to_tokens(model.forbidden_ids)
    # the tiny tokenizer's own besides
    assert {*tokens} == {*KINDS[name]["tokens"].values(), "<image>", "<video>"}

    def favour_them(module, inputs, logits):
        logits[..., model.forbidden_ids] += 1e4

    model.get_output_embeddings().register_forward_hook(favour_them)
    for temperature in (0.0, 1.0):
        for response in sum(respond(model, processor, groups, 2, 6, temperature=temperature), []):
            assert not {*response.token_ids} & {*model.forbidden_ids}
    logprobs, _ = completion_logprobs(model, groups[0].prompt, [response.token_ids])
    assert logprobs.min() > -100


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_a_frozen_tower_gets_no_gradient_its_projector_does_and_checkpointing_changes_none(
    name, freeze
):
    model, processor, groups = loaded(name, freeze_vision=freeze)
    gradients = gradients_of_a_step(model, processor, groups)
    if name in FAMILIES:
        parts = r"\.(multi_modal_projector|connector|merger|deepstack_merger_list)\."
        found = {key: re.search(parts, key) for key in gradients}
        assert len({part[1] for part in found.values() if part}) == 1 + (name == "qwen3_vl")
        assert all(gradients[key].any() for key in gradients if found[key])
        tower = f"model.{FAMILIES[name].vision}."
        assert any(key.startswith(tower) and not found[key] for key in gradients) is not freeze
        assert (parameter_counts(model)[1] > 0) is freeze
    checkpoint_activations(model)
    model.train()
    again = gradients_of_a_step(model, processor, groups, micro_batch_prompts=2)
    assert_equal(again, gradients)
    if name == "llava_onevision":  # nothing of a frozen tower is kept
        (pixels,) = groups[0].prompt.images["pixel_values"]
        output = model.model.vision_tower(pixels).last_hidden_state
        assert output.requires_grad is not freeze


# ---- what a folder says -------------------------------------------------------------------------


def edit_json(path, **changes):
    """A JSON file with other values; None: without it."""
    changed = {**(json.loads(path.read_text()) if path.exists() else {}), **changes}
    path.write_text(json.dumps({k: v for k, v in changed.items() if v is not None}))


def message_of(folder):
    """What is said of a folder that can't be loaded."""
    with pytest.raises(InputError) as caught:
        load_vlm(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_models_own_sampling_defaults_change_nothing(tmp_path):
    model, processor, groups = loaded("llava_onevision")
    hostile = dict(do_sample=False, temperature=0.01, top_k=1, repetition_penalty=5.0, max_length=3)
    hostile |= dict(bad_words_ids=[[7]], suppress_tokens=[8, 9], forced_eos_token_id=5)
    folder = write_checkpoint(tmp_path, "llava_onevision")
    edit_json(folder / "generation_config.json", **hostile)  # and invalid
    other, _ = load_vlm(str(folder))
    same = [respond(m, processor, groups, 3, 8) for m in (model, other)]
    assert same[0] == same[1]
    assert len({tuple(response.token_ids) for group in same[1] for response in group}) > len(groups)
    save_model(tmp_path / "saved", other, processor)
    assert load_vlm(str(tmp_path / "saved"))[0].generation_config.top_k != 1


@pytest.mark.parametrize("own, others", [(None, []), (5, [5]), ([7, 5], [7, 5])])
def test_every_end_token_of_the_model_is_kept_the_templates_first(tmp_path, own, others):
    folder = write_checkpoint(tmp_path, "llama")
    edit_json(folder / "config.json", eos_token_id=None)  # which the class then says is 2
    edit_json(folder / "tokenizer_config.json", eos_token="<pad>")
    edit_json(folder / "generation_config.json", eos_token_id=own)
    if own is None:
        (folder / "generation_config.json").unlink()
    model, processor = load_vlm(str(folder))
    assert processor.eos_token == "<|im_end|>"
    ends = [processor.eos_token_id, *others]
    assert model.end_ids == model.generation_config.eos_token_id == ends
    save_model(tmp_path / "saved", model, processor)
    assert load_vlm(str(tmp_path / "saved"))[0].end_ids == ends


@pytest.mark.parametrize("name", ALL)
def test_prompt_and_target_are_a_turn_of_the_template(name):
    _, processor = load_vlm(str(folder_of(name)), device="meta")
    content = [{"type": "text", "text": "It is 3."}] if name in FAMILIES else "It is 3."
    turns = [{"role": role, "content": content} for role in ("user", "assistant")]
    prompt = processor.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=False)
    learned = get_tokenizer(processor).decode(target_ids(processor, "It is 3."))
    assert processor.apply_chat_template(turns, tokenize=False).startswith(prompt + learned)
    assert learned.endswith(get_tokenizer(processor).eos_token)
    assert learned.startswith(" It" if name in ("idefics3", "smolvlm") else "It")


def test_what_a_folder_lacks_or_a_family_needs_is_told(tmp_path):
    assert "config.json" in message_of(tmp_path)
    transformers.BertConfig(hidden_size=8, num_attention_heads=1).save_pretrained(tmp_path)
    message = message_of(tmp_path)
    assert all(name in message for name in ("'bert'", "FAMILIES", *ALL))
    folder = write_checkpoint(tmp_path / "llama", "llama")
    (folder / "generation_config.json").write_text('{"eos_token')
    assert "generation_config.json" in message_of(folder)
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in message_of(folder)
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert "has an end token" in message_of(folder)
    (folder / "chat_template.jinja").unlink()
    assert "chat_template.jinja" in message_of(folder)


@pytest.mark.parametrize(
    "name, changes, reason",  # families that someone might add
    [
        ("granite", dict(logits_scaling=8.0), "head scales"),
        ("gemma2", dict(final_logit_softcapping=1.0), "or caps"),
        ("qwen2", dict(layer_types=["sliding_attention"] * 3), "sliding_attention"),
        ("mistral", dict(sliding_window=16), "windows of 16"),
        ("gemma3", {}, "both ways"),
        ("paligemma", {}, "both ways"),
    ],
)
def test_what_would_be_silently_wrong_in_a_new_family_is_refused(
    monkeypatch, name, changes, reason
):
    monkeypatch.setattr(families, "TEXT_FAMILIES", (name,))
    config = transformers.AutoConfig.for_model(name)
    fill(config.get_text_config(), TEXT, vocab_size=99, pad_token_id=0, **changes)
    with pytest.raises(InputError, match=reason):
        families.refuse_unsupported(config)
        families.refuse_other_head(AutoModelForCausalLM.from_config(config))


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


@pytest.mark.parametrize(
    "layers, key_heads, prompts, count, checkpointed, trained",
    [
        (4, 2, 2, 8, False, False),  # its peak is in learning
        (4, 4, 24, 2, False, False),  # in sampling
        (6, 2, 2, 8, True, False),
        (2, 2, 2, 2, False, True),
    ],
)
def test_the_memory_estimate_is_within_15_percent_of_the_measured_peak(
    monkeypatch, layers, key_heads, prompts, count, checkpointed, trained
):
    text, tower = (64, layers, 4, key_heads, 192, 512), (64, 12 if trained else 2, 4, 256, 28)
    monkeypatch.setitem(SIZES, "some", Size(text, tower, (112, 112), [(4, 4)], 24, prompts))
    args = dict(size="some", prompts=prompts, num_generations=count, num_iterations=1)
    case = build_case(SimpleNamespace(**args, train_vision=trained))
    case.config.gradient_checkpointing = checkpointed
    if checkpointed:
        checkpoint_activations(case.model)

    def learn(model, *rest):
        model.train(checkpointed)  # transformers checkpoints in no other mode
        update(model, *rest)
        model.eval()

    monkeypatch.setattr(dyme, "update", learn)
    estimate = memory_estimate(case.model, case.groups[0].prompt, case.config, prompts)
    measured = peak(lambda: step(case)) + estimate["weights"]
    assert 0.85 < estimate["peak"] / measured < 1.15
