"""Make the sparsity rule that the section train names."""

from strata.training.knobs import Train
from strata.training.rules.base import Rule
from strata.training.rules.jumprelu import JumpReLU, Reward
from strata.training.rules.relu import Gated, ReLU
from strata.training.rules.topk import BatchTopK, Matryoshka, TopK


def make_rule(knobs: Train) -> Rule:
    """Return a new rule of the kind ``knobs.rule``, with its own knobs."""
    k, latents = knobs.k, knobs.latents
    match knobs.rule:
        case "topk":
            return TopK(k)
        case "batchtopk":
            return BatchTopK(k)
        case "matryoshka":
            return Matryoshka(k, [round(share * latents) for share in knobs.groups])
        case "jumprelu":
            return JumpReLU(k, latents, knobs.bandwidth, knobs.l0_coefficient)
        case "relu":
            return ReLU(k, knobs.l1_coefficient, knobs.l1_warmup, knobs.l1_delay, kl=knobs.penalty == "kl")
        case "gated":
            return Gated(k, latents, knobs.l1_coefficient, knobs.l1_warmup, knobs.l1_delay)
        case "reward":
            return Reward(k, latents, knobs.bandwidth, knobs.activity_cost, knobs.diversity)
