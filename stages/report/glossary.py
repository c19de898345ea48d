"""Say what each metric and each word of the latents' pages means, for a reader who does not know it yet."""

from typing import NamedTuple

from strata.verdict.targets import METRICS


class Entry(NamedTuple):
    """What a metric means. ``better`` is an arrow: down, up, or empty where neither is better by itself."""

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

# The words of the latents' pages; docs/glossary.md says the same.
WORDS = {
    "interest": "how interesting a latent is to a person, from 0 to 1: a rule tells where it fires, it is rare, and it "
    "is not one common token",
    "importance": "density × mean when active × length of the decoder row: how much a latent writes",
    "density": "how often a latent is active, as a share of all that the SAE has read",
    "mean when active": "the mean of its activations that are above 0, on the scale of the layer's own vectors",
    "max": "the largest activation anywhere in the text, on the scale of the layer's own vectors",
    "spread": "how evenly the latent's activity is spread over documents: 1 is alike in all, 0 is in one only",
    "entropy quadrant": "whether the entropy of the latent's activity over documents, and the varentropy, are low or "
    "high in this layer: flowing (low, low), careful (high, low), exploring (low, high), resampling (high, high)",
    "encoder · decoder": "the cosine between the direction that it reads and the one that it writes; 1 is the same",
    "comes again": "another training, with another seed, has a latent of nearly the same direction, or that fires "
    "nearly alike",
    "family": "latents that write similar directions and fire together",
    "score": "the balanced accuracy of a latent's best explanation, on text that it had not seen, beside chance",
    "chance": "what a score is without knowledge: here, what another latent's explanation reaches on the same texts",
    "detection F1": "the balance of finding all active contexts and naming no silent one; 1 is perfect",
    "balanced accuracy": "the mean accuracy on active and silent texts; 0.5 is guessing",
    "Pearson r": "how well predicted strengths follow the real ones, by value; 1 is perfect, 0 is no relation",
    "Spearman ρ": "how well predicted strengths follow the real ones, by rank; 1 is perfect, 0 is no relation",
    "embedding AUC": "how often an active context is nearer to the explanation than a silent one, by a sentence model; "
    "0.5 is guessing",
    "right marks told": "how often the right tokens of a context are told from others that are marked; 0.5 is guessing",
    "intruder found": "how often the one text of five in which the latent is silent is found; 0.2 is guessing",
    "token rule": "the tokens that predict the latent's firing; an explanation that needs no language model",
    "near miss": "a text that looks like those on which the latent fires, and on which it is silent",
    "logit lens": "the tokens that a direction makes likelier or less likely when it goes straight to the output",
    "share": "of all places where the latent is active, how many have this token",
    "lift": "how many times more common a token is where the latent is active than in all of the text; 1 is no "
    "preference",
    "log-odds": "the logarithm of the token's odds where the latent is active, over its odds elsewhere; above 0 is a "
    "preference",
    "odds ratio": "a label's odds among the latent's strongest documents, over that among others; 1 is no preference",
    "q-value": "a p-value corrected for testing many labels; below 0.05 counts as significant",
    "cosine": "how alike two directions are: 1 is the same, 0 is unrelated",
    "KL": "how far two predictions of the next token are apart, in nats",
    "DiffMean": "the mean difference of activations with and without something; a strong baseline for steering",
    "skew": "above 0: the direction raises few tokens much; below 0: it lowers few tokens much",
    "kurtosis": "how much of the direction's effect falls on few tokens; 0 is that of a normal distribution",
}
