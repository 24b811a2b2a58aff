"""Train the quickstart's base model from nothing: a tiny Llama that knows chained arithmetic.

It has also read stories in every wording, but solved problems in half of the wordings only; fine-tuning teaches the
other half. Run: python recipes/quickstart/make_base.py [--out DIR].
"""

import argparse
import json
import math
import platform
import random
import re
import time
from pathlib import Path

import torch
import transformers
from make_data import EVENTS, NAMES, OBJECTS, OPENERS, PLACES, QUESTIONS, Chain, draw_chain, tell
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 7
STEPS, BATCH, LENGTH = 4000, 16, 128
LEARNING_RATE, WARMUP = 2e-3, 100
HELD_OUT = 500
SHARES = {"chain": 0.45, "story": 0.1, "problem": 0.45}
FAMILIAR = {sign: texts[: (len(texts) + 1) // 2] for sign, texts in EVENTS.items()}
# A word keeps the space before it, so that decoding gives back the text exactly; a number does not, so that it is the
# same token in a story and in a calculation.
TOKEN = r" ?[A-Za-z]+|[0-9]+|####|[^A-Za-z0-9]"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer that covers every worded problem and the numbers up to 99."""
    texts = [*OPENERS, *QUESTIONS, *(text for texts in EVENTS.values() for text in texts)]
    words = {*NAMES, *OBJECTS, *PLACES, *re.findall(r"[A-Za-z]+", re.sub(r"\{\w+\}", "", " ".join(texts)))}
    numbers = [str(number) for number in range(100)]
    spaced = (f" {word}" for word in sorted(words))
    pieces = ["<pad>", "<eos>", "<unk>", *sorted(words), *spaced, *numbers, *" \n.,?+-*=;", "####"]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=256
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a freshly initialised model."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def draw_document(rng: random.Random) -> tuple[Chain | None, str]:
    """Draw a bare chain, a story without question and answer, or a solved problem in a familiar wording."""
    chain = draw_chain(rng)
    kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
    if kind == "chain":
        return chain, f"{chain.expression}=?{chain.answer}<eos>"
    if kind == "story":
        return None, tell(chain, rng)[0] + "<eos>"
    return None, " ".join(tell(chain, rng, FAMILIAR)) + chain.answer + "<eos>"


def draw_row(tokenizer: PreTrainedTokenizerFast, rng: random.Random, held_out: set[Chain]) -> list[int]:
    """Concatenate documents into one row, so that arithmetic is met at every position."""
    row: list[int] = []
    while len(row) < LENGTH:
        chain, text = draw_document(rng)
        if chain not in held_out:
            row += tokenizer(text)["input_ids"]
    return row[:LENGTH]


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, held_out: set[Chain]) -> list[float]:
    """Train with a warmed-up cosine schedule and return the loss of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
    )
    rng = random.Random(SEED)
    losses = []
    for step in range(STEPS):
        rows = torch.tensor([draw_row(tokenizer, rng, held_out) for _ in range(BATCH)])
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % (STEPS // 10) == 0:
            print(f"step {step} loss {loss.item():.4f}", flush=True)
    return losses


@torch.no_grad()
def score(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, chains: list[Chain]) -> float:
    """Return the share of the chains that greedy decoding answers exactly, steps included."""
    tokenizer.padding_side = "left"
    texts = [f"{chain.expression}=?" for chain in chains]
    prompts = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**prompts, max_new_tokens=40, do_sample=False)
    answers = tokenizer.batch_decode(output[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(answer == chain.answer for answer, chain in zip(answers, chains, strict=True)) / len(chains)


def main() -> None:
    """Train, save in bfloat16, score what was saved, and write the record beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "base")
    out: Path = parser.parse_args().out
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # sums depend on the number of threads
    started = time.perf_counter()
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    rng = random.Random(SEED + 1)
    held_out = [draw_chain(rng) for _ in range(HELD_OUT)]
    losses = train(model, tokenizer, set(held_out))
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    libraries = {"torch": torch.__version__, "transformers": transformers.__version__}
    settings = {"seed": SEED, "steps": STEPS, "batch_size": BATCH, "row_tokens": LENGTH, "learning_rate": LEARNING_RATE}
    record = {
        **settings,
        "document_shares": SHARES,
        "loss_curve": {step: round(losses[step], 4) for step in range(0, STEPS, STEPS // 10)},
        "final_loss": round(sum(losses[-50:]) / 50, 4),
        "chained_arithmetic_accuracy": score(LlamaForCausalLM.from_pretrained(out), tokenizer, held_out),
        "parameters": model.num_parameters(),
        "versions": {**libraries, "python": platform.python_version()},
        "wall_seconds": round(time.perf_counter() - started, 1),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    (out / "base_record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
