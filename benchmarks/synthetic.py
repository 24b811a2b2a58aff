"""Made-up models of any size for the benchmarks: tensors in memory, checkpoints on disk, sparse files."""

import json
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

TOKENIZER = Path(__file__).parents[1] / "recipes" / "quickstart" / "base"
MATRIX = (2048, 5632)
MATRICES = ((1024, 1024), (1024, 2816), MATRIX, (4096, 11008))  # as in models of 0.3 (two of them), 1 and 7 billion
_SCALE = 0.02
_NOISE = 0.002  # large enough that no change rounds away in bfloat16
_UNCHANGED_BELOW = 0.2533471  # a standard normal number lies within this of 0 with probability 0.2


@dataclass(frozen=True)
class LlamaShape:
    """The fields of a Llama config that decide how many parameters it has."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int = 32000

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor of the checkpoint, by name."""
        hidden, inner = self.hidden_size, self.intermediate_size
        narrow = hidden // self.num_attention_heads * self.num_key_value_heads
        layer: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (narrow, hidden),
            "self_attn.v_proj": (narrow, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for index in range(self.num_hidden_layers):
            shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
        return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (self.vocab_size, hidden)}

    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensors().values())


LLAMA_2 = {"7b": LlamaShape(4096, 11008, 32, 32, 32), "70b": LlamaShape(8192, 28672, 80, 64, 8)}
TINY = LlamaShape(64, 176, 1, 1, 1, vocab_size=256)


def shape_near(parameters: int) -> LlamaShape:
    """Return a Llama shape of about that many parameters, of 12 layers or a few more or less."""
    fitting = [width for width in (64, 128, 256, 512, 1024, 2048, 4096, 8192) if 150 * width**2 <= parameters]
    hidden = max(fitting, default=64)
    heads = max(1, hidden // 64)
    sizes = [LlamaShape(hidden, hidden * 11 // 4, layers, heads, heads).parameters() for layers in (1, 2)]
    layers = max(1, 1 + round((parameters - sizes[0]) / (sizes[1] - sizes[0])))
    return LlamaShape(hidden, hidden * 11 // 4, layers, heads, heads)


def make_tensors(shapes: Iterable[tuple[int, ...]], dtype: torch.dtype) -> list[torch.Tensor]:
    """Return the base model's tensors: seeded normal numbers."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).mul_(_SCALE).to(dtype) for shape in shapes]


def change(base: Iterable[torch.Tensor], seed: int) -> Iterator[torch.Tensor]:
    """Yield a sub-model's tensors: the base's with noise on 80 % of the values."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in base:
        noise = torch.randn(tensor.shape, generator=generator)
        noise.mul_(noise.abs().ge_(_UNCHANGED_BELOW)).mul_(_NOISE)
        yield noise.add_(tensor).to(tensor.dtype)


def write_checkpoints(folder: Path, shape: LlamaShape, models: int, dtype: torch.dtype) -> None:
    """Write `base` and `model_0` onwards below `folder`, or find them there from an earlier run."""
    names = list(shape.tensors())
    base = None
    for index in range(-1, models):
        checkpoint = folder / ("base" if index < 0 else f"model_{index}")
        if (checkpoint / "config.json").exists():  # written last
            continue
        base = base or make_tensors(shape.tensors().values(), dtype)
        tensors = base if index < 0 else list(change(base, index + 1))
        checkpoint.mkdir(parents=True, exist_ok=True)
        save_file(dict(zip(names, tensors, strict=True)), checkpoint / "model.safetensors", metadata={"format": "pt"})
        _write_config(checkpoint, shape, dtype)


def write_sparse_checkpoint(folder: Path, shape: LlamaShape) -> int:
    """Write a bfloat16 checkpoint whose values are all zero and take no disk; return its size in bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dimensions in shape.tensors().items():
        start, end = end, end + 2 * math.prod(dimensions)
        header[name] = {"dtype": "BF16", "shape": dimensions, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(file.tell() + end)
    _write_config(folder, shape, torch.bfloat16)
    return end


def _write_config(folder: Path, shape: LlamaShape, dtype: torch.dtype) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(config | asdict(shape), indent=2), encoding="utf-8")


def write_base(folder: Path, hidden: int, layers: int) -> None:
    """Write a Llama of random weights to be trained, with the quickstart's tokenizer.

    Args:
        folder: The folder to make.
        hidden: Its hidden size, a multiple of 64.
        layers: Its layers.
    """
    import transformers  # takes seconds, and most benchmarks need no model

    tokenizer = transformers.AutoTokenizer.from_pretrained(TOKENIZER)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
