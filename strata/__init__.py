"""Sparse autoencoders from activations to named latents: train, judge, look, cluster, merge, steer, invert.

    import strata

    lm = strata.load_lm("gpt2")
    acts = strata.activations(lm, texts, layers=[6], context=128)
    sae = strata.train(acts[6], rule="topk", latents=4096, k=32)
    latents = strata.latents(sae, acts[6])

What is named here is loaded when it is first used, so that `import strata` takes no time.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strata.front import plots as plots
    from strata.front import similarity as similarity
    from strata.front.activations import LayerActivations as LayerActivations
    from strata.front.activations import activations as activations
    from strata.front.comparing import Compared as Compared
    from strata.front.comparing import compare as compare
    from strata.front.families import Families as Families
    from strata.front.families import Merged as Merged
    from strata.front.families import cluster as cluster
    from strata.front.families import merge as merge
    from strata.front.files import load as load
    from strata.front.files import save as save
    from strata.front.latents import Latents as Latents
    from strata.front.latents import explain as explain
    from strata.front.latents import latents as latents
    from strata.front.lm import load_lm as load_lm
    from strata.front.own import store as store
    from strata.front.profiles import Profiles as Profiles
    from strata.front.profiles import profiles as profiles
    from strata.front.prompts import Inverted as Inverted
    from strata.front.prompts import invert as invert
    from strata.front.settings import knobs as knobs
    from strata.front.stability import stability as stability
    from strata.front.steering import steer as steer
    from strata.front.texts import Split as Split
    from strata.front.texts import documents as documents
    from strata.front.texts import split as split
    from strata.front.texts import texts as texts
    from strata.front.training import Fitted as Fitted
    from strata.front.training import train as train
    from strata.notebook import Vectors as Vectors
    from strata.notebook import encode_texts as encode_texts
    from strata.notebook import from_database as from_database
    from strata.run.door import BadInput as BadInput
    from strata.sae.sae import SAE as SAE
    from strata.steering.steer import Add as Add
    from strata.steering.steer import Scale as Scale
    from strata.steering.steer import Set as Set

HOMES = {
    "load_lm": "front.lm",
    "texts": "front.texts",
    "documents": "front.texts",
    "split": "front.texts",
    "Split": "front.texts",
    "activations": "front.activations",
    "LayerActivations": "front.activations",
    "store": "front.own",
    "train": "front.training",
    "Fitted": "front.training",
    "compare": "front.comparing",
    "Compared": "front.comparing",
    "latents": "front.latents",
    "Latents": "front.latents",
    "explain": "front.latents",
    "profiles": "front.profiles",
    "Profiles": "front.profiles",
    "cluster": "front.families",
    "merge": "front.families",
    "Families": "front.families",
    "Merged": "front.families",
    "stability": "front.stability",
    "steer": "front.steering",
    "Set": "steering.steer",
    "Scale": "steering.steer",
    "Add": "steering.steer",
    "knobs": "front.settings",
    "invert": "front.prompts",
    "Inverted": "front.prompts",
    "save": "front.files",
    "load": "front.files",
    "encode_texts": "notebook",
    "from_database": "notebook",
    "Vectors": "notebook",
    "SAE": "sae.sae",
    "BadInput": "run.door",
}
ROOMS = ("plots", "similarity")  # modules of strata/front, each with several calls
__all__ = sorted([*HOMES, *ROOMS])  # pyright: ignore[reportUnsupportedDunderAll]

try:
    __version__ = version("strata-sae")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0"


def __getattr__(name: str) -> Any:
    if name in ROOMS:
        return import_module(f"strata.front.{name}")
    if name not in HOMES:
        raise AttributeError(f"module 'strata' has no attribute {name!r}")
    return getattr(import_module(f"strata.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
