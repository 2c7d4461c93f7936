"""The method's properties, each named after what it shows. The tiny model, seconds in all."""

import copy
from collections import defaultdict

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
    """The tiny model, but prompts differ in their number of tiles."""
    model, processor = tiny_vlm(0)
    pinpoints = [[32, 32], [32, 64], [64, 32], [64, 64]]
    model.config.image_grid_pinpoints = processor.image_processor.image_grid_pinpoints = pinpoints
    return model, processor


def picture(width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def examples():
    asked = ["What is the value of red", "Which bar is highest", "Is red higher", "Grüße, 12.5 %?"]
    images = [picture(*size, i) for i, size in enumerate([(32, 32), (64, 32), (30, 70), (64, 64)])]
    return [Example(i, question, "4", trace="Goal: see.") for i, question in zip(images, asked)]


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
    rng, end = np.random.default_rng(seed), get_tokenizer(processor).eos_token_id
    return [[*rng.integers(20, 400, n).tolist(), end] for n in lengths]


def plain_logprobs(model, prompt, completion):
    """One completion behind its prompt in a row of its own, by the model's ordinary forward."""
    ids = torch.cat([prompt.input_ids, torch.tensor([completion])], dim=1)
    logits = model_file.forbid(model, model(input_ids=ids, **prompt.images).logits[0])
    rows = logits[prompt.input_ids.shape[1] - 1 : -1].log_softmax(-1)
    return rows.gather(1, torch.tensor(completion)[:, None])[:, 0]


def gradients(model, loss=None):
    """Every parameter's gradient, of `loss` or as accumulated; then cleared."""
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


def test_advantages_are_centred_and_scaled():
    rewards = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert torch.allclose(group_advantages(rewards), (rewards - 1.5) / (rewards.std() + 1e-4))
    assert torch.equal(group_advantages(rewards, scale=False), rewards - 1.5)
    with pytest.raises(ValueError):
        group_advantages(torch.ones(2, 1))


@pytest.mark.parametrize("value", [1.4, 1.857, 0.1, 2 / 3, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_rewards_have_advantage_exactly_0(value, dtype):
    for generations in (2, 3, 7, 8, 16):
        rewards = torch.full((2, generations), value, dtype=dtype)
        rewards[1, 0] += 1
        for scale in (True, False):
            advantages = group_advantages(rewards, scale)
            assert not advantages[0].any() and advantages[1].all()


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_with_the_steps_normalizer_chunks_add_up_to_the_whole(loss_type):
    logprobs, advantages = torch.randn(6, 7), torch.randn(6)
    mask = torch.arange(7)[None] < torch.tensor([[7], [3], [1], [5], [7], [2]])
    knobs = dict(loss_type=loss_type, normalizer=11.0)

    def loss(i):
        return grpo_loss(logprobs[i], logprobs[i] - 0.1, advantages[i], mask[i], **knobs)[0]

    parts = [loss(slice(0, 1)), loss(slice(1, 4)), loss(slice(4, 6))]
    assert torch.allclose(loss(slice(6)), sum(parts), atol=1e-6)


def test_switch_memorizes_all_wrong_explores_mixed_skips_all_right():
    correct = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    assert switch(correct).tolist() == [MEMORIZE, EXPLORE, EXPLORE, SKIP]


def test_eight_bare_right_answers_are_memorized_not_skipped():
    example = Example(question="?", answer="4", facts=[("red", "4")])
    texts = ("Answer: 4", "red 4.\nAnswer: 4")
    correct = [score([text] * 8, example)["correct"] for text in texts]
    assert switch(torch.stack(correct)).tolist() == [MEMORIZE, SKIP]


# ---- what an update is made of ------------------------------------------------------------------


def test_the_switch_is_asked_with_the_responses_heard_so_far():
    group = Group(0, Example(), None, [Response([1], "x", False)] * 2 + [None])
    group.rewards = {"correct": torch.tensor([True, True, False])}
    methods = ("dyme", "sft", "grpo")
    asked = lambda: [choose(parse(["--method", name]), 0, group) for name in methods]  # noqa: E731
    assert asked() == [SKIP, MEMORIZE, EXPLORE]
    group.rewards["correct"][1] = False
    assert asked() == [EXPLORE, MEMORIZE, EXPLORE]


def test_a_target_is_trace_answer_and_end_token_or_what_was_asked_for(vlm):
    tokenizer = get_tokenizer(vlm[1])
    ids = target_ids(vlm[1], target_text("Goal: find min.", Example(answer="red")))
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == "Goal: find min.\nAnswer: red"
    assert target_text(None, Example(answer="red")) == "Answer: red"
    assert target_text(None, Example(answer="red", instruction="One word.")) == "red"


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
    assert largest_difference(grads[1], {name: g / 8 for name, g in sft.items()}) < 1e-5


def test_groups_that_teach_nothing_cost_no_forward_but_for_a_kl_term(vlm, groups, monkeypatch):
    """One group is all right; in another, explored, all rewards are equal."""
    model, processor = vlm
    kept = {}
    for beta in ("0", "0.1"):
        config = parse(["--beta", beta])
        for group, mode in zip(groups, (SKIP, EXPLORE)):
            group.mode, group.responses = mode, [Response([1, 2], "x", False)] * 8
            group.rewards = {"total": torch.ones(8)}
            group.rows = rows(config, 0, group, Rules(config), processor)
        kept[beta] = [len(group.rows) for group in groups[:2]]
        if beta == "0":
            fail = lambda *args, **kwargs: pytest.fail("a skipped group was computed")  # noqa: E731
            monkeypatch.setattr(model.model, "forward", fail)
            assert not update(model, groups[:2], 16, config)
    assert kept == {"0": [0, 0], "0.1": [0, 8]}
    assert not any(row.weight for row in groups[1].rows)


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
        model, batch = copy.deepcopy(vlm[0]), mixed(vlm, groups)
        bounds = f"--epsilon_low {epsilon} --epsilon_high {epsilon}"
        for i in range(2):
            config = parse(f"--num_iterations 2 {bounds}".split())
            stats[epsilon, i] = update(model, batch, 12, config)
            grads[epsilon, i] = gradients(model)
            with torch.no_grad():
                for name, gradient in grads["0.2", 0].items():
                    model.get_parameter(name).sub_(0.01 * gradient)
    assert largest_difference(grads["0.2", 0], grads["0.001", 0]) == 0
    assert largest_difference(grads["0.2", 1], grads["0.001", 1]) > 1e-4
    first, second = stats["0.001", 0], stats["0.001", 1]
    assert first["ratio"] == first["sampled_tokens"]
    assert not any(first[name] for name in ("clip_low", "clip_high", "approx_kl"))
    assert all(second[name] > 0 for name in ("clip_low", "clip_high", "approx_kl"))


def test_the_kl_reference_projects_the_image_by_itself(vlm, groups):
    """The features that rollout and update share are the policy's, not the reference's."""
    model, group = copy.deepcopy(vlm[0]), groups[0]
    with torch.no_grad():  # the policy's projector has moved
        model.model.multi_modal_projector.linear_2.bias += 1.0
    (ids,) = random_completions(vlm[1], [6])
    group.rows = [Row(ids, 0.0)]
    group.prompt.features = image_features(model, [group.prompt])[0]
    stats = update(model, [group], 1, parse(["--beta", "0.1"]), vlm[0])
    policy, reference = (completion_logprobs(m, group.prompt, [ids])[0] for m in (model, vlm[0]))
    gap = reference - policy
    expected = (gap.exp() - gap - 1).sum().item()
    assert expected > 0.01 and stats["kl"] == pytest.approx(expected, rel=1e-3)


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


# ---- rollout (greedy rollout = generate: tests/test_models.py) ----------------------------------


def test_rollouts_of_one_prompt_differ_and_do_not_change_with_batching(vlm, groups):
    together = sample(vlm, groups, 6, 16, seed=1, step=5)
    assert all(len({tuple(r.token_ids) for r in responses}) == 6 for responses in together)
    (alone,) = sample(vlm, groups[2:3], 3, 16, seed=1, step=5)
    (other_step,) = sample(vlm, groups[2:3], 3, 16, seed=1, step=6)
    assert alone == together[2][:3] != other_step


def test_tokens_and_responses_are_told_as_they_come(vlm, groups):
    told, ended = defaultdict(list), []
    hear = dict(on_token=lambda group, g, token: told[group.place, g].append(token))
    hear["on_response"] = lambda group, g: ended.append((group.place, g))
    said = sample(vlm, groups[:2], 3, 10, **hear)
    said = {(p, g): r.token_ids for p, four in enumerate(said) for g, r in enumerate(four)}
    assert told == said and sorted(ended) == sorted(said)


def test_sampled_frequencies_are_the_models_probabilities(vlm, groups, prompts):
    (responses,) = sample(vlm, groups[:1], 4000, 1, temperature=0.5)
    first = torch.tensor([r.token_ids[0] for r in responses])
    *_, logits, _ = prefill(vlm[0], prompts[:1])
    probs = (logits[0] / 0.5).softmax(-1)
    counted = torch.bincount(first, minlength=len(probs)) / 4000
    assert (counted - probs).abs().max() < 4 * (probs * (1 - probs) / 4000).sqrt().max()


def test_any_end_token_ends_a_response_and_is_part_of_it(vlm, groups):
    model, processor = copy.deepcopy(vlm[0]), vlm[1]
    second = sample(vlm, groups, 6, 12, seed=4)[0][0].token_ids[0]
    model.end_ids = [get_tokenizer(processor).eos_token_id, second]
    responses = sum(sample((model, processor), groups, 40, 30, seed=4), [])
    assert {r.truncated for r in responses} == {True, False}
    for response in responses:
        *ids, last = response.token_ids
        assert (last in model.end_ids) == (not response.truncated)
        assert not {*ids} & {*model.end_ids}
        assert get_tokenizer(processor).eos_token not in response.text
        assert len(ids) == 29 or not response.truncated


def test_features_that_were_made_once_are_used_by_rollout_and_update(vlm, groups):
    model = vlm[0]
    group = groups[0]
    group.prompt.features = image_features(model, [group.prompt])[0]
    calls = []
    handle = model.model.vision_tower.register_forward_hook(lambda *a: calls.append(1))
    (responses,) = sample(vlm, [group], 2, 8)
    group.rows = [Row(r.token_ids, w) for r, w in zip(responses, (1.0, -1.0))]
    update(model, [group], 4, parse([]))
    handle.remove()
    assert not calls
    assert gradients(model)["model.multi_modal_projector.linear_1.weight"].any()


# ---- the tiny model and the command line --------------------------------------------------------


def test_any_text_goes_through_the_tiny_tokenizer_unchanged(vlm):
    tokenizer = get_tokenizer(vlm[1])
    text = "Grüße — 12,345.6 %\n\n\tcharts? Answer: [Yes, \ufffd]\U0001f600  red 3"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    words = charts.load_charts("train")[0].trace
    assert len(tokenizer(words)["input_ids"]) < len(words) / 2


BAD = "--num_generations 1|--temperature 0|--temperature inf|--learning_rate -1|--seed -1"
BAD += "|--micro_batch_prompts 0|--reward_weights 0 0 0|--reward_weights 1 2|--lerning_rate 1"
# no prefix of a flag is one; in sft nothing is sampled; curr_reft is a program of its own
BAD += "|--over|--loss_type dapo --method sft|--method curr_reft"


@pytest.mark.parametrize("argv", BAD.split("|"))
def test_flags_that_cannot_be_are_an_error_of_one_line(argv):
    with pytest.raises(InputError, match=argv.split()[0]) as error:
        parse(argv.split())
    assert "\n" not in str(error.value)
