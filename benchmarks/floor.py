"""The least that a merge can do: read every input file once, and write as many bytes as the last one has.

python -IS benchmarks/floor.py INPUT... OUTPUT     # a process that loads nothing else
"""

import sys


def read_and_write(inputs: list[str], output: str) -> None:
    """Read every file, in pieces that stay in the processor's cache, and write the last one's bytes.

    Args:
        inputs: Paths of the files.
        output: Where to write.
    """
    buffer = memoryview(bytearray(1 << 20))
    with open(output, "wb", 0) as sink:
        for place, name in enumerate(inputs, start=1):
            with open(name, "rb", 0) as source:
                while size := source.readinto(buffer):
                    if place == len(inputs):
                        sink.write(buffer[:size])


if __name__ == "__main__":
    *inputs, output = sys.argv[1:]
    read_and_write(inputs, output)
