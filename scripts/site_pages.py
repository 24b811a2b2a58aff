"""Hook of mkdocs: the repository's own pages at their own places, what they link to, and pages of the docstrings."""

import re
import tempfile
from pathlib import Path

from check_types import link_package
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("docs", "recipes", "studies", "benchmarks", "eval/task_pack")
# Module docstrings and public functions, a page for each folder.
PACKAGES = ("merge_methods", "train", "eval", "eval/comparison", "eval/imbalance", "eval/inspect", "eval/scoring")
SOURCE = tempfile.TemporaryDirectory(prefix="ordermerge-site-")  # holds the package while docstrings are read
LINK = re.compile(r"\]\(([^)#\s:]+)")


@event_priority(100)  # before mkdocstrings reads its configuration
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of the docstrings to the reference, and say where their source is."""
    if not any(Path(SOURCE.name).iterdir()):
        link_package(Path(SOURCE.name))
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [SOURCE.name]
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    reference.append({"In Python": [{_module(package): _page(package)} for package in PACKAGES]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by all pages, under their paths in the repository, and the files that they link to."""
    pages = {*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.md"))}
    linked = {
        (page.parent / target).resolve() for page in pages for target in LINK.findall(page.read_text(encoding="utf-8"))
    }
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    style = {ROOT / path for path in config.extra_css}
    for path in sorted(path for path in pages | linked | style if path.is_file()):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for package in PACKAGES:
        files.append(File.generated(config, _page(package), content=_docstrings(package)))
    return files


def _docstrings(package: str) -> str:
    names = [path.stem for path in sorted((ROOT / package).glob("*.py")) if not path.stem.startswith("_")]
    return "\n\n".join([f"# {_module(package)}", *(f"::: {_module(package)}.{name}" for name in names)])


def _module(package: str) -> str:
    return "ordermerge." + package.replace("/", ".")


def _page(package: str) -> str:
    return f"docs/api/{package.replace('/', '_')}.md"
