"""
The method's properties, each named after what it shows. The tiny model, seconds in all, no
network.
"""

import copy
import functools

import numpy as np
import pytest
import torch
from PIL import Image

from data import charts
import dyme
import model as model_file
import rollout as rollout_file
from checker import score
from data import Example, InputError
from dyme import EXPLORE, MEMORIZE, SKIP, Group, build_groups, packed_update, switch, target_ids
from grpo import group_advantages, grpo_loss
from config import parse
from model import completion_logprobs, encode_prompt, get_tokenizer, image_features
from rollout import Response, prefill, rollout
from sft import sft_loss
from lib.tiny import tiny_vlm

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def vlm():
    """
    The tiny model with images of several shapes allowed, so that prompts differ in their number of
    tiles.
    """
    model, processor = tiny_vlm(0)
    pinpoints = [[32, 32], [32, 64], [64, 32], [64, 64]]
    model.config.image_grid_pinpoints = processor.image_processor.image_grid_pinpoints = pinpoints
    return model, processor


def picture(width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def prompts(vlm):
    sizes = ((32, 32), (64, 32), (30, 70), (64, 64))
    questions = (
        "What is the value of red",
        "Which bar is highest",
        "Is red higher than blue",
        "Grüße, 12.5 %?",
    )
    examples = [
        Example(image=picture(*size, i), question=q)
        for i, (size, q) in enumerate(zip(sizes, questions))
    ]
    return [encode_prompt(vlm[1], example) for example in examples]


def random_completions(processor, lengths, seed=0):
    tokenizer = get_tokenizer(processor)
    rng = np.random.default_rng(seed)
    return [
        rng.integers(20, len(tokenizer), n).tolist() + [tokenizer.eos_token_id] for n in lengths
    ]


def plain_logprobs(model, prompt, completion):
    """
    One completion behind its prompt in a row of its own, through the model's ordinary forward.
    """
    ids = torch.cat([prompt.input_ids, torch.tensor([completion])], dim=1)
    logits = model_file.forbid(model, model(input_ids=ids, **prompt.images).logits[0])
    rows = logits[prompt.input_ids.shape[1] - 1 : -1].log_softmax(-1)
    return rows.gather(1, torch.tensor(completion)[:, None])[:, 0]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def largest_difference(a, b):
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


# ---- the losses and the switch


def test_sft_gradient_is_grpo_gradient_with_advantage_1_and_ratio_1():
    logprobs = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    (by_sft,) = torch.autograd.grad(sft_loss(logprobs, mask), logprobs)
    loss, _ = grpo_loss(logprobs, logprobs.detach(), torch.ones(3), mask)
    (by_grpo,) = torch.autograd.grad(loss, logprobs)
    assert torch.allclose(by_sft, by_grpo, atol=1e-12) and by_sft.abs().sum() > 0


def test_clipping_stops_the_gradient_beyond_the_bounds_only():
    old = torch.zeros(4, 1)
    new = torch.tensor(
        [[0.5], [0.5], [-0.5], [-0.5]], requires_grad=True
    )  # ratios 1.65, 1.65, 0.61, 0.61
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss, stats = grpo_loss(
        new, old, advantages, torch.ones(4, 1), epsilon_low=0.2, epsilon_high=0.2
    )
    (grad,) = torch.autograd.grad(loss, new)
    assert (grad[:, 0] != 0).tolist() == [False, True, True, False]
    assert stats["clip_high"] == stats["clip_low"] == 0.25


def test_kl_is_zero_at_the_reference_and_positive_elsewhere():
    logprobs = torch.randn(2, 3)
    mask = torch.ones(2, 3)
    for shift, positive in ((0.0, False), (0.3, True)):
        _, stats = grpo_loss(
            logprobs, None, torch.zeros(2), mask, beta=0.1, ref_logprobs=logprobs + shift
        )
        assert (stats["kl"] > 0) == positive


def test_advantages_are_centred_scaled_and_zero_when_all_rewards_are_equal():
    rewards = torch.tensor([[0.0, 1.0, 2.0, 3.0], [2.0, 2.0, 2.0, 2.0]])
    advantages = group_advantages(rewards)
    assert torch.allclose(advantages[0], (rewards[0] - 1.5) / (rewards[0].std() + 1e-4))
    assert not advantages[1].any()
    assert torch.equal(group_advantages(rewards, scale=False)[0], rewards[0] - 1.5)
    with pytest.raises(ValueError):
        group_advantages(torch.ones(2, 1))


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_with_the_steps_normalizer_chunks_add_up_to_the_whole(loss_type):
    logprobs, advantages = torch.randn(6, 7), torch.randn(6)
    mask = (torch.arange(7)[None] < torch.tensor([[7], [3], [1], [5], [7], [2]])).float()
    whole, _ = grpo_loss(
        logprobs, logprobs - 0.1, advantages, mask, loss_type=loss_type, normalizer=11.0
    )
    parts = [
        grpo_loss(
            logprobs[i],
            logprobs[i] - 0.1,
            advantages[i],
            mask[i],
            loss_type=loss_type,
            normalizer=11.0,
        )[0]
        for i in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    assert torch.allclose(whole, sum(parts), atol=1e-6)


def test_switch_memorizes_all_wrong_explores_mixed_skips_all_right():
    correct = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    assert switch(correct).tolist() == [MEMORIZE, EXPLORE, EXPLORE, SKIP]


def test_eight_bare_right_answers_are_memorized_not_skipped():
    example = Example(question="?", answer="4", facts=[("red", "4")])
    bare = score(["Answer: 4"] * 8, example)
    thought = score(["red 4.\nAnswer: 4"] * 8, example)
    assert bare["accuracy"].tolist() == [1.0] * 8
    assert switch(torch.stack([bare["correct"], thought["correct"]])).tolist() == [MEMORIZE, SKIP]


# ---- what an update is made of


def test_memorized_target_is_trace_answer_and_end_token(vlm):
    tokenizer = get_tokenizer(vlm[1])
    ids = target_ids(vlm[1], "Goal: find min.", "red")
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == "Goal: find min.\nAnswer: red"


def test_memorized_group_weighs_one_gth_of_a_group(vlm, prompts):
    model, processor = vlm
    (target,) = random_completions(processor, [9])
    modes, responses = torch.tensor([MEMORIZE]), [[]]
    grads = {}
    for weight in ("group", "one"):
        advantage = dyme.memorize_advantage(weight, 8, 0.0)
        groups = build_groups([0], modes, responses, torch.zeros(1, 8), {0: target}, advantage)
        model.zero_grad()
        packed_update(model, prompts, groups, normalizer=8)
        grads[weight] = {
            n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
        }
    logprobs, mask = completion_logprobs(model, prompts[0], [target])
    sft = gradients(model, sft_loss(logprobs, mask))  # plain SFT on one example
    assert largest_difference(grads["one"], sft) < 1e-5
    assert largest_difference({n: 8 * g for n, g in grads["group"].items()}, sft) < 1e-5


def test_cosine_weight_falls_from_a_whole_group_to_one_gth():
    assert dyme.memorize_advantage("cosine", 8, 0.0) == 8
    assert dyme.memorize_advantage("cosine", 8, 1.0) == 1


def test_skipped_groups_change_no_parameter_and_cost_no_forward(vlm, prompts, monkeypatch):
    model, processor = vlm
    responses = [[Response([1, 2], "x", False)] * 8] * 2
    # one group all right; one explored group whose rewards are all equal
    groups = build_groups(
        [0, 1], torch.tensor([SKIP, EXPLORE]), responses, torch.zeros(2, 8), {}, 1.0
    )
    monkeypatch.setattr(
        model, "forward", lambda *a, **k: pytest.fail("a skipped group was computed")
    )
    monkeypatch.setattr(
        model.model, "forward", lambda *a, **k: pytest.fail("a skipped group was computed")
    )
    model.zero_grad()
    packed_update(model, prompts, groups, normalizer=16)
    assert groups == [] and all(p.grad is None for p in model.parameters())


def test_a_group_of_equal_rewards_is_kept_for_its_kl_term_alone():
    responses = [[Response([1, 2], "x", False)] * 8] * 2
    modes, advantages = torch.tensor([SKIP, EXPLORE]), torch.zeros(2, 8)
    (group,) = build_groups([0, 1], modes, responses, advantages, {}, keep_equal=True)
    assert group.prompt == 1 and not group.advantages.any()


def test_a_loss_over_sampled_tokens_is_refused_where_nothing_is_sampled():
    with pytest.raises(InputError, match="--loss_type dapo"):
        parse(["--method", "sft", "--loss_type", "dapo"])


def mixed_groups(processor):
    completions = random_completions(processor, [5, 12, 1, 8])
    explored = Group(1, EXPLORE, completions, torch.tensor([1.2, -0.4, 0.3, -1.1]))
    return [
        explored,
        Group(0, MEMORIZE, completions[1:2], torch.tensor([1.0])),
        Group(3, EXPLORE, completions[::-1], explored.advantages),
    ]


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_micro_batches_and_head_chunks_change_nothing(vlm, prompts, loss_type):
    model, processor = vlm
    grads = []
    for micro_batch, chunk in ((1, 1), (2, 10), (3, 10_000)):
        model.zero_grad()
        packed_update(
            model,
            prompts,
            mixed_groups(processor),
            normalizer=12,
            micro_batch_prompts=micro_batch,
            head_chunk_tokens=chunk,
            loss_type=loss_type,
        )
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert largest_difference(grads[0], grads[1]) < 1e-5
    assert largest_difference(grads[0], grads[2]) < 1e-5


def test_ratio_is_1_at_the_first_update(vlm, prompts):
    model, processor = vlm
    responses = rollout(model, processor, prompts[:2], 4, 12, seed=3)
    completions = [response.token_ids for response in responses[1]]
    together, mask = completion_logprobs(model, prompts[1], completions)
    _, stats = grpo_loss(together, together.detach(), torch.ones(4), mask)
    for row, keep, completion in zip(together, mask, completions):
        alone, _ = completion_logprobs(model, prompts[1], [completion])
        assert torch.allclose((row[keep] - alone[0]).exp(), torch.ones(len(completion)), atol=1e-5)
    assert stats["clip_low"] == stats["clip_high"] == 0


def test_the_end_token_has_a_gradient(vlm, prompts):
    logprobs, mask = completion_logprobs(vlm[0], prompts[0], random_completions(vlm[1], [4]))
    logprobs.retain_grad()
    sft_loss(logprobs, mask).backward()
    assert logprobs.grad[0, -1] != 0 and mask[0, -1]


# ---- the packed row


LENGTHS = [7, 1, 15, 4]


def packed_and_plain(vlm, prompts):
    """Packed log-probs of all prompts in ONE row, and each completion's own plain row."""
    model, processor = vlm
    completions = [random_completions(processor, LENGTHS, seed) for seed in range(len(prompts))]
    hidden = model_file.completion_hidden(model, prompts, completions)
    flat_ids = torch.tensor([t for group in completions for ids in group for t in ids])
    packed, _ = model_file.token_logprobs(model, hidden, flat_ids)
    plain = torch.cat(
        [plain_logprobs(model, p, ids) for p, group in zip(prompts, completions) for ids in group]
    )
    return packed, plain


def test_packed_logprobs_and_gradients_equal_plain_ones(vlm, prompts):
    packed, plain = packed_and_plain(vlm, prompts)
    assert (packed - plain).abs().max() < 5e-6
    weights = torch.randn(len(packed), generator=torch.Generator().manual_seed(0))
    by_packed = gradients(vlm[0], (packed * weights).sum() / len(packed))
    by_plain = gradients(vlm[0], (plain * weights).sum() / len(packed))
    largest = max(g.abs().max().item() for g in by_plain.values())
    assert largest_difference(by_packed, by_plain) < 1e-5 * max(largest, 1)


def test_completion_logprobs_pads_on_the_right(vlm, prompts):
    completions = random_completions(vlm[1], LENGTHS)
    logprobs, mask = completion_logprobs(vlm[0], prompts[2], completions)
    assert logprobs.shape == mask.shape == (4, 16) and mask.sum(1).tolist() == [
        n + 1 for n in LENGTHS
    ]
    assert not logprobs[~mask].any() and (logprobs[mask] < 0).all()


def wrong_image(monkeypatch):
    original = model_file.row_features

    def shifted(model, prompts):
        features = original(model, prompts)
        features.pooler_output = [torch.roll(image, 1, dims=0) for image in features.pooler_output]
        return features

    monkeypatch.setattr(model_file, "row_features", shifted)


def sibling_visible(monkeypatch):
    original = model_file.packed_attention

    def leaky(module, query, key, value, mask, *, scaling, segments, **kwargs):
        joined = [[group[0], sum(group[1:])] for group in segments]
        return original(module, query, key, value, mask, scaling=scaling, segments=joined, masks={})

    monkeypatch.setitem(model_file.AttentionInterface._global_mapping, "packed", leaky)


def positions_not_restarted(monkeypatch):
    original = model_file.pack

    def running(model, prompts, completions):
        inputs, predictors = original(model, prompts, completions)
        inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1])[None]
        return inputs, predictors

    monkeypatch.setattr(model_file, "pack", running)


@pytest.mark.parametrize("fault", [wrong_image, sibling_visible, positions_not_restarted])
def test_a_planted_fault_exceeds_the_tolerance_a_hundredfold(vlm, prompts, monkeypatch, fault):
    fault(monkeypatch)
    packed, plain = packed_and_plain(vlm, prompts)
    assert (packed - plain).abs().max() > 100 * 5e-6


# ---- rollout


def test_greedy_rollout_equals_generate(vlm, prompts):
    model, processor = vlm
    tokenizer = get_tokenizer(processor)
    responses = rollout(model, processor, prompts, 2, 20, temperature=0)
    for prompt, group in zip(prompts, responses):
        whole = model.generate(
            input_ids=prompt.input_ids,
            attention_mask=torch.ones_like(prompt.input_ids),
            **prompt.images,
            do_sample=False,
            max_new_tokens=20,
            suppress_tokens=model.forbidden_ids,
            eos_token_id=tokenizer.eos_token_id,
        )
        expected = whole[0, prompt.input_ids.shape[1] :].tolist()
        assert [response.token_ids for response in group] == [expected, expected]


def test_rollouts_of_one_prompt_differ_and_do_not_change_with_batching(vlm, prompts):
    model, processor = vlm
    together = rollout(model, processor, prompts, 6, 16, seed=1, step=5)
    assert all(len({tuple(r.token_ids) for r in group}) == 6 for group in together)
    alone = rollout(model, processor, prompts[2:3], 3, 16, seed=1, step=5, prompt_indices=[2])
    assert [r.token_ids for r in alone[0]] == [r.token_ids for r in together[2][:3]]
    another_step = rollout(
        model, processor, prompts[2:3], 3, 16, seed=1, step=6, prompt_indices=[2]
    )
    assert [r.token_ids for r in another_step[0]] != [r.token_ids for r in alone[0]]


def test_compiled_decoding_gives_the_same_tokens(vlm, prompts, monkeypatch):
    compiler = functools.partial(
        torch.compile, backend="aot_eager"
    )  # the same graph without minutes of C++
    monkeypatch.setattr(
        rollout_file,
        "compiled_decode_step",
        lambda: compiler(rollout_file.decode_step, dynamic=False),
    )
    plain = rollout(*vlm, prompts[:2], 3, 8, seed=2)
    compiled = rollout(*vlm, prompts[:2], 3, 8, seed=2, compile=True)
    assert [[r.token_ids for r in group] for group in compiled] == [
        [r.token_ids for r in group] for group in plain
    ]


def test_sampled_frequencies_are_the_models_probabilities(vlm, prompts):
    model, processor = vlm
    responses = rollout(model, processor, prompts[:1], 4000, 1, temperature=0.5)
    first = torch.tensor([r.token_ids[0] for r in responses[0]])
    _, logits, _ = prefill(model, prompts[:1])
    probs = (logits[0] / 0.5).softmax(-1)
    counted = torch.bincount(first, minlength=len(probs)) / 4000
    assert (counted - probs).abs().max() < 4 * (probs * (1 - probs) / 4000).sqrt().max()


def test_end_token_is_part_of_a_response_and_truncation_is_said(vlm, prompts):
    model, processor = vlm
    end = get_tokenizer(processor).eos_token_id
    responses = [r for group in rollout(model, processor, prompts, 40, 30) for r in group]
    assert {r.truncated for r in responses} == {True, False}
    for response in responses:
        assert (response.token_ids[-1] == end) == (not response.truncated)
        assert end not in response.token_ids[:-1]
        assert get_tokenizer(processor).eos_token not in response.text
        assert len(response.token_ids) == 30 or not response.truncated


def test_image_placeholders_are_never_sampled(vlm, prompts):
    model = copy.deepcopy(vlm[0])
    model.forbidden_ids = vlm[0].forbidden_ids
    with torch.no_grad():  # make the placeholders by far the most likely
        weight = model.get_input_embeddings().weight
        weight[model.forbidden_ids] = 50 * weight[model.forbidden_ids].sign()
    responses = rollout(model, vlm[1], prompts, 4, 10)
    assert not {t for group in responses for r in group for t in r.token_ids} & set(
        model.forbidden_ids
    )


def test_a_frozen_tower_gets_no_gradient_and_its_features_are_computed_once(vlm, prompts):
    model, processor = vlm
    prompt = encode_prompt(processor, Example(image=picture(32, 32, 9), question="?"))
    prompt.features = image_features(model, prompt)
    calls = []
    handle = model.model.vision_tower.register_forward_hook(lambda *a: calls.append(1))
    responses = rollout(model, processor, [prompt], 4, 8)
    groups = [
        Group(0, EXPLORE, [r.token_ids for r in responses[0]], torch.tensor([1.0, -1.0, 0.5, -0.5]))
    ]
    model.zero_grad()
    packed_update(model, [prompt], groups, normalizer=4)
    handle.remove()
    assert not calls
    assert all(p.grad is None for p in model.model.vision_tower.parameters())
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0


# ---- the tiny model and the command line


def test_any_text_goes_through_the_tiny_tokenizer_unchanged(vlm):
    tokenizer = get_tokenizer(vlm[1])
    text = "Grüße — 12,345.6 %\n\n\tcharts? Answer: [Yes, \ufffd]\U0001f600  red 3"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    words = charts.load_charts("train")[0].trace
    assert len(tokenizer(words)["input_ids"]) < len(words) / 2


def test_the_base_stage_has_met_every_word_of_the_format(vlm):
    tokenizer = get_tokenizer(vlm[1])
    met = {
        t
        for step in range(40)
        for *_, text in charts.base_batch(0, step, 32)
        for t in tokenizer(text)["input_ids"]
    }
    traces = [f"{e.trace}\nAnswer: {e.answer}" for e in charts.load_charts("train")[:200]]
    assert {t for trace in traces for t in tokenizer(trace)["input_ids"]} <= met


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--num_generations", "1"], "--num_generations"),
        (["--temperature", "0"], "--temperature"),
        (["--reward_weights", "1", "2"], "--reward_weights"),
    ],
)
def test_a_flag_that_cannot_work_is_said_in_one_line(argv, said):
    with pytest.raises(ValueError, match=said) as error:
        parse(argv)
    assert "\n" not in str(error.value)


def test_an_unknown_flag_is_an_error(capsys):
    with pytest.raises(SystemExit):
        parse(["--lerning_rate", "1"])
    assert "--lerning_rate" in capsys.readouterr().err
