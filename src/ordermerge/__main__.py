"""Run the command line as `python -m ordermerge` (for `accelerate launch -m ordermerge train ...`)."""

from ordermerge.cli import main

if __name__ == "__main__":
    main()
