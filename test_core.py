"""The method's properties, each named after what it shows. The tiny model, seconds in all."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

import attention
import dyme
import model as model_file
from checker import Rules, score
from config import parse
from data import Example, InputError, charts
from dyme import choose, rows, switch, update
from grpo import group_advantages, grpo_loss
from lib.tiny import tiny_vlm
from model import completion_logprobs, encode_prompt, get_tokenizer, image_features
from rollout import EXPLORE, MEMORIZE, SKIP, Group, Response, Row, make_groups, prefill, rollout
from sft import sft_loss, target_ids, target_text

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def vlm():
    """The tiny model with images of several shapes allowed, so that prompts differ in their number
    of tiles.
    """
    model, processor = tiny_vlm(0)
    pinpoints = [[32, 32], [32, 64], [64, 32], [64, 64]]
    model.config.image_grid_pinpoints = processor.image_processor.image_grid_pinpoints = pinpoints
    return model, processor


def picture(width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def examples():
    asked = {"What is the value of red": (32, 32), "Which bar is highest": (64, 32)}
    asked |= {"Is red higher than blue": (30, 70), "Grüße, 12.5 %?": (64, 64)}
    return [
        Example(picture(*size, i), question, "4", trace="Goal: find value.")
        for i, (question, size) in enumerate(asked.items())
    ]


@pytest.fixture
def groups(vlm, examples):
    """A fresh Group for each of four prompts."""
    return make_groups(*vlm, examples)


@pytest.fixture(scope="module")
def prompts(vlm, examples):
    return [encode_prompt(vlm[1], example) for example in examples]


def sample(vlm, groups, count, length, **settings):
    """The responses (P) (G) that rollout puts into the groups."""
    rollout(*vlm, groups, num_generations=count, max_completion_length=length, **settings)
    return [group.responses for group in groups]


def random_completions(processor, lengths, seed=0):
    tokenizer, rng = get_tokenizer(processor), np.random.default_rng(seed)
    end = [tokenizer.eos_token_id]
    return [rng.integers(20, len(tokenizer), n).tolist() + end for n in lengths]


def plain_logprobs(model, prompt, completion):
    """One completion behind its prompt in a row of its own, by the model's ordinary forward."""
    ids = torch.cat([prompt.input_ids, torch.tensor([completion])], dim=1)
    logits = model_file.forbid(model, model(input_ids=ids, **prompt.images).logits[0])
    rows = logits[prompt.input_ids.shape[1] - 1 : -1].log_softmax(-1)
    return rows.gather(1, torch.tensor(completion)[:, None])[:, 0]


def gradients(model, loss=None):
    """Every parameter's gradient: of `loss`, or what has been accumulated; then cleared."""
    if loss is not None:
        model.zero_grad()
        loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def largest_difference(a, b):
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


# ---- the losses and the switch ------------------------------------------------------------------


def test_sft_gradient_is_grpo_gradient_with_advantage_1_and_ratio_1():
    logprobs = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    (by_sft,) = torch.autograd.grad(sft_loss(logprobs, mask)[0], logprobs)
    loss, _ = grpo_loss(logprobs, logprobs.detach(), torch.ones(3), mask)
    (by_grpo,) = torch.autograd.grad(loss, logprobs)
    assert torch.allclose(by_sft, by_grpo, atol=1e-12) and by_sft.abs().sum() > 0


def test_clipping_stops_the_gradient_beyond_the_bounds_only():
    new = torch.tensor([[0.5], [0.5], [-0.5], [-0.5]], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])  # ratios 1.65, 1.65, 0.61, 0.61
    loss, stats = grpo_loss(new, torch.zeros(4, 1), advantages, torch.ones(4, 1))
    (grad,) = torch.autograd.grad(loss, new)
    assert (grad[:, 0] != 0).tolist() == [False, True, True, False]
    assert stats["clip_high"] == stats["clip_low"] == 0.25


def test_kl_is_zero_at_the_reference_and_positive_elsewhere():
    logprobs, zero, mask = torch.randn(2, 3), torch.zeros(2), torch.ones(2, 3)
    for shift, positive in ((0.0, False), (0.3, True)):
        reference = logprobs + shift
        _, stats = grpo_loss(logprobs, None, zero, mask, beta=0.1, ref_logprobs=reference)
        assert (stats["kl"] > 0) == positive


def test_advantages_are_centred_scaled_and_zero_when_all_rewards_are_equal():
    rewards = torch.tensor([[0.0, 1.0, 2.0, 3.0], [2.0, 2.0, 2.0, 2.0]])
    advantages = group_advantages(rewards)
    assert torch.allclose(advantages[0], (rewards[0] - 1.5) / (rewards[0].std() + 1e-4))
    assert not advantages[1].any()
    assert torch.equal(group_advantages(rewards, scale=False)[0], rewards[0] - 1.5)
    with pytest.raises(ValueError):
        group_advantages(torch.ones(2, 1))


@pytest.mark.parametrize("value", [1.4, 1.857, 0.1, 2 / 3, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [True, False])
def test_equal_rewards_have_advantage_exactly_0(value, dtype, scale):
    for generations in (2, 3, 7, 8, 16):
        rewards = torch.full((2, generations), value, dtype=dtype)
        rewards[1, 0] += 1
        advantages = group_advantages(rewards, scale)
        assert not advantages[0].any() and advantages[1].all()


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_with_the_steps_normalizer_chunks_add_up_to_the_whole(loss_type):
    logprobs, advantages = torch.randn(6, 7), torch.randn(6)
    mask = (torch.arange(7)[None] < torch.tensor([[7], [3], [1], [5], [7], [2]])).float()

    def loss(i):
        given = logprobs[i], logprobs[i] - 0.1, advantages[i], mask[i]
        return grpo_loss(*given, loss_type=loss_type, normalizer=11.0)[0]

    parts = [loss(slice(0, 1)), loss(slice(1, 4)), loss(slice(4, 6))]
    assert torch.allclose(loss(slice(6)), sum(parts), atol=1e-6)


def test_switch_memorizes_all_wrong_explores_mixed_skips_all_right():
    correct = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    assert switch(correct).tolist() == [MEMORIZE, EXPLORE, EXPLORE, SKIP]


def test_eight_bare_right_answers_are_memorized_not_skipped():
    example = Example(question="?", answer="4", facts=[("red", "4")])
    bare = score(["Answer: 4"] * 8, example)
    thought = score(["red 4.\nAnswer: 4"] * 8, example)
    assert bare["accuracy"].tolist() == [1.0] * 8
    assert switch(torch.stack([bare["correct"], thought["correct"]])).tolist() == [MEMORIZE, SKIP]


# ---- what an update is made of ------------------------------------------------------------------


def test_the_switch_is_asked_with_the_responses_heard_so_far():
    group = Group(0, Example(), None, [Response([1], "x", False)] * 2 + [None])
    group.rewards = {"correct": torch.tensor([True, True, False])}
    config = parse([])
    assert choose(config, 0, group) == SKIP
    group.rewards["correct"][1] = False
    assert choose(config, 0, group) == EXPLORE
    assert choose(parse(["--method", "sft"]), 0, group) == MEMORIZE
    assert choose(parse(["--method", "grpo"]), 0, group) == EXPLORE


def test_a_target_is_trace_answer_and_end_token_or_what_was_asked_for(vlm):
    tokenizer = get_tokenizer(vlm[1])
    ids = target_ids(vlm[1], target_text("Goal: find min.", Example(answer="red")))
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == "Goal: find min.\nAnswer: red"
    assert target_text(None, Example(answer="red")) == "Answer: red"
    assert target_text(None, Example(answer="red", instruction="One word.")) == "red"


def test_any_end_token_ends_a_response(vlm, groups):
    model = copy.deepcopy(vlm[0])
    plain = sample((model, vlm[1]), groups, 6, 12, seed=4)
    second = plain[0][0].token_ids[0]
    model.end_ids = [*model.end_ids, second]
    for four in sample((model, vlm[1]), groups, 6, 12, seed=4):
        for response in four:
            assert second not in response.token_ids[:-1]
            assert response.truncated == (response.token_ids[-1] not in model.end_ids)


def test_special_tokens_in_a_target_are_text_and_in_a_question_an_error(vlm):
    tokenizer = get_tokenizer(vlm[1])
    for token in tokenizer.all_special_tokens:
        ids = target_ids(vlm[1], f"red {token} 3")
        assert tokenizer.decode(ids[:-1]) == f"red {token} 3"
        assert not set(ids[:-1]) & set(tokenizer.all_special_ids)
        for asked in ({"question": f"what {token}"}, {"options": ["a", token]}):
            with pytest.raises(InputError, match="row 7"):
                encode_prompt(vlm[1], Example(id="row 7", **asked))


def test_options_are_asked_with_their_letters(vlm):
    example = Example(question="Which bar is highest", options=["red", "blue"])
    asked = get_tokenizer(vlm[1]).decode(encode_prompt(vlm[1], example).input_ids[0])
    assert "Which bar is highest\nA. red\nB. blue<|im_end|>" in asked


def test_memorized_group_weighs_one_gth_of_a_group(vlm, groups):
    model, processor = vlm
    group = groups[0]
    group.mode = MEMORIZE
    grads = {}
    for weight in (1, 8):
        config = parse(["--method_args", f"weight={weight}", "--refiner", "off"])
        group.rows = rows(config, 0, group, Rules(config), processor)
        update(model, [group], 8, config)
        grads[weight] = gradients(model)
    logprobs, mask = completion_logprobs(model, group.prompt, [group.rows[0].token_ids])
    sft = gradients(model, sft_loss(logprobs, mask)[0])  # plain SFT on one example
    assert largest_difference(grads[8], sft) < 1e-5
    assert largest_difference({n: 8 * g for n, g in grads[1].items()}, sft) < 1e-5


def test_skipped_groups_change_no_parameter_and_cost_no_forward(vlm, groups, monkeypatch):
    """One group is all right; in another, explored, all rewards are equal."""
    model, processor = vlm
    config = parse([])
    for group, mode in zip(groups, (SKIP, EXPLORE)):
        group.mode, group.responses = mode, [Response([1, 2], "x", False)] * 8
        group.rewards = {"total": torch.ones(8)}
        group.rows = rows(config, 0, group, Rules(config), processor)
    fail = lambda *args, **kwargs: pytest.fail("a skipped group was computed")  # noqa: E731
    monkeypatch.setattr(model.model, "forward", fail)
    assert not update(model, groups[:2], 16, config)
    assert all(p.grad is None for p in model.parameters())


def test_a_group_of_equal_rewards_is_kept_for_its_kl_term_alone(vlm, groups):
    config = parse(["--beta", "0.1"])
    group = groups[0]
    group.mode, group.responses = EXPLORE, [Response([1, 2], "x", False)] * 8
    group.rewards = {"total": torch.ones(8)}
    kept = rows(config, 0, group, Rules(config), vlm[1])
    assert len(kept) == 8 and not any(row.weight for row in kept)


def mixed(vlm, groups):
    """Three of the groups with rows: explored, memorized, explored."""
    ids = random_completions(vlm[1], [5, 12, 1, 8])
    weights = [1.2, -0.4, 0.3, -1.1]
    groups[1].rows = [Row(row, weight) for row, weight in zip(ids, weights)]
    groups[0].rows = [Row(ids[1], 1.0, "sft")]
    groups[3].rows = [Row(row, weight) for row, weight in zip(ids[::-1], weights)]
    return [groups[1], groups[0], groups[3]]


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_micro_batches_and_head_chunks_change_nothing(vlm, groups, loss_type, monkeypatch):
    grads = []
    for micro_batch, chunk in ((1, 1), (2, 10), (3, 10_000)):
        monkeypatch.setattr(dyme, "HEAD_CHUNK", chunk)
        config = parse(["--micro_batch_prompts", str(micro_batch), "--loss_type", loss_type])
        update(vlm[0], mixed(vlm, groups), 12, config)
        grads.append(gradients(vlm[0]))
    assert largest_difference(grads[0], grads[1]) < 1e-5
    assert largest_difference(grads[0], grads[2]) < 1e-5


def test_epsilon_acts_on_the_second_update_and_not_on_the_first(vlm, groups):
    """Two updates on the same rows: the ratio is 1 in the first whatever epsilon is."""
    grads, stats = {}, {}
    for epsilon in ("0.2", "0.001"):
        model = copy.deepcopy(vlm[0])
        bounds = f"--epsilon_low {epsilon} --epsilon_high {epsilon}"
        config = parse(f"--num_iterations 2 {bounds}".split())
        batch = mixed(vlm, groups)
        for iteration in range(2):
            stats[epsilon, iteration] = update(model, batch, 12, config)
            grads[epsilon, iteration] = gradients(model)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name in grads[epsilon, iteration]:
                        parameter -= 0.01 * grads["0.2", 0][name]
    assert largest_difference(grads["0.2", 0], grads["0.001", 0]) == 0
    assert largest_difference(grads["0.2", 1], grads["0.001", 1]) > 1e-4
    first, second = stats["0.001", 0], stats["0.001", 1]
    assert first["ratio"] == first["sampled_tokens"] and first["approx_kl"] == 0
    assert first["clip_low"] == first["clip_high"] == 0
    assert second["clip_low"] > 0 and second["clip_high"] > 0 and second["approx_kl"] > 0


def test_the_kl_reference_projects_the_image_by_itself(vlm, groups):
    """The features that rollout and update share are the policy's, not the reference's."""
    model = copy.deepcopy(vlm[0])
    with torch.no_grad():  # the policy's projector has moved
        model.model.multi_modal_projector.linear_2.bias += 1.0
    group = groups[0]
    (ids,) = random_completions(vlm[1], [6])
    group.rows = [Row(ids, 0.0)]
    group.prompt.features = image_features(model, [group.prompt])[0]
    stats = update(model, [group], 1, parse(["--beta", "0.1"]), vlm[0])
    policy, _ = completion_logprobs(model, group.prompt, [ids])
    reference, _ = completion_logprobs(vlm[0], group.prompt, [ids])
    gap = reference - policy
    expected = (gap.exp() - gap - 1).sum().item()
    assert expected > 0.01 and stats["kl"] == pytest.approx(expected, rel=1e-3)


def test_the_end_token_has_a_gradient(vlm, prompts):
    logprobs, mask = completion_logprobs(vlm[0], prompts[0], random_completions(vlm[1], [4]))
    logprobs.retain_grad()
    sft_loss(logprobs, mask)[0].backward()
    assert logprobs.grad[0, -1] != 0 and mask[0, -1]


# ---- the packed row -----------------------------------------------------------------------------


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
    original = attention.packed_attention

    def leaky(module, query, key, value, mask, *, scaling, segments, **kwargs):
        joined = [[group[0], sum(group[1:])] for group in segments]
        return original(module, query, key, value, mask, scaling=scaling, segments=joined, masks={})

    monkeypatch.setitem(attention.AttentionInterface._global_mapping, "packed", leaky)


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


# ---- rollout ------------------------------------------------------------------------------------


def test_greedy_rollout_equals_generate(vlm, groups):
    model, processor = vlm
    sample(vlm, groups, 2, 20, temperature=0)
    for group in groups:
        ids = group.prompt.input_ids
        whole = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **group.prompt.images,
            do_sample=False,
            max_new_tokens=20,
            suppress_tokens=model.forbidden_ids,
            eos_token_id=get_tokenizer(processor).eos_token_id,
        )
        expected = whole[0, ids.shape[1] :].tolist()
        assert [response.token_ids for response in group.responses] == [expected, expected]


def test_rollouts_of_one_prompt_differ_and_do_not_change_with_batching(vlm, groups):
    def ids(groups, generations, step):
        sampled = sample(vlm, groups, generations, 16, seed=1, step=step)
        return [[r.token_ids for r in responses] for responses in sampled]

    together = ids(groups, 6, step=5)
    assert all(len(set(map(tuple, responses))) == 6 for responses in together)
    (alone,) = ids(groups[2:3], 3, step=5)
    assert alone == together[2][:3] != ids(groups[2:3], 3, step=6)[0]


def test_tokens_and_responses_are_told_as_they_come(vlm, groups):
    told, ended = {}, []
    sample(
        vlm,
        groups[:2],
        3,
        10,
        on_token=lambda group, g, token: told.setdefault((group.place, g), []).append(token),
        on_response=lambda group, g: ended.append((group.place, g)),
    )
    said = {
        (group.place, g): r.token_ids for group in groups for g, r in enumerate(group.responses)
    }
    assert told == said and sorted(ended) == sorted(said)


def test_sampled_frequencies_are_the_models_probabilities(vlm, groups, prompts):
    (responses,) = sample(vlm, groups[:1], 4000, 1, temperature=0.5)
    first = torch.tensor([r.token_ids[0] for r in responses])
    *_, logits, _ = prefill(vlm[0], prompts[:1])
    probs = (logits[0] / 0.5).softmax(-1)
    counted = torch.bincount(first, minlength=len(probs)) / 4000
    assert (counted - probs).abs().max() < 4 * (probs * (1 - probs) / 4000).sqrt().max()


def test_end_token_is_part_of_a_response_and_truncation_is_said(vlm, groups):
    processor = vlm[1]
    end = get_tokenizer(processor).eos_token_id
    responses = [r for responses in sample(vlm, groups, 40, 30) for r in responses]
    assert {r.truncated for r in responses} == {True, False}
    for response in responses:
        assert (response.token_ids[-1] == end) == (not response.truncated)
        assert end not in response.token_ids[:-1]
        assert get_tokenizer(processor).eos_token not in response.text
        assert len(response.token_ids) == 30 or not response.truncated


def test_image_placeholders_are_never_sampled(vlm, groups):
    model = copy.deepcopy(vlm[0])
    with torch.no_grad():  # make the placeholders by far the most likely
        weight = model.get_input_embeddings().weight
        weight[model.forbidden_ids] = 50 * weight[model.forbidden_ids].sign()
    responses = sample((model, vlm[1]), groups, 4, 10)
    sampled = {token for four in responses for r in four for token in r.token_ids}
    assert not sampled & set(model.forbidden_ids)


def test_a_frozen_tower_gets_no_gradient_and_its_features_are_computed_once(vlm):
    model, processor = vlm
    (group,) = make_groups(*vlm, [Example(image=picture(32, 32, 9), question="?")])
    group.prompt.features = image_features(model, [group.prompt])[0]
    calls = []
    handle = model.model.vision_tower.register_forward_hook(lambda *a: calls.append(1))
    (responses,) = sample(vlm, [group], 4, 8)
    group.rows = [Row(r.token_ids, w) for r, w in zip(responses, (1.0, -1.0, 0.5, -0.5))]
    update(model, [group], 4, parse([]))
    handle.remove()
    assert not calls
    grads = gradients(model)
    assert not any("vision_tower" in name for name in grads)
    assert grads["model.multi_modal_projector.linear_1.weight"].abs().sum() > 0


# ---- the tiny model and the command line --------------------------------------------------------


def test_any_text_goes_through_the_tiny_tokenizer_unchanged(vlm):
    tokenizer = get_tokenizer(vlm[1])
    text = "Grüße — 12,345.6 %\n\n\tcharts? Answer: [Yes, \ufffd]\U0001f600  red 3"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    words = charts.load_charts("train")[0].trace
    assert len(tokenizer(words)["input_ids"]) < len(words) / 2


def test_the_base_stage_has_met_every_word_of_the_format(vlm):
    def tokens(texts):
        return {token for text in texts for token in get_tokenizer(vlm[1])(text)["input_ids"]}

    met = tokens(text for step in range(40) for *_, text in charts.base_batch(0, step, 32))
    asked = charts.load_charts("train", 200)
    assert tokens(f"{e.trace}\nAnswer: {e.answer}" for e in asked) <= met


@pytest.mark.parametrize(
    "argv, told",
    [
        ("--num_generations 1", "--num_generations"),
        ("--temperature 0", "--temperature"),
        ("--temperature inf", "--temperature"),
        ("--learning_rate -1", "--learning_rate"),
        ("--micro_batch_prompts 0", "--micro_batch_prompts"),
        ("--seed -1", "--seed"),
        ("--reward_weights 0 0 0", "--reward_weights"),
        ("--reward_weights 1 2", "--reward_weights"),
        ("--lerning_rate 1", "--lerning_rate"),
        ("--over", "--over"),  # no prefix of a flag is one
        ("--method sft --loss_type dapo", "--loss_type dapo"),  # nothing is sampled
        ("--method curr_reft", "python curr_reft.py"),
    ],
)
def test_flags_that_cannot_be_are_an_error_of_one_line(argv, told):
    with pytest.raises(InputError, match=told) as error:
        parse(argv.split())
    assert "\n" not in str(error.value)
