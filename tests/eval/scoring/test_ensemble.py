"""An ensemble: the mean of several models' probabilities, for likelihoods and for generation with caches."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ordermerge.eval.scoring.ensemble import combine

TEXTS = torch.tensor([[5, 9, 12, 30, 7, 7, 21], [3, 4, 5, 6, 7, 8, 9]])


@pytest.fixture
def models(family: list[Path]) -> list[PreTrainedModel]:
    return [AutoModelForCausalLM.from_pretrained(path).eval() for path in family]


def probabilities(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(TEXTS).logits.softmax(dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_ensemble_of_copies_is_the_model(models: list[PreTrainedModel], dtype: torch.dtype) -> None:
    model = models[0].to(dtype)
    alone = model(TEXTS).logits.detach()
    together = combine([model, *(copy.deepcopy(model) for _ in range(2))])(TEXTS).logits.detach()
    assert together.dtype == dtype
    assert torch.allclose(together, alone, rtol=0, atol=1e-6 * float(alone.abs().max()))
    assert dtype == torch.float32 or torch.equal(together, alone)


def test_an_ensemble_gives_the_mean_of_the_probabilities(models: list[PreTrainedModel]) -> None:
    expected = torch.stack([probabilities(model) for model in models]).mean(dim=0)
    together = combine(models)
    assert together is models[0]
    assert torch.allclose(probabilities(together), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_greedy_generation_follows_the_mean_with_caches_as_without(
    make_family: Callable[..., list[Path]], kind: str
) -> None:
    paths = make_family(kind, count=2, dtype=torch.float32)
    together = combine([AutoModelForCausalLM.from_pretrained(path).eval() for path in paths])
    alone = [AutoModelForCausalLM.from_pretrained(path).eval() for path in paths]
    padded = torch.cat([torch.zeros_like(TEXTS[:, :2]), TEXTS], dim=1)
    mask = (torch.arange(9) >= torch.tensor([[2], [0]])).long()  # the first text is padded on the left
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    found = together.generate(padded, use_cache=True, **options)
    assert torch.equal(found, together.generate(padded, use_cache=False, **options))
    for text, made in ((TEXTS[:1], found[:1, 2:]), (padded[1:], found[1:])):  # step by step, from the definition
        for _ in range(6):
            with torch.no_grad():
                mean = sum(model(text).logits[:, -1].softmax(dim=-1) for model in alone)
            text = torch.cat([text, mean.argmax(dim=-1, keepdim=True)], dim=1)
        assert torch.equal(text, made)


def test_beam_search_reorders_the_caches_of_all(models: list[PreTrainedModel]) -> None:
    options = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    together = combine(models)
    found = together.generate(TEXTS, use_cache=True, **options)
    assert torch.equal(found, together.generate(TEXTS, use_cache=False, **options))


def test_adapters_are_combined_with_their_base_models(family: list[Path], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = []
    for seed in range(2):
        torch.manual_seed(seed)
        config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        adapted.append(get_peft_model(AutoModelForCausalLM.from_pretrained(family[0]), config).eval())
    expected = torch.stack([probabilities(model) for model in adapted]).mean(dim=0)
    assert torch.allclose(probabilities(combine(adapted)), expected, rtol=0, atol=1e-6)
