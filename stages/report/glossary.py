"""Say what each metric means, in one sentence for a reader who does not know it yet, and which way is better."""

from typing import NamedTuple

from strata.verdict.targets import METRICS


class Entry(NamedTuple):
    """``better`` is an arrow: down, up, or empty where neither is better by itself."""

    better: str
    meaning: str


GLOSSARY = {
    "mse": Entry("↓", "mean squared error an element, on activations scaled so that the mean of ‖x‖² is their width"),
    "fvu": Entry("↓", "fraction of the variance that the reconstruction misses, over all rows"),
    "fvu_inlier": Entry("↓", "the same without outlier rows, which would flatter it: they hold much of the variance"),
    "cosine": Entry("↑", "mean cosine between an activation and its reconstruction"),
    "l0": Entry("", "mean number of active latents a token; fewer are easier to read, more reconstruct better"),
    "dead": Entry("↓", "share of latents that never fire in one pass over all of the layer's tokens"),
    "delta_ce": Entry("↓", "how much worse the model predicts the next token through the SAE: ce_sae − ce_clean, nats"),
    "kl": Entry("↓", "divergence of its next-token predictions through the SAE from those without, in nats"),
    "ce_recovered": Entry("↑", "share of the loss from zeroing the layer that the SAE wins back"),
    "ce_recovered_mean": Entry("↑", "the same, against replacing the layer by its mean activation"),
    "ce_clean": Entry("", "the model's own cross-entropy on the test text, in nats"),
    "ce_sae": Entry("↓", "its cross-entropy with the reconstruction in place of the layer"),
    "ce_zero": Entry("", "its cross-entropy with zeros in place of the layer"),
    "ce_mean": Entry("", "its cross-entropy with the mean activation in place of the layer"),
    "again": Entry("↑", "share of latents that come again with another seed, by the direction that they write"),
    "again_cofiring": Entry("↑", "share of latents that come again with another seed, by the tokens that they fire on"),
}
assert tuple(GLOSSARY) == METRICS, "every metric has its sentence, in the same order"
