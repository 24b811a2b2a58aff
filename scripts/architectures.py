"""Merge tiny models of many architectures by the stock command and by ours, and write what came out to the docs.

    python scripts/architectures.py            # benchmarks/results/architectures.json and docs/architectures.md

Of each architecture a base model and two sub-models are made, in which half of the values of every tensor differ from
the base model's. "Whole" is a merge in which every tensor of the sub-models is there, or is a tied copy there, and
every value is one of theirs.
"""

import functools
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file

from ordermerge.commands.merging import merge
from ordermerge.errors import UserError
from ordermerge.files import write_json, write_text
from ordermerge.merge_methods.recipe_check.coverage import same_tied
from ordermerge.merge_methods.tied import find_ties

ROOT = Path(__file__).resolve().parents[1]
RESULT, PAGE = ROOT / "benchmarks" / "results" / "architectures.json", ROOT / "docs" / "architectures.md"
TEXT: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
MOE = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
          "image_size": 28, "patch_size": 14}  # fmt: skip
ENCODER = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
           "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 1}  # fmt: skip
SEQ2SEQ = {"vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
           "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
           "max_position_embeddings": 64, "pad_token_id": 1}  # fmt: skip
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}


def _text(name: str, **more: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, f"{name}Config")(**{**TEXT, **more})


def _vision_language() -> dict[str, tuple[str, Callable[[], Any]]]:
    t = transformers
    mrope = {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    ids = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
    plain = {key: value for key, value in TEXT.items() if "token" not in key}
    qwen = {"depth": 2, "num_heads": 4, "hidden_size": 32, "patch_size": 14, "out_hidden_size": 32}
    return {
        "LLaVA": ("LlavaForConditionalGeneration", lambda: t.LlavaConfig(
            text_config=t.LlamaConfig(**TEXT), vision_config=t.CLIPVisionConfig(**VISION), image_token_index=60)),
        "PaliGemma": ("PaliGemmaForConditionalGeneration", lambda: t.PaliGemmaConfig(
            text_config=t.GemmaConfig(**TEXT, head_dim=8), vision_config=t.SiglipVisionConfig(**VISION),
            projection_dim=32, image_token_index=60)),
        "Qwen2-VL": ("Qwen2VLForConditionalGeneration", lambda: t.Qwen2VLConfig(
            text_config={**plain, **mrope}, **ids,
            vision_config={"embed_dim": 32, "depth": 2, "num_heads": 4, "hidden_size": 32, "patch_size": 14})),
        "Qwen2.5-VL": ("Qwen2_5_VLForConditionalGeneration", lambda: t.Qwen2_5_VLConfig(
            text_config={**plain, **mrope}, **ids, vision_config={**qwen, "intermediate_size": 48})),
        "Gemma 3 (vision)": ("Gemma3ForConditionalGeneration", lambda: t.Gemma3Config(
            text_config=t.Gemma3TextConfig(**TEXT, head_dim=8), vision_config=t.SiglipVisionConfig(**VISION),
            mm_tokens_per_image=4, image_token_index=60)),
        "Idefics 3": ("Idefics3ForConditionalGeneration", lambda: t.Idefics3Config(
            text_config=t.LlamaConfig(**TEXT), scale_factor=1, image_token_id=60,
            vision_config={**VISION, "model_type": "idefics3_vision"})),
        "CLIP": ("CLIPModel", lambda: t.CLIPConfig(
            text_config={**ENCODER, "projection_dim": 16, "eos_token_id": 3, "bos_token_id": 2},
            vision_config={**VISION, "projection_dim": 16}, projection_dim=16)),
        "BLIP-2": ("Blip2ForConditionalGeneration", lambda: t.Blip2Config(
            vision_config=VISION, qformer_config={**ENCODER, "encoder_hidden_size": 32},
            text_config={"model_type": "opt", **ENCODER, "ffn_dim": 48, "word_embed_proj_dim": 32},
            num_query_tokens=4)),
    }  # fmt: skip


def architectures() -> dict[str, tuple[str, str, Callable[[], Any]]]:
    """Return name, kind, class of transformers and configuration of every architecture tried."""
    t = transformers
    dense = {
        "Llama": _text("Llama", tie_word_embeddings=False),
        "Llama, tied": _text("Llama", tie_word_embeddings=True),
        "Llama with biases": _text("Llama", attention_bias=True, mlp_bias=True),
        "Mistral": _text("Mistral"), "Qwen2": _text("Qwen2"), "Qwen2, tied": _text("Qwen2", tie_word_embeddings=True),
        "Qwen3": _text("Qwen3", head_dim=8), "Gemma": _text("Gemma", head_dim=8),
        "Gemma 2": _text("Gemma2", head_dim=8), "Gemma 3 (text)": _text("Gemma3Text", head_dim=8),
        "Phi": _text("Phi"), "Phi-3": _text("Phi3"), "OLMo 2": _text("Olmo2"), "Granite": _text("Granite"),
        "Cohere": _text("Cohere"), "StableLM": _text("StableLm"), "Starcoder 2": _text("Starcoder2"),
        "SmolLM3": _text("SmolLM3"), "EXAONE 4": _text("Exaone4"), "GLM-4": _text("Glm4", head_dim=8),
        "Nemotron": _text("Nemotron"), "GPT-NeoX (Pythia)": _text("GPTNeoX"), "Helium": _text("Helium", head_dim=8),
        "GPT-2": lambda: t.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64),
        "GPT-J": lambda: t.GPTJConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4),
        "OPT": lambda: t.OPTConfig(**ENCODER, ffn_dim=48, word_embed_proj_dim=32),
        "BLOOM": lambda: t.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
        "Falcon": lambda: t.FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
        "MPT": lambda: t.MptConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
    }  # fmt: skip
    mixed = {
        "Mixtral": _text("Mixtral", num_local_experts=4),
        "Qwen2-MoE": _text("Qwen2Moe", **MOE, shared_expert_intermediate_size=16),
        "Qwen3-MoE": _text("Qwen3Moe", **MOE, head_dim=8),
        "OLMoE": _text("Olmoe", num_experts=4, num_experts_per_tok=2),
        "Granite-MoE": _text("GraniteMoe", num_local_experts=4),
        "DeepSeek V2": _text(
            "DeepseekV2", n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_shared_experts=1,
            first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4,
            v_head_dim=8, n_group=1, topk_group=1, num_key_value_heads=4),
        "DeepSeek V3": _text(
            "DeepseekV3", n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_shared_experts=1,
            first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4,
            v_head_dim=8, n_group=1, topk_group=1, num_key_value_heads=4),
        "GPT-OSS": _text("GptOss", num_local_experts=4, num_experts_per_tok=2, head_dim=8),
        "GLM-4-MoE": _text("Glm4Moe", n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
                           n_shared_experts=1, first_k_dense_replace=1, n_group=1, topk_group=1, head_dim=8),
    }  # fmt: skip
    states = {
        "Mamba": lambda: t.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4),
        "Mamba 2": lambda: t.Mamba2Config(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4,
                                          num_heads=8, head_dim=8, n_groups=1, chunk_size=8),
        "RWKV": lambda: t.RwkvConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, context_length=64),
        "RecurrentGemma": lambda: t.RecurrentGemmaConfig(**{**TEXT, "num_hidden_layers": 3}, lru_width=32),
        "Falcon-H1": _text("FalconH1", mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=4,
                           mamba_n_groups=1, mamba_chunk_size=8),
        "Jamba": _text("Jamba", num_experts=2, num_experts_per_tok=1, attn_layer_period=2, attn_layer_offset=1,
                       mamba_d_state=4, mamba_dt_rank=4, use_mamba_kernels=False),
        "Bamba": _text("Bamba", mamba_n_heads=8, mamba_d_head=8, mamba_d_state=4, mamba_n_groups=1,
                       attn_layer_indices=[1]),
        "Zamba2": _text("Zamba2", mamba_d_state=4, mamba_headdim=8, n_mamba_heads=8, mamba_ngroups=1, num_mem_blocks=1,
                        attention_head_dim=16, layers_block_type=["mamba", "hybrid"], kv_channels=8),
        "LFM2": _text("Lfm2", layer_types=["conv", "full_attention"], block_multiple_of=8),
        "Qwen3-Next": _text("Qwen3Next", **MOE, head_dim=8, shared_expert_intermediate_size=16,
                            layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2,
                            linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8),
    }  # fmt: skip
    others = {
        "T5": ("encoder-decoder", "T5ForConditionalGeneration", lambda: t.T5Config(**T5)),
        "Flan-T5 (untied)": ("encoder-decoder", "T5ForConditionalGeneration", lambda: t.T5Config(
            **T5, tie_word_embeddings=False, feed_forward_proj="gated-gelu")),
        "BART": ("encoder-decoder", "BartForConditionalGeneration", lambda: t.BartConfig(**SEQ2SEQ)),
        "Pegasus": ("encoder-decoder", "PegasusForConditionalGeneration", lambda: t.PegasusConfig(**SEQ2SEQ)),
        "Marian": ("encoder-decoder", "MarianMTModel", lambda: t.MarianConfig(
            **{**SEQ2SEQ, "decoder_start_token_id": 0}, decoder_vocab_size=64)),
        "BERT": ("masked language model", "BertForMaskedLM", lambda: t.BertConfig(**ENCODER)),
        "RoBERTa": ("masked language model", "RobertaForMaskedLM", lambda: t.RobertaConfig(**ENCODER)),
        "ModernBERT": ("masked language model", "ModernBertForMaskedLM", lambda: t.ModernBertConfig(**ENCODER)),
        "BERT classifier": ("classifier", "BertForSequenceClassification", lambda: t.BertConfig(**ENCODER)),
        "DeBERTa v2 classifier": ("classifier", "DebertaV2ForSequenceClassification",
                                  lambda: t.DebertaV2Config(**ENCODER)),
        "DistilBERT classifier": ("classifier", "DistilBertForSequenceClassification", lambda: t.DistilBertConfig(
            vocab_size=64, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=64)),
        "Llama classifier": ("classifier", "LlamaForSequenceClassification", _text("Llama", num_labels=3)),
        "Qwen2 token classifier": ("classifier", "Qwen2ForTokenClassification", _text("Qwen2", num_labels=3)),
        "ViT": ("image classifier", "ViTForImageClassification", lambda: t.ViTConfig(**VISION)),
        "ConvNeXt": ("image classifier", "ConvNextForImageClassification", lambda: t.ConvNextConfig(
            hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])),
        "ResNet": ("image classifier", "ResNetForImageClassification", lambda: t.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")),
        "Whisper": ("audio", "WhisperForConditionalGeneration", lambda: t.WhisperConfig(
            **{k: v for k, v in SEQ2SEQ.items() if k != "max_position_embeddings"}, num_mel_bins=8,
            max_source_positions=16, max_target_positions=16, decoder_start_token_id=2)),
        "wav2vec 2.0": ("audio", "Wav2Vec2ForCTC", lambda: t.Wav2Vec2Config(
            vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            conv_dim=(8, 8), conv_stride=(2, 2), conv_kernel=(3, 3), num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2)),
    }  # fmt: skip
    causal: dict[str, tuple[str, str, Callable[[], Any]]] = {}
    for kind, group in (("dense", dense), ("mixture of experts", mixed), ("state-space or hybrid", states)):
        causal |= {name: (kind, "AutoModelForCausalLM", make) for name, make in group.items()}
    seeing = {name: ("vision-language", *rest) for name, rest in _vision_language().items()}
    return {**causal, **seeing, **others}


def main() -> None:
    """Try them all."""
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    rows = []
    for name, (kind, cls, config) in architectures().items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"name": name, "kind": kind, **_try(Path(folder), cls, config)})
        print(f"{name}: stock: {rows[-1]['stock']}; ours: {rows[-1]['ours']}", flush=True)
    versions = {package: metadata.version(package) for package in ("mergekit", "transformers", "torch")}
    write_json(RESULT, {"versions": versions, "rows": rows})
    write_text(PAGE, page(rows, versions))


def _try(root: Path, cls: str, config: Callable[[], Any]) -> dict[str, Any]:
    family, architecture = _family(root, cls, config)
    recipe = root / "r.yml"
    content = {
        "merge_method": "parameter_selection_resample",
        "base_model": str(family[0]),
        "models": [{"model": str(sub)} for sub in family[1:]],
        "dtype": "float32",
    }
    recipe.write_text(yaml.safe_dump(content))
    row = {"architecture": architecture, "tensors": len(_tensors(family[1]))}
    row["stock"] = _outcome(family, root / "stock", architecture, lambda out: _stock(content, out))
    for way, by_name in (("table", False), ("by name", True)):
        options = MergeOptions(quiet=True)
        make = functools.partial(merge, recipe, options=options, by_name=by_name)
        row["ours"] = _outcome(family, root / way, architecture, make)
        row["way"] = way
        if row["ours"] == "whole":
            break
    return row


def _stock(content: dict[str, Any], out: Path) -> None:
    LoaderCache.loaders.clear()
    run_merge(MergeConfiguration.model_validate(content), str(out), MergeOptions(quiet=True))


def _outcome(family: list[Path], out: Path, architecture: str, make: Callable[[Path], object]) -> str:
    try:
        make(out)
    except UserError as error:
        return f"refused: {error.problems[0].replace(str(family[0].parent) + '/', '')}"
    except Exception as error:
        text = " ".join(str(error).split()).replace(f"{family[0].parent}/", "")
        return f"error: {text[:60]} ... {text[-60:]}" if len(text) > 130 else f"error: {text}"
    lost, strange = _lost(family, out, architecture)
    return f"loses {lost} tensors" if lost else f"changes {strange} tensors" if strange else "whole"


def _lost(family: list[Path], out: Path, architecture: str) -> tuple[int, int]:
    """Return how many tensors of the sub-models a merged model lacks, and how many have values that are none of theirs.

    Both as transformers loads the models; and tensors that it does not load count as lost where they are not there.
    """
    cls = getattr(transformers, architecture)
    (first, _), (second, _), (made, missing) = (_loaded(cls, folder) for folder in (*family[1:], out))
    strange = [name for name in first if not ((made[name] == first[name]) | (made[name] == second[name])).all()]
    stored, written = _tensors(family[1]), _tensors(out)
    ties = find_ties(transformers.AutoConfig.from_pretrained(family[0]))
    unread = [n for n in stored if n not in written and not any(same_tied(n, other, ties) for other in written)]
    converted = sum(value.numel() for value in stored.values()) <= sum(value.numel() for value in written.values())
    lost = missing if converted else max(missing, len(unread))
    return lost, len(strange)


def _loaded(cls: Any, folder: Path) -> tuple[dict[str, torch.Tensor], int]:
    torch.manual_seed(7)
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    return model.state_dict(), len(info["missing_keys"])


def _family(root: Path, cls: str, config: Callable[[], Any]) -> tuple[list[Path], str]:
    torch.manual_seed(0)
    made = config()
    model = getattr(transformers, cls)
    model = model.from_config(made) if cls.startswith("Auto") else model(made)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.to(torch.float32).save_pretrained(root / "base")
    for index in range(2):
        generator = torch.Generator().manual_seed(index)
        shutil.copytree(root / "base", root / f"sub{index}")
        tensors = _tensors(root / "base")
        for name, value in tensors.items():
            if value.is_floating_point():
                changed = torch.rand(value.shape, generator=generator) < 0.5
                tensors[name] = torch.where(
                    changed, value + 0.02 * torch.randn(value.shape, generator=generator), value
                )
        save_file(tensors, root / f"sub{index}" / "model.safetensors", {"format": "pt"})
    return [root / name for name in ("base", "sub0", "sub1")], type(model).__name__


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def page(rows: list[dict[str, Any]], versions: dict[str, str]) -> str:
    """Return the table as Markdown."""
    whole = sum(row["ours"] == "whole" for row in rows)
    stock = sum(row["stock"] == "whole" for row in rows)
    lost = sum(row["stock"].startswith(("loses", "changes")) for row in rows)
    lines = [
        "# Architectures",
        "",
        f"Tiny models of {len(rows)} architectures, merged by `mergekit-yaml` and by `ordermerge merge` "
        f"({', '.join(f'{name} {version}' for name, version in versions.items())}). `python scripts/architectures.py` "
        f"makes this page.",
        "",
        f"Whole, that is, with every tensor of the sub-models or a tied copy of it, as transformers loads it: {stock} "
        f"by the stock command, {whole} by ours. The stock command ends well and loses tensors in {lost}; ours refuses "
        f"those before anything is read, and merges them with `--by-name`.",
        "",
        "| model | kind | class | tensors | `mergekit-yaml` | `ordermerge merge` |",
        "|---|---|---|--:|---|---|",
    ]
    for row in rows:
        ours = f"whole{', `--by-name`' if row['way'] == 'by name' else ''}" if row["ours"] == "whole" else row["ours"]
        cells = (row["name"], row["kind"], f"`{row['architecture']}`", row["tensors"], _cell(row["stock"]), _cell(ours))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()
